"""When the next look comes: soon, spread, patient, and never more often than it may."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.schedule import (
    FIRST_WITHIN_S,
    HINT_EVERY_S,
    RETRY_FIRST_S,
    Schedule,
    first,
    never,
    pause_s,
    retry_pause_s,
    step_pause_s,
)
from updater.state import State

INTERVAL_S = 900.0
JITTER = st.floats(0, 1)
NOW = st.floats(0, 1e6)


def looked(now: float = 0.0, *, jitter: float = 0.5) -> Schedule:
    """The schedule after a look that began and succeeded at one moment."""
    return first(now, INTERVAL_S, jitter=0).begun(now).succeeded(now, jitter=jitter)


@given(NOW, JITTER)
def test_the_first_look_comes_within_its_bound(now, jitter):
    assert 0 <= first(now, INTERVAL_S, jitter=jitter).in_s(now) <= FIRST_WITHIN_S + 1e-6


@given(JITTER)
def test_the_next_look_is_an_interval_away_a_fifth_more_or_less(jitter):
    wait_s = looked(jitter=jitter).in_s(0)

    assert 0.8 * INTERVAL_S <= wait_s <= 1.2 * INTERVAL_S + 1e-6


def test_two_devices_that_start_together_do_not_stay_together():
    assert looked(jitter=0.0).in_s(0) == pytest.approx(720)
    assert looked(jitter=1.0).in_s(0) == pytest.approx(1080)


def test_nothing_is_due_while_a_look_is_under_way():
    assert math.isinf(looked().begun(900).in_s(10**9))


def test_after_failures_the_wait_doubles_up_to_the_interval():
    schedule, waits = first(0, INTERVAL_S, jitter=0), []
    for _ in range(10):
        schedule = schedule.begun(0).failed(0, jitter=0.5)
        waits.append(schedule.in_s(0))

    assert waits == [10, 20, 40, 80, 160, 320, 640, 900, 900, 900]


def test_one_success_ends_the_back_off():
    schedule = looked()
    for _ in range(5):
        schedule = schedule.begun(0).failed(0, jitter=0.5)

    schedule = schedule.begun(0).succeeded(0, jitter=0.5).begun(0).failed(0, jitter=0.5)

    assert schedule.in_s(0) == RETRY_FIRST_S


@given(st.floats(0, 86_400), JITTER)
def test_a_server_that_asks_for_patience_gets_it(retry_after_s, jitter):
    schedule = looked().begun(0).failed(0, jitter=jitter, retry_after_s=retry_after_s)

    assert schedule.in_s(0) >= retry_after_s
    assert schedule.hinted(0).in_s(0) >= retry_after_s


def test_devices_that_were_asked_for_patience_do_not_come_back_together():
    def wait_s(jitter: float) -> float:
        return looked().begun(0).failed(0, jitter=jitter, retry_after_s=600).in_s(0)

    assert wait_s(0.0) == 600
    assert wait_s(1.0) == 720


def test_patience_ends_with_the_next_success():
    schedule = looked().begun(0).failed(0, jitter=0, retry_after_s=600)

    schedule = schedule.begun(601).succeeded(601, jitter=0.5)

    assert schedule.hinted(700).in_s(700) == 0


def test_a_hint_brings_the_look_forward_to_now():
    assert looked(0).hinted(500).in_s(500) == 0


def test_a_hint_right_after_a_look_waits():
    assert looked(0).hinted(4).in_s(4) == HINT_EVERY_S - 4


def test_a_hint_puts_nothing_off():
    schedule = looked(0, jitter=0.5)

    assert schedule.hinted(899.5).in_s(899.5) == 0
    assert first(0, INTERVAL_S, jitter=0.1).hinted(0).in_s(0) == 0


def test_a_hint_during_a_look_counts_for_another_one():
    """What it tells of may have come after that look."""
    schedule = looked(0).begun(1000).hinted(1001).succeeded(1002, jitter=0.5)

    assert schedule.in_s(1002) == HINT_EVERY_S - 2


def test_a_hint_before_a_look_is_answered_by_it():
    schedule = looked(0).hinted(1000).begun(1000).succeeded(1001, jitter=0.5)

    assert schedule.in_s(1001) == INTERVAL_S


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_a_flood_of_hints_gains_one_look_in_its_time(events):
    """Whoever hints, and however the looks end."""
    schedule, now, began = looked(0), 0.0, [0.0]
    for after_s, is_good in events:
        now += after_s
        schedule = schedule.hinted(now)
        if schedule.in_s(now) == 0:
            began.append(now)
            schedule = schedule.begun(now).hinted(now)
            schedule = (
                schedule.succeeded(now, jitter=0.5) if is_good else schedule.failed(now, jitter=0.5)
            )

    gaps = [later - earlier for earlier, later in pairwise(began)]
    assert all(gap >= HINT_EVERY_S - 1e-6 for gap in gaps)


def test_the_operator_waits_for_nothing():
    asked_for_patience = looked().begun(0).failed(0, jitter=0, retry_after_s=600)

    assert looked(0).urged(0).in_s(0) == 0
    assert asked_for_patience.urged(1).in_s(1) == 0


@pytest.mark.parametrize("is_good", [True, False])
def test_the_operators_word_during_a_look_is_followed_by_another_look_at_once(is_good):
    schedule = looked(0).begun(1000).urged(1001)

    schedule = (
        schedule.succeeded(1002, jitter=0.5)
        if is_good
        else schedule.failed(1002, jitter=0.5, retry_after_s=99)
    )

    assert schedule.in_s(1002) == 0
    assert schedule.begun(1002).succeeded(1003, jitter=0.5).in_s(1003) == INTERVAL_S


def test_a_look_that_was_ended_for_another_ones_sake_comes_again_and_counts_no_failure():
    schedule = looked(0).begun(1000).interrupted(1001)

    assert schedule.in_s(1001) == 0
    assert schedule.failures == 0


def test_without_a_repository_nothing_is_ever_due():
    assert math.isinf(never().hinted(5).urged(6).in_s(10**9))


@given(st.integers(0, 10**6), st.floats(1, 1e6), JITTER)
def test_a_pause_is_bounded_however_often_it_failed(failures, most_s, jitter):
    pause = pause_s(failures, most_s, jitter=jitter)

    assert 0 < pause <= 1.2 * max(most_s, 0) + 1e-6


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_looked_at_again_within_a_minute(state):
    assert 0 < step_pause_s(state, opens_in_s=10**6) <= 60


@pytest.mark.parametrize("state", [State.VERIFIED, State.TRYING, State.PROBATION])
def test_what_is_judged_or_tried_is_looked_at_every_second(state):
    assert step_pause_s(state) == 1


def test_a_window_that_opens_soon_is_not_missed():
    assert step_pause_s(State.WAIT_WINDOW, opens_in_s=7.5) == 7.5
    assert step_pause_s(State.WAIT_WINDOW, opens_in_s=-3) == 1


def test_what_this_machine_alone_has_a_part_in_is_tried_again_soon():
    waits = [
        retry_pause_s(State.VERIFIED, failures, interval_s=86_400, jitter=0.5)
        for failures in range(8)
    ]

    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize("state", [State.IDLE, State.ASSIGNED, State.DOWNLOADING])
def test_what_a_network_has_a_part_in_is_tried_no_less_often_than_it_is_looked_at(state):
    assert retry_pause_s(state, 0, interval_s=900, jitter=0.5) == RETRY_FIRST_S
    assert retry_pause_s(state, 50, interval_s=900, jitter=0.5) == 900
