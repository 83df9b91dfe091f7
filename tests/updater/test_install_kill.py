"""The updater is killed, or the machine goes down, in every state: what follows, as tables.

A row says what the record was in when it happened, the states that followed, how many tries were
counted, how the update ended and which version serves. Version 2 is good, 3 is broken.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import pytest
from support.installbox import BROKEN, InstallBox, World, prepare, snapshot
from support.killing import Killer
from support.powercut import scratch_folder, watched
from support.releases import MODEL

from updater.state import MAX_TRANSITIONS, MAX_TRIES, UNDER_TRIAL, State

if TYPE_CHECKING:
    from support.installbox import BusyPeer

    from updater.journal import Record

SERIAL = {"good": 2, "broken": BROKEN}
UP_TO_THE_TRY = "ASSIGNED DOWNLOADING VERIFIED VERIFIED PROBED WAIT_WINDOW TRYING PROBATION"
CHAINS = {
    "good": f"{UP_TO_THE_TRY} COMMITTED IDLE",
    "broken": f"{UP_TO_THE_TRY} ROLLING_BACK IDLE",
}
ENDS = {"good": ("committed", 2), "broken": ("rolled_back", 1)}


@pytest.fixture
def world():
    with scratch_folder() as folder:
        world = World(folder)
        world.publish(1, 2, BROKEN)
        yield world


@pytest.fixture
def prepared(world):
    root = world.run.parent / "prepared"
    root.mkdir()
    prepare(root, world)
    return root


@pytest.fixture
def killer():
    with Killer() as killer:
        yield killer


def end_of(box: InstallBox, serial: int) -> tuple[str, int]:
    """How an update has ended, as the history tells it, and which version serves."""
    events = {event["event"] for event in box.moves(serial)}
    outcome = "committed" if "commit" in events else "rolled_back" * ("roll_back" in events)
    return outcome, box.serves


# Killed, with the machine and the daemon going on. Wherever it is, the update goes on as if nothing
# had been: the states that are left follow, one try is counted, and it ends as it would have.

KILLED = {
    ("good", "IDLE before"): "ASSIGNED DOWNLOADING VERIFIED VERIFIED PROBED WAIT_WINDOW TRYING"
    " PROBATION COMMITTED IDLE",
    ("good", "ASSIGNED"): "DOWNLOADING VERIFIED VERIFIED PROBED WAIT_WINDOW TRYING PROBATION"
    " COMMITTED IDLE",
    ("good", "DOWNLOADING"): "VERIFIED VERIFIED PROBED WAIT_WINDOW TRYING PROBATION COMMITTED IDLE",
    ("good", "VERIFIED"): "VERIFIED PROBED WAIT_WINDOW TRYING PROBATION COMMITTED IDLE",
    ("good", "VERIFIED, probed once"): "PROBED WAIT_WINDOW TRYING PROBATION COMMITTED IDLE",
    ("good", "PROBED"): "WAIT_WINDOW TRYING PROBATION COMMITTED IDLE",
    ("good", "WAIT_WINDOW"): "TRYING PROBATION COMMITTED IDLE",
    ("good", "TRYING"): "PROBATION COMMITTED IDLE",
    ("good", "TRYING, answers"): "PROBATION COMMITTED IDLE",
    ("good", "PROBATION"): "COMMITTED IDLE",
    ("good", "COMMITTED"): "IDLE",
    ("good", "IDLE after"): "",
    ("broken", "IDLE before"): "ASSIGNED DOWNLOADING VERIFIED VERIFIED PROBED WAIT_WINDOW TRYING"
    " PROBATION ROLLING_BACK IDLE",
    ("broken", "ASSIGNED"): "DOWNLOADING VERIFIED VERIFIED PROBED WAIT_WINDOW TRYING PROBATION"
    " ROLLING_BACK IDLE",
    ("broken", "DOWNLOADING"): "VERIFIED VERIFIED PROBED WAIT_WINDOW TRYING PROBATION ROLLING_BACK"
    " IDLE",
    ("broken", "VERIFIED"): "VERIFIED PROBED WAIT_WINDOW TRYING PROBATION ROLLING_BACK IDLE",
    ("broken", "VERIFIED, probed once"): "PROBED WAIT_WINDOW TRYING PROBATION ROLLING_BACK IDLE",
    ("broken", "PROBED"): "WAIT_WINDOW TRYING PROBATION ROLLING_BACK IDLE",
    ("broken", "WAIT_WINDOW"): "TRYING PROBATION ROLLING_BACK IDLE",
    ("broken", "TRYING"): "PROBATION ROLLING_BACK IDLE",
    ("broken", "TRYING, answers"): "ROLLING_BACK IDLE",
    ("broken", "PROBATION"): "ROLLING_BACK IDLE",
    ("broken", "ROLLING_BACK"): "IDLE",
    ("broken", "IDLE after"): "",
}
FUNCTIONS = {"good": "update_to_two", "broken": "try_the_broken"}


def found_in(record: Record, daemon: BusyPeer, serial: int) -> str:
    """The state in which an update was when it was killed."""
    if record.state is State.IDLE:
        return "IDLE after" if record.serial == serial else "IDLE before"
    if record.state is State.VERIFIED and record.tries:
        return "VERIFIED, probed once"
    if record.state is State.TRYING and daemon.served[MODEL].release == record.digest:
        return "TRYING, answers"
    return record.state.name


def rows_of(name: str) -> dict[str, list[str]]:
    """What the table says of one story."""
    return {state: follows.split() for (story, state), follows in KILLED.items() if story == name}


def goes_on(root, world: World, daemon: BusyPeer, name: str) -> dict[str, list[str]]:
    """Start again after a kill; checks the end, and returns the row that it makes."""
    serial = SERIAL[name]
    box = InstallBox(root, world)
    killed_in, before = found_in(box.record, daemon, serial), box.states(serial)
    assert before == CHAINS[name].split()[: len(before)]
    may_serve_it = box.record.state in {*UNDER_TRIAL, State.COMMITTED, State.ROLLING_BACK}
    assert box.serves == 1 or may_serve_it or killed_in == "IDLE after"

    box.start()
    once = snapshot(root)
    box.start()
    assert snapshot(root) == once, "to recover twice is to recover once"

    told = len(box.states(serial))
    assert told - len(before) in {0, 1}, "a line that was missing is told at the start"
    box.update(serial)
    box.transfers.stop()
    assert (box.record.tries, end_of(box, serial)) == (1, ENDS[name])
    assert box.history.verify().broken is None
    assert box.leftovers() == []
    return {killed_in: box.states(serial)[told:]}


@pytest.mark.parametrize("name", SERIAL)
def test_a_kill_before_any_step_is_followed_by_what_was_left_to_do(name, world, prepared, killer):
    seen: dict[str, list[str]] = {}
    for step in count():
        root = world.run.parent / str(step)
        shutil.copytree(prepared, root, symlinks=True)
        with world.daemon(root) as daemon:
            if not killer.run(f"support.installbox:{FUNCTIONS[name]}", root, step=step):
                break
            row = goes_on(root, world, daemon, name)
        assert row == {state: rows_of(name)[state] for state in row}, f"killed before {step}"
        seen |= row
        shutil.rmtree(root)

    assert seen == rows_of(name), "no state was left out"


@pytest.mark.parametrize("name", SERIAL)
def test_a_kill_in_the_start_after_a_kill_is_put_right(name, world, prepared, killer):
    for step in count():
        root = world.run.parent / str(step)
        shutil.copytree(prepared, root, symlinks=True)
        with world.daemon(root) as daemon:
            if not killer.run(f"support.installbox:{FUNCTIONS[name]}", root, step=step):
                break
            killer.run("support.installbox:start", root, step=step % 12)
            goes_on(root, world, daemon, name)
        shutil.rmtree(root)

    assert step > 120


# The machine goes down as soon as the state is reached: once, or every time.


@dataclass(frozen=True)
class Reboots:
    """The states that follow the one in which the machine goes down, and what they lead to."""

    name: str
    state: State
    once: str
    once_tries: int
    for_ever: str  # "" where the update waits until it ends, and nothing is written meanwhile
    probing: bool = False


WAITS = ""
REBOOTS = {
    "ASSIGNED": Reboots(
        "good",
        State.ASSIGNED,
        "DOWNLOADING VERIFIED VERIFIED PROBED WAIT_WINDOW TRYING PROBATION COMMITTED IDLE",
        1,
        WAITS,
    ),
    "DOWNLOADING": Reboots(
        "good",
        State.DOWNLOADING,
        "VERIFIED VERIFIED PROBED WAIT_WINDOW TRYING PROBATION COMMITTED IDLE",
        1,
        WAITS,
    ),
    "VERIFIED": Reboots(
        "good",
        State.VERIFIED,
        "VERIFIED PROBED WAIT_WINDOW TRYING PROBATION COMMITTED IDLE",
        1,
        WAITS,
    ),
    "VERIFIED, in the probe": Reboots(
        "good",
        State.VERIFIED,
        "VERIFIED PROBED WAIT_WINDOW TRYING PROBATION COMMITTED IDLE",
        1,
        "VERIFIED ROLLING_BACK IDLE",
        probing=True,
    ),
    "PROBED": Reboots(
        "good", State.PROBED, "WAIT_WINDOW TRYING PROBATION COMMITTED IDLE", 1, WAITS
    ),
    "WAIT_WINDOW": Reboots("good", State.WAIT_WINDOW, "TRYING PROBATION COMMITTED IDLE", 1, WAITS),
    "TRYING": Reboots(
        "good", State.TRYING, "TRYING PROBATION COMMITTED IDLE", 2, "TRYING ROLLING_BACK IDLE"
    ),
    "PROBATION": Reboots(
        "good",
        State.PROBATION,
        "TRYING PROBATION COMMITTED IDLE",
        2,
        "TRYING PROBATION ROLLING_BACK IDLE",
    ),
    "COMMITTED": Reboots("good", State.COMMITTED, "IDLE", 1, WAITS),
    "ROLLING_BACK": Reboots("broken", State.ROLLING_BACK, "IDLE", 1, WAITS),
}
OFTEN = 10


class Machine:
    """A device that goes down when its record is in one state."""

    def __init__(self, root, world: World, case: Reboots) -> None:
        self.root, self.world, self.case = root, world, case
        self.boots = 1
        self.serial = SERIAL[case.name]
        self.daemon: BusyPeer = world.daemon(root)
        self.box = InstallBox(root, world)

    def run(self, *, reboots: int) -> None:
        """Until nothing is left to do."""
        self.daemon.start()
        self.box.start()
        try:
            while self.goes_on():
                while self.boots <= reboots and self.is_there(self.box.record):
                    self.reboot()
        finally:
            self.daemon.kill()
            self.box.transfers.stop()

    def goes_on(self) -> bool:
        """Take a step, or wait for what it waits for."""
        step = self.box.step(self.serial)
        if not step.moved and self.box.record.state is State.PROBATION:
            self.box.clock.now += 1
        self.box.transfers.wait(20)
        return step.moved or self.box.record.state is not State.IDLE

    def is_there(self, record: Record) -> bool:
        wanted = bool(record.tries) == self.case.probing or record.state is not State.VERIFIED
        return record.state is self.case.state and wanted and record.serial == self.serial

    def reboot(self) -> None:
        """Power is lost and comes back: the updater is there before the daemon."""
        self.boots += 1
        self.daemon.kill()
        self.box.transfers.stop()
        self.world.reboot()
        self.box = InstallBox(self.root, self.world, boot_id=f"boot-{self.boots}").start()
        self.daemon = self.world.daemon(self.root)
        self.daemon.start()

    def followed(self) -> list[str]:
        """The states after the one that it first went down in."""
        states = self.box.states(self.serial)
        return states[states.index(self.case.state.name) + 1 + self.case.probing :]


@pytest.mark.parametrize("case", REBOOTS.values(), ids=REBOOTS)
def test_one_reboot_in_any_state_costs_one_try_at_most(case, world, prepared):
    machine = Machine(prepared, world, case)

    machine.run(reboots=1)

    assert machine.boots == 2
    assert machine.followed() == case.once.split()
    assert machine.box.record.tries == case.once_tries
    assert end_of(machine.box, machine.serial) == ENDS[case.name]
    assert machine.box.leftovers() == []


FOR_EVER = {name: case for name, case in REBOOTS.items() if case.for_ever}
ENDLESS = {name: case for name, case in REBOOTS.items() if not case.for_ever}


@pytest.mark.parametrize("case", FOR_EVER.values(), ids=FOR_EVER)
def test_a_candidate_that_no_boot_survives_is_dropped_after_two_tries(case, world, prepared):
    machine = Machine(prepared, world, case)

    machine.run(reboots=OFTEN)

    assert machine.boots == 1 + MAX_TRIES
    assert machine.followed() == case.for_ever.split()
    assert machine.box.record.tries == MAX_TRIES
    assert end_of(machine.box, machine.serial) == ("rolled_back", 1)
    assert machine.box.quarantine.entries()[0].reason == "the machine was restarted"
    assert machine.box.leftovers() == []


@pytest.mark.parametrize("case", ENDLESS.values(), ids=ENDLESS)
def test_where_the_candidate_is_not_loaded_reboots_cost_nothing_and_write_nothing(
    case, world, prepared
):
    machine = Machine(prepared, world, case)
    machine.daemon.start()
    machine.box.start()
    while not machine.is_there(machine.box.record):
        assert machine.goes_on()
    machine.reboot()
    before = machine.box.record, machine.box.events(), machine.box.serves
    writes: list[str] = []

    with watched(lambda step, _path: writes.append(step)):
        for _ in range(OFTEN):
            machine.reboot()

    assert (machine.box.record, machine.box.events(), machine.box.serves) == before
    assert set(writes) <= {"fsync", "fsync-folder", "chmod"}
    while machine.goes_on():
        pass
    machine.daemon.kill()
    assert machine.followed() == case.once.split()
    assert end_of(machine.box, machine.serial) == ENDS[case.name]


def fails_again(box: InstallBox) -> bool:
    """The broken version is let in once more; whether it was tried."""
    box.quarantine.clear()
    before = len(box.states(BROKEN))
    box.update(BROKEN)
    return len(box.states(BROKEN)) > before


def test_whatever_is_done_about_it_a_rollout_moves_28_times_at_most(world, prepared):
    box = InstallBox(prepared, world).start()
    with world.daemon(prepared):
        tried = [fails_again(box) for _ in range(OFTEN)]

    assert tried == sorted(tried, reverse=True)
    assert 1 < sum(tried) < OFTEN
    assert box.record.transitions <= MAX_TRANSITIONS
    assert (box.record.state, box.serves) == (State.IDLE, 1)
    assert box.step(BROKEN).waiting_for == "this rollout has failed too often here"
