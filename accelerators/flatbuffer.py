"""Reader of flatbuffer tables that never leaves the bytes it was given. Pure.

A table is a `Table`; a field is read by its slot number in the schema. Every offset and length is
checked against the buffer, and the number of reads is bounded, so that a hostile file ends in
`DamagedFile` and in nothing worse.

Source: https://flatbuffers.dev/internals/ ("Encoding").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_READS_MAX = 2_000_000  # reads per buffer: above any real model's, below a second of work
_STRING_MAX = 1 << 20  # bytes

_INT32 = struct.Struct("<i")
_UINT16 = struct.Struct("<H")
_UINT32 = struct.Struct("<I")


class DamagedFile(ValueError):
    """The bytes do not have the structure they claim."""


@dataclass(slots=True)
class Buffer:
    """Bytes with a budget of reads."""

    data: memoryview
    reads_left: int = _READS_MAX

    def number(self, layout: struct.Struct, offset: int) -> int | float:
        """One number at `offset`.

        Raises:
            DamagedFile: it would lie outside, or the buffer was read too often.
        """
        self.reads_left -= 1
        if self.reads_left < 0:
            raise DamagedFile("too many fields")
        if offset < 0 or offset + layout.size > len(self.data):
            raise DamagedFile("an offset points outside the file")
        value: int | float = layout.unpack_from(self.data, offset)[0]
        return value

    def integer(self, layout: struct.Struct, offset: int) -> int:
        """One integer at `offset`."""
        return int(self.number(layout, offset))

    def root(self) -> Table:
        """The table the buffer begins with."""
        return self.table(self.integer(_UINT32, 0))

    def table(self, offset: int) -> Table:
        """The table at `offset`."""
        vtable = offset - self.integer(_INT32, offset)
        size = self.integer(_UINT16, vtable)
        return Table(self, offset, vtable, size)

    def span(self, offset: int, length: int) -> memoryview:
        """`length` bytes at `offset`."""
        if offset < 0 or length < 0 or offset + length > len(self.data):
            raise DamagedFile("a vector reaches outside the file")
        return self.data[offset : offset + length]


@dataclass(frozen=True, slots=True)
class Table:
    """One table; every method takes the field's slot number."""

    buffer: Buffer
    offset: int
    vtable: int
    vtable_size: int

    def number(self, slot: int, code: str, default: float = 0) -> int | float:
        """A scalar field; `code` is its struct code."""
        where = self._field(slot)
        return self.buffer.number(_layout(code), where) if where else default

    def integer(self, slot: int, code: str, default: int = 0) -> int:
        """A scalar integer field."""
        return int(self.number(slot, code, default))

    def text(self, slot: int) -> str:
        """A string field, "" when absent; bytes that are not UTF-8 are replaced."""
        where = self.target(slot)
        return self._string(where) if where else ""

    def table(self, slot: int) -> Table | None:
        """A table field."""
        where = self.target(slot)
        return self.buffer.table(where) if where else None

    def blob(self, slot: int) -> memoryview:
        """A vector of bytes, empty when absent."""
        where = self.target(slot)
        if not where:
            return memoryview(b"")
        return self.buffer.span(where + 4, self.buffer.integer(_UINT32, where))

    def numbers(self, slot: int, code: str, *, limit: int) -> tuple[int | float, ...]:
        """A vector of scalars.

        Raises:
            DamagedFile: it has more than `limit` elements.
        """
        layout = _layout(code)
        where = self.target(slot)
        if not where:
            return ()
        count = self._count(where, limit)
        data = self.buffer.span(where + 4, count * layout.size)
        return tuple(value for (value,) in layout.iter_unpack(data))

    def tables(self, slot: int, *, limit: int) -> tuple[Table, ...]:
        """A vector of tables."""
        return tuple(self.buffer.table(where) for where in self._elements(slot, limit))

    def texts(self, slot: int, *, limit: int) -> tuple[str, ...]:
        """A vector of strings."""
        return tuple(self._string(where) for where in self._elements(slot, limit))

    def target(self, slot: int) -> int:
        """Where in the buffer the field's offset points to; 0 when the table does not have it."""
        where = self._field(slot)
        return where + self.buffer.integer(_UINT32, where) if where else 0

    def _elements(self, slot: int, limit: int) -> list[int]:
        where = self.target(slot)
        if not where:
            return []
        first = where + 4
        places = range(first, first + 4 * self._count(where, limit), 4)
        return [place + self.buffer.integer(_UINT32, place) for place in places]

    def _count(self, where: int, limit: int) -> int:
        count = self.buffer.integer(_UINT32, where)
        if count > limit:
            raise DamagedFile(f"a vector has {count} elements, more than {limit}")
        return count

    def _string(self, where: int) -> str:
        length = self.buffer.integer(_UINT32, where)
        if length > _STRING_MAX:
            raise DamagedFile(f"a string has {length} bytes, more than {_STRING_MAX}")
        return bytes(self.buffer.span(where + 4, length)).decode("utf-8", "replace")

    def _field(self, slot: int) -> int:
        """Where the field lies; 0 when the table does not have it."""
        entry = 4 + 2 * slot
        if entry + 2 > self.vtable_size:
            return 0
        offset = self.buffer.integer(_UINT16, self.vtable + entry)
        return self.offset + offset if offset else 0


_LAYOUTS = {code: struct.Struct(f"<{code}") for code in "bBhHiIqQf"}


def _layout(code: str) -> struct.Struct:
    return _LAYOUTS[code]
