"""The state table and its bounds: every pair, legal or not."""

from __future__ import annotations

from itertools import product

import pytest

from updater.state import (
    MAX_TRANSITIONS,
    MAX_TRIES,
    Event,
    State,
    advance,
    after_restart,
    has_room,
)

LEGAL = {
    ("IDLE", "ASSIGN"): "ASSIGNED",
    ("IDLE", "ROLL_BACK"): "ROLLING_BACK",
    ("ASSIGNED", "FETCH"): "DOWNLOADING",
    ("ASSIGNED", "ROLL_BACK"): "ROLLING_BACK",
    ("ASSIGNED", "ABANDON"): "IDLE",
    ("DOWNLOADING", "PUBLISH"): "VERIFIED",
    ("DOWNLOADING", "ROLL_BACK"): "ROLLING_BACK",
    ("DOWNLOADING", "ABANDON"): "IDLE",
    ("VERIFIED", "PROBE"): "VERIFIED",
    ("VERIFIED", "PROBED"): "PROBED",
    ("VERIFIED", "ROLL_BACK"): "ROLLING_BACK",
    ("VERIFIED", "ABANDON"): "IDLE",
    ("PROBED", "AWAIT_WINDOW"): "WAIT_WINDOW",
    ("PROBED", "ROLL_BACK"): "ROLLING_BACK",
    ("PROBED", "ABANDON"): "IDLE",
    ("WAIT_WINDOW", "TRY"): "TRYING",
    ("WAIT_WINDOW", "ROLL_BACK"): "ROLLING_BACK",
    ("WAIT_WINDOW", "ABANDON"): "IDLE",
    ("TRYING", "WATCH"): "PROBATION",
    ("TRYING", "RETRY"): "TRYING",
    ("TRYING", "ROLL_BACK"): "ROLLING_BACK",
    ("PROBATION", "COMMIT"): "COMMITTED",
    ("PROBATION", "RETRY"): "TRYING",
    ("PROBATION", "ROLL_BACK"): "ROLLING_BACK",
    ("COMMITTED", "DONE"): "IDLE",
    ("ROLLING_BACK", "DONE"): "IDLE",
}
PAIRS = list(product(State, Event))
ILLEGAL = [(state, event) for state, event in PAIRS if (state.name, event.name) not in LEGAL]
IN_ORDER = [
    "ASSIGN",
    "FETCH",
    "PUBLISH",
    "PROBE",
    "PROBED",
    "AWAIT_WINDOW",
    "TRY",
    "WATCH",
    "COMMIT",
    "DONE",
]
TRIED = (State.TRYING, State.PROBATION)
LOADED = (State.VERIFIED, *TRIED)
UNLOADED = [state for state in State if state not in LOADED]


@pytest.mark.parametrize(("pair", "after"), LEGAL.items(), ids="-".join)
def test_a_legal_pair_has_one_state_after_it(pair, after):
    state, event = pair

    assert advance(State[state], Event[event]) is State[after]


@pytest.mark.parametrize(("state", "event"), ILLEGAL, ids=lambda one: one.name)
def test_any_other_pair_is_a_bug_and_raises(state, event):
    with pytest.raises(RuntimeError, match=f"{event.name} cannot happen in {state.name}"):
        advance(state, event)


def test_an_update_without_a_hitch_goes_through_every_state_but_one():
    passed = [State.IDLE]
    for event in IN_ORDER:
        passed.append(advance(passed[-1], Event[event]))

    assert set(State) - set(passed) == {State.ROLLING_BACK}
    assert passed[-1] is State.IDLE


@pytest.mark.parametrize("state", State, ids=lambda one: one.name)
def test_idle_is_at_most_two_endings_away_from_anywhere(state):
    """That is what the bound on transitions leaves room for."""
    endings = (Event.ROLL_BACK, Event.ABANDON, Event.DONE)
    one = {LEGAL.get((state.name, event.name)) for event in endings} | {state.name}
    two = {LEGAL.get((name, event.name)) for name in one for event in endings}

    assert "IDLE" in one | two


@pytest.mark.parametrize("missing", ["PUBLISH", "PROBED", "TRY", "WATCH"])
def test_nothing_is_committed_that_was_not_verified_probed_counted_and_watched(missing):
    reached, frontier = set(), {"IDLE"}
    while frontier:
        reached |= frontier
        frontier = {
            after
            for (state, event), after in LEGAL.items()
            if state in reached and event != missing
        } - reached

    assert "COMMITTED" not in reached


def test_once_the_link_may_have_moved_only_a_roll_back_or_a_commit_ends_the_update():
    after_try = {(state, event) for state, event in LEGAL if State[state] in TRIED}

    assert {event for _, event in after_try} == {"WATCH", "RETRY", "COMMIT", "ROLL_BACK"}


@pytest.mark.parametrize("event", Event, ids=lambda one: one.name)
def test_no_event_has_room_once_a_serial_has_moved_28_times(event):
    assert MAX_TRANSITIONS == 28
    assert not has_room(event, MAX_TRANSITIONS)


@pytest.mark.parametrize("event", ["ROLL_BACK", "ABANDON", "DONE"])
def test_the_last_two_moves_are_kept_for_the_way_back(event):
    assert has_room(Event[event], MAX_TRANSITIONS - 2)
    assert has_room(Event[event], MAX_TRANSITIONS - 1)


@pytest.mark.parametrize("event", [*IN_ORDER[:-1], "RETRY"])
def test_no_move_forward_takes_the_room_of_the_way_back(event):
    assert has_room(Event[event], MAX_TRANSITIONS - 3)
    assert not has_room(Event[event], MAX_TRANSITIONS - 2)


@pytest.mark.parametrize("state", TRIED)
def test_the_first_interrupted_try_is_tried_once_more(state):
    assert after_restart(state, tries=1, interrupted=True) is Event.RETRY


def test_the_first_interrupted_probe_is_tried_once_more():
    assert after_restart(State.VERIFIED, tries=1, interrupted=True) is Event.PROBE


def test_an_interruption_before_the_first_probe_is_not_counted():
    assert after_restart(State.VERIFIED, tries=0, interrupted=True) is None


@pytest.mark.parametrize("state", LOADED)
def test_the_second_interrupted_try_is_the_last(state):
    assert MAX_TRIES == 2
    assert after_restart(state, tries=2, interrupted=True) is Event.ROLL_BACK


@pytest.mark.parametrize("state", LOADED)
@pytest.mark.parametrize("tries", [1, 2])
def test_a_restart_of_the_updater_alone_ends_no_try(state, tries):
    assert after_restart(state, tries=tries, interrupted=False) is None


@pytest.mark.parametrize("state", UNLOADED, ids=lambda one: one.name)
def test_an_interruption_counts_only_while_the_candidate_may_be_loaded(state):
    assert after_restart(state, tries=2, interrupted=True) is None
