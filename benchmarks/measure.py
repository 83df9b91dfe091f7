"""What a load or a start showed, in units. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Load:
    """One load from one client.

    Attributes:
        rate_per_s: good answers per second.
        errors: answers that were not good, and connections that failed.
    """

    rate_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """The same load in several rounds, each in turn with everybody else's.

    Attributes:
        lane: who answered, and over what.
        connections: requests under way at a time.
    """

    workload: str
    lane: str
    connections: int
    rounds: tuple[Load, ...]

    @property
    def median(self) -> Load:
        """Each figure's median; errors are added up."""
        return Load(
            rate_per_s=median(each.rate_per_s for each in self.rounds),
            p50_ms=median(each.p50_ms for each in self.rounds),
            p90_ms=median(each.p90_ms for each in self.rounds),
            p99_ms=median(each.p99_ms for each in self.rounds),
            errors=sum(each.errors for each in self.rounds),
        )


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a server takes when it runs alone.

    Attributes:
        start_s: from the start of its process to the first right answer.
        pss_mb: proportional set size of all its processes after some requests, in 10^6 bytes.
    """

    workload: str
    lane: str
    start_s: float
    pss_mb: float
    processes: int


@dataclass(frozen=True, slots=True)
class Absence:
    """A lane that is not there, and why."""

    workload: str
    lane: str
    reason: str


def percentile(ordered: list[float], percent: float) -> float:
    """Of values in order; NaN of none."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def load_from(latencies_s: list[float], seconds: float, errors: int) -> Load:
    """The figures of a load whose every good answer's latency is known."""
    ordered = sorted(latencies_s)
    p50, p90, p99 = (percentile(ordered, percent) * 1e3 for percent in (50, 90, 99))
    return Load(len(ordered) / seconds, p50, p90, p99, errors)
