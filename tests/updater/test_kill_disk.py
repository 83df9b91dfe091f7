"""SIGKILL before every step of the disk layer: what was done stays, what follows puts it right.

The kernel lives on, so all that was written is there, synced or not; the boot is the same one.
"""

from __future__ import annotations

import shutil
from itertools import count

import pytest
from support.diskbox import BROKEN, DiskBox, prepare, snapshot, try_the_broken, update_to_two
from support.killing import Killer
from support.powercut import scratch_folder, watched
from support.releases import digest_of

from updater.state import State

SCENARIOS = {
    "update": ("update_to_two", 2, 2),
    "roll back": ("try_the_broken", BROKEN, 1),
}
RESTART = "support.diskbox:start"


class Cut(BaseException):
    """The machine goes down here."""


@pytest.fixture
def scratch():
    with scratch_folder() as folder:
        yield folder


@pytest.fixture
def prepared(scratch):
    root = scratch / "prepared"
    root.mkdir()
    prepare(root)
    return root


@pytest.fixture
def killer():
    with Killer() as killer:
        yield killer


def check_goes_on(root, *, version: int, ends_on: int) -> None:
    box = DiskBox(root)
    box.check()
    assert box.current in {digest_of(1), digest_of(version)}

    assert box.start() == {}, "a kill damages nothing"
    once = snapshot(root)
    assert box.start() == {}
    assert snapshot(root) == once, "to recover twice is to recover once"

    box.update(version)
    box.check()
    assert (box.record.state, box.record.tries) == (State.IDLE, 1)
    assert box.current == digest_of(ends_on)
    events = [line.event for line in box.history.read(limit=1000)]
    moves = [event["transition"] for event in events if event["serial"] == version]
    assert moves == list(range(1, box.record.transitions + 1))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_before_any_step_leaves_a_good_release_and_is_put_right(
    name, prepared, killer, scratch
):
    function, version, ends_on = SCENARIOS[name]
    for step in count():
        root = scratch / str(step)
        shutil.copytree(prepared, root, symlinks=True)
        if not killer.run(f"support.diskbox:{function}", root, step=step):
            break
        check_goes_on(root, version=version, ends_on=ends_on)

    assert step > 80


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_in_the_recovery_from_a_kill_is_put_right(name, prepared, killer, scratch):
    function, version, ends_on = SCENARIOS[name]
    for step in count():
        root = scratch / str(step)
        shutil.copytree(prepared, root, symlinks=True)
        if not killer.run(f"support.diskbox:{function}", root, step=step):
            break
        killer.run(RESTART, root, step=step % 20)
        check_goes_on(root, version=version, ends_on=ends_on)

    assert step > 80


@pytest.mark.parametrize("scenario", [update_to_two, try_the_broken])
def test_the_scenarios_take_every_kind_of_step_that_an_update_can_take(scenario, prepared, scratch):
    root = scratch / "root"
    shutil.copytree(prepared, root, symlinks=True)
    taken: list[tuple[str, str]] = []
    with watched(lambda step, path: taken.append((step, path.name))):
        scenario(root)

    assert {step for step, _ in taken} >= {
        "write",
        "append",
        "fsync",
        "rename",
        "fsync-folder",
        "link",
        "chmod",
    }
    assert any(step == "rename" and name.startswith("history-") for step, name in taken)


def takes_the_machine_down(fact) -> None:
    """A candidate that is fatal as soon as the link is its own."""
    if fact == ("current", digest_of(2)):
        raise Cut


def test_a_candidate_that_takes_the_machine_down_is_dropped_after_two_tries(prepared):
    boots = []
    for boot in range(2, 10):
        box = DiskBox(prepared, boot_id=f"boot-{boot}", promise=takes_the_machine_down)
        box.start()
        try:
            box.update(2)
        except Cut:
            boots.append((boot, box.record.tries))
        else:
            break

    assert boots == [(2, 1), (3, 2)]
    assert box.current == digest_of(1)
    assert box.quarantine.find(digest_of(2)).reason == "tried twice"
    box.check()
