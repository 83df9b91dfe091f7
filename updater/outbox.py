"""Hands the history's events over to whoever reports them; the history itself is the outbox.

A cursor file for each reporter says up to which number it has taken them. Nothing is copied: an
event is on disk once, in the history, and stays there until rotation removes it (the bound).

Rules:
1. In order, each at least once: the cursor moves after the reporter has taken them. Whoever
   receives an event twice knows it by device and sequence number.
2. Events that were rotated away before they were taken leave a gap in the numbers.
3. A cursor that is damaged, or beyond the history's end because that was lost, begins anew.
4. Nothing is written while there is nothing to hand over.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

from msgspec import Meta

from updater.documents import read_document, set_aside, write_document
from updater.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from updater.history import History, Line

_log = logging.getLogger(f"inferd.{__name__}")

MOST_LINES = 100
"""Handed over at a time."""
_MAX_CURSOR_BYTES = 4096


class Reporter(Protocol):
    """A way on which events leave this device."""

    @property
    def name(self) -> str:
        """Of its cursor; a plain file name."""

    def deliver(self, lines: Sequence[Line]) -> int:
        """Take events over, oldest first.

        Args:
            lines: 1 to `MOST_LINES`.

        Returns:
            The number of the last one that is taken, durably; 0 for none.

        Raises:
            UpdateError: not now; try again later.
        """


@dataclass(frozen=True, slots=True)
class _Cursor:
    """What is in the file."""

    sequence: Annotated[int, Meta(ge=0)]


class Outbox:
    """One reporter's way through the history."""

    def __init__(self, folder: Path, history: History, reporter: Reporter) -> None:
        """Store only.

        Args:
            folder: of the cursor; it exists.
        """
        self._path = folder / f"{reporter.name}.json"
        self._history = history
        self._reporter = reporter

    def hand_over(self) -> bool:
        """Hand over what the reporter has not taken, `MOST_LINES` at most.

        Returns:
            Whether there may be more.

        Raises:
            UpdateError: as `Reporter.deliver`.
            OSError: the disk refused.
        """
        taken = self._cursor()
        lines = self._history.after(taken, limit=MOST_LINES)
        if not lines and taken and self._history.last() < taken:
            _log.warning("the history is not what was reported; reporting it anew taken=%d", taken)
            taken, lines = 0, self._history.after(0, limit=MOST_LINES)
        if not lines:
            return False
        last = min(self._reporter.deliver(lines), lines[-1].sequence)
        if last <= taken:
            return False
        # Power lost here: they are handed over once more (rule 1).
        write_document(self._path, _Cursor(last), max_bytes=_MAX_CURSOR_BYTES)
        return True

    def _cursor(self) -> int:
        try:
            cursor = read_document(self._path, _Cursor, max_bytes=_MAX_CURSOR_BYTES)
        except Damaged as exc:
            aside = set_aside(self._path)
            _log.warning("a cursor is damaged and put aside file=%s error=%.200s", aside, exc)
            return 0
        return cursor.sequence if cursor else 0
