"""What was good once: rolled back to, or frozen at."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.attacks import list_snapshot, plain_tuf, refused, said, what_is_wrong
from support.fleet import DAY_S, Device, Fleet, Server

from updater.errors import TrustReason, Untrusted
from updater.publisher.repository import Plan


class TestRollback:
    @pytest.fixture
    def old(self, fleet: Fleet, server: Server, device: Device) -> Server:
        """The state of before, served to a device that has seen the newer one."""
        copied = fleet.copy("old").path
        fleet.ship("digits", 2)
        device.trust.refresh(server.url)
        server.folder = copied
        return server

    def test_with_a_warm_cache(self, old, device):
        assert said(refused(device, old.url)) == (TrustReason.ROLLBACK, "timestamp")

    def test_with_a_lost_cache(self, tmp_path, fleet, old, device):
        device.lose_metadata()

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(old.url)

        assert said(caught.value) == (TrustReason.ROLLBACK, "timestamp")
        assert device.versions() == {}
        # The very same is fine with python-tuf alone: it remembers nothing but its cache.
        assert plain_tuf(tmp_path / "plain", fleet, old.url).get_targetinfo(
            "digits/digits-1.bundle"
        )

    def test_with_an_emptied_cache(self, old, device):
        device.empty_metadata()

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(old.url)

        assert said(caught.value) == (TrustReason.ROLLBACK, "timestamp")
        assert device.versions() == {}

    @pytest.mark.parametrize("how", ["lost", "emptied", "garbled"])
    def test_with_any_one_file_of_the_cache_damaged(self, how, fleet, old, device):
        """And it heals as soon as somebody serves what is new."""
        current = device.folder / "tuf" / "current"
        names = [path.relative_to(current) for path in current.rglob("*.json")]
        for name in names:
            damage(current / name, how)
            with pytest.raises(Untrusted) as caught:
                device.trust.refresh(old.url)
            assert caught.value.reason is TrustReason.ROLLBACK
            assert device.trust.refresh(str(fleet.path)).versions["timestamp"] == 5

        assert len(names) == 8, names

    def test_a_lost_cache_comes_back_with_what_is_new(self, fleet, old, device):
        device.lose_metadata()
        old.folder = fleet.path

        view = device.trust.refresh(old.url)

        assert view.versions["timestamp"] == 5

    def test_with_the_floors_lost_the_cache_still_holds(self, old, device):
        before = device.disk()
        (device.folder / "floor.json").unlink()

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(old.url)

        assert said(caught.value) == (TrustReason.ROLLBACK, "timestamp")
        assert device.disk() == before  # the floors are there again

    def test_with_damaged_floors_the_cache_still_holds(self, fleet, old, device):
        (device.folder / "floor.json").write_bytes(b"")

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(old.url)

        assert said(caught.value) == (TrustReason.ROLLBACK, "timestamp")
        assert (device.folder / "floor.json.corrupt").read_bytes() == b""
        assert json.loads((device.folder / "floor.json").read_bytes())["roles"]["timestamp"] == {
            "value": 5,
            "signers": [fleet.signers("timestamp")[0].public_key.keyid],
        }

    def test_of_the_root_by_withholding_the_newer_one(self, fleet, server, device):
        """The old root still trusts a key that was revoked since."""
        copied = fleet.copy("old").path
        fleet.repository.rotate(["timestamp"])
        device.trust.refresh(server.url)
        device.lose_metadata()
        server.folder = copied

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.ROLLBACK, "root")
        assert device.versions() == {}

    def test_of_one_role_by_who_has_the_online_keys(self, fleet, server, device):
        """Snapshot and timestamp are newer, but they list the older bundles."""
        device.trust.refresh(server.url)
        old = fleet.repository.metadata.describe("models-main")
        fleet.ship("digits", 2)
        device.trust.refresh(server.url)
        device.lose_metadata()

        def list_old(snapshot: Any) -> None:
            snapshot.meta["models-main.json"] = old

        fleet.forge("snapshot", list_old)
        newest = fleet.repository.metadata.describe("snapshot")
        fleet.forge("timestamp", lambda signed: setattr(signed, "snapshot_meta", newest))

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.ROLLBACK, "models-main")
        assert device.versions() == {}

    def test_a_replayed_stick(self, fleet, server, device):
        stick = fleet.copy("stick").path
        fleet.ship("digits", 2)
        device.trust.refresh(server.url)

        assert said(refused(device, str(stick))) == (TrustReason.ROLLBACK, "timestamp")


def damage(path, how):
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "emptied" else b"}" + path.read_bytes()[1:])


class TestFreeze:
    def test_a_server_that_stands_still_is_found_out_by_expiry(self, server, device):
        device.trust.refresh(server.url)
        device.clock.now += 8 * DAY_S

        error = refused(device, server.url)

        assert said(error) == (TrustReason.EXPIRED, "timestamp")
        # Expiry stops what is new, never what is there.
        assert device.trust.current().find("digits", 1) is not None

    @pytest.mark.parametrize("role", ["targets", "models-main", "fleet", "snapshot"])
    def test_a_role_that_has_expired_is_refused(self, role, fleet, server, device):
        fleet.forge(role, lambda _: None, life_s=3600)
        fleet.forge_online() if role != "snapshot" else list_snapshot(fleet)
        device.clock.now += 7200

        error = what_is_wrong(device, server.url)

        assert said(error) == (TrustReason.EXPIRED, role)

    def test_a_team_that_has_expired_holds_nobody_else(self, tmp_path):
        plan = Plan(teams={"models-a": ("a*",), "models-b": ("b*",)})
        fleet = Fleet(tmp_path / "teams", plan)
        fleet.ship("apples", 1)
        fleet.ship("bees", 1)
        device = Device(tmp_path / "device", fleet)
        device.trust.refresh(str(fleet.path))
        fleet.forge("models-b", lambda _: None, life_s=3600)
        fleet.forge_online()
        device.trust.refresh(str(fleet.path))
        device.clock.now += 7200

        view = device.trust.refresh(str(fleet.path))

        view.check_expiry(device.clock(), view.find("apples", 1))
        with pytest.raises(Untrusted) as caught:
            view.find("bees", 1)
        assert said(caught.value) == (TrustReason.EXPIRED, "models-b")
        then = device.trust.current()
        with pytest.raises(Untrusted):
            then.check_expiry(device.clock(), then.find("bees", 1))

    def test_a_root_that_has_expired_is_refused(self, fleet, server, device):
        root = fleet.repository.metadata.newest("root").signed
        fleet.forge("root", lambda _: None, life_s=3600)
        device.clock.now += 7200

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.EXPIRED, "root")
        assert device.versions()["root"] == root.version + 1
