"""Power cuts before every durable step of a whole update, a roll back and an operator's roll back.

The real installer on a real ext4, with both ways of mounting it: metadata and network apart, all
that an update does is in here. The steps are those of `updater/atomic.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import pytest
from support import powercut
from support.installbox import BROKEN, InstallBox, World, prepare, snapshot
from support.killing import Killer
from support.powercut import MIB, PowerCut, scratch_folder

from updater.state import MAX_TRIES, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.powercut import Cut, Promise

WHY_NOT = powercut.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

MOUNTS = {"default": "", "writeback": "noauto_da_alloc,data=writeback"}
GIVEN_UP = "the machine was restarted"
SIZE_BYTES = 26 * MIB
"""What stays free on any disk is 16 MiB of it."""

NOT_SWITCHED = {
    State.IDLE,
    State.ASSIGNED,
    State.DOWNLOADING,
    State.VERIFIED,
    State.PROBED,
    State.WAIT_WINDOW,
}


@dataclass(frozen=True)
class Story:
    """What happens to a device, and what must be true of it whenever it is cut.

    Attributes:
        serves: version before.
        wishes: version that the fleet wishes.
        tell: what happens; done again, it goes on where it was cut.
        ends_on: version in the end.
        condemned: what the quarantine says of the other one, in the end; "" when it has none.
        cuts: it has at least so many steps.
    """

    serves: int
    wishes: int
    tell: Callable[[InstallBox, int], object]
    ends_on: int
    condemned: str
    cuts: int


def update(box: InstallBox, version: int) -> None:
    box.update(version)


def roll_back(box: InstallBox, version: int) -> None:
    if box.serves == version and box.record.state is State.IDLE:
        assert box.roll_back(version)
    box.update(version)


STORIES = {
    "update": Story(1, 2, update, 2, "", cuts=100),
    "roll back": Story(1, BROKEN, update, 1, "NaN or infinity", cuts=120),
    "operator's roll back": Story(2, 2, roll_back, 1, "rolled back by an operator", cuts=30),
}


@pytest.fixture
def world():
    with scratch_folder() as folder:
        world = World(folder)
        world.publish(1, 2, BROKEN)
        yield world


@pytest.fixture(params=MOUNTS.values(), ids=MOUNTS)
def disk(request):
    with scratch_folder() as folder:
        yield PowerCut(folder, options=request.param, size_bytes=SIZE_BYTES)


def record(disk: PowerCut, world: World, story: Story) -> tuple[Cut, ...]:
    """The story, cut before each of its steps."""

    def make(root: Path) -> None:
        prepare(root, world)
        with world.daemon(root):
            InstallBox(root, world).update(story.serves)

    def tell(root: Path, promise: Promise) -> None:
        with world.daemon(root):
            story.tell(InstallBox(root, world, promise=promise).start(), story.wishes)

    world.reboot()
    disk.make(make)
    return disk.record(tell)


def latest(facts: tuple, kind: str, default: object) -> object:
    return next((fact for name, fact in reversed(facts) if name == kind), default)


def check_promises(cut: Cut, every: tuple, box: InstallBox, before: str) -> None:
    """The disk is as the last step that had returned has left it, or is one step further.

    Args:
        every: all promises of the story, in order.
        before: digest of what was served when it began.
    """
    made, at_most = cut.promises, every[: len(cut.promises) + 2]
    assert box.current in {latest(made, "current", before), latest(at_most, "current", before)}
    if made:
        assert box.record in {latest(made, "record", None), latest(at_most, "record", None)}


def check_recovery(root: Path, world: World, story: Story, *, boot_id: str) -> None:
    """All that must hold on the disk that a cut has left, and of what follows."""
    box = InstallBox(root, world, boot_id=boot_id)
    old, new = world.digest(story.serves), world.digest(story.wishes)
    back = world.digest(story.ends_on)
    if box.record.serial != story.wishes or box.record.state in NOT_SWITCHED - {State.IDLE}:
        assert box.current == old, "before the try nothing has changed"

    world.reboot()
    box.start()
    once = snapshot(root)
    assert box.current in {old, new, back}
    assert box.serves, "what is current is complete"
    box.start()
    assert snapshot(root) == once, "to recover twice is to recover once"

    with world.daemon(root):
        story.tell(box, story.wishes)
        box.transfers.stop()
    is_given_up = boot_id == "boot-3" and GIVEN_UP in box.record.reason
    check_end(box, given_up(story) if is_given_up else story)


def given_up(story: Story) -> Story:
    """What becomes of it when the machine goes down twice while the candidate is loaded."""
    return replace(story, ends_on=story.serves, condemned=GIVEN_UP)


def check_end(box: InstallBox, story: Story) -> None:
    assert (box.record.state, box.serves) == (State.IDLE, story.ends_on)
    assert box.record.tries <= MAX_TRIES
    cases = box.quarantine.entries()
    assert [case.version for case in cases] == ([story.wishes] if story.condemned else [])
    assert all(story.condemned in case.reason for case in cases)
    assert box.leftovers() == []
    check_history(box, story.wishes)


def check_history(box: InstallBox, serial: int) -> None:
    """Each move is there once, in order, and nothing was found damaged."""
    assert box.history.verify().broken is None
    moves = [event["transition"] for event in box.moves(serial)]
    assert moves == list(range(1, box.record.transitions + 1))
    assert not [event for event in box.events() if "damaged" in str(event["event"])]


def wrong_after(cut: Cut, every: tuple, world: World, story: Story) -> list[str]:
    """What is wrong after a cut, if anything is."""
    try:
        with cut.mounted() as root:
            before = world.digest(story.serves)
            check_promises(cut, every, InstallBox(root, world), before)
            check_recovery(root, world, story, boot_id="boot-2")
    except Exception as exc:  # noqa: BLE001 - a broken disk breaks in any way
        return [f"{cut}: {exc!r}"]
    return []


def different(cuts: tuple[Cut, ...]) -> Iterator[Cut]:
    """Without those that find the same disk as the one before, and the same promises."""
    before = None
    for cut in cuts:
        with cut.image.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").digest(), cut.promises
        if found != before:
            yield cut
        before = found


def wrong_anywhere(disk: PowerCut, world: World, story: Story) -> Iterator[str]:
    cuts = record(disk, world, story)
    assert len(cuts) > story.cuts
    for cut in different(cuts):
        yield from wrong_after(cut, cuts[-1].promises, world, story)


def first_of_each_state(cuts: tuple[Cut, ...]) -> list[Cut]:
    """The first cut after each record was promised."""
    seen = {latest(cut.promises, "record", None): cut for cut in reversed(cuts)}
    return [cut for record, cut in seen.items() if record]


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_cut_at_any_step_leaves_a_good_release_and_the_story_ends_as_ever(disk, world, story):
    assert list(wrong_anywhere(disk, world, story)) == []


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_second_cut_at_any_step_of_the_recovery_harms_no_more_than_the_first(world, story):
    with scratch_folder() as scratch, scratch_folder() as other:
        disk = PowerCut(scratch, options=MOUNTS["writeback"], size_bytes=SIZE_BYTES)
        first = first_of_each_state(record(disk, world, story))
        assert len(first) >= 2
        for cut in first:
            for again in different(cut.disk_then(other).record(start_after_boot(world))):
                with again.mounted() as root:
                    check_recovery(root, world, story, boot_id="boot-3")


def test_after_a_kill_all_that_the_start_leaves_is_durable(world):
    """What the killed process has written can be seen, and would be lost without another sync."""
    folder = world.run.parent
    disk = PowerCut(folder, size_bytes=SIZE_BYTES)
    disk.make(lambda root: prepare(root, world))
    prepared = disk.cut()
    with Killer() as killer:
        for step in count():
            again = prepared.disk_then(folder)
            world.reboot()
            with again.mounted() as root, world.daemon(root):
                killed = killer.run("support.installbox:try_the_broken", root, step=step)
                InstallBox(root, world).start()
                seen = whole_files(root)
                cut = again.cut(number=1)
            with cut.mounted() as root:
                assert whole_files(root) == seen, f"killed before step {step}"
            if not killed:
                break

    assert step > 120


def whole_files(root: Path) -> dict[str, object]:
    """Without what has not arrived yet: it is compared with its digest when it has."""
    return {name: found for name, found in snapshot(root).items() if not name.endswith(".part")}


def start_after_boot(world: World):
    def start(root: Path, _promise: Promise) -> None:
        world.reboot()
        InstallBox(root, world, boot_id="boot-2").start()

    return start
