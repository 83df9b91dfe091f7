"""A random walk of publisher, attacker, clock, power and device.

Whatever they do, in whatever order: nothing unsigned is ever found, no role ever goes back while
the keys that signed it count, no floor sinks; and when the attacker stops, the device has the
newest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.fleet import DAY_S, Device, Fleet
from support.powercut import watched

from updater.errors import UpdateError
from updater.floors import FLEET, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from updater.publisher.assignments import raise_floors
from updater.trust import Trust

ROLES = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP, FLEET, "models-main")
ONLINE = (TIMESTAMP, SNAPSHOT, FLEET)
MODEL = "digits"


class Cut(Exception):
    """The power is gone."""


class Walk(RuleBasedStateMachine):
    """One fleet, one device, and somebody between them."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="walk-"))
        self.fleet = Fleet(self.folder / "fleet")
        self.device = Device(self.folder / "device", self.fleet)
        self.version = 0
        self.signed: set[str] = set()
        self.copies: list[Path] = []
        self.seen: dict[str, int] = {}  # highest version of each role, while its keys count
        self.floor = 0  # highest that the device has seen of the fleet's present key
        self.asked_floor = 0
        self.has_thief_signed = False
        self.publish()

    # The publisher.

    @rule()
    def publish(self) -> None:
        self.version += 1
        content = f"{MODEL} {self.version}".encode() * 100
        self.signed.add(hashlib.sha256(content).hexdigest())
        self.fleet.ship(MODEL, self.version)

    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        self.fleet.assign(MODEL, data.draw(st.integers(1, self.version)))

    @rule()
    def raise_floor(self) -> None:
        self.asked_floor = self.version
        self.fleet.repository.assign(lambda wish: raise_floors(wish, {MODEL: self.version}))

    @rule(roles=st.lists(st.sampled_from(ROLES), min_size=1, max_size=3, unique=True))
    def rotate(self, roles: list[str]) -> None:
        """What was seen of a role counts as long as its keys do (updater/floors.py, 2 and 3)."""
        self.fleet.repository.rotate(roles)
        gone = set(roles) - {ROOT}
        if SNAPSHOT in gone:
            gone = set(ROLES) - {ROOT}
        elif TIMESTAMP in gone:
            gone.add(SNAPSHOT)
        self.seen = {role: version for role, version in self.seen.items() if role not in gone}
        if FLEET in roles:
            self.floor = 0

    @rule(days=st.integers(1, 100))
    def time_goes_by(self, days: int) -> None:
        self.fleet.clock.now += days * DAY_S
        self.device.clock.now = self.fleet.clock.now
        self.fleet.repository.refresh()

    # The attacker.

    @rule()
    def keep_a_copy(self) -> None:
        copied = self.folder / f"copy-{len(self.copies)}"
        shutil.copytree(self.fleet.path, copied)
        self.copies.append(copied)

    @rule(data=st.data())
    def serve_an_old_copy(self, data: st.DataObject) -> None:
        if self.copies:
            self.refresh(data.draw(st.sampled_from(self.copies)))

    @rule(data=st.data(), garbage=st.binary(max_size=9))
    def serve_garbage(self, data: st.DataObject, garbage: bytes) -> None:
        garbled = self.folder / "garbled"
        shutil.copytree(self.fleet.path, garbled)
        files = sorted(path for path in garbled.rglob("*") if path.is_file())
        path = data.draw(st.sampled_from(files))
        good = path.read_bytes()
        place = data.draw(st.integers(0, len(good)))
        path.write_bytes(good[:place] + garbage + good[place + len(garbage) :])
        self.refresh(garbled)
        shutil.rmtree(garbled)

    @rule(version=st.integers(0, 9), floor=st.integers(0, 99), skipped=st.integers(0, 1000))
    def steal_the_online_keys(self, version: int, floor: int, skipped: int) -> None:
        thief = self.fleet.copy("thief")
        groups = [{"rollout_id": "t", "models": {MODEL: version + 1}}]
        wish = {"schema": 1, "serial": 9, "groups": groups, "floors": {MODEL: floor}}
        thief.forge_wish(json.dumps(wish).encode())
        thief.forge(TIMESTAMP, lambda signed: setattr(signed, "version", signed.version + skipped))
        self.refresh(thief.path)
        shutil.rmtree(thief.path)
        self.has_thief_signed = True

    @rule(roles=st.sampled_from([("root",), ("models-main",), ("targets",), ("root", "targets")]))
    def sign_with_keys_of_nobody(self, roles: tuple[str, ...]) -> None:
        thief = self.fleet.copy("nobody")
        stranger = thief.keyring.signers(thief.repository.roles()[FLEET])
        for role in roles:
            thief.forge(role, lambda signed: signed, signers=stranger)
        thief.forge_online()
        self.refresh(thief.path)
        shutil.rmtree(thief.path)
        self.has_thief_signed = True

    # The box.

    @rule()
    def refresh_in_peace(self) -> None:
        self.refresh(self.fleet.path)

    @rule(clock=st.sampled_from([0.0, 1e9, 2e10]))
    def lose_the_time(self, clock: float) -> None:
        self.device.clock.now = clock

    @rule()
    def find_the_time(self) -> None:
        self.device.clock.now = self.fleet.clock.now

    @rule(how=st.sampled_from(["lose", "empty", "floors"]))
    def lose_memory(self, how: str) -> None:
        """Either of the two memories; whoever has lost both is a new device."""
        if not (self.device.folder / "tuf" / "current").exists():
            return
        self.device.trust.reference()  # the cache's versions are floors only once they are read
        if how == "lose":
            self.flush()
            self.device.lose_metadata()
        elif how == "empty":
            self.flush()
            self.device.empty_metadata()
        elif self.device.trust.current() is not None:
            (self.device.folder / "floor.json").unlink(missing_ok=True)
            self.floor = 0

    @rule(step=st.integers(0, 40))
    def cut_the_power_in_a_refresh(self, step: int) -> None:
        steps = iter(range(1000))

        def cut(_step: str, _path: Path) -> None:
            if next(steps) == step:
                raise Cut

        with watched(cut):
            self.refresh(self.fleet.path)
        self.device.trust = Trust(self.device.folder, self.fleet.anchor, clock=self.device.clock)

    def flush(self) -> None:
        """A session, even one that fails, writes the floors."""
        self.refresh(self.folder / "nowhere")

    def refresh(self, source: Path) -> None:
        try:
            view = self.device.trust.refresh(str(source))
        except (UpdateError, Cut):
            return
        for role, version in view.versions.items():
            assert version >= self.seen.get(role, 0), f"{role} went back"
            self.seen[role] = version
        assert view.floors.get(MODEL, 0) >= self.floor
        self.floor = view.floors.get(MODEL, 0)

    @invariant()
    def nothing_unsigned_is_found(self) -> None:
        view = self.device.trust.current()
        for version in range(1, 12):
            target = view.find(MODEL, version) if view else None
            assert target is None or target.sha256 in self.signed

    @invariant()
    def what_is_there_is_not_older_than_what_was_seen(self) -> None:
        view = self.device.trust.current()
        for role, version in view.versions.items() if view else ():
            assert version >= self.seen.get(role, 0)

    def teardown(self) -> None:
        if not hasattr(self, "fleet"):
            return
        if self.has_thief_signed:
            self.rotate(list(ONLINE))
        self.find_the_time()
        self.fleet.repository.refresh()
        view = self.device.trust.refresh(str(self.fleet.path))
        metadata = self.fleet.repository.metadata
        assert view.versions == {
            role: metadata.newest(role).signed.version for role in view.versions
        }
        assert set(view.versions) == set(ROLES)
        assert view.floors.get(MODEL, 0) >= self.asked_floor
        shutil.rmtree(self.folder)


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=6,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
