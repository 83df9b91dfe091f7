"""A disk that gets full at any step of a whole update or roll back.

A good release is served all the time, a broken one is turned back from without any room but what
was kept for that, nothing is damaged, and when there is room again it all goes on.
"""

from __future__ import annotations

import contextlib
import os
from itertools import count
from typing import TYPE_CHECKING

import pytest
from support import powercut
from support.installbox import BROKEN, InstallBox, World, prepare
from support.powercut import MIB, PowerCut, scratch_folder, watched

from updater.state import UNDER_TRIAL, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHY_NOT = powercut.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

KIB = 1024
BALLAST_BYTES = 256 * KIB
SIZE_BYTES = 26 * MIB
"""What stays free on any disk is 16 MiB of it."""


@pytest.fixture
def world():
    with scratch_folder() as folder:
        world = World(folder)
        world.publish(1, 2, BROKEN)
        yield world


@pytest.fixture
def prepared(world):
    """A disk with a device that serves version 1; `mounted` gives a copy."""
    with scratch_folder() as folder:
        disk = PowerCut(folder, size_bytes=SIZE_BYTES)
        disk.make(lambda root: prepare(root, world))
        yield disk.cut()


def fill(root: Path, *, leave_bytes: int = 0) -> None:
    """Somebody else takes all the room, but for so much."""
    with (root / "filler").open("ab", buffering=0) as file:
        for size in (MIB, 64 * KIB, 4 * KIB, KIB):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
        os.fsync(file.fileno())
        if leave_bytes:
            file.truncate(os.fstat(file.fileno()).st_size - leave_bytes)
            os.fsync(file.fileno())


def give_room(root: Path) -> None:
    (root / "filler").unlink(missing_ok=True)


@contextlib.contextmanager
def full_from(box: InstallBox, step: int) -> Iterator[list[str]]:
    """The disk gets full before a step, from 0; gives the steps that were taken.

    On the way back there is what was kept for it and was given back, and no more.
    """
    taken: list[str] = []

    def note(name: str, _path: Path) -> None:
        if len(taken) == step:
            on_the_way_back = box.record.state in {*UNDER_TRIAL, State.ROLLING_BACK}
            is_given_back = on_the_way_back and not any(box.ballast.iterdir())
            fill(box.root, leave_bytes=BALLAST_BYTES if is_given_back else 0)
        taken.append(name)

    with watched(note):
        yield taken


def check_undamaged(box: InstallBox) -> None:
    assert box.serves, "what is current is complete"
    assert box.history.verify().broken is None
    assert not [event for event in box.events() if "damaged" in str(event["event"])]


def check_end(box: InstallBox, serial: int, *, serves: int) -> None:
    check_undamaged(box)
    assert (box.record.state, box.serves) == (State.IDLE, serves)
    assert box.leftovers() == []
    moves = [event["transition"] for event in box.moves(serial)]
    assert moves == list(range(1, box.record.transitions + 1)), "the history tells every move"


def keep_trying(box: InstallBox, version: int) -> None:
    """As the service does: steps, again and again, for as long as it is full."""
    for _ in range(5):
        box.update(version)


def test_a_disk_full_from_any_step_of_an_update_stops_it_until_there_is_room(world, prepared):
    for step in count():
        with prepared.mounted() as root, world.daemon(root):
            box = InstallBox(root, world).start()
            with full_from(box, step) as taken:
                keep_trying(box, 2)
            check_undamaged(box)
            assert box.serves == 1 or box.record.state in {
                *UNDER_TRIAL,
                State.COMMITTED,
                State.IDLE,
            }

            give_room(root)
            box.update(2)
            box.transfers.stop()
            check_end(box, 2, serves=2)
        if len(taken) <= step:
            break

    assert step > 100


def test_a_disk_full_from_any_step_keeps_no_broken_release_in_service(world, prepared):
    for step in count():
        with prepared.mounted() as root, world.daemon(root):
            box = InstallBox(root, world).start()
            with full_from(box, step) as taken:
                keep_trying(box, BROKEN)
            check_undamaged(box)
            assert box.serves == 1, f"full from step {step}"
            assert box.record.state is State.IDLE or not box.quarantine.entries()

            give_room(root)
            box.update(BROKEN)
            box.transfers.stop()
            check_end(box, BROKEN, serves=1)
            (case,) = box.quarantine.entries()
            assert "NaN or infinity" in case.reason
        if len(taken) <= step:
            break

    assert step > 100


