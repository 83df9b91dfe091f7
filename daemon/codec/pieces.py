"""Arrays of numbers as JSON, written in pieces that keep nobody waiting. Pure.

The writer of JSON runs in C and gives no other thread a turn until it is done. A piece takes some
10 ms; between pieces the event loop has its turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from daemon.errors import TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from accelerators.base import Array

HEAVY_ANSWER_VALUES = 64 * 1024
"""From so many values on, an answer takes some milliseconds to write."""
_STRING_BYTES = 8
"""Of a string that take about as long to write as one number."""
MAX_JSON_ANSWER_VALUES = 4_000_000
"""Of one answer, all outputs together. More make some 40 MB of text and keep the one thread that
writes large documents for a second; such answers belong into a binary form."""
_PIECE_VALUES = 250_000


def is_heavy_answer(arrays: Iterable[Array]) -> bool:
    """Whether writing them as JSON takes so long that others should have their turn meanwhile."""
    return sum(map(_weigh, arrays)) > HEAVY_ANSWER_VALUES


def _weigh(array: Array) -> int:
    """In values."""
    if array.dtype.kind != "O":
        return array.size
    return array.size + sum(map(len, array.reshape(-1).tolist())) // _STRING_BYTES


def check_answer_size(arrays: Iterable[Array]) -> None:
    """Refuse an answer that is too large for JSON.

    Raises:
        TooLarge: more than `MAX_JSON_ANSWER_VALUES`.
    """
    count = sum(array.size for array in arrays)
    if count > MAX_JSON_ANSWER_VALUES:
        raise TooLarge(
            f"the answer has {count} values, more than the {MAX_JSON_ANSWER_VALUES} that are "
            "written as JSON; ask for fewer outputs, or for binary data (KServe's "
            "'binary_data_output')",
            limit=MAX_JSON_ANSWER_VALUES,
            unit="values",
        )


def write_numbers(array: Array, finish: Callable[[bytes, Array], bytes]) -> bytes:
    """Nested lists of an array's numbers, as orjson writes them.

    Args:
        array: numbers or booleans, contiguous, of rank 1 at least.
        finish: given each piece's text, a whole list, and its numbers; the text to use instead,
            which puts in what orjson has no words for.
    """
    if array.size <= _PIECE_VALUES:
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
        return finish(text, array)
    if array.ndim > 1 and array[0].size > _PIECE_VALUES:
        return b"[" + b",".join(write_numbers(row, finish) for row in array) + b"]"
    return b"[" + b",".join(_inner_texts(array, finish)) + b"]"


def _inner_texts(array: Array, finish: Callable[[bytes, Array], bytes]) -> Iterator[bytes]:
    """The text between the brackets of each run of rows."""
    step = max(1, _PIECE_VALUES * len(array) // array.size)
    for start in range(0, len(array), step):
        rows = array[start : start + step]
        text = orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)
        yield finish(text, rows)[1:-1]
