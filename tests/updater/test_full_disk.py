"""A disk that is full at any point: a good release is served, and room puts the update right."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest
from support import powercut
from support.diskbox import BROKEN, DiskBox, prepare
from support.powercut import PowerCut, scratch_folder
from support.releases import digest_of

from updater import atomic
from updater.errors import NoSpace
from updater.space import allocate
from updater.state import State

if TYPE_CHECKING:
    from pathlib import Path

WHY_NOT = powercut.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

KIB = 1024


@pytest.fixture(scope="module")
def prepared():
    """A disk with a device that serves version 1; every test gets a copy."""
    with scratch_folder() as scratch:
        disk = PowerCut(scratch)
        disk.make(prepare)
        yield disk.cut()


def fill(root: Path, *, leave_bytes: int = 0) -> None:
    """Somebody else's file takes all the room, but for so much."""
    with (root / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
        os.fsync(file.fileno())
        if leave_bytes:
            file.truncate(file.tell() - leave_bytes)
            os.fsync(file.fileno())


def fill_when(root: Path, state: State):
    """Fill the disk as soon as a state is promised."""

    def promise(fact: tuple) -> None:
        kind, value = fact
        if kind == "record" and value.state is state:
            fill(root)

    return promise


@pytest.mark.parametrize("leave_kib", [*range(0, 48, 4), 64, 128, 256, 384])
def test_however_little_room_there_is_a_good_release_is_served_and_room_puts_it_right(
    prepared, leave_kib
):
    with prepared.mounted() as root:
        fill(root, leave_bytes=leave_kib * KIB)
        box = DiskBox(root)
        with contextlib.suppress(OSError, NoSpace):
            box.update(2)
        box.check()
        served = box.current
        (root / "filler").unlink()
        damaged = box.start()
        box.update(2)

        assert served in {digest_of(1), digest_of(2)}
        assert damaged == {}
        assert box.current == digest_of(2)


@pytest.mark.parametrize("state", [State.TRYING, State.PROBATION])
def test_a_full_disk_does_not_keep_a_broken_release_in_service(prepared, state):
    with prepared.mounted() as root:
        box = DiskBox(root, promise=fill_when(root, state))
        with contextlib.suppress(OSError):
            box.update(BROKEN)
        DiskBox(root, boot_id="boot-2").start()
        DiskBox(root, boot_id="boot-2").update(BROKEN)

        assert box.current == digest_of(1)
        assert box.quarantine.find(digest_of(BROKEN))
        assert box.record.state is State.IDLE


def test_nothing_is_tried_without_room_for_the_way_back(prepared):
    with prepared.mounted() as root:
        box = DiskBox(root, promise=fill_when(root, State.WAIT_WINDOW))

        with pytest.raises(NoSpace, match="way back"):
            box.update(2)
        assert box.record.state is State.WAIT_WINDOW
        assert box.current == digest_of(1)


def test_a_replaced_file_keeps_its_old_content_and_leaves_no_half_one(prepared):
    with prepared.mounted() as root:
        atomic.write_file(root / "x", b"old")
        fill(root)

        with pytest.raises(OSError, match="No space"):
            atomic.write_file(root / "x", bytes(100_000))
        assert (root / "x").read_bytes() == b"old"
        assert atomic.leftovers(root) == ()


def test_a_part_file_that_does_not_fit_is_not_begun(prepared):
    with prepared.mounted() as root:
        fill(root, leave_bytes=100 * KIB)

        with pytest.raises(NoSpace):
            allocate(root / "x.part", 1 << 20)
        allocate(root / "x.part", 50 * KIB)