def test_a_disk_full_from_any_step_does_not_keep_an_operator_from_going_back(world, prepared):
    for step in count():
        with prepared.mounted() as root, world.daemon(root):
            box = InstallBox(root, world).start()
            box.update(2)
            with full_from(box, step) as taken, contextlib.suppress(OSError):
                box.roll_back(2)
            check_undamaged(box)

            give_room(root)
            if box.record.state is State.IDLE and box.serves == 2:
                assert box.roll_back(2)
            box.update(2)
            box.transfers.stop()
            check_end(box, 2, serves=1)
        if len(taken) <= step:
            break

    assert step > 30


@pytest.mark.parametrize("leave_kib", [*range(0, 48, 4), 64, 128, 256, 384, 1024, 17 * 1024])
def test_however_little_room_there_is_a_good_release_is_served_and_room_puts_it_right(
    world, prepared, leave_kib
):
    with prepared.mounted() as root, world.daemon(root):
        fill(root, leave_bytes=leave_kib * KIB)
        box = InstallBox(root, world).start()
        waits = box.update(2)
        check_undamaged(box)
        assert (box.serves, waits.moved) == (1, False)
        assert "room" in waits.waiting_for or "take" in waits.waiting_for

        give_room(root)
        box.update(2)
        box.transfers.stop()
        check_end(box, 2, serves=2)


AT_WORK = [state for state in State if state is not State.IDLE]


@pytest.mark.parametrize("state", AT_WORK, ids=lambda state: state.name)
def test_the_updater_starts_on_a_full_disk_in_any_state(world, prepared, state):
    version = BROKEN if state is State.ROLLING_BACK else 2
    with prepared.mounted() as root, world.daemon(root):
        InstallBox(root, world).start().go_to(state, version)
        fill(root)

        box = InstallBox(root, world).start()
        box.update(version)

        check_undamaged(box)
        give_room(root)
        box.update(version)
        box.transfers.stop()
        check_end(box, version, serves=1 if version == BROKEN else 2)


@pytest.mark.parametrize("state", UNDER_TRIAL, ids=lambda state: state.name)
def test_a_try_that_cannot_be_counted_is_none(world, prepared, state):
    """After a reboot a second one is due, but it would not be known of after the next."""
    with prepared.mounted() as root, world.daemon(root):
        InstallBox(root, world).start().go_to(state, 2)
        fill(root)

        box = InstallBox(root, world, boot_id="boot-2").start()

        assert (box.record.state, box.serves, box.record.tries) == (State.ROLLING_BACK, 1, 1)
        box.update(2)
        assert box.record.state is State.IDLE
        assert "no try can be counted" in box.quarantine.entries()[0].reason
        give_room(root)
        box.update(2)
        check_end(box, 2, serves=1)


def test_nothing_is_tried_without_room_for_the_way_back(world, prepared):
    with prepared.mounted() as root, world.daemon(root):
        box = InstallBox(root, world).start().go_to(State.WAIT_WINDOW, 2)
        fill(root, leave_bytes=200 * KIB)

        waits = box.update(2)

        assert (box.record.state, box.serves) == (State.WAIT_WINDOW, 1)
        assert waits.waiting_for == "there is no room for a way back"
        assert list(box.ballast.iterdir()) == []
        give_room(root)
        box.update(2)
        box.transfers.stop()
        check_end(box, 2, serves=2)


def test_the_room_for_the_way_back_is_kept_until_it_is_needed(world, prepared):
    with prepared.mounted() as root, world.daemon(root):
        box = InstallBox(root, world).start().go_to(State.PROBATION, BROKEN)
        (held,) = box.ballast.iterdir()
        assert held.stat().st_blocks * 512 >= BALLAST_BYTES
        fill(root)

        box.update(BROKEN)
        box.transfers.stop()

        assert list(box.ballast.iterdir()) == []
        check_end(box, BROKEN, serves=1)
