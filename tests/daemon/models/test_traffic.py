"""A version's record: counts, and quantiles that are at most a fifth too long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.models.traffic import Traffic


def record(traffic):
    return traffic.report("m", 1, "")


def test_nothing_has_no_latency():
    assert record(Traffic()).p95_s == 0.0


@given(st.lists(st.floats(1e-5, 50.0), min_size=1, max_size=60))
def test_a_quantile_is_at_least_what_was_measured_and_at_most_a_fifth_more(seconds):
    traffic = Traffic()
    for value in seconds:
        traffic.invoked(1, value, is_finite=True)

    ordered = sorted(seconds)
    true_p95 = ordered[max(0, -(-95 * len(ordered) // 100) - 1)]
    assert true_p95 <= record(traffic).p95_s <= true_p95 * 1.2


def test_rows_of_an_invocation_count_each_with_their_share_of_its_time():
    traffic = Traffic()
    traffic.invoked(8, 0.008, is_finite=True)

    report = record(traffic)
    assert report.answered == 8
    assert report.p50_s == pytest.approx(0.001, rel=0.2)


def test_numbers_that_are_none_are_counted_by_invocation():
    traffic = Traffic()
    traffic.invoked(4, 0.001, is_finite=False)

    assert record(traffic).not_finite == 1
