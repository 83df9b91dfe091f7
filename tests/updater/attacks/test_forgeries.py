"""What nobody with the right keys has signed, or not together, or not for this device."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.attacks import floor_of, plain_tuf, refused, said, what_is_wrong, wish_for
from support.fleet import Device, Fleet

from updater.errors import NotAllowed, Refusal, TrustReason, Untrusted
from updater.policy import DeviceFacts, check
from updater.publisher.draft import Quorum
from updater.publisher.repository import Plan


class TestArbitrarySoftware:
    def test_metadata_signed_by_others_is_refused(self, tmp_path, server, device):
        other = Fleet(tmp_path / "attacker")
        other.ship("digits", 9)
        server.folder = other.path

        error = refused(device, server.url)

        # Its root 2 does not exist, so the device compares its timestamp with the true root.
        assert said(error) == (TrustReason.UNSIGNED, "timestamp")

    def test_a_root_of_others_is_refused(self, tmp_path, server, device):
        other = Fleet(tmp_path / "attacker")
        other.repository.rotate(["timestamp"])
        server.folder = other.path

        assert said(refused(device, server.url)) == (TrustReason.UNSIGNED, "root")

    def test_other_bytes_for_the_fleets_wish_are_refused(self, fleet, server, device):
        fleet.ship("digits", 2)
        (wish,) = fleet.repository.metadata.newest("fleet").signed.targets.values()
        path = f"/targets/{wish.get_prefixed_paths()[0]}"
        server.answer(path, bytes(wish.length))

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.MISMATCH, "fleet")
        assert device.trust.current().desired is None

    def test_a_valid_file_with_no_valid_signature_is_refused(self, fleet, server, device):
        fleet.repository.refresh()
        path = fleet.path / "metadata" / "timestamp.json"
        document = json.loads(path.read_bytes())
        document["signatures"] = []
        path.write_text(json.dumps(document))

        assert said(refused(device, server.url)) == (TrustReason.UNSIGNED, "timestamp")

    def test_a_signature_is_not_counted_twice(self, tmp_path):
        fleet = Fleet(tmp_path / "two", Plan(quorums={"timestamp": Quorum(2, 2)}))
        device = Device(tmp_path / "one", fleet)
        one, _ = fleet.signers("timestamp")
        forged = fleet.forge("timestamp", lambda _: None, signers=[one])
        document = forged.to_dict()
        document["signatures"] *= 2
        (fleet.path / "metadata" / "timestamp.json").write_text(json.dumps(document))

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(str(fleet.path))

        assert said(caught.value) == (TrustReason.MALFORMED, "timestamp")


class TestMixAndMatch:
    @pytest.mark.parametrize("role", ["targets", "fleet", "models-main"])
    def test_an_old_role_under_a_new_name_is_refused(self, role, fleet, server, device):
        metadata = fleet.repository.metadata
        old = metadata.path(role, metadata.versions(role)[-1]).read_bytes()
        fleet.repository.rotate(["models-main"])
        fleet.ship("digits", 2)
        newest = metadata.path(role, metadata.versions(role)[-1])
        server.answer(f"/metadata/{newest.name}", old)

        error = what_is_wrong(device, server.url, version=2)

        assert said(error) == (TrustReason.MISMATCH, role)
        assert device.versions().get(role) != metadata.versions(role)[-1]

    def test_an_old_snapshot_under_a_new_name_is_refused(self, fleet, server, device):
        metadata = fleet.repository.metadata
        old = metadata.path("snapshot", metadata.versions("snapshot")[-1]).read_bytes()
        fleet.ship("digits", 2)
        newest = metadata.path("snapshot", metadata.versions("snapshot")[-1])
        server.answer(f"/metadata/{newest.name}", old)

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.MISMATCH, "snapshot")
        # The newer timestamp is kept: it was verified, and counts against older ones.
        assert floor_of(device, "timestamp") == 5

    def test_one_bad_delegation_does_not_touch_another(self, tmp_path):
        fleet = Fleet(tmp_path / "teams", Plan(teams={"models-a": ("a*",), "models-b": ("b*",)}))
        fleet.ship("apples", 1)
        fleet.ship("bees", 1)
        fleet.forge("models-a", lambda _: None, signers=fleet.signers("models-b"))
        fleet.forge_online()

        view = Device(tmp_path / "device", fleet).trust.refresh(str(fleet.path))

        assert view.find("bees", 1) is not None
        with pytest.raises(Untrusted) as caught:
            view.find("apples", 1)
        assert said(caught.value) == (TrustReason.UNSIGNED, "models-a")


class TestWrongDevice:
    def test_a_bundle_for_another_device_is_refused_before_it_is_fetched(
        self, fleet, server, device
    ):
        fleet.ship("digits", 2, architectures=("arm64",))
        target = device.trust.refresh(server.url).find("digits", 2)
        here = DeviceFacts("amd64", "litert", "2.3.1")

        with pytest.raises(NotAllowed) as caught:
            check(target, here, floor=0, blocked=(), quarantined=())

        assert caught.value.refusal is Refusal.WRONG_DEVICE
        assert not any(path.endswith(".bundle") for path in server.requests)

    def test_nobody_signs_for_a_model_of_another_team(self, tmp_path):
        """Team b lists a bundle of team a."""
        fleet = Fleet(tmp_path / "teams", Plan(teams={"models-a": ("a*",), "models-b": ("b*",)}))
        fleet.ship("bees", 1)
        listed = fleet.repository.metadata.newest("models-b").signed.targets["bees/bees-1.bundle"]
        fleet.forge_all(
            "models-b", lambda signed: signed.targets.update({"apples/apples-1.bundle": listed})
        )
        fleet.forge_wish(wish_for("apples", 1))

        view = Device(tmp_path / "device", fleet).trust.refresh(str(fleet.path))

        assert view.find("apples", 1) is None

    def test_a_bundle_signed_under_another_name_is_refused(self, fleet, server, device):
        listed = fleet.repository.metadata.newest("models-main").signed.targets
        (bundle,) = listed.values()
        fleet.forge_all(
            "models-main", lambda signed: signed.targets.update({"other/other-1.bundle": bundle})
        )
        fleet.forge_wish(wish_for("other", 1))
        view = device.trust.refresh(server.url)

        with pytest.raises(Untrusted) as caught:
            view.find("other", 1)

        assert said(caught.value) == (TrustReason.MALFORMED, "models-main")


class TestHashes:
    def test_a_bundle_with_md5_alone_is_refused(self, tmp_path, fleet, server, device):
        def weaken(signed: Any) -> None:
            (bundle,) = signed.targets.values()
            bundle.hashes = {"md5": "0" * 32}

        fleet.forge_all("models-main", weaken)
        view = device.trust.refresh(server.url)

        with pytest.raises(Untrusted) as caught:
            view.find("digits", 1)

        assert said(caught.value) == (TrustReason.MALFORMED, "models-main")
        info = plain_tuf(tmp_path / "plain", fleet, server.url).get_targetinfo(
            "digits/digits-1.bundle"
        )
        assert info.hashes == {"md5": "0" * 32}  # python-tuf alone would take it

    def test_a_wish_with_md5_alone_is_refused(self, fleet, server, device):
        def weaken(signed: Any) -> None:
            (wish,) = signed.targets.values()
            wish.hashes = {"md5": "0" * 32}

        fleet.forge_all("fleet", weaken)

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.MALFORMED, "fleet")

    def test_a_bundle_without_hashes_is_refused(self, fleet, server, device):
        def weaken(signed: Any) -> None:
            (bundle,) = signed.targets.values()
            bundle.hashes = {}

        fleet.forge_all("models-main", weaken)
        view = device.trust.refresh(server.url)

        with pytest.raises(Untrusted) as caught:
            view.find("digits", 1)

        assert said(caught.value) == (TrustReason.MALFORMED, "models-main")
