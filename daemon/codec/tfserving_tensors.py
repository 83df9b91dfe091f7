"""TF Serving's JSON values to tensors and back. Pure.

Rules for a tensor in a request:

1. Its lists nest to one depth and are not ragged. A value outside of any list is of rank 0.
2. Its values are of its type: any number for floats, an integer in range for integers, `true` and
   `false` for booleans, text or {"b64": ...} for strings.

A tensor is checked and converted level by level, each level by a few calls that run in C, also
where they look for a fault: a body of the largest size with one wrong value is refused about as
fast as a right one is taken.

Source: TF Serving, util/json_tensor.cc, for rules and messages. It wraps integers that do not fit
into uint8, int8 and int16; here they are refused.
"""

from __future__ import annotations

import base64
import binascii
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from accelerators.base import DataType
from daemon.codec.numberlists import join_numbers
from daemon.codec.pieces import write_numbers
from daemon.codec.ranges import (
    INTEGER_LIMITS,
    OutOfRange,
    first_true,
    make_floats,
    make_integers,
)
from daemon.codec.tfserving_json import kind, show
from daemon.errors import BadTensor, Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from accelerators.base import Array

# numpy 1.26 takes 32 dimensions; no TFLite kernel takes more than 8.
_MAX_RANK = 32

_LISTS = frozenset({list})

_INTEGERS = INTEGER_LIMITS.keys() - {DataType.UINT16}

_VALUE_TYPES: dict[DataType, frozenset[type]] = {
    DataType.FP32: frozenset({int, float}),
    DataType.FP64: frozenset({int, float}),
    DataType.BOOL: frozenset({bool}),
    DataType.BYTES: frozenset({str, dict}),
    **dict.fromkeys(_INTEGERS, frozenset({int})),
}
"""What each tensor type takes, parsed; types that are not here have no form in this JSON."""

_NON_FINITE = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}

_TYPE_NAMES: dict[DataType, str] = {
    DataType.BOOL: "bool",
    DataType.UINT8: "uint8",
    DataType.UINT16: "uint16",
    DataType.UINT32: "uint32",
    DataType.UINT64: "uint64",
    DataType.INT8: "int8",
    DataType.INT16: "int16",
    DataType.INT32: "int32",
    DataType.INT64: "int64",
    DataType.FP16: "half",
    DataType.FP32: "float",
    DataType.FP64: "double",
    DataType.BYTES: "string",
}


