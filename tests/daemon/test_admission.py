"""Rules of entry and of shared invocations."""

from __future__ import annotations

import pytest

from daemon.admission import Gate, choose_batch
from daemon.errors import DeadlineExceeded, Overloaded, RefusalReason

FAR = 1000.0


def make_gate(*, limit, workers=1, decoders=1):
    return Gate(limit=limit, decoders=decoders, workers=workers)


def test_as_many_requests_enter_as_the_limit_says_and_no_more():
    gate = make_gate(limit=2, workers=1)
    gate.enter(now=0.0, deadline=FAR)
    gate.enter(now=0.0, deadline=FAR)

    with pytest.raises(Overloaded) as refusal:
        gate.enter(now=0.0, deadline=FAR)

    assert refusal.value.reason is RefusalReason.QUEUE_FULL
    assert gate.pending == 2


def test_a_place_that_was_left_is_free_again():
    gate = make_gate(limit=1, workers=1)
    gate.enter(now=0.0, deadline=FAR)
    gate.leave()

    gate.enter(now=0.0, deadline=FAR)

    assert gate.pending == 1


def test_a_request_past_its_deadline_is_not_begun():
    gate = make_gate(limit=1, workers=1)

    with pytest.raises(DeadlineExceeded):
        gate.enter(now=5.0, deadline=5.0)

    assert gate.pending == 0


def test_a_request_that_would_wait_past_its_deadline_is_refused_at_once():
    gate = make_gate(limit=100, workers=1)
    gate.invoking.observe(1.0)
    for _ in range(5):
        gate.enter(now=0.0, deadline=FAR)

    with pytest.raises(Overloaded) as refusal:
        gate.enter(now=0.0, deadline=5.9)

    assert refusal.value.reason is RefusalReason.DEADLINE
    assert refusal.value.retry_after_s == 5


def test_slow_decoding_counts_as_waiting_too():
    gate = make_gate(limit=100, workers=8, decoders=2)
    gate.invoking.observe(0.001)
    gate.decoding.observe(0.1)
    for _ in range(9):
        gate.enter(now=0.0, deadline=FAR)

    with pytest.raises(Overloaded) as refusal:
        gate.enter(now=0.0, deadline=0.5)

    assert refusal.value.reason is RefusalReason.DEADLINE


def test_a_request_that_need_not_wait_is_tried_however_short_its_deadline():
    gate = make_gate(limit=100)
    gate.invoking.observe(1.0)

    gate.enter(now=0.0, deadline=0.1)

    assert gate.pending == 1


def test_more_workers_shorten_the_expected_wait():
    gate = make_gate(limit=100, workers=4)
    gate.invoking.observe(1.0)
    for _ in range(7):
        gate.enter(now=0.0, deadline=FAR)

    assert gate.expected_wait_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rows", "max_rows", "taken"),
    [
        ([1], 8, 1),
        ([1, 1, 1], 8, 3),
        ([1] * 9, 8, 8),
        ([1] * 9, 1, 1),
        ([3, 1, 1], 8, 3),
        ([3, 3], 5, 1),
        ([10], 8, 1),
        ([1, 8], 8, 1),
    ],
)
def test_an_invocation_is_shared_up_to_the_rows_the_model_is_proven_to_take(rows, max_rows, taken):
    assert choose_batch(rows, max_rows, free_slots=4, usual_s=0.0) == taken


@pytest.mark.parametrize(
    ("rows", "free_slots", "taken"),
    [([1] * 8, 1, 8), ([1] * 8, 2, 4), ([1] * 7, 2, 4), ([1] * 8, 16, 1), ([6, 1, 1], 2, 1)],
)
def test_long_invocations_are_spread_over_what_is_free(rows, free_slots, taken):
    assert choose_batch(rows, 64, free_slots=free_slots, usual_s=0.001) == taken
