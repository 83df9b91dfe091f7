"""Large lists of numbers in a JSON document, read without an object for each number. Pure.

A picture of 224x224 in JSON is 150,528 numbers. As Python objects they take 4 ms, and 9 ms as
nested lists, for which nobody else gets a turn. Read from the text itself, by numpy and a part of
it at a time, they take 0.9 ms and 1.4 ms, most of that without the interpreter's lock. (2 cores of
x86-64, 2026-11; docs/adr/0008-large-lists-of-numbers.md has what else there is.)

Rules:
1. This is a short cut, not a second parser: what is not as plain as the rules below say is left to
   orjson, and so is every refusal. What is read here is what orjson would have read.
2. A large list holds JSON numbers and nothing else, flat or nested to one depth and not ragged. A
   comma stands right behind what it follows and right before what comes next; or there is one space
   behind each comma. (Most programs write one or the other.)
3. Integers of at most 18 digits are read by numpy. Parts of a list where fractions are among the
   numbers are read by orjson.
4. What is left of the document when a mark, in quotes, stands in for each large list is short, has
   no backslash, and is for orjson. What looks like a list and is part of a string is not taken for
   one: the mark's quotes end that string too early, and then it is no JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import orjson

from accelerators.base import DataType
from daemon.codec.ranges import INTEGER_LIMITS, OutOfRange, round_floats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    _Text: TypeAlias = NDArray[np.uint8]
    _Places: TypeAlias = NDArray[np.intp]
    _Integers: TypeAlias = NDArray[np.signedinteger[Any]]
    _Floats: TypeAlias = NDArray[np.float64]

LEAST_LIST_BYTES = 16 * 1024
"""Of a list that is read here; a smaller one is sooner read by orjson."""
BLOCK_BYTES = 64 * 1024
"""Of a list's text that are read together: enough that numpy's loops count for more than the calls
of them, and few enough that what is made of them stays in the processor's cache."""
_MAX_REST_BYTES = 16 * 1024
"""Of a document without its large lists."""
_MAX_BRACKETS = 128
"""That open lists in the rest of a document, and as many that open objects: it is not deep."""
_DIGITS: dict[int, type[np.signedinteger[Any]]] = {4: np.int16, 9: np.int32, 18: np.int64}
"""How many digits fit into each type, whichever they are."""

_OPENING = re.compile(rb"(\[{1,16})[-0-9]")
"""No operator takes more than 8 dimensions."""
_MARK = "a list of numbers, "
_COMMA, _SPACE, _MINUS, _ZERO, _OPEN, _CLOSE = b", -0[]"
_LAST = ord("e")
"""Of the characters of numbers. The names of all other values have one behind it, or quotes."""


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """A list of numbers, or nested lists of them, that stands in a parsed document.

    Attributes:
        values: of the shape that the lists have; int16, int32 or int64, or float64 where fractions
            are among the numbers.
    """

    values: NDArray[np.number[Any]]

    def to_lists(self) -> list[Any]:
        """The lists; an integer among fractions is a float."""
        lists: list[Any] = self.values.tolist()
        return lists

    def to_array(self, datatype: DataType) -> NDArray[Any] | None:
        """An array of that type, the caller's own; None when these numbers are not for it."""
        values = self.values
        if datatype in (DataType.FP32, DataType.FP64):
            try:
                return round_floats(values.astype(np.float64), datatype)
            except OutOfRange:
                return None
        if datatype not in INTEGER_LIMITS or values.dtype.kind == "f":
            return None
        low, high = INTEGER_LIMITS[datatype]
        return (
            values.astype(datatype.dtype) if low <= values.min() <= values.max() <= high else None
        )


def join_numbers(value: object) -> Numbers | None:
    """`Numbers`, or a list of some that are of one shape as one; None when it is neither."""
    if type(value) is Numbers:
        return value
    if type(value) is not list or {Numbers} != set(map(type, value)):
        return None
    arrays = [each.values for each in value]
    return Numbers(np.stack(arrays)) if len({each.shape for each in arrays}) == 1 else None


class _NotPlain(Exception):
    """The document is for orjson."""


def read_document(
    body: bytes, *, least_bytes: int = LEAST_LIST_BYTES, block_bytes: int = BLOCK_BYTES
) -> object:
    """Read a JSON document, with `Numbers` for its large lists.

    Args:
        body: whose cost has been checked.
        least_bytes: of a large list.
        block_bytes: of a list's text that are read together; more than any number has.

    Returns:
        What orjson makes of it but for the large lists; None when there are none, or it is not
        plain and all of it is for orjson.
    """
    if len(body) < least_bytes:
        return None
    try:
        found = list(_find_lists(body, least_bytes))
        if not found:
            return None
        rest, marks = _replace_lists(body, found)
        document = orjson.loads(rest)
        lists = [_read_list(body, each, block_bytes) for each in found]
    except (_NotPlain, orjson.JSONDecodeError):
        return None
    return _fill_in(document, dict(zip(marks, lists, strict=True)))


