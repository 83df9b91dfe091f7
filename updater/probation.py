"""Does a new release stay? Judged by its real traffic, never by the network. Pure.

Rules, in this order; the first that speaks decides:

1. A worker's death, or an answer with NaN or infinity, fails it at once.
2. Once enough requests were answered to tell, more faults than `max_error_ratio` of them fail it.
3. Once both versions have enough answers to compare, a 95th percentile of the time inside the model
   above `max_latency_ratio` times the one before fails it.
4. It passes after `min_s` when `min_requests` were answered, and after `max_s` in any case: an
   appliance without traffic cannot be asked to prove more than its health samples did.

What is not looked at: whether anybody can be reached, whether reports get through, load, and how
long requests wait. A pulled cable is no fault of a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from updater.manifest import Probation

_ENOUGH = 20
"""Answers from which a share or a percentile says something."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """A release's record since the daemon loaded it.

    Attributes:
        answered: rows.
        faults: requests that the model or its worker failed.
        not_finite: invocations with NaN or infinity among their outputs.
        worker_deaths: crashes, hangs, want of memory.
        p95_ms: per row inside the model.
    """

    release: str
    answered: int
    faults: int
    not_finite: int
    worker_deaths: int
    p95_ms: float


class Ruling(Enum):
    """What is to be done now."""

    WATCH = "watch"
    COMMIT = "commit"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A ruling and why."""

    ruling: Ruling
    reason: str = ""


def judge(
    limits: Probation, now_serving: Traffic, before_p95_ms: float, *, watched_s: float
) -> Judgement:
    """Judge a release on probation.

    Args:
        limits: of its manifest.
        now_serving: its record.
        before_p95_ms: of the release before; 0 where there is none, or too little is known of it.
        watched_s: since it serves.
    """
    if problem := _fault(limits, now_serving, before_p95_ms):
        return Judgement(Ruling.ROLL_BACK, problem)
    answered = now_serving.answered
    if watched_s >= limits.min_s and answered >= limits.min_requests:
        return Judgement(Ruling.COMMIT, f"{answered} answers in {watched_s:.0f} s, all as allowed")
    if watched_s >= limits.max_s:
        few = f"only {answered} answers in {watched_s:.0f} s, none of them wrong"
        return Judgement(Ruling.COMMIT, few)
    return Judgement(Ruling.WATCH)


def comparable_p95_ms(before: Traffic | None) -> float:
    """The latency to compare with; 0 when too little is known."""
    return before.p95_ms if before is not None and before.answered >= _ENOUGH else 0.0


def _fault(limits: Probation, record: Traffic, before_p95_ms: float) -> str:
    """What speaks against it; "" when nothing does."""
    if record.worker_deaths:
        return f"its worker died {record.worker_deaths} times"
    if record.not_finite:
        return f"{record.not_finite} answers held NaN or infinity"
    requests = record.answered + record.faults
    if requests >= _ENOUGH and record.faults > limits.max_error_ratio * requests:
        share = record.faults / requests
        return f"{share:.1%} of its requests failed, allowed are {limits.max_error_ratio:.1%}"
    if record.answered >= _ENOUGH and before_p95_ms > 0:
        ratio = record.p95_ms / before_p95_ms
        if ratio > limits.max_latency_ratio:
            return (
                f"its p95 is {record.p95_ms:.3g} ms, {ratio:.1f} times the {before_p95_ms:.3g} ms "
                f"of the version before; allowed are {limits.max_latency_ratio:g} times"
            )
    return ""
