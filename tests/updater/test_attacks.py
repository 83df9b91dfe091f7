"""The attack table: what an attacker does, what the device says to it, what is on disk then.

The repository is real and made by our publisher; the web server is a static one. The attacker has
the network, or some of the keys.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from support.fleet import DAY_S, SHORT, START, Device, Fleet, Server
from tuf.ngclient import Updater

from updater.errors import (
    FetchFailed,
    FetchReason,
    NotAllowed,
    Refusal,
    TrustReason,
    Untrusted,
)
from updater.policy import DeviceFacts, check
from updater.publisher.assignments import raise_floors
from updater.publisher.draft import Quorum
from updater.publisher.repository import Plan
from updater.source import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import SimpleHTTPRequestHandler
    from pathlib import Path

    from updater.view import View

HTML = b"<!DOCTYPE html><html><body>Please accept our terms to go online</body></html>"
HUGE = 2**31 - 1


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Digits version 1 is assigned to everybody."""
    fleet = Fleet(tmp_path / "fleet")
    fleet.ship("digits", 1)
    return fleet


@pytest.fixture
def server(fleet: Fleet) -> Iterator[Server]:
    with Server(fleet.path).running() as server:
        yield server


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet, server: Server) -> Device:
    """A device that has refreshed once."""
    device = Device(tmp_path / "device", fleet)
    device.trust.refresh(server.url)
    return device


def refused(device: Device, source: str) -> Untrusted:
    """What is said to the attack; nothing on the disk has changed by it."""
    before = device.disk()
    with pytest.raises(Untrusted) as caught:
        device.trust.refresh(source)
    assert device.disk() == before
    return caught.value


def said(error: Untrusted) -> tuple[TrustReason, str]:
    return error.reason, error.role


def plain_tuf(folder: Path, fleet: Fleet, url: str) -> Updater:
    """What python-tuf alone makes of it, with its own cache in `folder`."""
    updater = Updater(str(folder), f"{url}/metadata/", bootstrap=fleet.anchor)
    # The story happens in 2025, whenever the test runs.
    updater._trusted_set.reference_time = datetime.fromtimestamp(fleet.clock(), UTC)
    updater.refresh()
    return updater


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


def list_snapshot(fleet: Fleet) -> None:
    """Sign a timestamp that lists the newest snapshot."""
    newest = fleet.repository.metadata.describe("snapshot")
    fleet.forge("timestamp", lambda signed: setattr(signed, "snapshot_meta", newest), life_s=DAY_S)


def what_is_wrong(device: Device, source: str, *, version: int = 1) -> Untrusted:
    """What is said to all of the refresh, or to its one bundle."""
    with pytest.raises(Untrusted) as caught:
        device.trust.refresh(source).find("digits", version)
    return caught.value


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


def floor_of(device: Device, role: str) -> int:
    """What the device remembers of a role."""
    return json.loads((device.folder / "floor.json").read_bytes())["roles"][role]["value"]


class TestEndlessData:
    @pytest.mark.parametrize(
        ("path", "role"),
        [("/metadata/timestamp.json", "timestamp"), ("/metadata/2.root.json", "root")],
    )
    def test_it_is_not_taken(self, path, role, server, device):
        server.answers[path] = pour

        assert said(refused(device, server.url)) == (TrustReason.TOO_LARGE, role)

    def test_a_wish_that_goes_on_after_its_signed_length_is_cut(self, fleet, server, device):
        fleet.ship("digits", 2)
        (wish,) = fleet.repository.metadata.newest("fleet").signed.targets.values()
        path = fleet.path / "targets" / wish.get_prefixed_paths()[0]
        path.write_bytes(path.read_bytes() + b" ")

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.TOO_LARGE, "fleet")

    def test_a_wish_signed_as_huge_is_not_even_asked_for(self, fleet, server, device):
        def enlarge(signed: Any) -> None:
            (wish,) = signed.targets.values()
            wish.length = 1 << 40

        fleet.forge_all("fleet", enlarge)

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.TOO_LARGE, "fleet")
        assert not any(path.startswith("/targets/") for path in server.requests[-2:])


def pour(handler: SimpleHTTPRequestHandler) -> None:
    """Go on until the device hangs up."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(65536))


def stall(handler: SimpleHTTPRequestHandler) -> None:
    """Promise a body, then say nothing until the device hangs up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.rfile.read(1)


