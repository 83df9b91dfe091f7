"""Room on the disk: what is reserved, what may go, and what is asked of the disk."""

from __future__ import annotations

import pytest

from updater.errors import NoSpace
from updater.space import (
    Disk,
    Held,
    allocate,
    allocated_bytes,
    choose_removals,
    drop_ballast,
    hold_ballast,
    look,
    needed_bytes,
    reserve_bytes,
)

MIB = 1 << 20


def held(digest: str, *, since: float, size_bytes: int = 100, model: str = "digits") -> Held:
    return Held(model, digest, size_bytes, since)


OLDEST, OLDER, NEW = held("a", since=1.0), held("b", since=2.0), held("c", since=3.0)


def choose(releases, *, free: int, needed: int, keep=(), reserve: int = 0):
    disk = Disk(total_bytes=10_000, free_bytes=free)
    return choose_removals(releases, keep=keep, disk=disk, needed=needed, reserve=reserve)


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(64 * MIB, 16 * MIB), (2000 * MIB, 100 * MIB), (1_000_000 * MIB, 512 * MIB)],
)
def test_a_twentieth_of_the_disk_stays_free_within_bounds(total, reserve):
    assert reserve_bytes(total) == reserve


def test_an_update_takes_its_bundle_and_its_files():
    assert needed_bytes(400 * MIB) == 801 * MIB


def test_what_the_part_file_has_already_is_not_needed_again():
    assert needed_bytes(400 * MIB, allocated_bytes=300 * MIB) == 501 * MIB


def test_a_part_file_larger_than_its_bundle_gives_no_credit():
    """Blocks are larger than what is in them."""
    assert needed_bytes(1000, allocated_bytes=4096) == needed_bytes(1000, allocated_bytes=1000)


def test_nothing_goes_when_there_is_room():
    assert choose([OLDEST, OLDER], free=500, needed=500) == ()


def test_the_oldest_goes_first_and_no_more_than_it_takes():
    assert choose([NEW, OLDER, OLDEST], free=0, needed=150) == (OLDEST, OLDER)


def test_what_is_needed_stays_however_old():
    assert choose([OLDEST, OLDER, NEW], free=0, needed=100, keep={"a"}) == (OLDER,)


def test_the_reserve_is_not_room():
    assert choose([OLDEST, OLDER], free=500, needed=500, reserve=50) == (OLDEST,)


def test_when_it_cannot_be_enough_nothing_goes():
    with pytest.raises(NoSpace) as caught:
        choose([OLDEST, OLDER, NEW], free=10, needed=400, keep={"c"}, reserve=20)

    assert caught.value.needed_bytes == 400
    assert caught.value.free_bytes == 190


def test_a_disk_that_is_beyond_its_reserve_has_no_room_rather_than_less_than_none():
    with pytest.raises(NoSpace) as caught:
        choose([], free=10, needed=1, reserve=50)

    assert caught.value.free_bytes == 0


def test_releases_of_the_same_age_go_in_an_order_that_does_not_change():
    releases = [held(digest, since=1.0) for digest in "cab"]

    assert [one.digest for one in choose(releases, free=0, needed=300)] == ["a", "b", "c"]


def test_a_disk_is_looked_at(tmp_path):
    disk = look(tmp_path)

    assert 0 < disk.free_bytes <= disk.total_bytes


def test_a_file_that_is_not_there_takes_nothing(tmp_path):
    assert allocated_bytes(tmp_path / "x.part") == 0


def test_an_allocated_file_has_its_blocks_and_keeps_its_size(tmp_path):
    part = tmp_path / "x.part"
    part.write_bytes(b"has arrived")
    allocate(part, MIB)

    assert part.read_bytes() == b"has arrived"
    assert allocated_bytes(part) >= MIB


def test_what_arrives_goes_behind_what_has_arrived(tmp_path):
    part = tmp_path / "x.part"
    allocate(part, MIB)
    with part.open("ab") as file:
        file.write(b"one")
    allocate(part, MIB)
    with part.open("ab") as file:
        file.write(b"two")

    assert part.read_bytes() == b"onetwo"


def test_what_the_disk_cannot_hold_is_not_begun(tmp_path):
    part = tmp_path / "x.part"
    part.write_bytes(b"has arrived")

    with pytest.raises(NoSpace):
        allocate(part, 1 << 60)
    assert part.read_bytes() == b"has arrived"
    assert allocated_bytes(part) < MIB


def test_another_refusal_is_the_disks(tmp_path):
    with pytest.raises(OSError, match="Invalid argument"):
        allocate(tmp_path / "x.part", -1)


def test_ballast_takes_room_until_it_is_dropped(tmp_path):
    ballast = tmp_path / "ballast"
    hold_ballast(ballast)
    hold_ballast(ballast)
    held_bytes = allocated_bytes(ballast)
    drop_ballast(ballast)
    drop_ballast(ballast)

    assert held_bytes >= 256 * 1024
    assert not ballast.exists()
