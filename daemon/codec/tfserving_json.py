"""TF Serving's JSON: parsed as leniently as it does, shown in messages as it does. Pure.

`NaN`, `Infinity` and `-Infinity` are numbers, a byte order mark is skipped, and whatever follows
the document is ignored.

Source: TF Serving, util/json_tensor.cc: rapidjson, told to take NaN and to stop when done.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from typing import TYPE_CHECKING, TypeVar

import orjson

from daemon.codec.jsontensors import check_json_cost, decode_json
from daemon.codec.numberlists import Numbers
from daemon.errors import Malformed

if TYPE_CHECKING:
    from collections.abc import Callable

_Decoded = TypeVar("_Decoded")

# Characters of a JSON value that a message shows, as many as TF Serving's do.
_SHOWN_CHARACTERS = 256

# Beyond this many characters a parse error is not told by the bracket that was open.
_MAX_EXPLAINED_CHARACTERS = 65536

_SPACE = re.compile(r"[ \t\n\r]*")
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")
_FLATTENED = bytes.maketrans(b"123456789E", b"000000000e")
_HUGE_EXPONENT = b"e000"
_HUGE_INTEGER = b"0" * 300
# Of an integer within the range of a double; the standard library would read 4300.
_MAX_INTEGER_DIGITS = 309

_ENCODER = json.JSONEncoder(check_circular=False, default=Numbers.to_lists)

_PARSE_ERRORS = (
    ("Expecting property name", "Missing a name for object member."),
    ("Expecting ':'", "Missing a colon after a name of object member."),
    ("Unterminated string", "Missing a closing quotation mark in string."),
    ("Invalid control character", "Invalid encoding in string."),
    ("Invalid \\uXXXX", "Incorrect hex digit after \\u escape in string."),
    ("Invalid \\escape", "Invalid escape character in string."),
)
"""How an error of the standard library begins, and rapidjson's words for it."""


def parse_document(body: bytes) -> dict[str, object]:
    """Parse a request body, which must be one object.

    Raises:
        Malformed: it is empty, not JSON or not an object; offsets are in bytes.
        TooLarge: by `check_json_cost`.
    """
    check_json_cost(body)
    return _require_object(_parse(body))


def decode_document(body: bytes, decode: Callable[[dict[str, object]], _Decoded]) -> _Decoded:
    """What `decode` makes of a request body; it is called as `jsontensors.decode_json` says.

    Raises:
        Malformed, TooLarge: as `parse_document`.
        Exception: what `decode` raises.
    """
    return decode_json(body, lambda document: decode(_require_object(document)), parse=_parse)


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _parse_leniently(body)


def _require_object(document: object) -> dict[str, object]:
    if type(document) is not dict:
        raise misformatted(document, "Is not object")
    return document


def misformatted(value: object, complaint: str) -> Malformed:
    """The error for a value that is JSON, but not what belongs there."""
    return Malformed(f"JSON Value: {show(value)} {complaint}")


def show(value: object) -> str:
    """The beginning of a value as JSON, in ASCII, at most 256 characters."""
    shown = ""
    for piece in _ENCODER.iterencode(value):
        shown += piece[:_SHOWN_CHARACTERS]
        if len(shown) >= _SHOWN_CHARACTERS:
            break
    return shown[:_SHOWN_CHARACTERS]


def kind(value: object) -> str:
    """The type of a value, as rapidjson names it."""
    match value:
        case None:
            return "Null"
        case bool():
            return str(value)
        case int() | float():
            return "Number"
        case str():
            return "String"
        case list():
            return "Array"
        case _:
            return "Object"


def _parse_leniently(body: bytes) -> object:
    """Parse what orjson refuses: bare NaN and infinities, and bytes after the document.

    Raises:
        Malformed: it is no JSON for this parser either.
    """
    text, is_whole = _decode_text(body)
    start = _SPACE.match(text).end()  # type: ignore[union-attr]  # it matches "" at least
    if start == len(text) and is_whole:
        raise Malformed("JSON Parse error: The document is empty")
    decoder = _CAREFUL_DECODER if _may_hold_huge_numbers(body) else _DECODER
    try:
        return decoder.raw_decode(text, start)[0]
    except json.JSONDecodeError as exc:
        at_end = exc.pos >= len(text) or exc.msg.startswith("Unterminated")
        if at_end and not is_whole:
            raise _parse_error("Invalid encoding in string.", text, len(text)) from exc
        raise _parse_error(_explain(exc), text, exc.pos) from exc
    except ValueError as exc:
        raise _parse_error("Number too big to be stored in double.", text, start) from exc
    except RecursionError as exc:
        raise _parse_error("The document is nested too deeply.", text, start) from exc


def _decode_text(body: bytes) -> tuple[str, bool]:
    """The body as text, up to the first byte that is not UTF-8; and whether that is all of it."""
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode(), True
    except UnicodeDecodeError as exc:
        return body[: exc.start].decode(), False


def _may_hold_huge_numbers(body: bytes) -> bool:
    """Whether a number may be beyond the range of a double; few documents are suspected wrongly.

    All digits are made 0 to look for runs of them, which takes a few calls that run in C: a regular
    expression would keep everybody waiting for ten times as long.
    """
    flattened = body.translate(_FLATTENED, b"+")
    return _HUGE_EXPONENT in flattened or _HUGE_INTEGER in flattened


def _finite_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError
    return number


def _bounded_integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_INTEGER_DIGITS:
        raise ValueError
    return int(digits)


_DECODER = json.JSONDecoder()
_CAREFUL_DECODER = json.JSONDecoder(parse_float=_finite_float, parse_int=_bounded_integer)


def _parse_error(reason: str, text: str, position: int) -> Malformed:
    offset = len(text[:position].encode())
    return Malformed(f"JSON Parse error: {reason} at offset: {offset}")


def _explain(error: json.JSONDecodeError) -> str:
    """What the standard library found, in the words of rapidjson, which clients know."""
    if error.msg == "Expecting ',' delimiter":
        is_object = _innermost_bracket(error.doc, error.pos) == "{"
        return (
            "Missing a comma or } after an object member."
            if is_object
            else "Missing a comma or ] after an array element."
        )
    return next(
        (words for start, words in _PARSE_ERRORS if error.msg.startswith(start)), "Invalid value."
    )


def _innermost_bracket(text: str, position: int) -> str:
    if position > _MAX_EXPLAINED_CHARACTERS:
        return "["
    opened: list[str] = []
    for bracket in _BRACKETS.findall(_STRINGS.sub("", text[:position])):
        if bracket in "[{":
            opened.append(bracket)
        elif opened:
            opened.pop()
    return opened[-1] if opened else "["
