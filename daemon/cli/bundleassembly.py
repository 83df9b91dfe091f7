"""Makes a model's folder of a Keras file, a SavedModel or a lone .tflite, for `bundle build`.

What happens, in this order; whatever fails ends it, and nothing is written outside of `scratch`:

1. The source is read and converted as it is; a worker of the daemon's says what it takes and gives.
2. The data becomes rows of that. The original answers the evaluation rows.
3. Each variant that was asked for is made, and answers them in a worker.
4. One is chosen (daemon/build/choose.py).
5. Labels, normalization and description are written into its file; health samples are chosen of
   what it got right; `provenance.json` says where all of it comes from.
6. The folder is probed as a device probes it.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from daemon.build.choose import Figures, Measure, Variant, choose
from daemon.build.compare import count_classes, find_scores, is_binary, is_guess
from daemon.build.converter import converting
from daemon.build.data import (
    MAX_EVALUATED,
    MAX_REPRESENTATIVE,
    DataKind,
    check_finite,
    labels_from_folders,
    number_classes,
    open_data,
    split_classes,
    write_rows,
)
from daemon.build.describe import describe, is_default_first
from daemon.build.errors import BadData, ConversionFailed, NotServable
from daemon.build.evaluate import evaluating
from daemon.build.healthsamples import choose_samples, samples_toml, write_samples
from daemon.build.metadata import write_metadata
from daemon.build.provenance import PROVENANCE_FILE, Provenance, Used, encode
from daemon.build.sources import digest_of
from daemon.build.yardstick import Yardstick
from daemon.cli.modeltoml import edit
from daemon.modelfile import parse_model_file
from daemon.models.store import LABELS_FILE, MODEL_FILE, TABLES_FILE
from daemon.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemon.build.compare import Comparison
    from daemon.build.converter import Converter
    from daemon.build.data import Data
    from daemon.build.evaluate import Evaluator, Look
    from daemon.cli.bundlewish import Wish
    from daemon.config import Config

    Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """The variants that were tried.

    Attributes:
        measure: by what they were told apart; None where they were not.
        original_quality: the original's own share of right answers; None where it has none.
        items: that each was asked.
        chosen: of `figures`; None when none may be taken.
    """

    figures: tuple[Figures, ...]
    measure: Measure | None
    original_quality: float | None
    items: int
    chosen: Figures | None


@dataclass(frozen=True, slots=True)
class Made:
    """A model's folder, and how it came to be.

    Attributes:
        folder: None when no variant may be taken.
        samples: health samples in it.
    """

    folder: Path | None
    trial: Trial
    samples: int = 0


def make_folder(
    wish: Wish, name: str, version: int, *, scratch: Path, config: Config, say: Say
) -> Made:
    """Make the folder of a model in `scratch`.

    Args:
        name, version: of the model.
        config: the daemon's, for workers and decoders.
        say: told of each step, in a line.

    Raises:
        CannotBuild: it cannot be made; nothing is left but what is in `scratch`.
        OSError: the disk refused.
    """
    with ExitStack() as stack:
        converter = None
        if wish.kind.needs_tensorflow:
            work = scratch / "converter"
            work.mkdir()
            converter = stack.enter_context(converting(work, wish.limits))
        evaluator = stack.enter_context(evaluating(config))
        tables = edit(wish.tables, {"model": {"name": name, "version": version}})
        labels = wish.label_lines or _listed(tables)
        place = str(wish.labels or TABLES_FILE)
        return _Assembly(wish, scratch, evaluator, converter, say, tables, labels, place).make()


@dataclass(slots=True)
class _Assembly:
    """The steps, and what they hand on.

    Attributes:
        tables: text of the `model.toml` as far as it is known.
        labels: class names by class number as far as they are known.
        labels_place: where the publisher finds them.
        versions: of what took part, by name.
    """

    wish: Wish
    scratch: Path
    evaluator: Evaluator
    converter: Converter | None
    say: Say
    tables: str
    labels: tuple[str, ...]
    labels_place: str
    versions: dict[str, str] = field(default_factory=lambda: {"inferd": VERSION})

    def make(self) -> Made:
        """All of it, in order."""
        evaluation = self._open(self.wish.evaluation, MAX_EVALUATED)
        representative = self._open(self.wish.representative, MAX_REPRESENTATIVE)
        self._name_kind(evaluation or representative)
        look = self._first_look()
        yardstick = None
        if evaluation is not None:
            evaluation = split_classes(evaluation, _inputs(look))
            look = self._name_classes(evaluation, look)
            yardstick = self._yardstick(evaluation, look)
        ranges = None
        if representative is not None:
            representative = split_classes(representative, _inputs(look))
            check_finite(representative)
            ranges = self._rows(representative, look, "representative")
        trial = self._try_all(look.signature.name, ranges, yardstick)
        self._doubt(trial, look, yardstick)
        if trial.chosen is None:
            return Made(None, trial)
        used = {"representative": representative, "evaluation": evaluation}
        folder = self._describe(trial.chosen.variant, look)
        samples = self._add_samples(folder, look, yardstick)
        self._add_provenance(folder, trial, used)
        self._probe(folder)
        return Made(folder, trial, samples)

    def _open(self, path: Path | None, most: int) -> Data | None:
        return None if path is None else open_data(path, most=most)

    def _name_kind(self, data: Data | None) -> None:
        """What the data is, the model takes, unless it was said otherwise."""
        kinds = {DataKind.PICTURES: "image", DataKind.SOUNDS: "audio"}
        if data is None or data.kind not in kinds or parse_model_file(self.tables).input.kind:
            return
        self.tables = edit(self.tables, {"input": {"kind": kinds[data.kind]}})

    def _first_look(self) -> Look:
        if self.converter is None:
            shutil.copyfile(self.wish.source, self._folder(Variant.NONE) / MODEL_FILE)
        else:
            self.say("starting TensorFlow …")
            opened = self.converter.open(self.wish.kind, self.wish.source)
            self.versions.update(opened.versions)
            self._convert(Variant.NONE, opened.signatures[0], None)
        look = self._look()
        self.versions["runtime"] = look.report.runtime
        return look

    def _look(self) -> Look:
        look = self.evaluator.look(self._folder(Variant.NONE))
        if self.labels and look.profile.output is None:
            raise BadData("no output of the model has a number for each label")
        if self.labels and look.profile.notes:
            notes = "; ".join(look.profile.notes).replace(LABELS_FILE, self.labels_place)
            raise BadData(f"the labels do not fit: {notes}")
        return look

    def _name_classes(self, data: Data, look: Look) -> Look:
        """Labels from the names of folders, and an output for classes, where nothing said them."""
        if not data.has_classes:
            return look
        scores = find_scores(look.signature, look.profile, has_classes=True)
        if is_binary(look.signature, scores):
            return look  # the daemon has no meaning for it
        if data.folders and not self.labels:
            self.labels = look.profile.labels or labels_from_folders(data)
            self.labels_place = (
                "the list in the file" if look.profile.labels else "the list of --eval's folders"
            )
        if not parse_model_file(self.tables).output.kind:
            self.tables = edit(self.tables, {"output": {"kind": "classification"}})
        return self._look()

    def _yardstick(self, data: Data, look: Look) -> Yardstick:
        """The rows, and what the original makes of them."""
        self.say(f"reading {len(data.names)} items of {data.path} …")
        scores = find_scores(look.signature, look.profile, has_classes=data.has_classes)
        labels = self.labels or (labels_from_folders(data) if data.folders else ())
        classes = count_classes(look.signature, scores) if scores else 0
        class_numbers = number_classes(data, labels, classes)
        rows = self._rows(data, look, "evaluation")
        originals = None
        if self.converter is not None:
            self.say("asking the original …")
            originals = self.scratch / "originals.rows"
            self.converter.predict(rows, originals, signature=look.signature.name)
        return Yardstick(data, rows, originals, class_numbers, scores)

    def _rows(self, data: Data, look: Look, name: str) -> Path:
        out = self.scratch / f"{name}.rows"
        write_rows(data, out, look.signature, look.profile, self.evaluator.media_limits)
        return out

    def _try_all(self, signature: str, ranges: Path | None, yardstick: Yardstick | None) -> Trial:
        """Make and measure each variant that was asked for."""
        figures: list[Figures] = []
        comparison: Comparison | None = None
        for variant in self.wish.optimize:
            found, compared = self._try(variant, signature, ranges, yardstick)
            figures.append(found)
            comparison = compared or comparison
        return Trial(
            figures=tuple(figures),
            measure=comparison.measure if comparison else None,
            original_quality=comparison.original_quality if comparison else None,
            items=comparison.items if comparison else 0,
            chosen=choose(figures, max_loss=self.wish.max_loss),
        )

    def _doubt(self, trial: Trial, look: Look, yardstick: Yardstick | None) -> None:
        """Say where the model as it was given answers as if it guessed."""
        if yardstick is None or trial.measure is not Measure.ACCURACY:
            return
        quality = trial.original_quality
        if quality is None:
            quality = trial.figures[0].quality
        classes = count_classes(look.signature, yardstick.scores)
        if quality is not None and is_guess(quality, classes):
            self.say(
                f"the model is right on {quality:.1%} of --eval, hardly better than guessing: "
                "check --mean, --std and the order of the labels"
            )

    def _try(
        self, variant: Variant, signature: str, ranges: Path | None, yardstick: Yardstick | None
    ) -> tuple[Figures, Comparison | None]:
        """One of several that fails is passed over; one that was asked for by name is not."""
        if variant is Variant.INT8 and ranges is None:
            return Figures(variant, problem="needs --representative PATH"), None
        try:
            if variant is not Variant.NONE:
                self._convert(variant, signature, ranges)
            folder = self._folder(variant)
            if yardstick is None:
                self.evaluator.look(folder)
                return Figures(variant, (folder / MODEL_FILE).stat().st_size), None
            self.say(f"measuring ({variant.value}) …")
            return yardstick.measure(self.evaluator, variant, folder)
        except (ConversionFailed, NotServable) as exc:
            if not self.wish.is_auto:
                raise
            return Figures(variant, problem=str(exc)), None

    def _convert(self, variant: Variant, signature: str, ranges: Path | None) -> None:
        if self.converter is None:
            raise RuntimeError("a .tflite file is not converted")
        self.say(f"converting ({variant.value}) …")
        out = self._folder(variant) / MODEL_FILE
        rows = ranges if variant is Variant.INT8 else None
        if note := self.converter.convert(variant, out, signature=signature, rows=rows):
            self.say(note)

    def _folder(self, variant: Variant) -> Path:
        """A variant's folder as it would be served, with what is known by now."""
        folder = self.scratch / "variants" / variant.value
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TABLES_FILE).write_text(self.tables)
        if self.labels:
            (folder / LABELS_FILE).write_text("".join(f"{label}\n" for label in self.labels))
        return folder

    def _describe(self, variant: Variant, look: Look) -> Path:
        """The chosen variant's folder, with the metadata in its file."""
        folder = self._folder(variant)
        tables = parse_model_file(self.tables)
        model = (folder / MODEL_FILE).read_bytes()
        metadata = describe(
            look.report,
            look.profile,
            name=tables.model.name or "",
            version=tables.model.version or 1,
            description=tables.model.description or "",
            labels=self.labels,
            is_first=is_default_first(model, look.signature.name),
        )
        (folder / MODEL_FILE).write_bytes(write_metadata(model, metadata))
        return folder

    def _add_samples(self, folder: Path, look: Look, yardstick: Yardstick | None) -> int:
        """Health samples of what the finished model answers; how many there are."""
        if yardstick is None or not self.wish.max_samples:
            return 0
        self.say("choosing health samples …")
        candidates = yardstick.candidates(self.evaluator, folder, look.profile)
        chosen = choose_samples(candidates, look.signature.outputs, limit=self.wish.max_samples)
        entries = write_samples(folder, chosen)
        text = samples_toml(entries)
        (folder / TABLES_FILE).write_text(f"{self.tables.rstrip()}\n\n{text}")
        return len(entries)

    def _add_provenance(self, folder: Path, trial: Trial, used: dict[str, Data | None]) -> None:
        wish = self.wish
        data = {
            role: Used(data.kind.value, data.digest, len(data.names)) if data else None
            for role, data in used.items()
        }
        told = Provenance(
            source=Used(wish.kind.value, digest_of(wish.source)),
            versions=self.versions,
            settings={
                "optimize": "auto" if wish.is_auto else wish.optimize[0].value,
                "max_accuracy_drop": wish.max_loss,
                "samples": wish.max_samples,
            },
            representative=data["representative"],
            evaluation=data["evaluation"],
            measure=trial.measure,
            original_quality=trial.original_quality,
            variants=trial.figures,
            chosen=trial.chosen.variant if trial.chosen else None,
        )
        (folder / PROVENANCE_FILE).write_bytes(
            encode(told, max_loss=wish.max_loss, with_latency=wish.records_latency)
        )

    def _probe(self, folder: Path) -> None:
        """Try the folder as a device does.

        Raises:
            NotServable: a device would not take it.
        """
        self.say("trying it as a device does …")
        verdict = self.evaluator.probe(folder)
        if not verdict.ok:
            raise NotServable(f"a device would not take it: {'; '.join(verdict.reasons)}")


def _inputs(look: Look) -> list[str]:
    return [spec.name for spec in look.signature.inputs]


def _listed(tables: str) -> tuple[str, ...]:
    labels = parse_model_file(tables).output.labels
    return labels if isinstance(labels, tuple) else ()
