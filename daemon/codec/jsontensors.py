"""JSON numbers <-> tensors, exactly: what does not fit is refused, never rounded away. Pure.

Rules, for every protocol that carries tensors as JSON:
1. A document is UTF-8 and strict JSON: no NaN or Infinity tokens, no trailing bytes, at most 1024
   levels deep. (JSON has no such numbers; the strings "NaN", "Infinity" and "-Infinity" stand for
   them in float tensors, both ways, so that every answer stays valid JSON.)
2. Integers are JSON integers within the datatype's range; 1.0 is not an integer.
3. Floats are any JSON number the datatype's range holds, rounded to its precision. The answer's
   digits are the fewest that give the same float32 or float64 back.
4. BOOL is true, false, 1 or 0. BYTES elements are strings (their UTF-8 bytes) or {"b64": "..."}.
5. FP16 has no JSON form.
6. A tensor's data is flat, or nested exactly as its shape says.
Not checked: a key that occurs twice in an object; the last one counts.
"""

from __future__ import annotations

import binascii
import math
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import orjson

from accelerators.base import DataType
from daemon.codec.numberlists import Numbers, count_bytes, read_document
from daemon.codec.pieces import write_numbers
from daemon.codec.ranges import INTEGER_LIMITS, OutOfRange, make_floats, make_integers
from daemon.errors import BadTensor, DaemonError, Malformed, TooLarge, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerators.base import Array

_Decoded = TypeVar("_Decoded")

_SPECIAL_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_SPECIAL_TOKENS = (b"NaN", b"Infinity", b"-Infinity", b"-NaN")

_FLOATS = frozenset({DataType.FP32, DataType.FP64})

# What a value's Python type is called in JSON, for messages.
_JSON_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a fraction",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


# While a document is parsed, in whichever thread, nobody else gets an answer: these bounds keep
# that under 0.1 s (measured on 2 cores of x86-64, 2026-11). What is over them belongs into a binary
# form.
MAX_JSON_BYTES = 16 << 20
"""Of a document. A picture of 12 MB in base64 fits."""
MAX_JSON_VALUES = 1_500_000
"""Of a document, counted by its commas. A picture of 1024x1024 in whole numbers fits."""
MAX_JSON_CONTAINERS = 300_000
"""Lists, objects and members of objects of a document, counted by their brackets and colons, also
by those in strings. Each costs as much as many numbers. A picture of 513x513 pixels with a list for
each fits."""


def check_json_cost(body: bytes | bytearray | memoryview) -> None:
    """Refuse a document that would take too long to parse.

    Raises:
        TooLarge: more than `MAX_JSON_BYTES`, `MAX_JSON_VALUES` or `MAX_JSON_CONTAINERS`.
    """
    if len(body) <= MAX_JSON_CONTAINERS:
        return
    if len(body) > MAX_JSON_BYTES:
        raise _too_costly(MAX_JSON_BYTES, "bytes")
    if len(body) >= MAX_JSON_VALUES and count_bytes(body, b",") >= MAX_JSON_VALUES:
        raise _too_costly(MAX_JSON_VALUES, "values")
    if count_bytes(body, b"[{:") > MAX_JSON_CONTAINERS:
        raise _too_costly(MAX_JSON_CONTAINERS, "lists, objects and members")


def _too_costly(limit: int, unit: str) -> TooLarge:
    return TooLarge(
        f"the JSON has more than the {limit} {unit} this server takes; send large tensors in a "
        "binary form: raw as application/octet-stream, or KServe v2's binary data",
        limit=limit,
        unit=unit,
    )


def parse_json(body: bytes | bytearray | memoryview) -> Any:  # noqa: ANN401 (JSON is anything)
    """Read one JSON document.

    Raises:
        Malformed: it is not one; the message says what is wrong and where.
        TooLarge: by `check_json_cost`.
    """
    check_json_cost(body)
    return _parse(body)


def _parse(body: bytes | bytearray | memoryview) -> Any:  # noqa: ANN401 (JSON is anything)
    if not body:
        raise Malformed("the body is empty; a JSON document was expected")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise Malformed(_explain(bytes(body), exc)) from exc


def decode_json(
    body: bytes,
    decode: Callable[[Any], _Decoded],
    *,
    parse: Callable[[bytes], object] = _parse,
    document: object = None,
) -> _Decoded:
    """What `decode` makes of a JSON document, whose large lists are `Numbers` where that is quick.

    Args:
        body: the document.
        decode: is given the document. When it refuses one that holds `Numbers`, it is asked again
            about the same document with lists: that refusal counts.
        parse: reads a document that does not hold `Numbers`.
        document: the body where it was checked and read already, with lists or `Numbers`.

    Raises:
        TooLarge: by `check_json_cost`.
        Exception: what `decode` and `parse` raise.
    """
    if document is None:
        check_json_cost(body)
        document = read_document(body)
    if document is not None:
        with suppress(DaemonError):
            return decode(document)
    return decode(parse(body))


