"""Looks at repositories, in a thread of its own: nobody who decides ever waits for a network.

Rules:
1. One look at a time: the metadata on disk has one writer.
2. A look that is not wanted any more ends within a moment, unless a name server or a disk keeps it
   waiting; what it had verified by then is kept, whole.
3. How it ended is told once, to `when_over`, in its thread.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from updater.errors import FetchFailed, FetchReason, Untrusted

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from updater.trust import Trust
    from updater.view import View

_log = logging.getLogger(f"inferd.{__name__}")

_STOP_S = 10.0
"""For a look that cannot be ended at once; afterwards it ends with the process."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to look at.

    Attributes:
        source: URL, or path of a folder.
        asked_by: who waits for what becomes of it; None for a look by schedule.
    """

    source: str
    asked_by: Future[dict[str, int]] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it.

    Attributes:
        view: None when it failed.
        problem: why it failed.
        was_cancelled: it ended because nobody wanted it any more.
        retry_after_s: what the server asked for.
    """

    order: Order
    view: View | None
    problem: str = ""
    was_cancelled: bool = False
    retry_after_s: float | None = None


class Looks:
    """The look that is under way."""

    def __init__(self, trust: Trust, when_over: Callable[[Outcome], None]) -> None:
        """Store only."""
        self._trust = trust
        self._when_over = when_over
        self._running: _Look | None = None

    @property
    def is_busy(self) -> bool:
        """Whether one is under way."""
        return self._running is not None

    @property
    def is_asked_for(self) -> bool:
        """Whether somebody waits for the one that is under way."""
        running = self._running
        return running is not None and running.order.asked_by is not None

    def begin(self, order: Order) -> None:
        """Look. Called by one thread.

        Raises:
            RuntimeError: one is under way; a bug of the caller.
        """
        if self.is_busy:
            raise RuntimeError("a look is under way")
        self._running = _Look(order, self._trust, self._ended)
        self._running.start()

    def cancel(self) -> None:
        """End the one that is under way, if there is one."""
        running = self._running
        if running is not None:
            running.cancelled.set()

    def stop(self) -> None:
        """Cancel, and wait for the end of it, within a bound."""
        running = self._running
        if running is not None:
            running.cancelled.set()
            running.join(_STOP_S)

    def _ended(self, outcome: Outcome) -> None:
        self._running = None
        self._when_over(outcome)


def look(trust: Trust, order: Order, cancelled: Callable[[], bool]) -> Outcome:
    """Look now, in this thread. Raises nothing: what went wrong is in the outcome."""
    try:
        return Outcome(order, trust.refresh(order.source, cancelled=cancelled))
    except FetchFailed as exc:
        return Outcome(
            order,
            None,
            str(exc),
            was_cancelled=exc.reason is FetchReason.CANCELLED,
            retry_after_s=exc.retry_after_s,
        )
    except (Untrusted, OSError) as exc:
        return Outcome(order, None, str(exc))
    except Exception as exc:  # noqa: BLE001 - the top of a look: the box goes on serving
        _log.exception("a look has failed through a fault of this program source=%s", order.source)
        return Outcome(order, None, f"a fault of this program: {exc}")


class _Look(threading.Thread):
    """A daemon thread: a disk or a name server that never answers keeps no process alive."""

    def __init__(self, order: Order, trust: Trust, when_over: Callable[[Outcome], None]) -> None:
        super().__init__(name="look", daemon=True)
        self.cancelled = threading.Event()
        self.order = order
        self._trust = trust
        self._when_over = when_over

    def run(self) -> None:
        self._when_over(look(self._trust, self.order, self.cancelled.is_set))
