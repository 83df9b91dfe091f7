"""Chooses health samples from evaluation data, and writes them as daemon/samples.py reads them.

A good sample is one that every sound run of the same model passes, also on another device or
with other kernels, and that a broken one fails. So:

1. Where the model tells classes, objects or areas apart, what is expected is a label. An item is
   chosen only where the model got it right, and for each label the item it is surest of: a model
   that says the same of everything fails. Of objects that nobody told it of, an item's best counts.
2. Sure is: by the distance to the next best class, whatever the scores are (probabilities or
   logits). The least score is half-way to the next best: noise stays below half the distance, and
   a broken model's scores do not reach it.
3. Items of which it is far less sure than of the surest are left out.
4. Where outputs are only numbers, what is expected are this model's own, each within a share of
   the span that the output has over all items; class numbers and texts must be equal. The items
   are the first, and then always the one that differs most from all that were chosen.
"""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import tomlkit

from daemon.build.archive import packed_behind
from daemon.build.rows import as_called, as_stored
from daemon.modelfile import HealthSample
from daemon.pipeline.kinds import is_wav, picture_kind
from daemon.samples import MAX_FILE_BYTES, MAX_SAMPLES
from daemon.tensors import Classification, Detection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from accelerators.base import Array, TensorSpec
    from daemon.tensors import Meaning

DEFAULT_LIMIT = 10
"""Samples: enough for a broken model to fail, few enough for a probe of seconds."""
FOLDER = "samples"

_LEAST_SURE = 0.1
"""Of the surest item's distance: below it another device's noise could change the answer."""
_TOLERANCE = 0.1
"""Of an output's span. A small MobileNet in int8 differs from itself in float32 by 6 %; wrong
weights differ by more in some number of some item."""
_LEAST_TOLERANCE = 1e-3
_BYTES_MAX = 32 << 20
"""Of all samples: they travel with every update."""
_NAME_MAX = 40  # characters of a sample's file, of the 100 that a bundle's path may have


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One item of the evaluation data, and what the model that is bundled made of it.

    Attributes:
        name: tells where it came from, as "cat/0007.png" or "row 7"; unique in the data.
        inputs: an encoded picture or sound; or tensors by input name, as the model takes them, the
            batch dimension included.
        outputs: raw tensors by output name, as the service gives them, the same.
        meaning: with two classes at least (`top_k`), if there are so many; None where the outputs
            are only tensors.
        expected: the right label, from the data or from the original model's answer; None where
            nobody knows, and the model's own answer is taken as right.
    """

    name: str
    inputs: bytes | Mapping[str, Array]
    outputs: Mapping[str, Array]
    meaning: Meaning | None = None
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A sample to be written.

    Attributes:
        name: of the item.
        label, min_score: what is expected, where the outputs have a meaning.
        outputs, tolerance: what is expected else.
    """

    name: str
    inputs: bytes | Mapping[str, Array]
    label: str | None = None
    min_score: float | None = None
    outputs: Mapping[str, Array] | None = None
    tolerance: float | None = None


def choose_samples(
    items: Sequence[Evaluated], specs: Sequence[TensorSpec], *, limit: int = DEFAULT_LIMIT
) -> tuple[Chosen, ...]:
    """The items that show best whether the model works, most telling first. Pure.

    Args:
        items: evaluated, in a fixed order: among equals the first is chosen. All of them have a
            meaning, or none.
        specs: outputs of the default signature: they say which whole numbers are quantised.
        limit: samples at most, 1 to MAX_SAMPLES.

    Returns:
        () where no item was right, or none can be a sample.
    """
    limit = min(limit, MAX_SAMPLES)
    usable = [item for item in items if _is_finite(item) and _fits(item.inputs)]
    if any(item.meaning is not None for item in usable):
        return tuple(_within_bytes(_by_label(usable, limit)))
    return tuple(_within_bytes(_by_tensors(usable, specs, limit)))


def write_samples(folder: Path, chosen: Sequence[Chosen]) -> tuple[HealthSample, ...]:
    """Write `samples/` into a model's folder: the same samples, the same bytes.

    Returns:
        The entries of `[[health.samples]]`, in order.

    Raises:
        OSError: the disk refused.
    """
    writer = _Writer(folder)
    return tuple(writer.add(sample) for sample in chosen)