def array_from_json(
    data: object, datatype: DataType, shape: Sequence[int], *, name: str = "data"
) -> Array:
    """Make a tensor of JSON values.

    Args:
        data: the values, flat in row-major order or nested as `shape` says, also as `Numbers`; for
            rank 0 a list of one value or the bare value.
        datatype: what to make of them.
        shape: every dimension >= 0; the caller has checked it against the model.
        name: of the tensor, for messages.

    Returns:
        An array of `datatype.dtype` and `shape`, the caller's own; BYTES elements are `bytes`.

    Raises:
        BadTensor: a value does not fit the datatype, there are too few or too many, or the nesting
            is not that of the shape.
    """
    if type(data) is Numbers:
        is_in_shape = data.values.shape in ((math.prod(shape),), tuple(shape))
        array = data.to_array(datatype) if is_in_shape else None
        if array is not None:
            return array.reshape(shape)
        data = data.to_lists()
    values = _flatten(data, tuple(shape), name)
    if datatype in INTEGER_LIMITS:
        flat = _integers(values, datatype, name)
    elif datatype in _FLOATS:
        flat = _floats(values, datatype, name)
    elif datatype is DataType.BOOL:
        flat = _booleans(values, name)
    elif datatype is DataType.BYTES:
        flat = _byte_strings(values, name)
    else:
        raise BadTensor(f"{name}: {datatype.value} has no JSON form; send it as binary data")
    return flat.reshape(shape)


def array_to_json(array: Array, datatype: DataType, *, name: str = "data") -> bytes:
    """Write a tensor's values as one flat JSON list in row-major order.

    Raises:
        BadTensor: its datatype has no JSON form, or a BYTES element is not UTF-8; the client must
            ask for binary data.
    """
    if datatype is DataType.BYTES:
        return orjson.dumps(_texts(array, name))
    if datatype is DataType.FP16:
        raise BadTensor(f"{name}: FP16 has no JSON form; ask for binary data")
    flat = np.ascontiguousarray(array, dtype=datatype.dtype).reshape(-1)
    return write_numbers(flat, _name_special_floats if datatype in _FLOATS else _keep)


def bytes_array(elements: list[bytes]) -> Array:
    """A BYTES tensor of rank 1; numpy by itself would cut trailing zero bytes."""
    array: Array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def decode_base64(text: object, name: str) -> bytes:
    """The bytes that a base64 string stands for; whitespace in it is ignored.

    Raises:
        BadTensor: it is not a string or not base64.
    """
    if not isinstance(text, str):
        raise BadTensor(f"{name}: 'b64' must be a string of base64")
    try:
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except (binascii.Error, ValueError) as exc:
        raise BadTensor(f"{name}: unable to base64 decode: {exc}") from exc


def _explain(body: bytes, exc: orjson.JSONDecodeError) -> str:
    """What is wrong with the document, with a hint where clients are known to stumble."""
    if not body.strip():
        return "the body is empty; a JSON document was expected"
    if "UTF-8" in exc.msg and "BOM" not in exc.msg:
        return f"JSON Parse error: the document is not UTF-8 at offset: {_utf8_error(body)}"
    message = f"JSON Parse error: {exc.msg} at offset: {exc.pos}"
    around = body[max(0, exc.pos - 1) : exc.pos + 12]
    if any(token in around for token in _SPECIAL_TOKENS):
        return (
            f"{message}; JSON has no NaN or Infinity: "
            'send the strings "NaN", "Infinity" or "-Infinity" in float tensors'
        )
    return message


