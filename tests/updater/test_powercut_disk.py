"""Power cuts at every step of the disk layer, on a real ext4, with both ways of mounting it.

Read with the module under test: `updater/atomic.py` names the steps. What an update does on disk is
in `support/diskbox.py`; the whole update, with network and daemon, is cut in test_powercut.py.
"""

from __future__ import annotations

import os
import stat
from itertools import count
from typing import TYPE_CHECKING

import pytest
from support import powercut
from support.diskbox import (
    BROKEN,
    DiskBox,
    prepare,
    snapshot,
    start_after_boot,
    try_the_broken,
    update_to_two,
)
from support.powercut import Cut, PowerCut, scratch_folder, stopped_before
from support.releases import MODEL, digest_of

from updater.state import MAX_TRIES, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHY_NOT = powercut.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

MOUNTS = {"default": "", "writeback": "noauto_da_alloc,data=writeback"}
SCENARIOS = {"update": update_to_two, "roll back": try_the_broken}
INSTALLS = {"update": 2, "roll back": BROKEN}
ENDS_ON = {"update": 2, "roll back": 1}
UNDER_WAY = {
    State.DOWNLOADING,
    State.TRYING,
    State.PROBATION,
    State.COMMITTED,
    State.ROLLING_BACK,
}
real_fsync = os.fsync


@pytest.fixture(params=MOUNTS.values(), ids=MOUNTS)
def disk(request):
    with scratch_folder() as scratch:
        yield PowerCut(scratch, options=request.param)


def latest(facts, kind: str, default: object) -> object:
    return next((fact for name, fact in reversed(facts) if name == kind), default)


def broken_promises(cut: Cut, box: DiskBox, every: tuple) -> list[str]:
    """What was promised and is not on the disk.

    Args:
        every: all promises of the scenario, in order. The one after those of the cut may have been
            kept already: the power went between its last step and the promise.
    """
    made = cut.promises
    at_most = every[: len(made) + 1]
    first = digest_of(1)
    problems = []
    if box.current not in {latest(made, "current", first), latest(at_most, "current", first)}:
        problems.append(f"current is {box.current}")
    if box.record not in {latest(made, "record", box.record), latest(at_most, "record", None)}:
        problems.append(f"record is {box.record.state}, {box.record.transitions}")
    if box.history.verify().last < latest(made, "history", 0):
        problems.append("the history is shorter than promised")
    for name, fact in made:
        if name == "quarantined" and box.quarantine.find(fact) is None:
            problems.append(f"{fact} is not in quarantine")
        dropped = ("quarantined", fact) in at_most
        if name == "published" and not dropped and not box.store.release(MODEL, fact).exists():
            problems.append(f"{fact} is not published")
    return problems


def check_recovery(root: Path, *, boot_id: str, version: int) -> DiskBox:
    """Everything that must hold after a cut, and after what follows it."""
    old_or_new = {digest_of(1), digest_of(version)}
    box = DiskBox(root, boot_id=boot_id)
    box.check()
    assert box.current in old_or_new

    assert box.start() == {}, "a cut damages nothing"
    once = snapshot(root)
    assert box.start() == {}
    assert snapshot(root) == once, "to recover twice is to recover once"
    assert box.current in old_or_new

    box.update(version)
    assert box.record.state is State.IDLE
    assert box.record.tries <= MAX_TRIES
    assert not list(root.rglob(".*.new"))
    check_history(box, version)
    return box


def check_history(box: DiskBox, version: int) -> None:
    """Each move of the update is in the history once, in order."""
    box.check()
    events = [line.event for line in box.history.read(limit=1000)]
    moves = [event["transition"] for event in events if event["serial"] == version]
    assert moves == list(range(1, box.record.transitions + 1))


def wrong_after(cut: Cut, every: tuple, name: str) -> list[str]:
    """What is wrong after a cut of a scenario, if anything is."""
    try:
        with cut.mounted() as root:
            assert broken_promises(cut, DiskBox(root), every) == []
            box = check_recovery(root, boot_id="boot-2", version=INSTALLS[name])
            assert box.current == digest_of(ENDS_ON[name])
    except Exception as exc:  # noqa: BLE001 - a broken disk breaks in any way
        return [f"{cut}: {exc!r}"]
    return []


def wrong_anywhere(disk: PowerCut, name: str) -> Iterator[str]:
    disk.make(prepare)
    cuts = disk.record(SCENARIOS[name])
    assert len(cuts) > 80
    for cut in cuts:
        yield from wrong_after(cut, cuts[-1].promises, name)


def first_of_each_state(cuts: tuple[Cut, ...]) -> list[Cut]:
    """The first cut after each record was promised in whose state a start has something to do."""
    seen = {latest(cut.promises, "record", None): cut for cut in reversed(cuts)}
    return [cut for record, cut in seen.items() if record and record.state in UNDER_WAY]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_power_cut_at_any_step_leaves_a_good_release_and_loses_nothing_promised(disk, name):
    assert list(wrong_anywhere(disk, name)) == []


@pytest.mark.parametrize(("mount", "name"), list(zip(MOUNTS, SCENARIOS, strict=True)))
def test_a_second_cut_at_any_step_of_the_recovery_harms_no_more_than_the_first(mount, name):
    with scratch_folder() as scratch, scratch_folder() as other:
        disk = PowerCut(scratch, options=MOUNTS[mount])
        disk.make(prepare)
        first = first_of_each_state(disk.record(SCENARIOS[name]))
        assert len(first) == 4
        for cut in first:
            for again in cut.disk_then(other).record(start_after_boot):
                with again.mounted() as root:
                    check_recovery(root, boot_id="boot-3", version=INSTALLS[name])


def test_after_a_kill_all_that_the_recovery_leaves_is_durable():
    """What the killed process has written can be seen, and would be lost without another sync."""
    with scratch_folder() as scratch, scratch_folder() as other:
        disk = PowerCut(scratch)
        disk.make(prepare)
        prepared = disk.cut()
        for step in count():
            again = prepared.disk_then(other)
            with again.mounted() as root:
                stopped = stopped_before(step, try_the_broken, root)
                DiskBox(root).start()
                seen = snapshot(root)
                cut = again.cut()
            with cut.mounted() as root:
                assert snapshot(root) == seen, f"killed before step {step}"
            if not stopped:
                break

    assert step > 80


def test_cuts_find_a_missing_sync_of_files(disk, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None if is_file(fd) else real_fsync(fd))

    assert any(wrong_anywhere(disk, "update"))


def test_cuts_find_a_missing_sync_of_folders(disk, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None if not is_file(fd) else real_fsync(fd))

    assert any(wrong_anywhere(disk, "update"))


def is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)
