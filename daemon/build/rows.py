r"""Files of rows: the tensors of many calls, one after the other, read and written a row at a time.

A line of JSON with the tensors' names, in order; then for each row one `.npy` for each name. Text
and bytes are NumPy's fixed-width bytes (`S`), so zero bytes at an element's end are lost. The
daemon's own bytes are objects: `as_stored` and `as_called` go from one to the other.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from accelerators.base import Array

    Row = Mapping[str, Array]
    """The tensors of one call by name."""


class RowWriter:
    """Adds rows to a file that is open."""

    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        """Write the line of names."""
        self._file = file
        self._names = tuple(names)
        self.count = 0
        file.write(json.dumps(self._names).encode() + b"\n")

    def add(self, row: Row) -> None:
        """Write one row; it has every name.

        Raises:
            OSError: the disk refused.
        """
        for name in self._names:
            np.save(self._file, as_stored(row[name]), allow_pickle=False)
        self.count += 1


@contextmanager
def writing_rows(path: Path, names: Sequence[str]) -> Iterator[RowWriter]:
    """Make a file of rows.

    Raises:
        OSError: the disk refused.
    """
    with path.open("wb") as file:
        yield RowWriter(file, names)


def read_rows(path: Path) -> Iterator[Row]:
    """Each row in turn, as the daemon calls with it.

    Raises:
        ValueError, EOFError: it is no such file.
        OSError: it cannot be read.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        names = json.loads(file.readline())
        while file.tell() < size_bytes:
            yield {name: as_called(np.load(file, allow_pickle=False)) for name in names}


def as_stored(array: Array) -> Array:
    """Bytes as `S`, everything else as it is."""
    return array.astype("S") if array.dtype == object else array


def as_called(array: Array) -> Array:
    """Text and bytes as objects, everything else as it is."""
    if array.dtype.kind == "U":
        array = np.char.encode(array.astype(np.str_), "utf-8")
    return array.astype(object) if array.dtype.kind == "S" else array