def count_bytes(text: bytes | bytearray | memoryview, wanted: bytes) -> int:
    """How often any of these bytes are in a text, several times as fast as its `count`."""
    count = 0
    for at in range(0, len(text), BLOCK_BYTES):
        block = np.frombuffer(text, np.uint8, min(BLOCK_BYTES, len(text) - at), at)
        count += sum(int(np.count_nonzero(block == each)) for each in wanted)
    return count


# Rule 4: where the lists are.


@dataclass(frozen=True, slots=True)
class _Span:
    """What begins and ends as a list of numbers does.

    Attributes:
        closings: where as many closing brackets as its depth are first found, and before them one,
            two and so on.
    """

    start: int
    closings: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.closings[-1] + len(self.closings)


def _find_lists(body: bytes, least_bytes: int) -> Iterator[_Span]:
    at = 0
    for _ in range(_MAX_BRACKETS):
        start = body.find(b"[", at)
        if start < 0:
            return
        at = start + 1
        opening = _OPENING.match(body, start)
        if opening is None:
            continue
        span = _Span(start, tuple(_find_closings(body, start, len(opening[1]))))
        if span.end - start >= least_bytes:
            yield span
            at = span.end
    raise _NotPlain


def _find_closings(body: bytes, start: int, depth: int) -> Iterator[int]:
    at = body.find(b"]", start)
    if at < 0:
        raise _NotPlain
    yield at
    for level in range(2, depth + 1):
        at = _find_run(body, level, at)
        yield at


def _find_run(body: bytes, length: int, at: int) -> int:
    """Where so many closing brackets are first found; among many it is faster than `find`."""
    while at + length <= len(body):
        block = np.frombuffer(body, np.uint8, min(BLOCK_BYTES, len(body) - at), at)
        begins = block == _CLOSE
        for _ in range(1, length):
            begins = begins[:-1] & begins[1:]
        if begins.any():
            return at + int(begins.argmax())
        at += len(begins)
    raise _NotPlain


def _replace_lists(body: bytes, found: Sequence[_Span]) -> tuple[bytes, list[str]]:
    """The document with a mark, a string, for each list; and the marks."""
    if len(body) - sum(span.end - span.start for span in found) > _MAX_REST_BYTES:
        raise _NotPlain
    pieces: list[bytes] = []
    marks: list[str] = []
    at = 0
    for span in found:
        marks.append(f"{_MARK}{len(marks)}")
        pieces += body[at : span.start], b'"%b"' % marks[-1].encode()
        at = span.end
    rest = b"".join((*pieces, body[at:]))
    is_deep = rest.count(b"{") > _MAX_BRACKETS
    if is_deep or b"\\" in rest or rest.count(_MARK.encode()) != len(marks):
        raise _NotPlain
    return rest, marks


def _fill_in(value: object, lists: Mapping[str, Numbers]) -> object:
    """The value with the lists in place of their marks."""
    if type(value) is dict:
        return {key: _fill_in(each, lists) for key, each in value.items()}
    if type(value) is list:
        return [_fill_in(each, lists) for each in value]
    return lists.get(value, value) if type(value) is str else value


