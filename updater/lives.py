"""How often the daemon has died, by the mark that it keeps, and how long it has been silent.

The mark is `daemon.json` beside the daemon's socket. The daemon replaces it at each start, before
it loads any model, and once more when it stops in good order; so a candidate that kills it, or
keeps it from ever answering, is found out, and an operator's restart is held against nobody.

Rules:
1. The mark counts deaths since the machine was booted: its folder is in memory. No mark, or a
   damaged one, says nothing of them.
2. Another count than the one remembered means that many deaths; one that began anew, because the
   mark was lost, means as many as it says.
3. A daemon that has not answered for `grace_s` is as good as dead, unless it was stopped in good
   order or has left no mark: then somebody wants it so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from updater.documents import read_document
from updater.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MAX_MARK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Mark:
    """What the daemon says of its lives.

    Attributes:
        instance: of this life, 32 hex digits.
        pid: of this life's process.
        deaths: lives that did not end in good order, this one not counted.
        clean: this life has ended in good order.
    """

    instance: str
    pid: int
    deaths: Annotated[int, Meta(ge=0)]
    clean: bool


def read_mark(path: Path) -> Mark | None:
    """The daemon's mark; None where there is none that says anything (rule 1).

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        return read_document(path, Mark, max_bytes=_MAX_MARK_BYTES)
    except Damaged:
        return None


class Lives:
    """The daemon, as far as its mark and its silence tell.

    Args:
        path: of the mark.
        grace_s: how long it may be silent.
        now: monotonic clock, seconds.
    """

    def __init__(
        self, path: Path, *, grace_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._grace_s = grace_s
        self._now = now
        self._silent_since: float | None = None

    def deaths(self) -> int:
        """To be remembered when a try begins.

        Raises:
            OSError: as `read_mark`.
        """
        mark = read_mark(self._path)
        return mark.deaths if mark else 0

    def deaths_since(self, remembered: int) -> int:
        """How often it has died since there were so many deaths (rule 2).

        Raises:
            OSError: as `read_mark`.
        """
        deaths = self.deaths()
        return deaths - remembered if deaths >= remembered else deaths

    def answered(self) -> None:
        """It is there; or its silence has been counted, and begins anew."""
        self._silent_since = None

    def is_lost(self) -> bool:
        """To be asked whenever it has not answered: whether that is too long now (rule 3).

        Raises:
            OSError: as `read_mark`.
        """
        now = self._now()
        if self._silent_since is None:
            self._silent_since = now
        mark = read_mark(self._path)
        if mark is None or mark.clean:
            self._silent_since = None
            return False
        return now - self._silent_since > self._grace_s
