"""A repository on the publisher's disk, seen by a device that follows it."""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from support.fleet import DAY_S, START, Device, Fleet, OnePassphrase, facts
from support.powercut import watched

from updater.errors import UpdateError
from updater.publisher.assignments import assign, block
from updater.publisher.draft import Quorum
from updater.publisher.errors import KeysMissing, PublisherError
from updater.publisher.keys import Keyring
from updater.publisher.repository import Plan, Repository

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "fleet")


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet) -> Device:
    return Device(tmp_path / "device", fleet)


def without(fleet: Fleet, *kinds: str) -> Repository:
    """The repository on a machine that lacks some keys."""
    folder = fleet.folder / f"keys without {' '.join(kinds)}"
    shutil.copytree(fleet.folder / "keys", folder)
    for kind in kinds:
        shutil.rmtree(folder / kind)
    return Repository(fleet.path, Keyring([folder], OnePassphrase()), clock=fleet.clock)


def files(fleet: Fleet) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in fleet.path.rglob("*") if path.is_file()}


def versions(fleet: Fleet, device: Device) -> dict[str, int]:
    device.clock.now = fleet.clock.now
    return device.trust.refresh(str(fleet.path)).versions


class TestInit:
    def test_a_device_believes_a_new_repository(self, fleet, device):
        view = device.trust.refresh(str(fleet.path))

        assert set(view.versions.values()) == {1}
        assert view.desired.serial == 1

    def test_root_is_two_of_three_and_the_rest_one_of_one(self, fleet):
        quorums = {role: (keys.threshold, len(keys.keys)) for role, keys in
                   fleet.repository.roles().items()}  # fmt: skip

        assert quorums == {"root": (2, 3)} | dict.fromkeys(
            ("targets", "snapshot", "timestamp", "fleet", "models-main"), (1, 1)
        )

    def test_offline_and_online_keys_lie_apart(self, fleet):
        keys = fleet.folder / "keys"
        assert {path.name for path in (keys / "offline").iterdir()} == {
            "root-1.pem", "root-2.pem", "root-3.pem", "targets-1.pem", "models-main-1.pem",
        }  # fmt: skip
        assert {path.name for path in (keys / "online").iterdir()} == {
            "timestamp-1.pem", "snapshot-1.pem", "fleet-1.pem",
        }  # fmt: skip

    def test_the_fleets_key_signs_the_wish_and_no_path_beside_it(self, fleet):
        roles = fleet.repository.metadata.newest("targets").signed.delegations.roles

        assert roles["fleet"].paths == ["fleet/desired.json"]
        assert all(role.terminating for role in roles.values())

    def test_there_is_only_one_in_a_folder(self, fleet):
        before = files(fleet)

        with pytest.raises(PublisherError, match="a repository already"):
            fleet.repository.init(Plan())

        assert files(fleet) == before

    @pytest.mark.parametrize(
        ("plan", "message"),
        [
            (Plan(quorums={"root": Quorum(3, 2)}), "3 of 2 keys"),
            (Plan(quorums={"root": Quorum(0, 1)}), "0 of 1 keys"),
            (Plan(quorums={"roots": Quorum(1, 1)}), "'roots': expected one of root"),
            (Plan(teams={"vision": ("*",)}), "expected a name as models-vision"),
            (Plan(teams={"models-a": ("a/*",)}), "expected a pattern of model names"),
        ],
    )
    def test_a_plan_that_cannot_be_followed_is_refused_before_a_key_is_made(
        self, plan, message, tmp_path
    ):
        with pytest.raises(PublisherError, match=message):
            Fleet(tmp_path / "other", plan)

        assert not list((tmp_path / "other").rglob("*.pem"))


