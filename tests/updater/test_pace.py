"""How slow a transfer may be."""

from __future__ import annotations

import pytest

from updater.pace import Pace

LEAST = 100


@pytest.fixture
def pace():
    return Pace(1000.0, deadline_s=600, window_s=10, least_rate_bytes_s=LEAST)


def judge_steadily(pace: Pace, seconds: int, rate: float, *, since: int = 0, before: float = 0):
    """Every verdict of a transfer at one rate, asked each second."""
    return [
        pace.judge(1000.0 + since + second, int(before + rate * second))
        for second in range(seconds + 1)
    ]


def test_nothing_is_said_within_the_first_window(pace):
    assert not any(judge_steadily(pace, 9, rate=0))


def test_a_transfer_that_never_begins_ends_with_the_first_window(pace):
    *_, last = judge_steadily(pace, 10, rate=0)

    assert last == "0 bytes/s, at least 100 are expected"


def test_the_least_rate_will_do(pace):
    assert not any(judge_steadily(pace, 599, rate=LEAST))


def test_a_rate_below_the_least_will_not(pace):
    assert judge_steadily(pace, 10, rate=LEAST - 1)[-1]


def test_a_fast_beginning_does_not_pay_for_a_stall(pace):
    judge_steadily(pace, 20, rate=1_000_000)

    stalled = judge_steadily(pace, 10, rate=0, since=20, before=20_000_000)

    assert not any(stalled[:-1])
    assert stalled[-1]


def test_a_burst_in_each_window_will_do(pace):
    received = 0
    for second in range(1, 100):
        received += 10 * LEAST if second % 10 == 5 else 0

        assert not pace.judge(1000.0 + second, received)


def test_the_deadline_holds_for_the_fast(pace):
    *before, last = judge_steadily(pace, 600, rate=1_000_000)

    assert not any(before)
    assert last == "not there after 600 s"
