"""When to look at the repository next, and when to try again what has failed. Pure.

Rules:
1. The first look comes within `FIRST_WITHIN_S`; after one that succeeded the next is one interval
   away, a fifth more or less: a fleet that starts together does not stay together.
2. After a failure it comes sooner: the wait begins with `RETRY_FIRST_S` and doubles up to the
   interval.
3. A server that asks for patience (Retry-After) is left alone for as long, whoever hints.
4. A hint brings the next look forward, but never within `HINT_EVERY_S` of the last one: whoever
   floods the device with hints gains one look in that time. One that comes while a look is under
   way counts for another: what it tells of may have come after that look.
5. The operator's word brings it forward to now, whatever the rules above say.

Times are seconds of a clock that only goes forward. `jitter` is 0..1, another each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from updater.state import State

FIRST_WITHIN_S = 10.0
RETRY_FIRST_S = 10.0
HINT_EVERY_S = 10.0
_SPREAD = 0.2
"""Of rule 1, up and down."""
_WATCH_S = 1.0
"""Between two looks at a candidate, or at what keeps it."""
_ARRIVING_S = 0.2
"""Between two looks at a download; it goes on by itself."""
_LOCAL_S = 30.0
"""Longest pause after a failure that no network has a part in."""
_AT_REST_S = 60.0
"""Between two looks at a model that nothing is known to happen to."""
_MOST_DOUBLINGS = 30
"""A second doubled so often is longer than any interval."""
_OF_THE_NETWORK = frozenset({State.IDLE, State.ASSIGNED, State.DOWNLOADING})


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the next look is due.

    Attributes:
        interval_s: between two looks that succeed.
        due: when the next one is to begin.
        began: when the last one did.
        not_before: rule 3.
        failures: since one succeeded.
        is_hinted: since the last look began (rule 4).
        is_urgent: the operator has asked since the last look began (rule 5).
    """

    interval_s: float
    due: float
    began: float = -math.inf
    not_before: float = -math.inf
    failures: int = 0
    is_hinted: bool = False
    is_urgent: bool = False

    def begun(self, now: float) -> Schedule:
        """A look begins. Until it has ended nothing is due."""
        return replace(self, began=now, due=math.inf, is_hinted=False, is_urgent=False)

    def succeeded(self, now: float, *, jitter: float) -> Schedule:
        """The look has ended well."""
        due = now + _spread(self.interval_s, jitter)
        return _granted(replace(self, due=due, failures=0, not_before=-math.inf), now)

    def failed(self, now: float, *, jitter: float, retry_after_s: float | None = None) -> Schedule:
        """The look has failed.

        Args:
            retry_after_s: what the server asked for.
        """
        wait_s = pause_s(self.failures, self.interval_s, jitter=jitter)
        not_before = now + (retry_after_s or 0.0)
        ended = replace(
            self,
            due=max(now + wait_s, not_before + _SPREAD * jitter * (retry_after_s or 0.0)),
            failures=self.failures + 1,
            not_before=not_before,
        )
        return _granted(ended, now)

    def interrupted(self, now: float) -> Schedule:
        """The look was ended for another one's sake, and says nothing."""
        return replace(self, due=now)

    def hinted(self, now: float) -> Schedule:
        """Somebody says that there is something new."""
        return _asked(replace(self, is_hinted=True), now)

    def urged(self, now: float) -> Schedule:
        """The operator asks."""
        return _asked(replace(self, is_urgent=True), now)

    def in_s(self, now: float) -> float:
        """Seconds until the next look, 0 or more; infinite while one is under way."""
        return max(0.0, self.due - now)


def first(now: float, interval_s: float, *, jitter: float) -> Schedule:
    """The schedule of a device that has just started."""
    return Schedule(interval_s, now + FIRST_WITHIN_S * jitter)


def never() -> Schedule:
    """The schedule of a device without a repository."""
    return Schedule(math.inf, math.inf)


def pause_s(
    failures: int, most_s: float, *, jitter: float, first_s: float = RETRY_FIRST_S
) -> float:
    """How long to wait before what has failed is tried again (rule 2).

    Args:
        failures: in a row, before this one.
        first_s, most_s: the shortest and the longest wait, before it is spread.
    """
    wait_s = first_s * 2.0 ** min(failures, _MOST_DOUBLINGS)
    return _spread(min(wait_s, most_s), jitter)


def retry_pause_s(state: State, failures: int, *, interval_s: float, jitter: float) -> float:
    """How long to leave a model alone whose step has failed.

    Args:
        failures: in a row, before this one.
        interval_s: between two looks; what a network keeps is not tried less often than that.
    """
    if state in _OF_THE_NETWORK:
        return pause_s(failures, interval_s, jitter=jitter)
    # It is about this machine, which has only itself to bother.
    return pause_s(failures, _LOCAL_S, jitter=jitter, first_s=_WATCH_S)


def step_pause_s(state: State, *, opens_in_s: float = 0.0) -> float:
    """How long to leave a model alone whose step has not moved, without having failed.

    Args:
        opens_in_s: until a window opens.
    """
    if state is State.DOWNLOADING:
        return _ARRIVING_S
    if state in {State.IDLE, State.ASSIGNED}:
        return _AT_REST_S
    if state is State.WAIT_WINDOW:
        # Not simply until then: somebody may set the clock.
        return min(max(opens_in_s, _WATCH_S), _AT_REST_S)
    return _WATCH_S


def _asked(schedule: Schedule, now: float) -> Schedule:
    """While a look is under way nothing is due; what is asked then counts when it has ended."""
    return schedule if math.isinf(schedule.due) else _granted(schedule, now)


def _granted(schedule: Schedule, now: float) -> Schedule:
    """What was asked for since the last look began (rules 4 and 5)."""
    if schedule.is_urgent:
        return replace(schedule, due=now)
    if schedule.is_hinted:
        allowed = max(now, schedule.began + HINT_EVERY_S, schedule.not_before)
        return replace(schedule, due=min(schedule.due, allowed))
    return schedule


def _spread(wait_s: float, jitter: float) -> float:
    return wait_s * (1.0 + _SPREAD * (2.0 * jitter - 1.0))
