"""Rules of entry and of shared invocations."""

from __future__ import annotations

import pytest

from daemon.admission import Gate, choose_batch
from daemon.errors import DeadlineExceeded, Overloaded, RefusalReason

FAR = 1000.0


def test_as_many_requests_enter_as_the_limit_says_and_no_more():
    gate = Gate(limit=2, parallel=1)
    gate.enter(now=0.0, deadline=FAR)
    gate.enter(now=0.0, deadline=FAR)

    with pytest.raises(Overloaded) as refusal:
        gate.enter(now=0.0, deadline=FAR)

    assert refusal.value.reason is RefusalReason.QUEUE_FULL
    assert gate.pending == 2


def test_a_place_that_was_left_is_free_again():
    gate = Gate(limit=1, parallel=1)
    gate.enter(now=0.0, deadline=FAR)
    gate.leave()

    gate.enter(now=0.0, deadline=FAR)

    assert gate.pending == 1


def test_a_request_past_its_deadline_is_not_begun():
    gate = Gate(limit=1, parallel=1)

    with pytest.raises(DeadlineExceeded):
        gate.enter(now=5.0, deadline=5.0)

    assert gate.pending == 0


def test_a_request_that_would_wait_past_its_deadline_is_refused_at_once():
    gate = Gate(limit=100, parallel=1)
    gate.observe(1.0)
    for _ in range(5):
        gate.enter(now=0.0, deadline=FAR)

    with pytest.raises(Overloaded) as refusal:
        gate.enter(now=0.0, deadline=4.9)

    assert refusal.value.reason is RefusalReason.DEADLINE
    assert refusal.value.retry_after_s == 5


def test_more_workers_shorten_the_expected_wait():
    gate = Gate(limit=100, parallel=4)
    gate.observe(1.0)
    for _ in range(7):
        gate.enter(now=0.0, deadline=FAR)

    assert gate.expected_wait_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rows", "max_rows", "taken"),
    [
        ([1], 8, 1),
        ([1, 1, 1], 8, 2),
        ([1] * 9, 8, 8),
        ([1] * 9, 1, 1),
        ([3, 1, 1], 8, 2),
        ([3, 3], 8, 1),
        ([10], 8, 1),
        ([1, 8], 8, 1),
    ],
)
def test_an_invocation_is_shared_up_to_the_largest_planned_size(rows, max_rows, taken):
    assert choose_batch(rows, max_rows) == taken
