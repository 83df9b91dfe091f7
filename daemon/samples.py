"""Health samples: a model folder's own inputs with the answers it must give.

An input is a picture or a sound for a model that takes these, a `.npy` for a model with one input
tensor, a `.npz` with a tensor for each input else. What is expected is a label, with a least score,
or tensors (`.npy`), each within a tolerance. Texts and bytes are NumPy's fixed-width bytes (`S`).

Checked for every sample, expected or not: no output holds NaN or infinity.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daemon.codec.validate import check_inputs
from daemon.errors import RequestError
from daemon.pipeline.media import MediaLimits, prepare
from daemon.tensors import Classification, Detection, Media

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from accelerators.base import Array, SignatureSpec
    from daemon.modelfile import HealthSample, HealthTable
    from daemon.pipeline.profiles import ModelProfile
    from daemon.tensors import Meaning, PredictResult

MAX_SAMPLES = 64
"""Enough for one of each of most models' classes; a probe is to take seconds."""
MAX_FILE_BYTES = 16 << 20
_DEFAULT_TOLERANCE = 1e-3


class BadSample(Exception):
    """A sample cannot be read, or does not fit the model; the message is for the publisher."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One input, and what the model must make of it.

    Attributes:
        name: its file, as `model.toml` names it.
        label: None where any will do.
        min_score: of that label.
        outputs: expected tensors by output name.
        tolerance: largest absolute difference of an element.
    """

    name: str
    inputs: Mapping[str, Array] | Media
    label: str | None = None
    min_score: float = 0.0
    outputs: Mapping[str, Array] | None = None
    tolerance: float = _DEFAULT_TOLERANCE


def load_samples(
    folder: Path, table: HealthTable, signature: SignatureSpec, profile: ModelProfile
) -> tuple[Sample, ...]:
    """Read the samples of a model folder. Blocks on the disk.

    Raises:
        BadSample: the message names the file and says what was expected.
    """
    if len(table.samples) > MAX_SAMPLES:
        raise BadSample(f"{len(table.samples)} samples; at most {MAX_SAMPLES} are run")
    return tuple(_load(folder, sample, signature, profile) for sample in table.samples)


def sample_inputs(
    folder: Path,
    table: HealthTable,
    signature: SignatureSpec,
    profile: ModelProfile,
    limits: MediaLimits,
) -> tuple[Mapping[str, Array], ...]:
    """The samples' inputs as the model takes them, without those that it does not take. Blocks.

    Raises:
        BadSample: one cannot be read.
    """
    inputs: list[Mapping[str, Array]] = []
    for sample in load_samples(folder, table, signature, profile):
        with contextlib.suppress(RequestError):
            tensors = _as_tensors(sample.inputs, profile, limits)
            check_inputs(signature, 1, tensors)
            inputs.append(tensors)
    return tuple(inputs)


def _as_tensors(
    inputs: Mapping[str, Array] | Media, profile: ModelProfile, limits: MediaLimits
) -> Mapping[str, Array]:
    if not isinstance(inputs, Media):
        return inputs
    if profile.input is None:  # load_samples has refused it
        raise RuntimeError("a profile that takes media names its input")
    return {profile.input.name: prepare(profile, (inputs.data,), limits=limits).rows}


def judge(sample: Sample, result: PredictResult) -> str:
    """What is wrong with an answer; "" when it is right.

    Args:
        sample: asked with outputs and meaning wanted.
        result: of it.
    """
    for name, array in result.outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"output '{name}' holds NaN or infinity"
    if sample.label is not None and (problem := _judge_label(sample, result.meaning)):
        return problem
    for name, expected in (sample.outputs or {}).items():
        if problem := _judge_tensor(name, expected, result.outputs.get(name), sample.tolerance):
            return problem
    return ""


def _load(
    folder: Path, table: HealthSample, signature: SignatureSpec, profile: ModelProfile
) -> Sample:
    data = _read(folder, table.input)
    inputs: Mapping[str, Array] | Media
    if table.input.endswith(".npz"):
        inputs = _tensors(table.input, data)
    elif table.input.endswith(".npy"):
        if len(signature.inputs) != 1:
            raise BadSample(f"{table.input}: the model has {len(signature.inputs)} inputs: .npz")
        inputs = {signature.inputs[0].name: _tensor(table.input, data)}
    elif profile.input is not None:
        inputs = Media(data)
    else:
        raise BadSample(f"{table.input}: the model takes tensors; a sample is a .npy or .npz")
    outputs = {
        name: _tensor(file, _read(folder, file)) for name, file in (table.outputs or {}).items()
    }
    if table.label is None and not outputs:
        raise BadSample(f"{table.input}: neither a label nor outputs are expected of it")
    return Sample(
        name=table.input,
        inputs=inputs,
        label=table.label,
        min_score=table.min_score or 0.0,
        outputs=outputs,
        tolerance=_DEFAULT_TOLERANCE if table.tolerance is None else table.tolerance,
    )


def _read(folder: Path, name: str) -> bytes:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadSample(f"{name}: lies outside of the model's folder")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise BadSample(f"{name}: cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise BadSample(f"{name}: larger than {MAX_FILE_BYTES} bytes")
    return data


def _tensor(name: str, data: bytes) -> Array:
    try:
        array: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as exc:
        raise BadSample(f"{name}: not a .npy file: {exc}") from exc
    # Texts are kept as fixed-width bytes: a file of objects would have to be unpickled.
    return array.astype(object) if array.dtype.kind == "S" else np.asarray(array, order="C")


def _tensors(name: str, data: bytes) -> Mapping[str, Array]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size_bytes = sum(entry.file_size for entry in archive.infolist())
            if size_bytes > MAX_FILE_BYTES:
                raise BadSample(f"{name}: its tensors are larger than {MAX_FILE_BYTES} bytes")
            return {
                entry.filename.removesuffix(".npy"): _tensor(name, archive.read(entry))
                for entry in archive.infolist()
            }
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as exc:
        raise BadSample(f"{name}: not a .npz file: {exc}") from exc


def _judge_label(sample: Sample, meaning: tuple[Meaning, ...]) -> str:
    """The best class must be it; or, in detection, one of the objects."""
    wanted = f"'{sample.label}' with a score of at least {sample.min_score:g}"
    if not meaning:
        return f"expected {wanted}, but the model's answers have no labels"
    first = meaning[0]
    if isinstance(first, Classification):
        found = [(item.label, item.score) for item in first.categories[:1]]
    elif isinstance(first, Detection):
        found = [(item.label, item.score) for item in first.boxes]
    else:
        found = [(item.label, item.share) for item in first.shares]
    if any(label == sample.label and score >= sample.min_score for label, score in found):
        return ""
    shown = ", ".join(f"'{label}' {score:.3f}" for label, score in found[:3]) or "nothing"
    return f"expected {wanted}, got {shown}"


def _judge_tensor(name: str, expected: Array, got: Array | None, tolerance: float) -> str:
    if got is None:
        return f"the model has no output '{name}'"
    if got.shape != expected.shape:
        return f"output '{name}': shape {list(got.shape)}, expected {list(expected.shape)}"
    if got.dtype.kind not in "fiub" or expected.dtype.kind not in "fiub":
        return "" if np.array_equal(got, expected) else f"output '{name}' differs"
    if not got.size:
        return ""
    difference = float(np.max(np.abs(got.astype(np.float64) - expected.astype(np.float64))))
    if difference <= tolerance:
        return ""
    return f"output '{name}' differs by {difference:g}, allowed are {tolerance:g}"
