"""Tells the daemon what the updater is at, and hands events over, in a thread of its own.

Nobody who decides waits for it, and nothing depends on whether it succeeds: a report that does not
get through is told again, an event stays in the history.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from updater.daemonlink import DaemonRefused
from updater.errors import DaemonUnavailable, UpdateError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from updater.daemonlink import DaemonLink
    from updater.history import Line
    from updater.outbox import Outbox

_log = logging.getLogger(f"inferd.{__name__}")

_TELL_EVERY_S = 15.0
"""Without news: a daemon that was started again knows nothing."""
_LEAST_S = 0.5
"""Between two reports, however much happens."""
_RETRY_FIRST_S, _RETRY_MOST_S = 10.0, 300.0
"""After a reporter could not take events; the wait doubles."""
_STOP_S = 3.0
"""For a reporter; what takes longer ends with the process."""
_UNREADABLE = frozenset({400, 413, 422})
"""What the daemon answers where it will never take an event."""


class DaemonReporter:
    """Events leave through the daemon, which publishes them by MQTT."""

    name = "mqtt"

    def __init__(self, daemon: DaemonLink) -> None:
        """Store only."""
        self._daemon = daemon

    def deliver(self, lines: Sequence[Line]) -> int:
        """As `Reporter.deliver`; an event that the daemon cannot read is left out, and said."""
        try:
            return self._daemon.publish(lines)
        except DaemonRefused as exc:
            if exc.status not in _UNREADABLE:
                raise DaemonUnavailable(f"the daemon takes no events: {exc}") from exc
            if len(lines) > 1:
                return self.deliver(lines[:1])
            sequence = lines[0].sequence
            _log.error("an event is not reported sequence=%d cause=%s", sequence, exc)
            return sequence


class _Way:
    """An outbox, and when to try it again.

    Attributes:
        is_behind: it has been tried in vain.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._failures = 0
        self._not_before = -math.inf
        self.is_behind = False

    def hand_over(self, now: float) -> None:
        """Until nothing is left, or it is refused."""
        if now < self._not_before:
            return
        try:
            while self._outbox.hand_over():
                pass
        except (UpdateError, OSError) as exc:
            _log.debug("events stay here for now cause=%s", exc)
            wait_s = min(_RETRY_FIRST_S * 2.0 ** min(self._failures, 30), _RETRY_MOST_S)
            self._failures += 1
            self._not_before, self.is_behind = now + wait_s, True
        else:
            self._failures, self.is_behind = 0, False


class Herald:
    """The thread, and what it is to tell."""

    def __init__(
        self,
        daemon: DaemonLink,
        report: Callable[[], Mapping[str, object]],
        outboxes: Collection[Outbox],
    ) -> None:
        """Store only.

        Args:
            daemon: nobody else's, for it is cut at a stop.
            report: makes the document that the daemon is told.
        """
        self._daemon = daemon
        self._report = report
        self._ways = [_Way(outbox) for outbox in outboxes]
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._is_heard = True
        self._thread = threading.Thread(target=self._run, name="herald", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def news(self) -> None:
        """There is something to tell."""
        self._news.set()

    def stop(self) -> None:
        """End; within a bound."""
        self._stopping.set()
        self._news.set()
        self._daemon.cut()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def tell(self) -> None:
        """Say and hand over everything now, in the caller's thread."""
        self._tell()
        for way in self._ways:
            way.hand_over(time.monotonic())

    def _run(self) -> None:
        while not self._stopping.is_set():
            is_news = self._news.wait(_TELL_EVERY_S)
            self._news.clear()
            if self._stopping.is_set():
                return
            try:
                self._tell()
                for way in self._ways:
                    if is_news or way.is_behind:
                        way.hand_over(time.monotonic())
            except Exception:  # noqa: BLE001 - the top of a thread: nothing depends on it
                _log.exception("nothing could be told through a fault of this program")
            self._stopping.wait(_LEAST_S)

    def _tell(self) -> None:
        try:
            self._daemon.tell(self._report())
        except (UpdateError, DaemonRefused, OSError) as exc:
            if self._is_heard:
                _log.info("the daemon does not take the report cause=%s", exc)
            self._is_heard = False
        else:
            self._is_heard = True
