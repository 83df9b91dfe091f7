"""Tries, and what cuts them short: the daemon's deaths and its silence; time that nobody sets."""

from __future__ import annotations

import pytest
from support.daemonpeer import Fault
from support.installbox import InstallBox, World, prepare
from support.powercut import scratch_folder
from support.releases import MODEL

from updater.state import MAX_TRIES, UNDER_TRIAL, State

YEAR_S = 365 * 86_400
TRIAL = pytest.mark.parametrize("state", sorted(UNDER_TRIAL, key=str), ids=lambda one: one.name)


@pytest.fixture
def world():
    with scratch_folder() as folder:
        world = World(folder)
        world.publish(1, 2)
        (folder / "root").mkdir()
        prepare(folder / "root", world)
        world.reboot()
        yield world


@pytest.fixture
def root(world):
    return world.run.parent / "root"


@pytest.fixture
def daemon(world, root):
    with world.daemon(root) as daemon:
        yield daemon


@pytest.fixture
def box(world, root, daemon):
    box = InstallBox(root, world).start()
    yield box
    box.transfers.stop()


def dies(daemon, times: int = 1) -> None:
    """It is killed and started again."""
    for _ in range(times):
        daemon.kill()
        daemon.start()


def kept_alive(box: InstallBox, daemon) -> None:
    """Update to version 2 while somebody starts the daemon whenever it is dead."""
    for _ in range(20):
        box.update(2)
        if not daemon.is_alive:
            daemon.start()


@TRIAL
def test_a_death_while_the_candidate_is_loaded_uses_up_a_try(box, daemon, state):
    box.go_to(state, 2)
    dies(daemon)
    box.step(2)

    assert (box.record.state, box.record.tries) == (State.TRYING, 2)
    assert "the daemon died" in box.record.reason
    box.update(2)
    assert (box.serves, box.record.state) == (2, State.IDLE)


@TRIAL
def test_two_deaths_that_nobody_saw_use_up_two(box, daemon, state):
    """Whoever started it again has had it load the candidate twice."""
    box.go_to(state, 2)
    dies(daemon, times=2)
    box.step(2)

    assert (box.record.state, box.record.tries) == (State.ROLLING_BACK, 1)
    box.update(2)
    assert (box.serves, daemon.served[MODEL].version) == (1, 1)


@TRIAL
def test_deaths_before_the_try_are_held_against_nobody(box, daemon, state):
    box.go_to(State.WAIT_WINDOW, 2)
    dies(daemon, times=3)
    box.go_to(state, 2)
    box.step(2)

    assert box.record.tries == 1
    box.update(2)
    assert box.serves == 2


@TRIAL
def test_an_operators_restart_costs_nothing_however_long_it_takes(box, daemon, state):
    box.go_to(state, 2)
    daemon.stop()
    for _ in range(5):
        waits = box.step(2)
        box.clock.now += YEAR_S
    assert (box.record.state, waits.moved) == (state, False)
    assert "does not answer" in waits.waiting_for

    daemon.start()
    box.update(2)

    assert (box.serves, box.record.tries) == (2, 1)


@TRIAL
def test_a_daemon_that_does_not_come_back_uses_up_the_tries_and_the_link_is_turned(
    box, daemon, state
):
    box.go_to(state, 2)
    daemon.kill()
    tries = set()
    for _ in range(10):
        box.step(2)
        tries.add(box.record.tries)
        box.clock.now += 61

    assert tries == {1, MAX_TRIES}
    assert (box.serves, box.record.state) == (1, State.IDLE)
    assert "did not come back" in box.quarantine.entries()[0].reason
    daemon.start()
    assert daemon.served[MODEL].version == 1


@TRIAL
def test_a_short_silence_costs_nothing(box, daemon, state):
    box.go_to(state, 2)
    daemon.kill()
    box.step(2)
    box.clock.now += 59

    assert not box.step(2).moved
    assert box.record.tries == 1


def test_a_daemon_that_is_loading_yet_is_asked_to_serve_the_candidate_first(box, daemon):
    box.go_to(State.PROBATION, 2)
    daemon.served.clear()

    assert not box.step(2).moved
    assert (box.record.state, daemon.served[MODEL].version) == (State.PROBATION, 2)


@pytest.mark.parametrize(
    ("fault", "tries"),
    [
        (Fault.KILLS_AT_PROBE, "VERIFIED VERIFIED VERIFIED ROLLING_BACK IDLE"),
        (Fault.KILLS_AT_LOAD, "TRYING TRYING ROLLING_BACK IDLE"),
        (Fault.KILLS_ON_TRAFFIC, "PROBATION ROLLING_BACK IDLE"),
    ],
    ids=lambda one: one.name if isinstance(one, Fault) else "",
)
def test_a_candidate_that_kills_the_daemon_is_dropped_after_two_tries(
    box, world, daemon, fault, tries
):
    daemon.faults[world.digest(2)] = fault

    kept_alive(box, daemon)

    assert (box.serves, box.record.state, box.record.tries) == (1, State.IDLE, MAX_TRIES)
    assert " ".join(box.states(2)).endswith(tries)
    assert box.quarantine.entries()[0].reason == "the daemon died while it had it loaded"
    assert daemon.served[MODEL].version == 1


def test_a_probe_that_nobody_is_there_for_is_no_try(box, daemon):
    box.go_to(State.DOWNLOADING, 2)
    daemon.kill()
    for _ in range(5):
        box.update(2)

    assert (box.record.state, box.record.tries) == (State.VERIFIED, 0)
    daemon.start()
    box.update(2)
    assert (box.serves, box.record.tries) == (2, 1)


def test_what_was_before_is_remembered_over_a_restart_of_the_updater(box, world, root, daemon):
    """A candidate five times slower is found out by whoever watches it to the end."""
    daemon.faults[world.digest(2)] = Fault.SLOW
    box.go_to(State.PROBATION, 2)

    again = InstallBox(root, world).start()
    again.update(2)

    assert again.serves == 1
    assert "times the" in again.quarantine.entries()[0].reason


@pytest.mark.parametrize("set_s", [10 * YEAR_S, -10 * YEAR_S], ids=["ahead", "back"])
def test_a_clock_that_is_set_neither_ends_a_probation_nor_makes_it_longer(box, set_s):
    box.go_to(State.PROBATION, 2)
    box.clock.set_s = set_s

    assert not box.step(2).moved
    box.clock.now += 1.0
    box.step(2)
    assert box.record.state is State.COMMITTED