class TestAdd:
    def test_a_bundle_lies_where_devices_fetch_it(self, fleet, device):
        fleet.ship("digits", 1)

        target = device.trust.refresh(str(fleet.path)).find("digits", 1)
        assert (fleet.path / target.location).read_bytes() == b"digits 1" * 100
        assert target.facts == facts("digits", 1)

    def test_the_same_bundle_again_is_fine(self, fleet):
        fleet.add("digits", 1)
        before = fleet.repository.metadata.versions("models-main")

        fleet.add("digits", 1)

        assert fleet.repository.metadata.versions("models-main") == before

    def test_other_bytes_under_the_same_version_are_refused(self, fleet):
        fleet.add("digits", 1)
        before = files(fleet)
        other = fleet.folder / "other.bundle"
        other.write_bytes(b"other")

        with pytest.raises(PublisherError, match="digits version 1 is signed with other bytes"):
            fleet.repository.add([(other, facts("digits", 1))])

        assert files(fleet) == before

    def test_a_model_that_no_team_signs_is_refused(self, tmp_path):
        fleet = Fleet(tmp_path / "teams", Plan(teams={"models-a": ("a*",)}))

        with pytest.raises(PublisherError, match="no role may sign a model called bees"):
            fleet.add("bees", 1)

    def test_the_first_team_that_matches_signs(self, tmp_path):
        teams = {"models-vision": ("vision-*", "faces"), "models-main": ("*",)}
        fleet = Fleet(tmp_path / "teams", Plan(teams=teams))

        fleet.add("faces", 1)
        fleet.add("digits", 1)

        listed = {role: set(fleet.repository.metadata.newest(role).signed.targets)
                  for role in teams}  # fmt: skip
        assert listed == {
            "models-vision": {"faces/faces-1.bundle"},
            "models-main": {"digits/digits-1.bundle"},
        }

    def test_a_team_needs_no_key_of_another(self, tmp_path):
        teams = {"models-a": ("a*",), "models-b": ("b*",)}
        fleet = Fleet(tmp_path / "teams", Plan(teams=teams))
        offline = fleet.folder / "keys" / "offline"
        for path in offline.iterdir():
            if not path.name.startswith("models-a"):
                path.unlink()

        fleet.add("apples", 1)
        with pytest.raises(KeysMissing, match="models-b needs 1 of its keys"):
            fleet.add("bees", 1)

    def test_offline_floors_do_not_sink(self, fleet):
        fleet.repository.add([], floors={"digits": 3})

        with pytest.raises(PublisherError, match="the floor of digits is 3"):
            fleet.repository.add([], floors={"digits": 2})


class TestMachines:
    """The offline machine signs bundles, the fleet's host publishes them."""

    def test_without_online_keys_a_bundle_waits_for_the_host(self, fleet, device):
        offline, host = without(fleet, "online"), without(fleet, "offline")
        before = versions(fleet, device)
        bundle = fleet.folder / "digits-1.bundle"
        bundle.write_bytes(b"digits")

        published = offline.add([(bundle, facts("digits", 1))])

        assert (published.versions, published.waits_for) == ({"models-main": 2}, "snapshot")
        assert versions(fleet, device) == before
        host.refresh()
        host.assign(lambda desired: assign(desired, {"digits": 1}, percent=100.0, labels={}))
        assert versions(fleet, device)["models-main"] == 2

    def test_the_host_signs_no_bundle(self, fleet):
        host = without(fleet, "offline")
        before = files(fleet)
        bundle = fleet.folder / "digits-1.bundle"
        bundle.write_bytes(b"digits")

        with pytest.raises(KeysMissing, match="models-main needs 1 of its keys"):
            host.add([(bundle, facts("digits", 1))])

        assert files(fleet) == before

    def test_the_host_publishes_nothing_that_is_not_signed(self, fleet):
        fleet.forge("models-main", lambda _: None, signers=fleet.signers("fleet"))

        with pytest.raises(PublisherError, match="models-main version 2 is not signed by its keys"):
            without(fleet, "offline").refresh()

    def test_a_refresh_without_online_keys_is_refused(self, fleet):
        with pytest.raises(KeysMissing):
            without(fleet, "online").refresh()

    def test_a_wrong_passphrase_leaves_everything_as_it_was(self, fleet):
        class Wrong(OnePassphrase):
            def for_known(self, path):  # noqa: ARG002 (a protocol)
                yield b"a wrong passphrase"

        before = files(fleet)
        wrong = Repository(fleet.path, Keyring([fleet.folder / "keys"], Wrong()), clock=fleet.clock)

        with pytest.raises(PublisherError, match="none of the passphrases"):
            wrong.refresh()

        assert files(fleet) == before

    def test_a_clock_behind_what_was_signed_is_refused(self, fleet):
        fleet.clock.now = START - 2 * DAY_S

        with pytest.raises(PublisherError, match="set the clock"):
            fleet.repository.refresh()

    def test_two_publishers_at_once_do_not_mix(self, fleet):
        descriptor = os.open(fleet.path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)

        with pytest.raises(PublisherError, match="another program is changing it"):
            fleet.repository.refresh()

        os.close(descriptor)
        fleet.repository.refresh()

    def test_a_folder_without_a_repository_is_not_made_one(self, tmp_path, fleet):
        repository = Repository(tmp_path / "typo", fleet.keyring, clock=fleet.clock)

        with pytest.raises(PublisherError, match="no repository is here"):
            repository.refresh()

        assert not (tmp_path / "typo").exists()