def samples_toml(samples: Sequence[HealthSample]) -> str:
    """The entries as text that stands at the end of a `model.toml`; "" without entries. Pure."""
    tables = tomlkit.aot()
    for sample in samples:
        table = tomlkit.table()
        table["input"] = sample.input
        for key in ("label", "min_score", "outputs", "tolerance"):
            if (value := getattr(sample, key)) is not None:
                table[key] = _inline(value) if isinstance(value, dict) else value
        tables.append(table)
    if not samples:
        return ""
    document = tomlkit.document()
    document["health"] = tomlkit.table(is_super_table=True).append("samples", tables)
    return tomlkit.dumps(document).strip() + "\n"


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An item with a label that the model gave it, and by how far."""

    item: Evaluated
    label: str
    score: float
    next_best: float

    @property
    def distance(self) -> float:
        return self.score - self.next_best

    def chosen(self) -> Chosen:
        least = _short(self.score - self.distance / 2)
        return Chosen(self.item.name, self.item.inputs, label=self.label, min_score=least)


def _by_label(items: Sequence[Evaluated], limit: int) -> list[Chosen]:
    surest: dict[str, _Candidate] = {}
    for item in items:
        for candidate in _candidates(item):
            best = surest.get(candidate.label)
            if best is None or candidate.distance > best.distance:
                surest[candidate.label] = candidate
    ranked = sorted(surest.values(), key=lambda each: -each.distance)
    least = ranked[0].distance * _LEAST_SURE if ranked else 0.0
    sure = [each for each in ranked if each.distance > 0 and each.distance >= least]
    return [each.chosen() for each in sure[:limit]]


def _candidates(item: Evaluated) -> list[_Candidate]:
    """The labels that the model gave an item, as daemon/samples.py judges them."""
    match item.meaning:
        case None:
            return []
        case Classification(categories):
            if not categories:
                return []
            best = categories[0]
            next_best = categories[1].score if len(categories) > 1 else min(best.score, 0.0)
            found = [_Candidate(item, best.label, best.score, next_best)]
        case Detection(boxes):
            told = boxes if item.expected else boxes[:1]
            found = [_Candidate(item, box.label, box.score, 0.0) for box in told]
        case segmentation:
            shares = segmentation.shares
            found = [_Candidate(item, each.label, each.share, 0.0) for each in shares]
    return [each for each in found if item.expected in {None, each.label}]


def _by_tensors(
    items: Sequence[Evaluated], specs: Sequence[TensorSpec], limit: int
) -> list[Chosen]:
    if not items:
        return []
    spans = {name: _Span.of([item.outputs[name] for item in items]) for name in items[0].outputs}
    quantised = {spec.name for spec in specs if spec.quantization is not None}
    groups: dict[float, list[str]] = defaultdict(list)
    for name, span in spans.items():
        if all(_can_be_expected(item.outputs[name]) for item in items):
            groups[span.tolerance(is_quantised=name in quantised)].append(name)
    if not groups:
        return []
    # One tolerance is for all outputs of a sample: outputs of other spans are samples of their own.
    names = [name for group in groups.values() for name in group]
    picked = _apart(items, {name: spans[name] for name in names}, max(1, limit // len(groups)))
    return [
        Chosen(
            item.name,
            item.inputs,
            outputs={name: item.outputs[name] for name in group},
            tolerance=tolerance,
        )
        for item in picked
        for tolerance, group in groups.items()
    ][:limit]


@dataclass(frozen=True, slots=True)
class _Span:
    """The values of an output over all items; 0 and 0 where they are no numbers."""

    kind: str
    least: float
    most: float

    @classmethod
    def of(cls, arrays: Sequence[Array]) -> _Span:
        kind = arrays[0].dtype.kind
        filled = [array for array in arrays if array.size and kind in "fiub"]
        if not filled:
            return cls(kind, 0.0, 0.0)
        least = min(float(np.min(array)) for array in filled)
        return cls(kind, least, max(float(np.max(array)) for array in filled))

    @property
    def width(self) -> float:
        """Of values that are all equal, their distance from 0."""
        return self.most - self.least or abs(self.most)

    def tolerance(self, *, is_quantised: bool) -> float:
        if self.kind != "f" and not is_quantised:
            return 0.0
        return _rounded_up(max(self.width * _TOLERANCE, _LEAST_TOLERANCE))

    def apart(self, one: Array, other: Array) -> float:
        """The mean distance of two outputs, 0..1 of the span."""
        if one.shape != other.shape:
            return 1.0
        if self.kind not in "fiub":
            return float(not np.array_equal(one, other))
        if not one.size or not self.width:
            return 0.0
        difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
        return float(np.mean(difference)) / self.width


def _apart(items: Sequence[Evaluated], spans: Mapping[str, _Span], count: int) -> list[Evaluated]:
    """The first item, and then always the one that is farthest from all that were picked."""
    picked = [items[0]]
    farthest = [math.inf] * len(items)
    while len(picked) < min(count, len(items)):
        for index, item in enumerate(items):
            pairs = ((item.outputs[name], picked[-1].outputs[name]) for name in spans)
            distances = (
                span.apart(*pair) for span, pair in zip(spans.values(), pairs, strict=True)
            )
            farthest[index] = min(farthest[index], max(distances))
        best = max(range(len(items)), key=lambda index: farthest[index])
        if not farthest[best]:
            break
        picked.append(items[best])
    return picked


def _within_bytes(chosen: Sequence[Chosen]) -> Iterator[Chosen]:
    """The samples, as long as all of them together are not too large to travel."""
    left = _BYTES_MAX
    for sample in chosen:
        left -= _size_bytes(sample.inputs) + _size_bytes(sample.outputs or {})
        if left >= 0:
            yield sample


def _size_bytes(inputs: bytes | Mapping[str, Array]) -> int:
    """About what the files of it have, at least."""
    if isinstance(inputs, bytes):
        return len(inputs)
    return sum(_array_bytes(array) for array in inputs.values())


def _array_bytes(array: Array) -> int:
    return as_stored(array).nbytes + 256


def _fits(inputs: bytes | Mapping[str, Array]) -> bool:
    """Whether it can be read back as it is."""
    if _size_bytes(inputs) > MAX_FILE_BYTES:
        return False
    return isinstance(inputs, bytes) or all(map(_is_kept, inputs.values()))


def _can_be_expected(array: Array) -> bool:
    return _array_bytes(array) <= MAX_FILE_BYTES and _is_kept(array)


def _is_kept(array: Array) -> bool:
    """False for texts that end with zero bytes, which a file does not keep."""
    return array.dtype != object or np.array_equal(as_called(as_stored(array)), array)


def _is_finite(item: Evaluated) -> bool:
    floats = (array for array in item.outputs.values() if array.dtype.kind == "f")
    return all(bool(np.isfinite(array).all()) for array in floats)


def _short(number: float) -> float:
    """Four digits: what a person reads in `model.toml`."""
    return float(f"{number:.4g}")


def _rounded_up(number: float) -> float:
    """Two digits, not smaller."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f"{math.ceil(round(number / unit, 6)) * unit:.2g}")


