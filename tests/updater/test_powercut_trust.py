"""Power cuts at every durable step of a refresh, on a real ext4, with both ways of mounting it.

python-tuf syncs nothing; without `updater/trust.py` around it these disks come back with empty
files, and the device believes what it had refused before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import powercut
from support.fleet import Device, Fleet
from support.powercut import Cut, PowerCut, scratch_folder

from updater.errors import TrustReason, Untrusted
from updater.publisher.assignments import raise_floors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHY_NOT = powercut.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

MOUNTS = {"default": "", "writeback": "noauto_da_alloc,data=writeback"}


@pytest.fixture(params=MOUNTS.values(), ids=MOUNTS)
def disk(request: pytest.FixtureRequest) -> Iterator[PowerCut]:
    with scratch_folder() as scratch:
        yield PowerCut(scratch, options=request.param)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    fleet = Fleet(tmp_path / "fleet")
    fleet.ship("digits", 1)
    return fleet


def wrong_after(cut: Cut, fleet: Fleet, old: Path, newest: dict[str, int]) -> list[str]:
    """What is wrong on the disk of a cut, if anything is."""
    promised = cut.promises[-1] if cut.promises else {}
    with cut.mounted() as root:
        device = Device(root, fleet)
        current = device.versions()
        problems = [
            f"{role} {current.get(role)} instead of {version}"
            for role, version in promised.items()
            if current.get(role, 0) < version
        ]
        if current and device.trust.current().desired is None:
            problems.append("the wish is lost")
        if device.trust.refresh(str(fleet.path)).versions != newest:
            problems.append("it does not come to the newest")
        try:
            device.trust.refresh(str(old))
        except Untrusted as exc:
            if exc.reason is not TrustReason.ROLLBACK:
                problems.append(f"the old state is refused as {exc.reason}")
        else:
            problems.append("the old state is believed")
    return [f"{cut}: {problem}" for problem in problems]


@pytest.mark.parametrize("place", [None, "memory"], ids=["on the disk", "in memory"])
def test_a_refresh_survives_a_cut_at_every_step(disk, fleet, tmp_path, place):
    """From nothing to the old state, then to one with another root, keys, floors and bundles."""
    scratch = tmp_path / place if place else None
    old = fleet.copy("old").path
    fleet.repository.rotate(["root", "models-main"])
    fleet.ship("digits", 2)
    fleet.repository.assign(lambda desired: raise_floors(desired, {"digits": 2}))

    def scenario(root: Path, promise: powercut.Promise) -> None:
        device = Device(root, fleet, scratch=scratch)
        promise(device.trust.refresh(str(old)).versions)
        promise(device.trust.refresh(str(fleet.path)).versions)

    disk.make(lambda _root: None)
    cuts = disk.record(scenario)
    newest = cuts[-1].promises[-1]

    assert len(cuts) > 20
    assert [wrong for cut in cuts for wrong in wrong_after(cut, fleet, old, newest)] == []


def test_a_cache_lost_after_any_cut_does_not_take_the_floors_with_it(disk, fleet):
    """What a refresh has promised holds even if the disk then loses all of python-tuf's files."""
    old = fleet.copy("old").path
    fleet.ship("digits", 2)

    def scenario(root: Path, promise: powercut.Promise) -> None:
        promise(Device(root, fleet).trust.refresh(str(fleet.path)).versions)

    disk.make(lambda _root: None)
    last = disk.record(scenario)[-1]

    with last.mounted() as root:
        device = Device(root, fleet)
        device.lose_metadata()
        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(str(old))
        assert caught.value.reason is TrustReason.ROLLBACK
