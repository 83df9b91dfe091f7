"""How one version has done with real requests: what decides whether a new one stays. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

_STEP = 2**0.25
_SHORTEST_S = 1e-6
_BOUNDS_S = tuple(_SHORTEST_S * _STEP**power for power in range(108))
"""1 us to 112 s, each a fifth more than the one before: as exact as a judgement needs."""


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """A version's record since it was loaded.

    Attributes:
        release: name of the folder it was loaded from; the updater's folders are named by digest.
        answered: rows the model answered.
        faults: requests that the model or its worker failed; not those that were refused, came too
            late in the queue, or did not fit the model.
        not_finite: invocations with NaN or infinity among their outputs.
        worker_deaths: crashes, hangs and want of memory.
        p50_s, p95_s: seconds per row inside the model; 0 before the first.
    """

    model: str
    version: int
    release: str
    answered: int
    faults: int
    not_finite: int
    worker_deaths: int
    p50_s: float
    p95_s: float


class Traffic:
    """Counts for one version."""

    __slots__ = ("_counts", "answered", "faults", "not_finite", "worker_deaths")

    def __init__(self) -> None:
        self.answered = 0
        self.faults = 0
        self.not_finite = 0
        self.worker_deaths = 0
        self._counts = [0] * (len(_BOUNDS_S) + 1)

    def invoked(self, rows: int, invoke_s: float, *, is_finite: bool) -> None:
        """Count one invocation that gave an answer."""
        self.answered += rows
        self._counts[bisect_left(_BOUNDS_S, invoke_s / rows)] += rows
        if not is_finite:
            self.not_finite += 1

    def report(self, model: str, version: int, release: str) -> TrafficReport:
        """The record so far."""
        return TrafficReport(
            model=model,
            version=version,
            release=release,
            answered=self.answered,
            faults=self.faults,
            not_finite=self.not_finite,
            worker_deaths=self.worker_deaths,
            p50_s=self._quantile_s(0.5),
            p95_s=self._quantile_s(0.95),
        )

    def _quantile_s(self, share: float) -> float:
        """The upper bound of the bucket in which it falls."""
        wanted = share * self.answered
        if not self.answered:
            return 0.0
        for bound, reached in zip(_BOUNDS_S, accumulate(self._counts), strict=False):
            if reached >= wanted:
                return bound
        return _BOUNDS_S[-1]
