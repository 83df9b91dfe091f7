"""Backoff: how long to wait before a thing that died is started again. Pure."""

from __future__ import annotations

import random

_FIRST_S = 0.25  # after the second quick death; the first is answered at once
_LONGEST_S = 10.0  # a file may be mended at any time: never wait much longer than a person would
LONGEST_AFTER_SERVING_S = 1.0  # one that had loaded may do so again: be back within two seconds
_JITTER = 0.2  # share of the delay, so that many workers do not start in step
_HEALTHY_S = 10.0  # who lived so long has earned a start at once


class Backoff:
    """Counts quick deaths in a row."""

    def __init__(self) -> None:
        self._quick_deaths = 0

    def delay_s(self, lived_s: float, *, longest_s: float = _LONGEST_S) -> float:
        """Seconds to wait after a life of `lived_s` seconds; 0 for a start at once.

        `longest_s` bounds the wait, but for the jitter.
        """
        if lived_s >= _HEALTHY_S:
            self._quick_deaths = 0
        self._quick_deaths += 1
        if self._quick_deaths == 1:
            return 0.0
        delay = min(longest_s, _FIRST_S * 2.0 ** min(self._quick_deaths - 2, 30))
        return delay * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 (not a secret)