# Rules 2 and 3: what they hold. Every character has its place. The commas are found; from them
# follows where each number begins and ends, and where there must be brackets and spaces.


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a list is laid out, as its beginning has it. Each part is held to it.

    Attributes:
        gap: spaces behind each comma.
        sizes: how many numbers a list of each depth holds, innermost first, without the outermost.
    """

    gap: int
    sizes: tuple[int, ...]


def _read_list(body: bytes, span: _Span, block_bytes: int) -> Numbers:
    layout = _look_at_layout(body, span)
    at, last = span.start + 1, span.end - 1
    blocks: list[_Integers | _Floats] = []
    count = 0
    while at <= last:  # where a comma is last, a part without numbers follows
        to = last if last - at <= block_bytes else body.rfind(b",", at, at + block_bytes)
        if to <= at or (to < last and layout.gap and body[to + 1] != _SPACE):
            raise _NotPlain
        text = np.frombuffer(body, np.uint8, to - at, at)
        is_whole = body.find(b".", at, to) < 0
        blocks.append((_read_integers if is_whole else _read_fractions)(text, layout, count))
        count += len(blocks[-1])
        at = to + 1 + layout.gap
    return Numbers(np.concatenate(blocks).reshape(_dimensions(count, layout.sizes)))


def _look_at_layout(body: bytes, span: _Span) -> _Layout:
    gap = int(body[body.find(b",", span.start) + 1] == _SPACE)
    text = memoryview(body)
    places = pairwise((span.start, *span.closings[:-1]))
    commas = accumulate(count_bytes(text[at:to], b",") for at, to in places)
    return _Layout(gap, tuple(1 + count for count in commas))


def _dimensions(count: int, sizes: Sequence[int]) -> list[int]:
    """The shape of lists of those sizes that hold `count` numbers.

    Each size divides the next: else the brackets would not have been where they must be.
    """
    return [outer // inner for inner, outer in pairwise((1, *sizes, count))][::-1]


def _read_fractions(text: _Text, layout: _Layout, first: int) -> _Floats:
    """The numbers of a part of a list, as orjson reads them from a flat one.

    Args:
        text: begins with a number, or the brackets before it, and ends where a comma or the whole
            list does.
        first: how many numbers are before.
    """
    if layout.sizes:
        starts, _, others = _find_numbers(text, layout, first)
        is_open, is_closed = text == _OPEN, text == _CLOSE
        brackets = np.count_nonzero(is_open) + np.count_nonzero(is_closed)
        if brackets != others - (1 + layout.gap) * (len(starts) - 1):
            raise _NotPlain
        # Each becomes a space.
        text = text - is_open * np.uint8(_OPEN - _SPACE) - is_closed * np.uint8(_CLOSE - _SPACE)
    flat = text.tobytes()
    if b'"' in flat or text.max() > _LAST:
        raise _NotPlain
    numbers = orjson.loads(b"[%b]" % flat)
    return np.fromiter(numbers, np.float64, len(numbers))


def _read_integers(text: _Text, layout: _Layout, first: int) -> _Integers:
    """The numbers of a part of a list, of the narrowest of int16, int32 and int64.

    Args:
        text, first: as `_read_fractions`.
    """
    starts, ends, others = _find_numbers(text, layout, first)
    digits = text - _ZERO  # 10 and more for all that is no digit
    is_digit = digits < 10  # noqa: PLR2004 (as there are)
    signs = len(text) - int(np.count_nonzero(is_digit)) - others
    is_negative = None
    lengths = ends - starts
    if signs:
        is_negative = text.take(starts) == _MINUS
        lengths -= is_negative
        if np.count_nonzero(is_negative) != signs or lengths.min() < 1:
            raise _NotPlain
    is_leading = digits == 0
    is_leading[1:] &= ~is_digit[:-1]
    if (is_leading[:-1] & is_digit[1:]).any():
        raise _NotPlain  # 007 is no JSON
    digits *= is_digit
    values = _add_up(digits, ends, lengths)
    if is_negative is not None:
        np.negative(values, out=values, where=is_negative)
    return values


def _find_numbers(text: _Text, layout: _Layout, first: int) -> tuple[_Places, _Places, int]:
    """Where numbers begin and end, and how many characters are proven to be between them."""
    commas = np.flatnonzero(text == _COMMA)
    starts, ends = np.empty(len(commas) + 1, np.intp), np.empty(len(commas) + 1, np.intp)
    starts[0] = 0
    starts[1:] = commas
    starts[1:] += 1 + layout.gap
    ends[:-1] = commas
    ends[-1] = len(text)
    if layout.gap and (text.take(commas + 1, mode="clip") != _SPACE).any():
        raise _NotPlain
    between = len(commas) * (1 + layout.gap)
    for size in layout.sizes:
        opened = starts[-first % size :: size]
        closed = ends[(-first - 1) % size :: size]
        closed -= 1
        is_open = text.take(opened, mode="clip") == _OPEN
        is_closed = text.take(closed, mode="clip") == _CLOSE
        opened += 1
        if not (is_open.all() and is_closed.all()):
            raise _NotPlain
        between += len(opened) + len(closed)
    if (ends <= starts).any():
        raise _NotPlain  # nothing is there, or a place outside of the text was looked at
    return starts, ends, between


def _add_up(digits: _Text, ends: _Places, lengths: _Places) -> _Integers:
    """The values of integers, two digits at a time from their ends.

    Args:
        digits: of the text; 0 for what is no digit. They are changed.
        ends: where each integer ends.
        lengths: of each integer, in digits.
    """
    longest = int(lengths.max())
    dtype = next((dtype for most, dtype in _DIGITS.items() if longest <= most), None)
    if dtype is None:
        raise _NotPlain
    tens = digits * 10
    digits[1:] += tens[:-1]  # at most 99
    places = ends - 1
    values = digits.take(places).astype(dtype)
    for done in range(2, longest, 2):
        places -= 2
        pair = digits.take(places).astype(dtype)  # before the text is its end: no harm
        pair *= lengths > done
        pair *= 10**done
        values += pair
    return values
