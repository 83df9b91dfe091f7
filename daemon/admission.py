"""May this request come in, and how many waiting ones share an invocation. Pure.

Rules of entry, checked in this order:
1. A request whose deadline has passed is not begun.
2. At most `limit` requests wait or run for one version; one more is refused at once.
3. A request that would have to wait and then miss its deadline, going by how long decoding and
   invocations have taken lately, is refused at once rather than answered too late.

Not checked: fairness between clients. A queue is short (its bound times the model's latency), so a
client that floods it is refused as often as the others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from daemon.errors import DeadlineExceeded, Overloaded, RefusalReason

if TYPE_CHECKING:
    from collections.abc import Sequence

_SMOOTHING = 0.1
"""Weight of the newest service time in the running mean: follows a change within some 20 calls."""

_MAX_RETRY_AFTER_S = 60
"""Longer than any queue should be; shorter than a client's patience with a wrong estimate."""


_WORTH_SPREADING_S = 100e-6
"""One call more costs the daemon and the worker about 25 us together; shorter calls are not worth
it."""


class Stage:
    """One station on a request's way: how many it serves side by side, and how long each takes."""

    __slots__ = ("_parallel", "mean_s")

    def __init__(self, parallel: int) -> None:
        self._parallel = parallel
        self.mean_s = 0.0

    def observe(self, seconds: float) -> None:
        """Learn how long one request kept one of its places busy."""
        if self.mean_s == 0.0:
            self.mean_s = seconds
            return
        self.mean_s += _SMOOTHING * (seconds - self.mean_s)

    def wait_s(self, before: int) -> float:
        """How long a request waits that finds so many before it; 0 while a place is free."""
        return max(0, before - self._parallel + 1) * self.mean_s / self._parallel


class Gate:
    """The places of one version's queue.

    Attributes:
        pending: requests inside.
        decoding, invoking: the stages whose times it goes by; both learn from `observe`.
    """

    __slots__ = ("_limit", "decoding", "invoking", "pending")

    def __init__(self, *, limit: int, decoders: int, workers: int) -> None:
        """All free.

        Args:
            limit: requests that may be inside, at least 1.
            decoders: pictures or sounds decoded side by side, at least 1.
            workers: invocations that run side by side, at least 1.
        """
        self._limit = limit
        self.decoding = Stage(decoders)
        self.invoking = Stage(workers)
        self.pending = 0

    def enter(self, *, now: float, deadline: float) -> None:
        """Take a place; `leave` must follow. Times in `time.monotonic()` seconds.

        Raises:
            Overloaded: rule 2 or 3; nothing was taken.
            DeadlineExceeded: rule 1.
        """
        if now >= deadline:
            raise DeadlineExceeded("the deadline had passed before the request was begun")
        if self.pending >= self._limit:
            raise Overloaded(
                f"the queue is full: {self._limit} requests are waiting",
                reason=RefusalReason.QUEUE_FULL,
                retry_after_s=self._retry_after_s(),
            )
        wait_s = self.expected_wait_s
        if wait_s and now + wait_s + self.decoding.mean_s + self.invoking.mean_s > deadline:
            raise Overloaded(
                "the request would pass its deadline while it waits",
                reason=RefusalReason.DEADLINE,
                retry_after_s=self._retry_after_s(),
            )
        self.pending += 1

    def leave(self) -> None:
        """Give the place back."""
        self.pending -= 1

    @property
    def expected_wait_s(self) -> float:
        """How long one more request would wait for the slower stage, in seconds."""
        return max(self.decoding.wait_s(self.pending), self.invoking.wait_s(self.pending))

    def _retry_after_s(self) -> int:
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(self.expected_wait_s)))


def choose_batch(rows: Sequence[int], max_rows: int, *, free_slots: int, usual_s: float) -> int:
    """How many of the waiting requests, from the front, share the next invocation.

    Where invocations are worth it, the requests are spread over the calls that workers would take
    now. So every worker has something to do; and a single one has a second call to go on with while
    the answers of its first are sent.

    Args:
        rows: rows of each waiting request that fits with the first, in order, at least one.
        max_rows: proven rows per invocation.
        free_slots: calls that workers would take now, at least 1.
        usual_s: how long an invocation has taken lately, seconds.

    Returns:
        At least 1. Their rows are at most `max_rows`, except for a single request with more.
    """
    slots = free_slots if usual_s >= _WORTH_SPREADING_S else 1
    share = min(max_rows, math.ceil(sum(rows) / slots))
    taken, total = 1, rows[0]
    for more in rows[1:]:
        total += more
        if total > share:
            break
        taken += 1
    return taken
