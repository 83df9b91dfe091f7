"""What others ask of the deciding thread: a short queue, and answers within bounds of time.

Whoever asks is answered, refused or told to ask again; nobody waits for ever, and what was given up
is not done afterwards.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from updater.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_MOST_WAITING = 16
"""Far more than operators ask at a time; more are refused."""


class Refused(UpdateError):
    """What was asked for cannot be done; the message says why."""


class Busy(UpdateError):
    """Not now; ask again."""


class Requests:
    """The queue. Any thread asks, one obeys."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Store only.

        Args:
            wake: told when there is something to do.
        """
        self._wake = wake
        self._waiting: queue.Queue[Callable[[], None]] = queue.Queue(_MOST_WAITING)
        self._asked: set[Future[Any]] = set()
        self._is_over = threading.Event()

    @property
    def are_waiting(self) -> bool:
        """Whether there is something to do."""
        return not self._waiting.empty()

    def ask(self, do: Callable[[], T]) -> Future[T]:
        """Have it done.

        Raises:
            Busy: too much is asked for already.
        """
        asked: Future[T] = Future()

        def run() -> None:
            answer(asked, do)

        try:
            self._waiting.put_nowait(run)
        except queue.Full:
            raise Busy("too much is asked for at once; ask again") from None
        self._wake()
        return asked

    def obey(self) -> None:
        """Do what is asked for, in the thread that calls this."""
        while self.are_waiting:
            self._waiting.get()()

    def result(self, asked: Future[T], wait_s: float) -> T:
        """What came of it.

        Raises:
            Busy: nothing did in time, and nothing will; or the updater stops.
            Exception: what it came to.
        """
        self._asked.add(asked)
        try:
            return asked.result(0 if self._is_over.is_set() else wait_s)
        except TimeoutError:
            if not asked.cancel():  # it has just begun
                return asked.result(wait_s)
            raise Busy("something else is under way; ask again") from None
        except CancelledError:
            raise Busy("the updater stops") from None
        finally:
            self._asked.discard(asked)

    def stop(self) -> None:
        """Nobody obeys any more: tell those who wait."""
        self._is_over.set()
        for asked in tuple(self._asked):
            asked.cancel()


def answer(asked: Future[T], do: Callable[[], T]) -> None:
    """Do it and tell whoever asked, unless he has gone."""
    if not asked.set_running_or_notify_cancel():
        return
    try:
        asked.set_result(do())
    except Exception as exc:  # noqa: BLE001 - the top of a request: whoever asked is told
        asked.set_exception(exc)