def _utf8_error(body: bytes) -> int:
    """Where the first byte that is not UTF-8 stands."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as exc:
        return exc.start
    return 0


def _flatten(data: object, shape: tuple[int, ...], name: str) -> list[Any]:
    """The values in row-major order; `data` is flat or nested as `shape` says."""
    count = math.prod(shape)
    if not isinstance(data, list):
        if shape:
            raise BadTensor(f"{name}: expected a list of {count} values, got {_json_name(data)}")
        return [data]
    is_nested = len(shape) > 1 and bool(data) and type(data[0]) is list
    if is_nested:
        return _flatten_nested(data, shape, name)
    if len(data) != count:
        raise BadTensor(f"{name}: shape {list(shape)} needs {count} values, got {len(data)}")
    return data


def _flatten_nested(level: list[Any], shape: tuple[int, ...], name: str) -> list[Any]:
    """Join one level of lists after the other, each checked against its dimension."""
    if len(level) != shape[0]:
        raise _bad_nesting(name, shape, 0, len(level))
    for depth, dimension in enumerate(shape[1:], start=1):
        strangers = set(map(type, level)) - {list}
        if strangers:
            kind = _JSON_NAMES.get(strangers.pop(), "something else")
            raise BadTensor(
                f"{name}: expected only lists at level {depth} for shape {list(shape)}, got {kind}"
            )
        wrong_lengths = set(map(len, level)) - {dimension}
        if wrong_lengths:
            raise _bad_nesting(name, shape, depth, wrong_lengths.pop())
        level = list(chain.from_iterable(level))
    return level


def _bad_nesting(name: str, shape: tuple[int, ...], level: int, length: int) -> BadTensor:
    return BadTensor(
        f"{name}: a list at level {level} has {length} elements, "
        f"expected {shape[level]} for shape {list(shape)}"
    )


def _integers(values: list[Any], datatype: DataType, name: str) -> Array:
    _require(values, {int}, datatype, "integers", name)
    try:
        return make_integers(values, datatype)
    except OutOfRange as exc:
        low, high = INTEGER_LIMITS[datatype]
        raise BadTensor(
            f"{name}: {values[exc.index]} is outside the range of {datatype.value}, {low}..{high}"
        ) from exc


def _floats(values: list[Any], datatype: DataType, name: str) -> Array:
    kinds = set(map(type, values))
    if str in kinds:
        values = [_special_float(v, name) if type(v) is str else v for v in values]
        kinds.remove(str)
    if not kinds <= {int, float}:
        _require(values, {int, float}, datatype, "numbers", name)
    try:
        return make_floats(values, datatype)
    except OutOfRange as exc:
        value = values[exc.index]
        raise BadTensor(f"{name}: {value} is outside the range of {datatype.value}") from exc


def _special_float(text: str, name: str) -> float:
    value = _SPECIAL_FLOATS.get(text)
    if value is None:
        raise BadTensor(
            f"{name}: the string '{shorten(text)}' is not a number; "
            'only "NaN", "Infinity" and "-Infinity" are'
        )
    return value


def _booleans(values: list[Any], name: str) -> Array:
    _require(values, {bool, int}, DataType.BOOL, "true or false", name)
    try:
        flags = make_integers(values, DataType.UINT8)
    except OutOfRange as exc:
        raise _bad_boolean(name) from exc
    if int(flags.max(initial=0)) > 1:
        raise _bad_boolean(name)
    return flags.view(np.bool_)


def _bad_boolean(name: str) -> BadTensor:
    return BadTensor(f"{name}: BOOL takes true, false, 1 or 0")


def _byte_strings(values: list[Any], name: str) -> Array:
    if dict in set(map(type, values)):
        _require(values, {str, dict}, DataType.BYTES, "strings", name)
        elements = [v.encode() if type(v) is str else _b64_object(v, name) for v in values]
    else:
        _require(values, {str}, DataType.BYTES, "strings", name)
        elements = list(map(str.encode, values))
    return bytes_array(elements)


def _b64_object(value: dict[str, object], name: str) -> bytes:
    if value.keys() != {"b64"}:
        raise BadTensor(f'{name}: an object must be {{"b64": "<base64>"}}')
    return decode_base64(value["b64"], name)


def _require(
    values: list[Any], allowed: set[type], datatype: DataType, what: str, name: str
) -> None:
    """Refuse values of other Python types; `set(map(type, ...))` looks at all of them in C."""
    wrong = set(map(type, values)) - allowed
    if wrong:
        kind = next(iter(wrong))
        at = next(i for i, value in enumerate(values) if type(value) is kind)
        raise BadTensor(
            f"{name}: {datatype.value} takes {what}, "
            f"got {_JSON_NAMES.get(kind, 'something else')} at element {at}"
        )


def _json_name(value: object) -> str:
    return _JSON_NAMES.get(type(value), "something else")


def _texts(array: Array, name: str) -> list[str]:
    try:
        return [element.decode("utf-8") for element in array.reshape(-1).tolist()]
    except UnicodeDecodeError as exc:
        raise BadTensor(
            f"{name}: an element is not UTF-8 and has no JSON form; ask for binary data"
        ) from exc


def _keep(text: bytes, _numbers: Array) -> bytes:
    return text


def _name_special_floats(text: bytes, numbers: Array) -> bytes:
    """Put the names of NaN and the infinities where orjson wrote null."""
    is_finite = np.isfinite(numbers)
    if is_finite.all():
        return text
    parts = text[1:-1].split(b",")
    for index in np.flatnonzero(~is_finite).tolist():
        value = float(numbers[index])
        parts[index] = (
            b'"NaN"' if math.isnan(value) else b'"Infinity"' if value > 0 else b'"-Infinity"'
        )
    return b"[" + b",".join(parts) + b"]"
