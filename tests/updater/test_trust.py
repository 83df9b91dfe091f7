"""What is believed, and what of it is on disk."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet import DAY_S, START, Device, Fleet, Server
from support.powercut import watched
from tuf.ngclient import Updater

from updater.errors import TrustReason, Untrusted, UpdateError
from updater.publisher.assignments import raise_floors
from updater.session import _set_time
from updater.signedtime import Reference
from updater.trust import Trust, _copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    fleet = Fleet(tmp_path / "fleet")
    fleet.ship("digits", 1)
    return fleet


@pytest.fixture
def server(fleet: Fleet) -> Iterator[Server]:
    with Server(fleet.path).running() as server:
        yield server


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet) -> Device:
    return Device(tmp_path / "device", fleet)


class Cut(Exception):
    """The process ends here."""


def cut_at(number: int):
    """Let the process end before this durable step; counts them."""
    steps = iter(range(10_000))

    def hook(_step: str, _path: Path) -> None:
        if next(steps) == number:
            raise Cut

    return watched(hook)


class TestView:
    def test_it_says_what_is_signed_and_by_whom(self, fleet, device):
        view = device.trust.refresh(str(fleet.path))

        assert view.versions == {
            "root": 1,
            "timestamp": 3,
            "snapshot": 3,
            "targets": 1,
            "fleet": 2,
            "models-main": 2,
        }
        assert set(view.roles["root"].signers.values()) == {"root-1", "root-2", "root-3"}
        assert view.expires["timestamp"] == START + 7 * DAY_S
        assert view.signed_at["targets"] == START
        assert view.desired.groups[0].models == {"digits": 1}
        assert view.find("digits", 1).sha256 in view.find("digits", 1).location

    def test_the_bytes_lie_where_it_says(self, fleet, device):
        target = device.trust.refresh(str(fleet.path)).find("digits", 1)

        assert (fleet.path / target.location).read_bytes() == b"digits 1" * 100

    def test_what_nobody_has_signed_is_not_found(self, fleet, device):
        view = device.trust.refresh(str(fleet.path))

        assert view.find("digits", 2) is None
        assert view.find("faces", 1) is None

    def test_floors_are_the_highest_of_whoever_signs_them(self, fleet, device):
        fleet.repository.assign(lambda desired: raise_floors(desired, {"digits": 1, "faces": 7}))
        fleet.repository.add([], floors={"digits": 3})

        assert device.trust.refresh(str(fleet.path)).floors == {"digits": 3, "faces": 7}

    def test_a_repository_without_a_wish_is_no_error(self, fleet, device):
        fleet.forge_all("fleet", lambda signed: signed.targets.clear())

        view = device.trust.refresh(str(fleet.path))

        assert view.desired is None

    def test_a_web_server_and_a_folder_are_the_same(self, tmp_path, fleet, server, device):
        other = Device(tmp_path / "other", fleet)

        assert device.trust.refresh(str(fleet.path)) == other.trust.refresh(server.url)


class TestCurrent:
    def test_before_the_first_refresh_there_is_none(self, device):
        assert device.trust.current() is None
        assert device.trust.reference() == Reference(START, is_clock_good=True)

    def test_it_is_what_the_last_refresh_found_without_asking_anybody(self, fleet, device):
        view = device.trust.refresh(str(fleet.path))
        again = Trust(device.folder, fleet.anchor, clock=device.clock)

        assert again.current() == view

    def test_it_says_when_it_has_expired(self, fleet, device):
        view = device.trust.refresh(str(fleet.path))

        view.check_expiry(START + 7 * DAY_S - 1)
        with pytest.raises(Untrusted) as caught:
            view.check_expiry(START + 7 * DAY_S)
        assert (caught.value.reason, caught.value.role) == (TrustReason.EXPIRED, "timestamp")

    def test_time_is_not_before_the_program_was_made(self, fleet, device):
        later = Trust(device.folder, fleet.anchor, clock=lambda: 0.0, earliest=START)

        assert later.reference() == Reference(START, is_clock_good=False)

    @pytest.mark.parametrize("garbage", [b"", b"{}", b"\0" * 100])
    @pytest.mark.parametrize(
        "name", ["root.json", "timestamp.json", "fleet.json", "files/desired.json"]
    )
    def test_damage_is_healed_by_the_next_refresh(self, name, garbage, fleet, device):
        view = device.trust.refresh(str(fleet.path))
        (device.folder / "tuf" / "current" / name).write_bytes(garbage)

        device.trust.current()

        assert device.trust.refresh(str(fleet.path)) == view
        assert device.trust.current() == view


class TestDisk:
    def test_a_refresh_that_finds_nothing_new_writes_nothing(self, server, device):
        device.trust.refresh(server.url)
        before = {path: path.stat().st_mtime_ns for path in device.folder.rglob("*.json")}
        server.requests.clear()
        steps = []

        with watched(lambda step, path: steps.append((step, path))):
            device.trust.refresh(server.url)

        assert server.requests == ["/metadata/2.root.json", "/metadata/timestamp.json"]
        assert {path: path.stat().st_mtime_ns for path in device.folder.rglob("*.json")} == before
        assert {step for step, _ in steps} <= {"fsync-folder"}

    def test_only_what_is_new_is_fetched(self, fleet, server, device):
        device.trust.refresh(server.url)
        fleet.assign("digits", 1, percent=50)
        server.requests.clear()

        device.trust.refresh(server.url)

        (wish,) = fleet.repository.metadata.newest("fleet").signed.targets.values()
        assert server.requests == [
            "/metadata/2.root.json",
            "/metadata/timestamp.json",
            "/metadata/4.snapshot.json",
            "/metadata/3.fleet.json",
            f"/targets/{wish.get_prefixed_paths()[0]}",
        ]

    def test_nothing_of_the_work_is_left(self, fleet, device):
        device.trust.refresh(str(fleet.path))

        assert {path.name for path in (device.folder / "tuf").iterdir()} == {"a", "current"}

    def test_leftovers_of_a_killed_session_do_no_harm(self, fleet, device):
        work = device.folder / "tuf" / "work"
        work.mkdir(parents=True)
        (work / "timestamp.json").write_bytes(b"half")

        assert device.trust.refresh(str(fleet.path)).versions["timestamp"] == 3

    def test_what_was_verified_before_a_failure_is_kept(self, fleet, server, device):
        device.trust.refresh(server.url)
        fleet.repository.rotate(["root"])
        fleet.ship("digits", 2)
        server.answer("/metadata/5.snapshot.json", b"", status=500)

        with pytest.raises(UpdateError):
            device.trust.refresh(server.url)

        floors = json.loads((device.folder / "floor.json").read_bytes())["roles"]
        assert (floors["root"]["value"], floors["timestamp"]["value"]) == (2, 6)

    def test_a_kill_at_any_step_leaves_the_old_state_or_the_new(self, tmp_path, fleet):
        old = fleet.copy("old").path
        fleet.repository.rotate(["root", "timestamp"])
        fleet.ship("digits", 2)
        number, was_cut = 0, True
        while was_cut:
            device = Device(tmp_path / f"device-{number}", fleet)
            before = device.trust.refresh(str(old))
            try:
                with cut_at(number):
                    after = device.trust.refresh(str(fleet.path))
                was_cut = False
            except Cut:
                after = None
            found = Trust(device.folder, fleet.anchor, clock=device.clock).current()
            again = Trust(device.folder, fleet.anchor, clock=device.clock)

            assert found.versions in (before.versions, {**found.versions, "timestamp": 6})
            assert again.refresh(str(fleet.path)).versions["timestamp"] == 6
            with pytest.raises(Untrusted):
                again.refresh(str(old))
            number += 1

        assert after is not None
        assert number > 20

    def test_a_full_disk_leaves_the_old_state(self, fleet, device):
        before = device.trust.refresh(str(fleet.path))
        fleet.ship("digits", 2)

        def full(step: str, _path: Path) -> None:
            if step in {"rename", "write"}:
                raise OSError(28, "No space left on device")

        with watched(full), pytest.raises(OSError, match="No space left"):
            device.trust.refresh(str(fleet.path))

        assert device.trust.current() == before
        assert device.trust.refresh(str(fleet.path)).find("digits", 2) is not None


class TestPythonTuf:
    def test_it_still_keeps_its_time_where_we_set_it(self, tmp_path, fleet):
        """When this fails, python-tuf has moved it: see `_set_time`, and the clock's rules."""
        updater = Updater(str(tmp_path), "metadata/", bootstrap=fleet.anchor)
        _set_time(updater, Reference(START, is_clock_good=True))

        assert updater._trusted_set.reference_time == datetime.fromtimestamp(START, UTC)
        assert updater._trusted_set.root.is_expired(updater._trusted_set.reference_time) is False

    def test_without_that_place_it_is_not_used(self):
        class Renamed:
            _trusted_set = None

        with pytest.raises(RuntimeError, match="cannot be given a time"):
            _set_time(Renamed(), Reference(START, is_clock_good=True))

    def test_its_time_is_ours_in_every_check(self, fleet, device):
        """In 2125 by the system's clock, but the device's clock says otherwise."""
        device.clock.now = START + 3 * DAY_S

        assert device.trust.refresh(str(fleet.path)).reference.now == START + 3 * DAY_S