class TestAssign:
    def test_a_wish_comes_to_devices(self, fleet, device):
        fleet.ship("digits", 1)

        desired = device.trust.refresh(str(fleet.path)).desired
        assert desired == fleet.repository.desired()
        assert desired.serial == 2

    def test_what_nobody_has_signed_cannot_be_assigned(self, fleet):
        before = files(fleet)

        with pytest.raises(PublisherError, match="nobody has signed digits version 9"):
            fleet.assign("digits", 9)

        assert files(fleet) == before

    def test_a_wish_that_was_changed_on_disk_is_not_built_on(self, fleet):
        for path in (fleet.path / "targets" / "fleet").iterdir():
            path.write_bytes(b"{}")

        with pytest.raises(PublisherError, match="not what was signed"):
            fleet.repository.assign(lambda desired: block(desired, ["a" * 64]))


class TestRefresh:
    def test_the_timestamp_is_new_and_nothing_else(self, fleet):
        fleet.clock.now += DAY_S

        assert fleet.repository.refresh().versions == {"timestamp": 2}

    def test_a_device_goes_on_as_long_as_the_host_refreshes(self, fleet, device):
        for _ in range(5):
            fleet.clock.now += 6 * DAY_S
            fleet.repository.refresh()
            versions(fleet, device)

    def test_the_timestamps_life_stays_until_another_is_said(self, fleet):
        fleet.repository.refresh(timestamp_life_s=30 * DAY_S)
        fleet.repository.refresh()

        expires = fleet.repository.metadata.newest("timestamp").signed.expires.timestamp()
        assert expires == START + 30 * DAY_S

    def test_what_is_half_over_is_renewed_by_who_has_the_keys(self, fleet, device):
        fleet.clock.now += 200 * DAY_S

        assert set(without(fleet, "offline").refresh().versions) == {
            "fleet", "snapshot", "timestamp",
        }  # fmt: skip
        assert set(fleet.repository.refresh().versions) == {
            "root", "targets", "models-main", "snapshot", "timestamp",
        }  # fmt: skip
        assert versions(fleet, device)["root"] == 2

    def test_it_goes_on_for_years(self, fleet, device):
        for _ in range(12):
            fleet.clock.now += 180 * DAY_S
            fleet.repository.refresh()
            versions(fleet, device)


