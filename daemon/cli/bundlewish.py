"""What `bundle build` is asked to make of a source, checked before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon.build.choose import Variant
from daemon.build.converter import Limits, default_memory_mib
from daemon.build.healthsamples import DEFAULT_LIMIT
from daemon.build.sources import SourceKind
from daemon.cli.modeltoml import edit
from daemon.cli.outcome import CommandError, UsageError
from daemon.errors import ConfigError
from daemon.modelfile import parse_model_file

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

AUTO = "auto"
_DEFAULT_MAX_LOSS = 0.01
_DEFAULT_SECONDS = 1800.0
_MAX_TABLES_BYTES = 256 << 10  # as the daemon reads
_MAX_LABELS_BYTES = 4 << 20
_OPTIONS = {
    "optimize": "--optimize",
    "representative": "--representative",
    "eval": "--eval",
    "max_accuracy_drop": "--max-accuracy-drop",
    "labels": "--labels",
    "description": "--description",
    "mean": "--mean",
    "std": "--std",
    "model_toml": "--model-toml",
    "samples": "--samples",
    "record_latency": "--record-latency",
    "convert_seconds": "--convert-seconds",
    "convert_memory_mib": "--convert-memory-mib",
}
"""Of the options that a model's folder cannot be given, where each is in the arguments."""
_FOR_TENSORFLOW = ("representative", "max_accuracy_drop", "convert_seconds", "convert_memory_mib")
_FOR_EVAL = ("max_accuracy_drop", "samples", "record_latency")


@dataclass(frozen=True, slots=True)
class Wish:
    """How a model's folder is made.

    Attributes:
        optimize: the variants to try; one, unless the best of all was asked for.
        is_auto: whether the best of them is taken.
        max_loss: that a variant may lose, 0..1.
        tables: text of the `model.toml` to begin with: `--model-toml` and the options.
        labels: the file that they are from; None where none was given.
        label_lines: class names by class number; () where none were given.
        max_samples: health samples to choose at most.
    """

    source: Path
    kind: SourceKind
    optimize: tuple[Variant, ...]
    is_auto: bool
    representative: Path | None
    evaluation: Path | None
    max_loss: float
    tables: str
    labels: Path | None
    label_lines: tuple[str, ...]
    max_samples: int
    records_latency: bool
    limits: Limits


def read_wish(arguments: argparse.Namespace, kind: SourceKind) -> Wish | None:
    """What is to be made; None where the source is bundled as it is.

    Raises:
        UsageError: options contradict each other or the source.
        CommandError: a file that an option names cannot be used.
    """
    # 0 is a number that was given, though it equals False.
    given = [
        name for name in _OPTIONS if not any(getattr(arguments, name) is no for no in (None, False))
    ]
    if not kind.needs_tensorflow and arguments.optimize == Variant.NONE.value:
        given.remove("optimize")  # it is what happens in any case
    if kind is SourceKind.FOLDER and given:
        raise UsageError(
            f"argument {_OPTIONS[given[0]]}: a model's folder is bundled as it is; its model.toml "
            "says what is to be said, and a .tflite file of its own can be given this option"
        )
    if not kind.needs_tensorflow and not given:
        return None
    _check_for_source(arguments, kind, given)
    _check_together(arguments, given)
    tables = _read_tables(arguments)
    optimize = arguments.optimize or Variant.NONE.value
    return Wish(
        source=arguments.source,
        kind=kind,
        optimize=tuple(Variant) if optimize == AUTO else (Variant(optimize),),
        is_auto=optimize == AUTO,
        representative=arguments.representative,
        evaluation=arguments.eval,
        max_loss=_default(arguments.max_accuracy_drop, _DEFAULT_MAX_LOSS),
        tables=tables,
        labels=arguments.labels,
        label_lines=_read_labels(arguments.labels) if arguments.labels else (),
        max_samples=_default(arguments.samples, DEFAULT_LIMIT),
        records_latency=arguments.record_latency,
        limits=Limits(
            _default(arguments.convert_seconds, _DEFAULT_SECONDS),
            _default(arguments.convert_memory_mib, default_memory_mib()),
        ),
    )


