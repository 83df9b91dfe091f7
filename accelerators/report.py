"""ModelReport and LoadSpec as JSON, for the way between daemon and worker. Pure.

A worker runs code that a model may have taken over: what it reports is checked field by field
against the dataclasses, and bounded in size and depth.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from accelerators.base import LABELS_MAX, Device, LoadSpec, ModelReport

BYTES_MAX = 8 << 20  # above LABELS_MAX labels of 30 bytes, below harm
_ITEMS_MAX = LABELS_MAX  # nothing in a report is longer
_DEPTH_MAX = 12

RecordT = TypeVar("RecordT")


class BadReport(ValueError):
    """The bytes are not what they should be."""


def encode_report(report: ModelReport) -> bytes:
    """The report as UTF-8 JSON."""
    return _encode(report)


def decode_report(data: bytes) -> ModelReport:
    """The report a worker sent.

    Raises:
        BadReport: it is not one.
    """
    report: ModelReport = _decode(ModelReport, data)
    if not report.signatures or not report.digest or report.max_batch < 1:
        raise BadReport("the report lacks signatures, digest or batch size")
    return report


def encode_spec(spec: LoadSpec) -> bytes:
    """The order to load as UTF-8 JSON."""
    return _encode(spec)


def decode_spec(data: bytes) -> LoadSpec:
    """The order the daemon sent.

    Raises:
        BadReport: it is not one.
    """
    spec: LoadSpec = _decode(LoadSpec, data)
    return spec


def encode_device(device: Device) -> bytes:
    """A device as UTF-8 JSON, for the way to the child that looks at it, and back."""
    return _encode(device)


def decode_device(data: bytes) -> Device:
    """The device the other side sent.

    Raises:
        BadReport: it is not one.
    """
    device: Device = _decode(Device, data)
    return device


def build_record(kind: type[RecordT], raw: object) -> RecordT:
    """A dataclass of this package from parsed JSON, checked field by field.

    Raises:
        BadReport: it is not one.
    """
    record: RecordT = _build(kind, raw, 0)
    return record


def plain_record(record: Any) -> dict[str, Any]:  # noqa: ANN401 (any dataclass)
    """A dataclass of this package as `build_record` reads it from JSON."""
    plain: dict[str, Any] = json.loads(_encode(record))
    return plain


def _encode(value: Any) -> bytes:  # noqa: ANN401 (any dataclass)
    return json.dumps(asdict(value), default=_plain, ensure_ascii=False, allow_nan=True).encode(
        "utf-8", "surrogatepass"
    )


def _plain(value: object) -> Any:  # noqa: ANN401 (what JSON has a form for)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in a report")


def _decode(kind: type, data: bytes) -> Any:  # noqa: ANN401 (an instance of `kind`)
    if len(data) > BYTES_MAX:
        raise BadReport(f"it has {len(data)} bytes, more than {BYTES_MAX}")
    try:
        raw = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as exc:
        raise BadReport(f"it is not JSON: {str(exc)[:100]}") from exc
    return _build(kind, raw, 0)


def _build(kind: Any, raw: Any, depth: int) -> Any:  # noqa: ANN401 (an instance of `kind`)
    if depth > _DEPTH_MAX:
        raise BadReport("it is nested too deep")
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        inner = next(arg for arg in get_args(kind) if arg is not NoneType)
        return None if raw is None else _build(inner, raw, depth)
    if origin is tuple:
        return _build_tuple(get_args(kind), raw, depth)
    if is_dataclass(kind):
        return _build_record(kind, raw, depth)
    return _build_scalar(kind, raw)


def _build_tuple(kinds: tuple[Any, ...], raw: Any, depth: int) -> tuple[Any, ...]:  # noqa: ANN401 (JSON)
    if not isinstance(raw, list) or len(raw) > _ITEMS_MAX:
        raise BadReport("a list is missing or too long")
    if kinds[-1] is Ellipsis:
        if set(map(type, raw)) == {kinds[0]}:  # labels: nothing to build, and there may be many
            return tuple(raw)
        return tuple(_build(kinds[0], item, depth + 1) for item in raw)
    if len(raw) != len(kinds):
        raise BadReport("a list has the wrong length")
    return tuple(_build(kind, item, depth + 1) for kind, item in zip(kinds, raw, strict=True))


def _build_record(kind: Any, raw: Any, depth: int) -> Any:  # noqa: ANN401 (JSON)
    hints = _hints(kind)
    if not isinstance(raw, dict) or raw.keys() != hints.keys():
        raise BadReport(f"the fields of {kind.__name__} are not the expected ones")
    return kind(**{name: _build(hint, raw[name], depth + 1) for name, hint in hints.items()})


def _build_scalar(kind: Any, raw: Any) -> Any:  # noqa: ANN401 (JSON)
    if issubclass(kind, Enum):
        try:
            return kind(raw)
        except ValueError as exc:
            raise BadReport(f"unknown {kind.__name__}") from exc
    if kind is Path and isinstance(raw, str):
        return Path(raw)
    if kind is float and type(raw) in (int, float):
        return float(raw)
    if type(raw) is not kind:
        raise BadReport(f"expected {kind.__name__}, found {type(raw).__name__}")
    return raw


@cache
def _hints(kind: Any) -> dict[str, Any]:  # noqa: ANN401 (a dataclass)
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}
