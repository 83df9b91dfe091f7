"""Whether a new release stays, as a table: limits, record, time, and what is ruled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.manifest import Probation
from updater.probation import Ruling, Traffic, comparable_p95_ms, judge

LIMITS = Probation(
    min_requests=100, min_s=60.0, max_s=600.0, max_error_ratio=0.05, max_latency_ratio=3.0
)


def record(answered=0, *, faults=0, not_finite=0, worker_deaths=0, p95_ms=1.0):
    return Traffic("a1" * 32, answered, faults, not_finite, worker_deaths, p95_ms)


@pytest.mark.parametrize(
    ("traffic", "watched_s", "ruling"),
    [
        (record(), 0, Ruling.WATCH),
        (record(99), 599, Ruling.WATCH),
        (record(100), 59, Ruling.WATCH),
        (record(100), 60, Ruling.COMMIT),
        (record(0), 600, Ruling.COMMIT),
        (record(0, worker_deaths=1), 1, Ruling.ROLL_BACK),
        (record(10_000, not_finite=1), 1, Ruling.ROLL_BACK),
        (record(10, faults=9), 1, Ruling.WATCH),
        (record(10, faults=10), 1, Ruling.ROLL_BACK),
        (record(95, faults=5), 1, Ruling.WATCH),
        (record(94, faults=6), 1, Ruling.ROLL_BACK),
        (record(20, p95_ms=3.0), 1, Ruling.WATCH),
        (record(20, p95_ms=3.1), 1, Ruling.ROLL_BACK),
        (record(19, p95_ms=50.0), 1, Ruling.WATCH),
        (record(1000, p95_ms=3.1), 600, Ruling.ROLL_BACK),
    ],
)
def test_a_release_is_ruled_upon_by_its_record(traffic, watched_s, ruling):
    assert judge(LIMITS, traffic, 1.0, watched_s=watched_s).ruling is ruling


def test_without_a_version_before_no_latency_is_too_long():
    assert judge(LIMITS, record(100, p95_ms=1e6), 0.0, watched_s=60).ruling is Ruling.COMMIT


@pytest.mark.parametrize(("before", "p95_ms"), [(None, 0), (record(19), 0), (record(20), 1)])
def test_a_version_before_of_which_little_is_known_is_not_compared_with(before, p95_ms):
    assert comparable_p95_ms(before) == p95_ms


@pytest.mark.parametrize(
    ("traffic", "words"),
    [
        (record(100, worker_deaths=2), "died 2 times"),
        (record(100, not_finite=1), "NaN"),
        (record(80, faults=20), "20.0% of its requests failed, allowed are 5.0%"),
        (record(100, p95_ms=5.0), "5.0 times the 1 ms"),
    ],
)
def test_the_reason_says_what_was_measured_and_what_was_allowed(traffic, words):
    assert words in judge(LIMITS, traffic, 1.0, watched_s=1).reason


_RECORDS = st.builds(
    record,
    st.integers(0, 10_000),
    faults=st.integers(0, 100),
    not_finite=st.integers(0, 2),
    worker_deaths=st.integers(0, 2),
    p95_ms=st.floats(0.001, 1000),
)


@given(_RECORDS, st.floats(0, 100), st.floats(0, 10_000), st.floats(0, 10_000))
def test_what_is_ruled_out_once_does_not_pass_by_waiting(traffic, before_ms, early_s, later_s):
    first = judge(LIMITS, traffic, before_ms, watched_s=min(early_s, later_s)).ruling
    second = judge(LIMITS, traffic, before_ms, watched_s=max(early_s, later_s)).ruling

    assert (first is Ruling.ROLL_BACK) == (second is Ruling.ROLL_BACK)
    assert not (first is Ruling.COMMIT and second is Ruling.WATCH)
