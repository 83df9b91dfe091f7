"""What time it is to judge by, now and again.

Finding out which times were signed means reading all metadata; that is done once a minute, and when
the clock was set. On a disk that cannot be read the clock is all there is: nobody who is watched or
turned back may wait for that.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from updater.errors import UpdateError
from updater.signedtime import Reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from updater.trust import Trust

_log = logging.getLogger(f"inferd.{__name__}")

_GOOD_FOR_S = 60.0
_WAS_SET_S = 5.0
"""A clock that has gone so much further than time has, or less far, was set."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """A judgement, and when it was made by either clock."""

    reference: Reference
    clock: float
    monotonic: float

    def holds(self, clock: float, monotonic: float) -> bool:
        passed_s = monotonic - self.monotonic
        return passed_s < _GOOD_FOR_S and abs(clock - self.clock - passed_s) < _WAS_SET_S


class Timekeeper:
    """The time of one device. Any thread may ask."""

    def __init__(self, trust: Trust, clock: Callable[[], float]) -> None:
        """Store only.

        Args:
            clock: wall clock, seconds.
        """
        self._trust = trust
        self._clock = clock
        self._judged: _Judged | None = None

    def now(self) -> Reference:
        """What time it is, as far as this device can tell."""
        judged, clock, monotonic = self._judged, self._clock(), time.monotonic()
        if judged is None or not judged.holds(clock, monotonic):
            judged = _Judged(self._judge(clock), clock, monotonic)
            self._judged = judged
        if judged.reference.is_clock_good:
            return Reference(clock, is_clock_good=True)
        return judged.reference

    def forget(self) -> None:
        """Newer metadata is there, which may tell the time better."""
        self._judged = None

    def _judge(self, clock: float) -> Reference:
        try:
            return self._trust.reference()
        except (OSError, UpdateError) as exc:
            _log.warning("the time cannot be judged by what was signed cause=%s", exc)
            return Reference(clock, is_clock_good=False)