def _check_for_source(arguments: argparse.Namespace, kind: SourceKind, given: list[str]) -> None:
    """Refuse what needs another kind of source."""
    if kind.needs_tensorflow:
        return
    if arguments.optimize not in (None, Variant.NONE.value):
        raise UsageError(
            f"argument --optimize: a .tflite file is optimized already or never: TensorFlow does "
            f"that while it converts; give the Keras file or SavedModel, not {arguments.source}"
        )
    for name in _FOR_TENSORFLOW:
        if name in given:
            raise UsageError(
                f"argument {_OPTIONS[name]}: only for what is converted by TensorFlow, "
                f"a .tflite file is not: {arguments.source}"
            )


def _check_together(arguments: argparse.Namespace, given: list[str]) -> None:
    """Refuse options that need others."""
    optimize = arguments.optimize or Variant.NONE.value
    if optimize == AUTO and arguments.eval is None:
        raise UsageError("argument --optimize: auto compares variants: it needs --eval PATH")
    if optimize == Variant.INT8.value and arguments.representative is None:
        raise UsageError(
            "argument --optimize: int8 takes its ranges from data: it needs --representative PATH"
        )
    if arguments.representative and optimize not in (AUTO, Variant.INT8.value):
        raise UsageError(
            "argument --representative: only int8 and auto take ranges from data: add "
            "--optimize int8 or auto"
        )
    for name in _FOR_EVAL:
        if name in given and arguments.eval is None:
            raise UsageError(f"argument {_OPTIONS[name]}: it needs --eval PATH")
    for name in ("representative", "eval", "labels", "model_toml"):
        path = getattr(arguments, name)
        if path is not None and not path.exists():
            raise UsageError(f"argument {_OPTIONS[name]}: no such file or folder: {path}")


def _read_tables(arguments: argparse.Namespace) -> str:
    """The text of `--model-toml` with what options say.

    Raises:
        UsageError: an option does not go into it.
        CommandError: the file cannot be used.
    """
    path = arguments.model_toml
    text = _read_text(path, _MAX_TABLES_BYTES) if path else ""
    try:
        tables = parse_model_file(text)
    except ConfigError as exc:
        raise CommandError(f"{path}: {exc}") from exc
    if tables.health.samples:
        raise CommandError(
            f"{path}: [[health.samples]] name files that a converted model does not have; leave "
            "them out: --eval PATH chooses samples"
        )
    if isinstance(tables.output.labels, str):
        raise CommandError(f"{path}: output.labels names a file: give it with --labels")
    if arguments.labels and tables.output.labels:
        raise UsageError(f"argument --labels: {path} has labels of its own")
    changes: dict[str, dict[str, Any]] = {}
    if arguments.description:
        changes["model"] = {"description": arguments.description}
    said = {key: getattr(arguments, key) for key in ("mean", "std")}
    numbers = {key: value for key, value in said.items() if value is not None}
    if numbers:
        changes["input"] = numbers
    try:
        return edit(text, changes)
    except ValueError as exc:
        raise UsageError(f"argument --mean, --std or --description: {exc}") from exc


def _read_labels(path: Path) -> tuple[str, ...]:
    """Line numbers are class numbers, so an empty line stays, but at the end."""
    text = _read_text(path, _MAX_LABELS_BYTES).rstrip()
    lines = [line.strip() for line in text.splitlines()]
    if not lines:
        raise CommandError(f"{path}: expected a class name on each line")
    named = [line for line in lines if line]
    if len(named) != len(set(named)):
        twice = next(line for line in named if named.count(line) > 1)
        raise CommandError(f"{path}: '{twice}' stands on two lines")
    return tuple(lines)


def _read_text(path: Path, limit_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise CommandError(f"{path}: larger than {limit_bytes} bytes")
        return data.decode("utf-8-sig")
    except OSError as exc:
        raise CommandError(f"{path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise CommandError(f"{path}: not UTF-8 at byte {exc.start}") from exc


def _default(value: Any, default: Any) -> Any:  # noqa: ANN401 (a number)
    return default if value is None else value
