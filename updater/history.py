"""The history: what the updater has done and why, one line per event, each bound to the one before.

Rules:
1. A line holds its number, counted from 1, the wall time, the sha256 of the line before (without
   its line break) and the event. So no line can be changed, left out or put in between without a
   break that `verify` finds. Whoever can write the file can forge it as a whole, or cut its end:
   compare with the numbers that were reported to somebody else.
2. Power lost while a line is written leaves a part of it, without a line break. The next `append`
   replaces the file by one without that part, whose next line says how many bytes were cut: in
   one step, so the cut is never silent.
3. Nothing else is ever repaired. After damage in the middle lines go on being appended, bound to
   what is there, and `verify` goes on reporting the break.
4. A full file is renamed after its last number, and a new one begins; its first line is bound to
   the last of the old one. The oldest files beyond a bound are removed, so the first line that is
   left may be bound to one that is gone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from updater import atomic
from updater.documents import DAMAGE, plain, set_aside

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Fact = str | int | float | bool | None
"""What an event says under one key."""

_MAX_LINE_BYTES = 64 * 1024  # ten texts of 1000 characters, escaped
_MAX_SEQUENCE = 10**11  # a file's name has a place for 12 digits
_FIRST = "0" * 64  # what the very first line is bound to


@dataclass(frozen=True, slots=True)
class Line:
    """One event, as it stands in the file.

    Attributes:
        sequence: its number, from 1.
        time: of the wall clock, seconds; it may go backwards when the clock does.
        previous: sha256 of the line before, hex; 64 zeros in the first.
        cut_bytes: of an unfinished line that stood before this one; 0 nearly always.
        event: what happened.
    """

    sequence: Annotated[int, Meta(ge=1, le=_MAX_SEQUENCE)]
    time: float
    previous: str
    event: dict[str, Fact]
    cut_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where the history is not what was written.

    Attributes:
        file: its name.
        line: counted from 1 in that file; 0 for all of it.
        problem: in words.
    """

    file: str
    line: int
    problem: str


@dataclass(frozen=True, slots=True)
class Chain:
    """What `verify` has found.

    Attributes:
        first, last: numbers of the first and the last line; 0 when there is none.
        digest: sha256 of the last line, hex; 64 zeros when there is none.
        torn_bytes: of an unfinished line at the end, which the next `append` cuts; no break.
        broken: None when every line is bound to the one before.
    """

    first: int
    last: int
    digest: str
    torn_bytes: int
    broken: Break | None