class Fault(Exception):
    """A value that does not belong into a tensor.

    Attributes:
        row: which element of the outermost list holds it; 0 when that is no list.
    """

    def __init__(self, message: str, row: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.row = row


def to_array(value: object, datatype: DataType) -> Array:
    """Make an array of nested lists or `Numbers`; a lone value becomes rank 0.

    Raises:
        Fault: the lists are ragged, or a value is not of the type.
        Unsupported: the type has no form in JSON.
    """
    allowed = _VALUE_TYPES.get(datatype)
    if allowed is None:
        raise Unsupported(
            f"Conversion of JSON Value: {show(value)} to type: {_TYPE_NAMES[datatype]}"
        )
    numbers = join_numbers(value)
    if numbers is not None:
        array = numbers.to_array(datatype)
        if array is not None:
            return array
        value = numbers.to_lists()
    shape, leaves = _flatten(value)
    if not allowed.issuperset(map(type, leaves)):
        index = first_true(type(leaf) not in allowed for leaf in leaves)
        raise _leaf_fault(leaves, index, shape, datatype)
    if datatype is DataType.BYTES:
        return _to_strings(leaves, shape).reshape(shape)
    if datatype is DataType.BOOL:
        return np.fromiter(leaves, np.bool_, len(leaves)).reshape(shape)
    try:
        if datatype in _INTEGERS:
            return make_integers(leaves, datatype).reshape(shape)
        return make_floats(leaves, datatype).reshape(shape)
    except OutOfRange as exc:
        word = _leaf_fault if datatype in _INTEGERS else _lossy_fault
        raise word(leaves, exc.index, shape, datatype) from exc


def _flatten(value: object) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of nested lists, which is that of their first elements, and their leaves."""
    level: list[Any] = [value]
    shape: list[int] = []
    while level and type(level[0]) is list:
        size = len(level[0])
        if len(shape) == _MAX_RANK:
            raise Fault(f"Encountered list at unexpected level: {_MAX_RANK} expected < {_MAX_RANK}")
        if not _LISTS.issuperset(map(type, level)):
            index = first_true(type(item) is not list for item in level)
            message = (
                f"JSON Value: {show(level[index])} found at incorrect level: {len(shape) + 1} "
                f"in the JSON DOM. Expected at level: {len(shape) + _depth(level[0])}"
            )
            raise _fault_at(message, index, shape)
        if not {size}.issuperset(map(len, level)):
            index = first_true(len(item) != size for item in level)
            message = (
                f"Encountered list at unexpected size: {len(level[index])} "
                f"at level: {len(shape)} expected size: {size}"
            )
            raise _fault_at(message, index, shape)
        shape.append(size)
        level = list(chain.from_iterable(level))
    return tuple(shape), level


def _depth(value: object) -> int:
    depth = 0
    while type(value) is list:
        depth += 1
        value = value[0] if value else None
    return depth


def _fault_at(message: str, index: int, shape: Sequence[int]) -> Fault:
    """A fault at the flat `index` of the level below lists of `shape`."""
    return Fault(message, index // (prod(shape[1:]) or 1) if shape else 0)


def _leaf_fault(
    leaves: Sequence[Any], index: int, shape: Sequence[int], datatype: DataType
) -> Fault:
    leaf = leaves[index]
    if type(leaf) is list:
        rank = len(shape)
        message = f"Encountered list at unexpected level: {rank} expected < {rank}"
    else:
        message = (
            f"JSON Value: {show(leaf)} Type: {kind(leaf)} "
            f"is not of expected type: {_TYPE_NAMES[datatype]}"
        )
    return _fault_at(message, index, shape)


def _lossy_fault(
    leaves: Sequence[Any], index: int, shape: Sequence[int], datatype: DataType
) -> Fault:
    message = (
        f"Cannot convert JSON value: {show(leaves[index])} to {_TYPE_NAMES[datatype]} "
        "without loss of precision."
    )
    return _fault_at(message, index, shape)


def _to_strings(leaves: list[Any], shape: Sequence[int]) -> Array:
    array = np.empty(len(leaves), dtype=object)
    for index, leaf in enumerate(leaves):
        try:
            array[index] = _unescape_object(leaf) if type(leaf) is dict else leaf.encode()
        except UnicodeEncodeError as exc:
            message = "The surrogate pair in string is invalid."
            raise _fault_at(message, index, shape) from exc
        except Fault as fault:
            raise _fault_at(fault.message, index, shape) from fault
    return array


def _unescape_object(value: Mapping[str, Any]) -> bytes:
    if not is_b64(value):
        raise Fault(f"JSON Value: {show(value)} not formatted correctly for base64 data")
    return unescape(value["b64"])


def unescape(text: str) -> bytes:
    """Base64 with or without padding; white space in it is ignored."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        pass  # clients leave padding out and break lines
    packed = "".join(text.split()).rstrip("=")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except ValueError as exc:
        raise Fault("Unable to base64 decode") from exc


def is_b64(value: object) -> bool:
    """Whether this is {"b64": text}: a value, whatever its surroundings."""
    return type(value) is dict and len(value) == 1 and type(value.get("b64")) is str


def encode_tensor(name: str, values: Array) -> bytes:
    """Write nested lists of a tensor's values; a lone value for rank 0.

    Floats have the fewest digits that give the same float back, and a point or an exponent.

    Args:
        name: a BYTES tensor whose name ends in "_bytes" is written as {"b64": ...}; others only
            where an element is not UTF-8.
        values: BYTES tensors are object arrays of bytes.

    Raises:
        BadTensor: the type has no form in this JSON.
    """
    if values.dtype.kind == "O":
        return _encode_strings(values, always_b64=name.endswith("_bytes"))
    if values.dtype.kind not in "fiub" or values.dtype == np.float16:
        type_name = "half" if values.dtype == np.float16 else values.dtype.name
        raise BadTensor(f"Failed to write JSON value for tensor type: {type_name}")
    numbers = np.ascontiguousarray(values)  # of rank 1 at least
    text = write_numbers(numbers, _name_non_finite)
    return text if values.ndim else text[1:-1]


def _name_non_finite(text: bytes, numbers: Array) -> bytes:
    """Put the tokens where orjson wrote null, which it does for nothing else in such a list."""
    if numbers.dtype.kind != "f" or np.isfinite(numbers).all():
        return text
    odd = numbers[~np.isfinite(numbers)]
    tokens = [_NON_FINITE[repr(number)] for number in odd.tolist()]
    return b"".join(chain.from_iterable(zip(text.split(b"null"), [*tokens, b""], strict=True)))


def _encode_strings(values: Array, *, always_b64: bool) -> bytes:
    leaves = np.empty(values.size, dtype=object)
    for index, raw in enumerate(values.reshape(-1).tolist()):
        leaves[index] = _escape(raw) if always_b64 else _to_text(raw)
    return orjson.dumps(leaves.reshape(values.shape).tolist())


def _to_text(raw: bytes) -> str | dict[str, str]:
    """Text where the bytes are UTF-8; JSON has no other form for the rest than base64."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _escape(raw)


def _escape(raw: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(raw).decode()}
