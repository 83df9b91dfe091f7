"""`model.toml`: what a model's file cannot say of itself. Pure: text in, tables or problems out.

Every key may be absent: the metadata packed in the TFLite file speaks next, then shape and dtype,
then the daemon's `[defaults]`.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Literal

from msgspec import Meta

from daemon.errors import ConfigError
from daemon.tables import Check, Name, Table, check_tables, parse_toml

MAX_NAME_CHARACTERS = 128


def check_model_name(name: str) -> str:
    """Refuse names that people could not tell apart or type; `/`, `+`, `#` and `:` are taken.

    URLs and MQTT topics carry those percent-encoded.

    Raises:
        ValueError: the message says what was expected.
    """
    if name in (".", "..") or name != name.strip() or not name.isprintable():
        raise ValueError("expected a name without control characters or spaces at its ends")
    return name


def check_file_name(name: str) -> str:
    """Refuse what would lead out of the model's own folder.

    Raises:
        ValueError: the message says what was expected.
    """
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise ValueError("expected the name of a file beside model.toml, without folders")
    return name


def _check_model_file(name: str) -> str:
    if not check_file_name(name).endswith(".tflite") or name.startswith("."):
        raise ValueError(
            "expected the name of a .tflite file beside the model, none that is hidden"
        )
    return name


def _check_divisor(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
    if 0.0 in (value if isinstance(value, tuple) else (value,)):
        raise ValueError("expected numbers other than 0: pixels are divided by them")
    return value


def _check_labels(labels: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return check_file_name(labels) if isinstance(labels, str) else labels


ModelName = Annotated[
    str,
    Check(check_model_name),
    Meta(
        min_length=1,
        max_length=MAX_NAME_CHARACTERS,
        description=f"text of 1 to {MAX_NAME_CHARACTERS} printable characters",
    ),
]
ACCELERATOR_KINDS = ("cpu", "gpu", "edgetpu", "npu", "external")
EXTERNAL_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""Of a delegate in `[[accelerators.external]]`; its device is "external:NAME"."""
_WISH_FORM = '"cpu", "gpu", "edgetpu", "npu", "external" or "external:NAME"'


