"""The way back: by failure, by the fleet's word, by an operator's; and when it leads nowhere."""

from __future__ import annotations

import dataclasses

import pytest
from support.daemonpeer import Fault
from support.installbox import BROKEN, InstallBox, World, prepare
from support.powercut import scratch_folder
from support.releases import MODEL

from updater.state import MAX_TRANSITIONS, State

UNTRIED = (
    State.ASSIGNED,
    State.DOWNLOADING,
    State.VERIFIED,
    State.PROBED,
    State.WAIT_WINDOW,
)


@pytest.fixture
def world():
    with scratch_folder() as folder:
        world = World(folder)
        world.publish(1, 2, BROKEN)
        (folder / "root").mkdir()
        prepare(folder / "root", world)
        world.reboot()
        yield world


@pytest.fixture
def daemon(world):
    with world.daemon(world.run.parent / "root") as daemon:
        yield daemon


@pytest.fixture
def box(world, daemon):
    box = InstallBox(world.run.parent / "root", world).start()
    yield box
    box.transfers.stop()


def damage(box: InstallBox, version: int) -> None:
    """A file of a release is lost."""
    release = box.store.release(MODEL, box.world.digest(version))
    release.chmod(0o755)
    (release / "labels.txt").unlink()


def held(box: InstallBox) -> set[str]:
    return {release.digest for release in box.store.held()}


def test_a_failed_candidate_leaves_nothing_but_its_case(box, world):
    box.update(BROKEN)

    assert held(box) == {world.digest(1)}
    assert box.leftovers() == []
    assert dict(box.installer.outcomes) == {(MODEL, "rolled_back"): 1, (MODEL, "refused"): 1}


def test_a_candidate_that_the_probe_refuses_is_rejected_and_leaves_nothing_either(
    box, world, daemon
):
    daemon.faults[world.digest(2)] = Fault.REFUSED
    box.update(2)

    assert held(box) == {world.digest(1)}
    assert "TRYING" not in box.states(2)
    assert dict(box.installer.outcomes) == {(MODEL, "rejected"): 1, (MODEL, "refused"): 1}


def test_without_the_daemon_the_link_is_turned_all_the_same(box, daemon):
    box.go_to(State.ROLLING_BACK, BROKEN)
    daemon.kill()
    box.update(BROKEN)

    assert (box.serves, box.record.state) == (1, State.IDLE)
    daemon.start()
    assert daemon.served[MODEL].version == 1


def test_a_start_turns_the_link_before_the_daemon_can_load_it_again(box, world):
    box.go_to(State.ROLLING_BACK, BROKEN)
    assert box.serves == BROKEN

    InstallBox(box.root, world).start()

    assert box.serves == 1


def test_rather_nothing_is_served_than_what_failed(box, world, daemon):
    box.go_to(State.PROBATION, BROKEN)
    damage(box, 1)
    box.update(BROKEN)

    assert (box.current, box.record.state) == (None, State.IDLE)
    assert box.record.reason.endswith("no release of the store is served now")
    assert MODEL not in daemon.served
    (told,) = [event for event in box.events() if event["event"] == "nothing to go back to"]
    assert (told["digest"], "damaged" in str(told["reason"])) == (world.digest(1), True)
    assert world.digest(BROKEN) not in held(box)


def test_the_fleet_can_put_right_what_was_damaged(box):
    box.go_to(State.PROBATION, BROKEN)
    damage(box, 1)
    box.update(BROKEN)

    box.update(1)

    assert box.serves == 1


def test_an_operator_goes_back_and_the_case_says_so(box, world):
    box.update(2)

    assert box.roll_back(2)

    assert (box.serves, held(box)) == (1, {world.digest(1)})
    (case,) = box.quarantine.entries()
    assert case.reason == "rolled back by an operator: he does not like it"
    assert "rolled back by an operator" in box.step(2).waiting_for
    assert box.installer.outcomes[MODEL, "rolled_back"] == 1


@pytest.mark.parametrize("moves", [MAX_TRANSITIONS - 2, MAX_TRANSITIONS - 1, MAX_TRANSITIONS])
def test_an_operator_goes_back_even_when_the_rollouts_moves_are_used_up(box, moves):
    box.update(2)
    box.journal.save(dataclasses.replace(box.record, transitions=moves))

    assert box.roll_back(2)

    assert (box.serves, box.record.state) == (1, State.IDLE)
    assert [event["transition"] for event in box.moves(2)][-2:] == [1, 2]


@pytest.mark.parametrize("state", [State.TRYING, State.PROBATION, State.COMMITTED])
def test_an_operator_need_not_wait_for_the_end(box, state):
    box.go_to(state, 2)

    assert box.roll_back(2)

    assert (box.serves, box.record.state) == (1, State.IDLE)
    assert "by an operator" in box.quarantine.entries()[0].reason


@pytest.mark.parametrize("state", UNTRIED, ids=lambda state: state.name)
def test_there_is_nothing_to_go_back_from_before_the_try(box, state):
    box.go_to(state, 2)

    assert not box.installer.roll_back(MODEL, "too soon")
    assert (box.record.state, box.serves) == (state, 1)


def test_there_is_nothing_before_the_first_release(box):
    assert not box.installer.roll_back(MODEL, "no way")


def test_one_does_not_go_back_twice(box):
    box.update(2)
    box.roll_back(2)

    assert not box.installer.roll_back(MODEL, "further")
    assert box.serves == 1


def test_one_does_not_go_back_to_what_is_damaged(box):
    box.update(2)
    damage(box, 1)

    assert not box.installer.roll_back(MODEL, "no way")
    assert (box.serves, box.record.state) == (2, State.IDLE)


def test_what_the_fleet_blocks_is_left_at_once(box, world):
    box.go_to(State.PROBATION, 2)
    blocking = dataclasses.replace(world.wish(2), blocked=frozenset({world.digest(2)}))
    while box.installer.step(MODEL, blocking).moved:
        pass

    assert (box.serves, box.record.state) == (1, State.IDLE)
    assert box.quarantine.entries()[0].reason == "the fleet blocks it now"


@pytest.mark.parametrize("state", UNTRIED, ids=lambda state: state.name)
def test_what_is_not_wished_any_more_leaves_no_trace_on_the_disk(box, world, state):
    box.go_to(state, 2)
    box.update(1)

    assert (box.serves, box.record.state) == (1, State.IDLE)
    assert (held(box), box.leftovers()) == ({world.digest(1)}, [])
    assert not box.quarantine.entries()


def test_a_release_that_is_still_here_is_not_fetched_again(box, world):
    box.update(2)
    back = dataclasses.replace(world.wish(1), source=str(world.run))  # where no bundle is

    for _ in range(20):
        if not box.installer.step(MODEL, back).moved:
            box.clock.now += 1

    assert (box.serves, box.record.state) == (1, State.IDLE)
