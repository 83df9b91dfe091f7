"""What time it is: by the clock while that can be believed, and judged anew when it was set."""

from __future__ import annotations

import pytest
from support.fleet import DAY_S, START, Device, Fleet

from updater.timekeeper import Timekeeper


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path / "fleet")


@pytest.fixture
def device(tmp_path, fleet):
    device = Device(tmp_path / "device", fleet)
    device.trust.refresh(str(fleet.path))
    return device


@pytest.fixture
def keeper(device):
    return Timekeeper(device.trust, device.clock)


def test_a_good_clock_is_followed(keeper, device):
    assert keeper.now().now == START
    device.clock.now += 3.0

    assert (keeper.now().now, keeper.now().is_clock_good) == (START + 3.0, True)


@pytest.mark.parametrize("set_to", [0.0, START + 4000 * DAY_S])
def test_a_clock_that_was_set_to_nonsense_is_found_out_at_once(keeper, device, set_to):
    keeper.now()

    device.clock.now = set_to

    assert (keeper.now().now, keeper.now().is_clock_good) == (START, False)


def test_a_clock_that_was_set_right_is_believed_at_once(keeper, device):
    device.clock.now = 0.0
    assert not keeper.now().is_clock_good

    device.clock.now = START + 60

    assert keeper.now().is_clock_good


def test_newer_metadata_may_tell_the_time_better(keeper, device, fleet):
    device.clock.now = 0.0
    before = keeper.now().now
    fleet.clock.now += DAY_S
    fleet.repository.rotate(["targets"])
    device.trust.refresh(str(fleet.path))

    keeper.forget()

    assert before == START
    assert keeper.now().now == START + DAY_S


def test_a_disk_that_cannot_be_read_leaves_the_clock(keeper, device):
    root = device.folder / "tuf/a/root.json"
    root.unlink()
    root.mkdir()

    assert (keeper.now().now, keeper.now().is_clock_good) == (START, False)