def check_wish(wish: str) -> str:
    """Refuse what is neither a kind of accelerator nor names an external one.

    Raises:
        ValueError: the message says what was expected.
    """
    kind, colon, name = wish.partition(":")
    if wish in ACCELERATOR_KINDS or (
        kind == "external" and colon and re.fullmatch(EXTERNAL_NAME, name)
    ):
        return wish
    near = difflib.get_close_matches(kind.lower(), ACCELERATOR_KINDS, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    raise ValueError(f"expected {_WISH_FORM}{hint}")


AcceleratorWish = Annotated[str, Check(check_wish), Meta(description=_WISH_FORM)]
Channels = float | Annotated[tuple[float, ...], Meta(min_length=1, max_length=4)]
"""One number for every channel, or one for each."""


class ModelTable(Table, frozen=True):
    """`[model]`: who it is. Name defaults to the folder's or the file's stem, version to 1."""

    name: ModelName | None = None
    version: Annotated[int, Meta(ge=1, le=2**63 - 1)] | None = None
    description: Annotated[str, Meta(max_length=2000)] | None = None


class InputTable(Table, frozen=True):
    """`[input]`: how a picture or a sound becomes the input tensor.

    `mean` and `std` speak of the model's real values: real = (pixel - mean) / std, pixels 0..255.
    """

    kind: Literal["image", "audio", "tensor"] | None = None
    resize: Literal["stretch", "letterbox", "crop"] | None = None
    color: Literal["rgb", "bgr", "gray"] | None = None
    mean: Channels | None = None
    std: Annotated[Channels, Check(_check_divisor)] | None = None
    sample_rate_hz: Annotated[int, Meta(ge=1000, le=384000)] | None = None


class OutputTable(Table, frozen=True):
    """`[output]`: what the output tensors mean."""

    kind: Literal["classification", "detection", "segmentation", "tensor"] | None = None
    labels: Annotated[str | tuple[str, ...], Check(_check_labels)] | None = None
    """A file name beside model.toml, or the labels themselves; default: labels.txt beside it."""
    top_k: Annotated[int, Meta(ge=1, le=10000)] | None = None
    threshold: float | None = None
    box_order: Literal["ymin_xmin_ymax_xmax", "xmin_ymin_xmax_ymax"] | None = None


class PlacementTable(Table, frozen=True):
    """`[placement]`: what should run it."""

    accelerators: (
        Annotated[tuple[AcceleratorWish, ...], Meta(min_length=1, max_length=8)] | None
    ) = None
    required: bool | None = None
    """Nothing but `accelerators` may run it, also when none of them can."""
    tolerance: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Largest difference from the CPU's answer, as a part of the range of the CPU's output."""
    cpu_model: Annotated[str, Check(_check_model_file)] | None = None
    """The same model for the CPU, beside a file that is compiled for a device."""
    threads: Annotated[int, Meta(ge=1, le=64)] | None = None
    instances: Annotated[int, Meta(ge=1, le=64)] | None = None
    isolation: Literal["process", "thread"] | None = None


class LimitsTable(Table, frozen=True):
    """`[limits]`: what it may take."""

    queue: Annotated[int, Meta(ge=1, le=100000)] | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=3600000)] | None = None
    memory_mib: Annotated[int, Meta(ge=16, le=1048576)] | None = None


class BatchingTable(Table, frozen=True):
    """`[batching]`: whether waiting requests may share one invocation."""

    max_size: Annotated[int, Meta(ge=1, le=256)] | None = None
    max_delay_ms: Annotated[float, Meta(ge=0, le=1000)] | None = None


class HealthSample(Table, frozen=True):
    """`[[health.samples]]`: an input with its expected answer."""

    input: Name
    label: str | None = None
    min_score: float | None = None
    outputs: dict[str, Name] | None = None
    """Output name to a .npy file beside the input, with the expected tensor."""
    tolerance: Annotated[float, Meta(ge=0)] | None = None


class HealthTable(Table, frozen=True):
    """`[health]`: when a candidate of this model counts as healthy."""

    samples: tuple[HealthSample, ...] = ()
    max_latency_ms: Annotated[float, Meta(gt=0)] | None = None
    max_memory_mib: Annotated[int, Meta(gt=0)] | None = None


class ModelTables(Table, frozen=True):
    """A whole `model.toml`; an empty one is valid."""

    model: ModelTable = ModelTable()
    input: InputTable = InputTable()
    output: OutputTable = OutputTable()
    placement: PlacementTable = PlacementTable()
    limits: LimitsTable = LimitsTable()
    batching: BatchingTable = BatchingTable()
    health: HealthTable = HealthTable()


def parse_model_file(text: str) -> ModelTables:
    """Read a `model.toml`.

    Raises:
        ConfigError: with every problem found, one line each: key, value, what was expected.
    """
    try:
        raw_tables = parse_toml(text)
    except ValueError as exc:
        raise ConfigError((f"not TOML: {exc}",)) from exc
    tables, problems = check_tables(ModelTables, raw_tables)
    if problems:
        raise ConfigError(tuple(str(problem) for problem in problems))
    return tables


def salvage_identity(text: str) -> ModelTable:
    """Name and version as a broken `model.toml` still gives them; None for what cannot be read.

    So an operator's slip while editing does not make the version that is being served look as if it
    were gone. Raises nothing.
    """
    section = _MODEL_SECTION.search(text)
    if section is None:
        return ModelTable()
    raw: dict[str, object] = {}
    if name := _NAME_LINE.search(section[1]):
        raw["name"] = name[1]
    if version := _VERSION_LINE.search(section[1]):
        raw["version"] = int(version[1])
    return check_tables(ModelTables, {"model": raw})[0].model


_MODEL_SECTION = re.compile(
    r"^[ \t]*\[model\][^\n]*\n(.*?)(?=^[ \t]*\[|\Z)", re.MULTILINE | re.DOTALL
)
_NAME_LINE = re.compile(r"""^[ \t]*name[ \t]*=[ \t]*["']([^"'\\\n]*)["']""", re.MULTILINE)
_VERSION_LINE = re.compile(
    r"^[ \t]*version[ \t]*=[ \t]*([0-9]{1,19})[ \t]*(?:#.*)?\r?$", re.MULTILINE
)