class _Writer:
    """Writes a model's samples under names that are free; one file for the same bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[tuple[str, bytes], str] = {}

    def add(self, sample: Chosen) -> HealthSample:
        stem = _slug(sample.label or sample.name.rpartition("/")[2])
        given = self._write(stem, *_encoded(sample.inputs))
        outputs = None
        if sample.outputs is not None:
            outputs = {
                name: self._write(f"{stem}-{_slug(name)}", ".npy", _npy(array))
                for name, array in sample.outputs.items()
            }
        return HealthSample(
            input=given,
            label=sample.label,
            min_score=sample.min_score,
            outputs=outputs,
            tolerance=sample.tolerance,
        )

    def _write(self, stem: str, suffix: str, data: bytes) -> str:
        if (suffix, data) in self._names:
            return self._names[suffix, data]
        number = 1
        name = f"{FOLDER}/{stem}{suffix}"
        while name in self._names.values():
            number += 1
            name = f"{FOLDER}/{stem}-{number}{suffix}"
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        self._names[suffix, data] = name
        return name


def _encoded(inputs: bytes | Mapping[str, Array]) -> tuple[str, bytes]:
    """The suffix and the bytes of an input's file."""
    if isinstance(inputs, bytes):
        kind = picture_kind(inputs) or ("WAV" if is_wav(inputs) else "bin")
        return f".{kind.lower()}", inputs
    if len(inputs) == 1:
        return ".npy", _npy(next(iter(inputs.values())))
    return ".npz", packed_behind(b"", {f"{name}.npy": _npy(each) for name, each in inputs.items()})


def _npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(as_stored(array), order="C"), allow_pickle=False)
    return stream.getvalue()


def _slug(text: str) -> str:
    """A part of a bundle's path that a person recognises."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:_NAME_MAX].strip("-") or "sample"


def _inline(outputs: Mapping[str, str]) -> tomlkit.items.InlineTable:
    table = tomlkit.inline_table()
    table.update(outputs)
    return table