NAMES = ("timestamp.json", "3.snapshot.json", "1.targets.json", "2.fleet.json")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A repository whose files are garbled, one after the other."""
    fleet = Fleet(tmp_path_factory.mktemp("fuzz"))
    fleet.ship("digits", 1)
    return fleet


class TestGarbage:
    @settings(
        max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        name=st.sampled_from(NAMES),
        place=st.floats(0, 1, exclude_max=True),
        garbage=st.binary(min_size=1, max_size=4)
        | st.sampled_from([b"null", b"-1", b"[[", b"{}", b'"', b"1e999", b"\\ud800", b"NaN"]),
        length=st.integers(0, 40),
    )
    def test_it_is_refused_and_never_a_fault_of_ours(
        self, published, tmp_path_factory, *, name, place, garbage, length
    ):
        folder = tmp_path_factory.mktemp("garbage")
        path = published.path / "metadata" / name
        good = path.read_bytes()
        start = int(place * len(good))
        path.write_bytes(good[:start] + garbage + good[start + length :])
        device = Device(folder, published)
        try:
            view = device.trust.refresh(str(published.path))
        except UpdateError:
            view = None
        finally:
            path.write_bytes(good)

        assert view is None or view == Device(folder / "good", published).trust.refresh(
            str(published.path)
        )

    @pytest.mark.parametrize(
        "raw",
        [
            b"[" * 10_000,
            b"{" * 10_000,
            b'{"signed":{"_type":"timestamp"},"signatures":[]}',
            b'{"signed":{"_type":"root"},"signatures":{}}',
            b'{"signed":[],"signatures":[]}',
            b'{"signed":{"_type":"timestamp","version":1e400},"signatures":[]}',
            b'{"signed":{"_type":"timestamp","version":' + b"9" * 5000 + b'},"signatures":[]}',
            b"\xff\xfe",
            b"\xef\xbb\xbf{}",
        ],
        ids=range(9),
    )
    @pytest.mark.parametrize("name", ["timestamp.json", "2.root.json"])
    def test_what_is_no_metadata_is_malformed(self, name, raw, server, device):
        server.answer(f"/metadata/{name}", raw)

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert caught.value.reason is TrustReason.MALFORMED


class TestScratch:
    """With a folder in memory to work in."""

    @pytest.fixture
    def trust(self, tmp_path, fleet):
        (tmp_path / "state").mkdir()
        return Trust(
            tmp_path / "state", fleet.anchor, clock=fleet.clock, scratch=tmp_path / "memory/look"
        )

    def test_a_refresh_that_finds_nothing_new_leaves_the_disk_alone(self, tmp_path, fleet, trust):
        def facts() -> dict[Path, tuple[int, int]]:
            state = tmp_path / "state"
            paths = (state, *state.rglob("*"))
            return {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in paths}

        trust.refresh(str(fleet.path))
        before = facts()

        trust.refresh(str(fleet.path))

        assert facts() == before
        assert not (tmp_path / "memory/look").exists()

    def test_what_is_new_is_kept_as_ever(self, tmp_path, fleet, trust):
        trust.refresh(str(fleet.path))
        fleet.ship("digits", 1)

        view = trust.refresh(str(fleet.path))

        assert trust.current() is not None
        assert trust.current().versions == view.versions
        assert sorted(path.name for path in (tmp_path / "state/tuf").iterdir()) == [
            "a",
            "b",
            "current",
        ]

    def test_a_scratch_folder_that_cannot_be_had_is_said(self, tmp_path, fleet, trust):
        (tmp_path / "memory").write_text("no folder")

        with pytest.raises(OSError, match="memory"):
            trust.refresh(str(fleet.path))


def test_metadata_is_copied_without_its_modes(tmp_path):
    """A service that may not set the set-group-id bit must not try to."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "folder").mkdir(parents=True)
    (source / "folder/file").write_bytes(b"x")
    (source / "link").symlink_to("folder/file")
    (source / "folder").chmod(0o2750)

    _copy(source, target)

    assert not (target / "folder").stat().st_mode & 0o2000
    assert (target / "link").read_bytes() == b"x"
    assert (target / "link").is_symlink()
