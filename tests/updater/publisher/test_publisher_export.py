"""Sticks, for devices that no network reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.fleet import DAY_S, Device, Fleet
from support.powercut import watched

from updater.errors import FetchFailed, TrustReason, Untrusted
from updater.publisher.errors import PublisherError
from updater.publisher.export import Stick, export

if TYPE_CHECKING:
    from pathlib import Path

LIFE_S = 90 * DAY_S


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    fleet = Fleet(tmp_path / "fleet")
    fleet.ship("digits", 1)
    fleet.ship("faces", 1)
    return fleet


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet) -> Device:
    return Device(tmp_path / "device", fleet)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "stick"


def write(fleet: Fleet, out: Path, *, life_s: float = LIFE_S, models=None) -> Stick:
    return export(fleet.repository, out, now=fleet.clock(), life_s=life_s, models=models)


def pass_days(days: float, *who) -> None:
    for each in who:
        each.clock.now += days * DAY_S


def test_a_device_that_has_never_been_online_takes_it(fleet, device, out):
    write(fleet, out)

    view = device.trust.refresh(str(out))

    target = view.find("digits", 1)
    assert (out / target.location).read_bytes() == b"digits 1" * 100


def test_it_is_good_long_after_the_servers_timestamp_would_be(fleet, device, out):
    device.trust.refresh(str(fleet.path))
    write(fleet, out)
    pass_days(89, device)

    assert device.trust.refresh(str(out)).expires["timestamp"] > device.clock()


def test_it_is_good_until_its_life_is_over(fleet, device, out):
    stick = write(fleet, out)
    device.clock.now = stick.expires

    with pytest.raises(Untrusted) as caught:
        device.trust.refresh(str(out))

    assert (caught.value.reason, caught.value.role) == (TrustReason.EXPIRED, "timestamp")


def test_a_device_goes_back_online_after_it_and_takes_no_older_stick(fleet, device, out):
    write(fleet, out)
    device.trust.refresh(str(out))

    assert device.trust.refresh(str(fleet.path)).versions["timestamp"] > 0
    with pytest.raises(Untrusted) as caught:
        device.trust.refresh(str(out))
    assert caught.value.reason is TrustReason.ROLLBACK


def test_the_servers_own_timestamp_keeps_its_short_life(fleet, device, out):
    write(fleet, out)

    view = device.trust.refresh(str(fleet.path))

    assert view.expires["timestamp"] == fleet.clock() + 7 * DAY_S


def test_it_may_be_taken_again_and_again(fleet, device, out):
    write(fleet, out)
    first = device.trust.refresh(str(out))
    pass_days(25, device)

    assert device.trust.refresh(str(out)).versions == first.versions


def test_a_later_export_brings_a_stick_up_to_date(fleet, device, out):
    write(fleet, out)
    device.trust.refresh(str(out))
    pass_days(10, fleet, device)
    fleet.repository.rotate(["root", "timestamp"])
    fleet.ship("digits", 2)

    write(fleet, out)

    view = device.trust.refresh(str(out))
    assert view.find("digits", 2) is not None
    assert view.versions["root"] == 2


def test_only_assigned_bundles_are_on_it(fleet, out):
    fleet.add("digits", 2)

    assert write(fleet, out).bundles == ("digits/digits-1.bundle", "faces/faces-1.bundle")
    assert len(list((out / "targets").rglob("*.bundle"))) == 2


def test_only_some_models_may_be_on_it(fleet, device, out):
    write(fleet, out, models=["faces"])

    view = device.trust.refresh(str(out))
    assert (out / view.find("faces", 1).location).is_file()
    assert not (out / view.find("digits", 1).location).exists()


def test_a_model_that_nobody_shall_have_is_a_mistake(fleet, out):
    with pytest.raises(PublisherError, match="cats: assigned to nobody"):
        write(fleet, out, models=["cats"])


@pytest.mark.parametrize("days", [0, 0.5, 366])
def test_a_life_out_of_range_is_refused(days, fleet, out):
    with pytest.raises(PublisherError, match="expected 1 to 365"):
        write(fleet, out, life_s=days * DAY_S)


def test_a_stick_does_not_outlive_what_is_on_it(fleet, out):
    """Root, signed a hundred days ago, would expire before it."""
    pass_days(100, fleet)

    with pytest.raises(PublisherError, match=r"expires on .*, before the stick would"):
        write(fleet, out, life_s=300 * DAY_S)

    assert not out.exists()


def test_a_stick_that_was_pulled_half_way_is_not_taken_for_a_good_one(fleet, device, out):
    class Pulled(Exception):
        """The stick is gone."""

    def pull(_step: str, path: Path) -> None:
        if path.suffix == ".bundle":
            raise Pulled

    write(fleet, out)
    fleet.ship("digits", 2)
    with watched(pull), pytest.raises(Pulled):
        write(fleet, out)

    with pytest.raises(FetchFailed) as caught:
        device.trust.refresh(str(out))
    assert caught.value.status == 404
    # And it can be written again.
    write(fleet, out)
    assert device.trust.refresh(str(out)).find("digits", 2) is not None