class History:
    """The files of one history. Nothing is kept in memory: a restart changes nothing.

    Args:
        path: of the file that is appended to; its folder exists when the first event comes. Full
            ones are beside it, as `STEM-000000001234.jsonl`.
        max_bytes: a file of this size is full.
        max_files: full ones that are kept.
    """

    def __init__(self, path: Path, *, max_bytes: int = 1 << 20, max_files: int = 7) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_files = max_files

    def append(self, event: Mapping[str, Fact], *, now: float) -> Line:
        """Add an event; texts are cut to 1000 characters. It is durable when this returns.

        Returns:
            The line, with its number.

        Raises:
            ValueError: the event is too large for a line.
            OSError: the disk refused. The event is not in; if a part of it is, it is cut later.
        """
        lines, torn = _lines(self._path)
        sequence, digest = self._end(lines)
        line = Line(sequence + 1, now, digest, _plain(event), cut_bytes=len(torn))
        raw = _encode(line)
        if torn:
            atomic.write_file(self._path, b"\n".join((*lines, raw, b"")))
            return line
        if sum(map(len, lines)) >= self._max_bytes:
            self._rotate(sequence)
        atomic.append_line(self._path, raw)
        return line

    def recover(self) -> Chain:
        """At the start: make what can be read durable, and follow the chain.

        After a kill the last line may be lost still, and its number would be used twice. A file
        that cannot be read at all is put aside, so that there is a history again.

        Returns:
            As `verify`; a file that was put aside is its break, this once. Append an event.

        Raises:
            OSError: the disk refused.
        """
        try:
            _lines(self._path)
        except OSError as exc:
            if exc.errno not in DAMAGE:
                raise
            aside = set_aside(self._path)
            problem = f"cannot be read: {exc.strerror}; put aside as {aside.name}"
            return dataclasses.replace(self.verify(), broken=Break(self._path.name, 0, problem))
        if self._path.exists():
            atomic.sync_file(self._path)
            atomic.sync_folder(self._path.parent)
        return self.verify()

    def read(self, *, limit: int) -> tuple[Line, ...]:
        """The last events, oldest first, at most `limit`; damaged lines are left out.

        Raises:
            OSError: the disk cannot be read.
        """
        found: list[Line] = []
        for path in reversed(self._files()):
            decoded = (_decode(raw) for raw in reversed(_lines(path)[0]))
            found += [line for line in decoded if line is not None]
            if len(found) >= limit:
                break
        return tuple(reversed(found[:limit]))

    def after(self, sequence: int, *, limit: int) -> tuple[Line, ...]:
        """The first events with a higher number, oldest first, at most `limit`.

        Raises:
            OSError: the disk cannot be read.
        """
        newer = [path for path in self._full() if _last_number(path) > sequence]
        found: list[Line] = []
        for path in (*newer, self._path):
            decoded = (_decode(raw) for raw in _lines(path)[0])
            found += [line for line in decoded if line is not None and line.sequence > sequence]
            if len(found) >= limit:
                break
        return tuple(found[:limit])

    def last(self) -> int:
        """The number of the last event; 0 when there is none.

        Raises:
            OSError: the disk cannot be read.
        """
        return self._end(_lines(self._path)[0])[0]

    def verify(self) -> Chain:
        """Follow the chain through all files.

        Raises:
            OSError: the disk cannot be read.
        """
        first = last = torn_bytes = 0
        digest = _FIRST
        broken: Break | None = None
        for path in self._files():
            lines, torn = _lines(path)
            for number, raw in enumerate(lines, start=1):
                line = _decode(raw)
                problem = _problem(line, last, digest)
                if problem and broken is None:
                    broken = Break(path.name, number, problem)
                last = line.sequence if line else last + 1
                first = first or last
                digest = _digest(raw)
            if path == self._path:
                torn_bytes = len(torn)
            elif (torn or last != _last_number(path)) and broken is None:
                problem = f"ends after number {last}, its name says {_last_number(path)}"
                broken = Break(path.name, len(lines), problem)
        return Chain(first, last, digest, torn_bytes, broken)

    def _files(self) -> tuple[Path, ...]:
        return (*self._full(), self._path) if self._path.exists() else self._full()

    def _full(self) -> tuple[Path, ...]:
        """The full files, oldest first."""
        name = re.compile(
            rf"{re.escape(self._path.stem)}-[0-9]{{12}}{re.escape(self._path.suffix)}"
        )
        if not self._path.parent.is_dir():
            return ()
        return tuple(sorted(p for p in self._path.parent.iterdir() if name.fullmatch(p.name)))

    def _end(self, lines: list[bytes]) -> tuple[int, str]:
        """Number and digest of the last line; where damage hides a number it is counted on."""
        sequence, digest = self._end_of_full()
        for raw in lines:
            line = _decode(raw)
            sequence = max(sequence + 1, line.sequence if line else 0)
            digest = _digest(raw)
        return sequence, digest

    def _end_of_full(self) -> tuple[int, str]:
        full = self._full()
        sequence = _last_number(full[-1]) if full else 0
        for path in reversed(full):
            lines, _ = _lines(path)
            if lines:
                return sequence, _digest(lines[-1])
        return sequence, _FIRST

    def _rotate(self, sequence: int) -> None:
        """Set the full file aside. Power lost after the rename: there is no file, and that is fine.

        After a kill its last line may be readable and not durable yet, hence the sync.
        """
        atomic.sync_file(self._path)
        full = self._path.with_name(f"{self._path.stem}-{sequence:012d}{self._path.suffix}")
        atomic.rename(self._path, full)
        for path in self._full()[: -self._max_files]:
            atomic.remove(path)


def _lines(path: Path) -> tuple[list[bytes], bytes]:
    """The whole lines of a file, and what follows the last line break."""
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], b""
    return lines, torn


def _last_number(full: Path) -> int:
    return int(full.stem[-12:])


def _problem(line: Line | None, last: int, digest: str) -> str | None:
    """Why a line cannot follow the one with this number and digest; None when it can.

    Args:
        last: 0 when nothing is known of the line before.
    """
    if line is None:
        return "no line of a history"
    if not last:
        begins = line.sequence > 1 or line.previous == _FIRST
        return None if begins else "bound to a line before the first"
    if line.previous != digest:
        return "not bound to the line before it"
    if line.sequence != last + 1:
        return f"number {line.sequence} follows number {last}"
    return None


def _encode(line: Line) -> bytes:
    raw = msgspec.json.encode(line)
    if len(raw) > _MAX_LINE_BYTES:
        raise ValueError(f"the event takes {len(raw)} bytes, a line holds {_MAX_LINE_BYTES}")
    return raw


def _decode(raw: bytes) -> Line | None:
    try:
        return msgspec.json.decode(raw, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _plain(event: Mapping[str, Fact]) -> dict[str, Fact]:
    return {
        plain(key): plain(fact) if isinstance(fact, str) else fact for key, fact in event.items()
    }
