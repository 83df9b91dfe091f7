"""A clock that was never set, or is years ahead."""

from __future__ import annotations

import json

import pytest
from support.attacks import list_snapshot, refused, said
from support.fleet import DAY_S, START, Device

from updater.errors import TrustReason, Untrusted


class TestClock:
    def test_in_1970_what_is_fresh_is_believed(self, fleet, server, device):
        fleet.ship("digits", 2)
        device.clock.now = 0

        view = device.trust.refresh(server.url)

        assert (view.reference.now, view.reference.is_clock_good) == (START, False)
        assert view.find("digits", 2) is not None

    def test_in_1970_what_expired_before_the_newest_signed_time_is_refused(
        self, fleet, server, device
    ):
        fleet.clock.now = device.clock.now = START + 30 * DAY_S
        fleet.repository.rotate(["models-main"])  # targets are signed anew
        device.trust.refresh(server.url)
        fleet.clock.now = START + DAY_S
        fleet.forge("timestamp", lambda _: None, life_s=DAY_S)
        device.clock.now = 0

        assert said(refused(device, server.url)) == (TrustReason.EXPIRED, "timestamp")

    def test_ten_years_ahead_updates_go_on_and_nothing_is_remembered_of_it(
        self, fleet, server, device
    ):
        fleet.ship("digits", 2)
        device.clock.now += 3653 * DAY_S

        view = device.trust.refresh(server.url)

        assert (view.reference.now, view.reference.is_clock_good) == (START, False)
        device.clock.now = START
        assert device.trust.refresh(server.url).reference.is_clock_good
        assert json.loads((device.folder / "floor.json").read_bytes())["signed_time"] == START

    def test_ahead_by_less_than_metadata_lives_installs_wait_for_the_right_time(
        self, server, device
    ):
        device.clock.now += 300 * DAY_S

        error = refused(device, server.url)

        assert said(error) == (TrustReason.EXPIRED, "timestamp")
        device.clock.now = START
        assert device.trust.refresh(server.url).reference.is_clock_good

    def test_a_box_from_the_shelf_does_not_take_what_has_expired(self, tmp_path, fleet, server):
        """After 500 days its clock is right, and only what comes next can tell it so."""
        box = Device(tmp_path / "box", fleet)
        box.trust.refresh(server.url)
        fleet.clock.now += 450 * DAY_S
        fleet.repository.refresh()
        box.clock.now = START + 500 * DAY_S
        assert not box.trust.reference().is_clock_good

        with pytest.raises(Untrusted) as caught:
            box.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.EXPIRED, "timestamp")
        assert box.trust.reference().is_clock_good

    def test_nor_a_team_that_has(self, tmp_path, fleet, server):
        box = Device(tmp_path / "box", fleet)
        box.trust.refresh(server.url)
        fleet.clock.now += 450 * DAY_S
        fleet.repository.refresh(timestamp_life_s=100 * DAY_S)
        fleet.forge("models-main", lambda _: None, life_s=DAY_S)
        fleet.repository.refresh()
        box.clock.now = START + 500 * DAY_S

        view = box.trust.refresh(server.url)

        with pytest.raises(Untrusted) as caught:
            view.find("digits", 1)
        assert said(caught.value) == (TrustReason.EXPIRED, "models-main")

    def test_a_thief_of_the_online_keys_cannot_move_the_time(self, fleet, server, device):
        thief = fleet.copy("thief")
        thief.clock = type(fleet.clock)(221_845_392_000)  # the year 9000
        thief.forge("snapshot", lambda _: None)
        list_snapshot(thief)
        server.folder = thief.path

        device.trust.refresh(server.url)

        assert device.trust.reference().now == START

    def test_a_wrong_clock_at_the_ceremony_does_not_move_it_either(self, fleet, server, device):
        """The offline machine is in 2099; the fleet's host, which signs the timestamp, is not."""
        wrong = fleet.copy("wrong")
        wrong.clock = type(fleet.clock)(4_070_908_800)
        wrong.forge("targets", lambda _: None)
        wrong.clock = fleet.clock
        wrong.forge_online()
        server.folder = wrong.path

        device.trust.refresh(server.url)

        assert device.trust.reference().now == START
