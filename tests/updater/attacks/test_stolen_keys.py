"""Keys that are rotated, revoked, lost or stolen."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from support.attacks import HTML, floor_of, list_snapshot_as, refused, said, wish_for
from support.fleet import DAY_S, START, Device, Fleet

from updater.errors import NotAllowed, Refusal, TrustReason, Untrusted
from updater.policy import DeviceFacts, check
from updater.publisher.assignments import raise_floors

if TYPE_CHECKING:
    from updater.view import View

HUGE = 2**31 - 1
"""The last version that metadata can have."""


class TestKeys:
    def test_a_new_root_signed_by_too_few_is_refused(self, fleet, server, device):
        one = fleet.signers("root")[:1]
        fleet.forge("root", lambda _: None, signers=one)

        assert said(refused(device, server.url)) == (TrustReason.UNSIGNED, "root")

    def test_a_new_root_not_signed_by_the_old_keys_is_refused(self, fleet, server, device):
        thief = Fleet(device.folder.parent / "thief")
        new = thief.repository.metadata.newest("root").signed

        def take_over(root: Any) -> None:
            root.keys, root.roles = new.keys, new.roles

        fleet.forge("root", take_over, signers=thief.signers("root"))

        assert said(refused(device, server.url)) == (TrustReason.UNSIGNED, "root")

    def test_a_lost_root_key_is_replaced_by_the_two_others(self, fleet, server, device):
        (fleet.folder / "keys" / "offline" / "root-2.pem").unlink()

        fleet.repository.rotate(["root"], revoke=["root-2"])
        view = device.trust.refresh(server.url)

        assert set(view.roles["root"].signers.values()) == {"root-1", "root-3", "root-4"}

    def test_a_device_follows_many_rotations_at_once(self, tmp_path, fleet, server):
        for _ in range(5):
            fleet.repository.rotate(["root", "targets", "models-main"])

        view = Device(tmp_path / "late", fleet).trust.refresh(server.url)

        assert view.versions["root"] == 6

    def test_a_revoked_key_counts_no_more(self, fleet, server, device):
        thief = fleet.copy("thief")
        stolen = fleet.signers("timestamp")
        fleet.repository.rotate(["timestamp"])
        shutil.copy(fleet.path / "metadata" / "2.root.json", thief.path / "metadata")
        thief.forge("timestamp", lambda _: None, signers=stolen)
        server.folder = thief.path

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.UNSIGNED, "timestamp")
        # The root that revokes it was verified and is remembered, whatever came behind it.
        assert floor_of(device, "root") == 2
        assert said(refused(device, server.url)) == (TrustReason.UNSIGNED, "timestamp")
        server.folder = fleet.path
        assert device.trust.refresh(server.url).versions["root"] == 2

    def test_a_thief_of_the_online_keys_who_signed_the_last_version_is_got_rid_of(
        self, fleet, server, device
    ):
        """Every device has seen version 2147483647; the owner goes on at 4."""
        thief = fleet.copy("thief")
        thief.forge("snapshot", lambda signed: setattr(signed, "version", HUGE))
        list_snapshot_as(thief, HUGE)
        server.folder = thief.path
        assert device.trust.refresh(server.url).versions["timestamp"] == HUGE
        server.folder = fleet.path
        fleet.ship("digits", 2)
        assert said(refused(device, server.url)) == (TrustReason.ROLLBACK, "timestamp")

        fleet.repository.rotate(["timestamp", "snapshot", "fleet"])
        view = device.trust.refresh(server.url)

        assert view.versions["timestamp"] < HUGE
        assert view.find("digits", 2) is not None
        assert floor_of(device, "timestamp") == view.versions["timestamp"]

    def test_another_trust_anchor_begins_anew(self, tmp_path, fleet, server, device):
        """Two root keys were stolen; the operator has moved the device to another repository."""
        fleet.clock.now += 50 * DAY_S
        fleet.repository.rotate(["root", "targets"])
        device.clock.now = fleet.clock.now
        device.trust.refresh(server.url)
        other = Fleet(tmp_path / "other")
        moved = Device(device.folder, other)
        server.folder = other.path

        assert moved.trust.current() is None  # what the thief has signed is not gone by any more
        assert moved.trust.reference().now == START
        view = moved.trust.refresh(server.url)

        assert view.versions["root"] == 1
        assert view.desired.serial == 1
        assert moved.trust.current() == view
        assert floor_of(moved, "timestamp") == 1
        roots = device.folder / "tuf" / "current" / "root_history"
        assert [path.name for path in roots.iterdir()] == ["1.root.json"]

    def test_a_newer_anchor_of_the_same_repository_changes_nothing(self, fleet, server, device):
        """A package has brought the root that the device had found by itself."""
        fleet.repository.rotate(["root"])
        view = device.trust.refresh(server.url)
        fleet.anchor = (fleet.path / "metadata" / "2.root.json").read_bytes()
        renewed = Device(device.folder, fleet)

        assert renewed.trust.current() == view
        assert renewed.trust.refresh(server.url) == view
        assert floor_of(renewed, "root") == 2

    @pytest.mark.parametrize("anchor", [b"", b"{}", HTML])
    def test_without_a_trust_anchor_nothing_is_believed(self, anchor, fleet, server, device):
        fleet.anchor = anchor
        broken = Device(device.folder, fleet)

        assert said(refused(broken, server.url)) == (TrustReason.NO_ROOT, "root")


class TestStolenFleetKey:
    """Whoever has the fleet's host has the fleet, snapshot and timestamp keys."""

    def allowed(self, view: View, model: str, version: int) -> None:
        here = DeviceFacts("amd64", "litert", "2.3.1")
        floor = view.floors.get(model, 0)
        check(view.find(model, version), here, floor=floor, blocked=(), quarantined=())

    def test_it_chooses_among_signed_bundles(self, fleet, server, device):
        fleet.ship("digits", 2)
        device.trust.refresh(server.url)
        fleet.forge_wish(wish_for("digits", 1))

        self.allowed(device.trust.refresh(server.url), "digits", 1)

    def test_it_signs_no_bundle(self, fleet, server, device):
        bundle = next(iter(fleet.repository.metadata.newest("models-main").signed.targets.values()))
        fleet.forge_wish(wish_for("digits", 9))
        fleet.forge_all(
            "fleet", lambda signed: signed.targets.update({"digits/digits-9.bundle": bundle})
        )

        assert device.trust.refresh(server.url).find("digits", 9) is None

    def test_it_goes_below_no_floor_that_the_device_has_seen(self, fleet, server, device):
        fleet.ship("digits", 2)
        fleet.repository.assign(lambda desired: raise_floors(desired, {"digits": 2}))
        device.trust.refresh(server.url)
        fleet.forge_wish(wish_for("digits", 1, floors={"digits": 0}))

        view = device.trust.refresh(server.url)

        with pytest.raises(NotAllowed) as caught:
            self.allowed(view, "digits", 1)
        assert caught.value.refusal is Refusal.BELOW_FLOOR

    def test_it_goes_below_no_offline_floor_on_a_device_that_has_seen_nothing(
        self, tmp_path, fleet, server
    ):
        fleet.ship("digits", 2)
        fleet.repository.add([], floors={"digits": 2})
        fleet.forge_wish(wish_for("digits", 1))

        view = Device(tmp_path / "new", fleet).trust.refresh(server.url)

        with pytest.raises(NotAllowed) as caught:
            self.allowed(view, "digits", 1)
        assert caught.value.refusal is Refusal.BELOW_FLOOR

    def test_a_floor_beyond_everything_falls_with_the_key(self, fleet, server, device):
        thief = fleet.copy("thief")
        thief.forge_wish(wish_for("digits", 1, floors={"digits": 2**53 - 1}))
        server.folder = thief.path
        assert device.trust.refresh(server.url).floors == {"digits": 2**53 - 1}
        server.folder = fleet.path

        fleet.repository.rotate(["timestamp", "snapshot", "fleet"])
        view = device.trust.refresh(server.url)

        self.allowed(view, "digits", 1)

    def test_it_cannot_make_a_device_forget_floors_by_naming_many(self, fleet, server, device):
        fleet.repository.assign(lambda desired: raise_floors(desired, {"digits": 1}))
        device.trust.refresh(server.url)
        for start in (0, 1000):
            many = {f"m{start + number}": 1 for number in range(1000)}
            fleet.forge_wish(wish_for("digits", 1, floors=many))
            with contextlib.suppress(Untrusted):
                device.trust.refresh(server.url)

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.TOO_LARGE, "fleet")
        floors = json.loads((device.folder / "floor.json").read_bytes())["counters"]
        assert floors["digits"]["value"] == 1

    @pytest.mark.parametrize("floors", [5, {"digits": -1}, {"../x": 1}])
    def test_floors_that_nobody_can_follow_stop_that_teams_bundles(
        self, floors, fleet, server, device
    ):
        fleet.forge_all(
            "models-main", lambda signed: signed.unrecognized_fields.update(floors=floors)
        )
        view = device.trust.refresh(server.url)

        with pytest.raises(Untrusted) as caught:
            view.find("digits", 1)

        assert said(caught.value) == (TrustReason.MALFORMED, "models-main")

    def test_a_wish_signed_by_anybody_else_is_refused(self, fleet, server, device):
        """Also by those who are trusted more: it would be none that the host can change."""
        (wish,) = fleet.repository.metadata.newest("fleet").signed.targets.values()
        fleet.forge_all("targets", lambda signed: signed.targets.update({wish.path: wish}))

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.MALFORMED, "targets")

    @pytest.mark.parametrize("raw", [b"", HTML, b"[" * 100_000, b'{"schema":2,"serial":1}'])
    def test_a_wish_that_nobody_can_follow_changes_nothing(self, raw, fleet, server, device):
        fleet.forge_wish(raw)

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.MALFORMED, "fleet")
        assert device.trust.current().desired is None