def drip_body(handler: SimpleHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    _drip(handler)


def drip_head(handler: SimpleHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _drip(handler)


def _drip(handler: SimpleHTTPRequestHandler) -> None:
    """A byte now and then: never silent, never done."""
    tick = threading.Event()
    while not tick.wait(0.02):
        handler.wfile.write(b" ")


class TestSlowRetrieval:
    @pytest.mark.parametrize("attack", [stall, drip_body, drip_head])
    def test_it_ends_by_the_deadline(self, attack, tmp_path, fleet, server):
        device = Device(tmp_path / "slow", fleet, limits=SHORT)
        server.answers["/metadata/timestamp.json"] = attack

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert caught.value.reason is FetchReason.TOO_SLOW
        assert device.versions() == {}

    def test_silence_ends_it_sooner(self, tmp_path, fleet, server):
        limits = Limits(silence_s=0.2, patience_s=1000)
        device = Device(tmp_path / "silent", fleet, limits=limits)
        server.answers["/metadata/timestamp.json"] = stall

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert caught.value.reason is FetchReason.TOO_SLOW


def hang_up(handler: SimpleHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True


def reset(handler: SimpleHTTPRequestHandler) -> None:
    """RST instead of an answer."""
    handler.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.request.close()


class TestBadNetwork:
    @pytest.mark.parametrize("fault", [hang_up, reset])
    def test_a_connection_that_is_cut_is_tried_again_later(self, fault, server, device):
        before = device.disk()
        server.answers["/metadata/timestamp.json"] = fault

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert caught.value.reason is FetchReason.CUT
        assert device.disk() == before

    def test_a_server_that_is_down_is_not_a_slow_one(self, device):
        before = device.disk()

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh("http://127.0.0.1:9")

        assert caught.value.reason is FetchReason.UNREACHABLE
        assert device.disk() == before

    @pytest.mark.parametrize("path", ["/metadata/2.root.json", "/metadata/timestamp.json"])
    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_server_that_is_busy_says_when_to_come_back(self, path, status, server, device):
        server.answer(path, b"later", status=status, Retry_After="120")

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert (caught.value.status, caught.value.retry_after_s) == (status, 120)

    def test_a_repository_that_is_gone_is_a_matter_for_later(self, tmp_path, server, device):
        server.folder = tmp_path

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert caught.value.status == 404

    def test_a_captive_portals_page_is_no_metadata(self, server, device):
        server.answer("", HTML, Content_Type="text/html")

        assert said(refused(device, server.url)) == (TrustReason.MALFORMED, "root")

    def test_a_captive_portals_redirect_leads_to_no_metadata(self, server, device):
        server.answer("", b"", status=302, Location=f"{server.url}/login")
        server.answer("/login", HTML, Content_Type="text/html")

        assert said(refused(device, server.url)) == (TrustReason.MALFORMED, "root")

    def test_a_redirect_in_circles_ends(self, server, device):
        server.answer("", b"", status=302, Location=f"{server.url}/again")

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert caught.value.reason is FetchReason.STATUS


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


def wish_for(model: str, version: int, **more: Any) -> bytes:
    """A wish as a thief writes it."""
    groups = [{"rollout_id": "thief", "models": {model: version}}]
    return json.dumps({"schema": 1, "serial": 99, "groups": groups, **more}).encode()


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


def list_snapshot_as(fleet: Fleet, version: int) -> None:
    """Sign a timestamp of that version."""
    newest = fleet.repository.metadata.describe("snapshot")

    def change(signed: Any) -> None:
        signed.version, signed.snapshot_meta = version, newest

    fleet.forge("timestamp", change, life_s=DAY_S)


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


class TestHostileStick:
    def test_a_pipe_in_the_place_of_a_file_holds_nobody(self, fleet, device):
        stick = fleet.copy("stick").path
        (stick / "metadata" / "timestamp.json").unlink()
        os.mkfifo(stick / "metadata" / "timestamp.json")

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(str(stick))

        assert caught.value.status == 404

    def test_a_link_in_the_place_of_a_file_is_not_followed(self, fleet, device):
        stick = fleet.copy("stick").path
        (stick / "metadata" / "timestamp.json").unlink()
        (stick / "metadata" / "timestamp.json").symlink_to("/dev/zero")

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(str(stick))

        assert caught.value.status == 404

    def test_a_stick_that_is_not_there_is_a_matter_for_later(self, tmp_path, device):
        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(str(tmp_path / "nowhere"))

        assert caught.value.reason is FetchReason.UNREACHABLE