class TestRotate:
    @pytest.mark.parametrize(
        "role", ["root", "targets", "snapshot", "timestamp", "fleet", "models-main"]
    )
    def test_every_role_gets_new_keys_and_devices_follow(self, role, fleet, device):
        fleet.ship("digits", 1)
        device.trust.refresh(str(fleet.path))
        before = set(fleet.repository.roles()[role].keys)

        fleet.repository.rotate([role])

        assert before.isdisjoint(fleet.repository.roles()[role].keys)
        view = device.trust.refresh(str(fleet.path))
        assert set(view.roles[role].signers) <= before | set(fleet.repository.roles()[role].keys)
        assert view.find("digits", 1) is not None

    def test_only_the_named_key_is_replaced(self, fleet):
        fleet.repository.rotate(["root"], revoke=["root-2"])

        assert fleet_names(fleet, "root") == {"root-1", "root-3", "root-4"}

    def test_a_key_may_be_added_and_the_threshold_raised(self, fleet, device):
        fleet.repository.rotate(["targets"], revoke=(), quorum=Quorum(2, 3))

        assert fleet_names(fleet, "targets") == {"targets-1", "targets-2", "targets-3"}
        view = device.trust.refresh(str(fleet.path))
        assert len(view.roles["targets"].signers) >= 2

    def test_a_second_rotation_uses_new_names(self, fleet):
        fleet.repository.rotate(["timestamp"])
        fleet.repository.rotate(["timestamp"])

        assert fleet_names(fleet, "timestamp") == {"timestamp-3"}

    def test_it_needs_the_keys_of_who_delegates_before_any_is_made(self, fleet):
        host = without(fleet, "offline")
        before = files(fleet)

        with pytest.raises(KeysMissing, match="root needs 2 of its keys"):
            host.rotate(["timestamp"])

        assert files(fleet) == before
        assert not list(fleet.folder.rglob("timestamp-2.pem"))

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ({"roles": ["rot"]}, "'rot': expected one of root"),
            ({"roles": ["root"], "revoke": ["targets-1"]}, "targets-1: expected one of root-1"),
            ({"roles": ["root"], "quorum": Quorum(4, 3)}, "4 of 3 keys"),
            ({"roles": ["root"], "revoke": (), "quorum": Quorum(1, 2)}, "3 keys stay, more than 2"),
        ],
    )
    def test_what_cannot_be_is_refused(self, how, message, fleet):
        before = files(fleet)

        with pytest.raises(PublisherError, match=message):
            fleet.repository.rotate(how.pop("roles"), **how)

        assert files(fleet) == before


def fleet_names(fleet: Fleet, role: str) -> set[str]:
    keys = fleet.repository.roles()[role]
    return {keys.name(key_id) for key_id in keys.keys}


class Cut(Exception):
    """The process ends here."""


def test_a_kill_at_any_step_leaves_a_repository_that_devices_follow(tmp_path):
    """Devices see a whole state, whatever was written until then; the change can be repeated."""
    number, was_cut = 0, True
    while was_cut:
        fleet = Fleet(tmp_path / f"fleet-{number}")
        fleet.ship("digits", 1)
        device = Device(tmp_path / f"device-{number}", fleet)
        steps = iter(range(10_000))

        def hook(_step: str, path: Path, steps=steps, number=number, fleet=fleet) -> None:
            if path.is_relative_to(fleet.path) and next(steps) == number:
                raise Cut

        try:
            with watched(hook):
                fleet.ship("digits", 2)
            was_cut = False
        except Cut:
            pass
        seen = device.trust.refresh(str(fleet.path))
        assert seen.desired.groups[0].models in ({"digits": 1}, {"digits": 2})
        assert seen.find(*next(iter(seen.desired.groups[0].models.items()))) is not None
        fleet.ship("digits", 2)
        after = device.trust.refresh(str(fleet.path))
        target = after.find("digits", 2)
        assert (fleet.path / target.location).read_bytes() == b"digits 2" * 100
        number += 1

    assert number > 20


def test_every_refusal_is_an_error_of_ours():
    assert issubclass(PublisherError, UpdateError)
