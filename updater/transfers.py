"""One download at a time, in a thread of its own: nobody who decides ever waits for bytes.

Rules:
1. What is wanted is fetched when its turn has come: when nothing else is on its way.
2. An outcome is told once, to whoever wants that order. Whoever wants it again begins anew; a part
   that is complete already costs no more than reading it.
3. A part file has one writer. Wanted from another source, it is first left alone by the old one.
4. What was cancelled has no outcome.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from updater.fetch import fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from updater.fetch import Limits

_STOP_S = 10.0
"""A cancelled transfer ends within a tenth of a second, unless the disk keeps it waiting."""


@dataclass(frozen=True, slots=True)
class Order:
    """A file that is wanted.

    Attributes:
        source: URL, or path of a folder.
        name: below that, percent-encoded.
        part: where it arrives; its folder exists.
        length: bytes, as signed.
        sha256: as signed, hex.
    """

    source: str
    name: str
    part: Path
    length: int
    sha256: str


class Transfers:
    """The download that is on its way, and the outcomes that nobody has asked for yet."""

    def __init__(self, limits: Limits) -> None:
        """Store only."""
        self._limits = limits
        self._changed = threading.Condition()
        self._running: _Transfer | None = None
        self._outcomes: dict[Order, Exception | None] = {}

    def want(self, order: Order) -> bool:
        """Ask for a file; to be called again until it is there.

        Returns:
            True: it is there, verified and durable. False: it is on its way, or waits its turn.

        Raises:
            FetchFailed, Untrusted, NoSpace, OSError: what `fetch` raised, once.
        """
        with self._changed:
            if order in self._outcomes:
                problem = self._outcomes.pop(order)
                if problem is not None:
                    raise problem
                return True
            if self._running is None:
                self._begin(order)
            elif self._running.order.part == order.part and self._running.order != order:
                self._running.cancelled.set()
        return False

    def progress(self, order: Order) -> tuple[int, int]:
        """Bytes that are there, and in all.

        Raises:
            OSError: the disk cannot be read.
        """
        try:
            return min(order.part.stat().st_size, order.length), order.length
        except FileNotFoundError:
            return 0, order.length

    def keep(self, parts: Collection[Path]) -> None:
        """Cancel and forget all but what goes to these part files."""
        with self._changed:
            if self._running is not None and self._running.order.part not in parts:
                self._running.cancelled.set()
            self._outcomes = {
                order: outcome for order, outcome in self._outcomes.items() if order.part in parts
            }

    def wait(self, timeout_s: float) -> None:
        """Return when nothing is on its way, at the latest after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._running is None, timeout_s)

    def stop(self) -> None:
        """Cancel what is on its way; what has arrived of it is there for the next time."""
        with self._changed:
            running = self._running
        if running is not None:
            running.cancelled.set()
            running.join(_STOP_S)

    def _begin(self, order: Order) -> None:
        self._outcomes = {
            other: outcome for other, outcome in self._outcomes.items() if other.part != order.part
        }
        self._running = _Transfer(order, self._limits, self._end)
        self._running.start()

    def _end(self, transfer: _Transfer) -> None:
        with self._changed:
            self._running = None
            if not transfer.cancelled.is_set():
                self._outcomes[transfer.order] = transfer.problem
            self._changed.notify_all()


class _Transfer(threading.Thread):
    """One order on its way. A daemon thread: a disk that never answers keeps no process alive."""

    def __init__(
        self, order: Order, limits: Limits, when_over: Callable[[_Transfer], None]
    ) -> None:
        super().__init__(name="transfer", daemon=True)
        self.order = order
        self.cancelled = threading.Event()
        self.problem: Exception | None = None
        self._limits = limits
        self._when_over = when_over

    def run(self) -> None:
        try:
            fetch(
                self.order.source,
                self.order.name,
                self.order.part,
                length=self.order.length,
                sha256=self.order.sha256,
                limits=self._limits,
                cancelled=self.cancelled.is_set,
            )
        except Exception as exc:  # noqa: BLE001 - the top of a thread; `want` raises it
            self.problem = exc
        self._when_over(self)
