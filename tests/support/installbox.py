"""A whole installer below one folder: the real disk, real bundles from a folder, a small daemon.

What is wished is said by the caller; who signs it is another matter (tests/updater/test_trust.py).
What an update has done is promised (see `support.powercut`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from support.daemonpeer import MARK, DaemonPeer, Fault
from support.releases import MODEL, files_of

from updater import atomic
from updater.bundle import build_bundle, read_manifest
from updater.daemonlink import DaemonLink
from updater.desired import Assignment
from updater.fetch import Limits
from updater.history import History
from updater.install import Installer, Step, Wish
from updater.journal import Journal
from updater.manifest import Manifest, Probation
from updater.policy import DeviceFacts
from updater.quarantine import Quarantine
from updater.state import State
from updater.store import Store
from updater.target import Target, bundle_path, facts_of
from updater.transfers import Transfers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from updater.journal import Record

NOW = 1_000_000.0
BROKEN = 3
"""The version that answers real requests with NaN."""
FAULTS = {BROKEN: Fault.NOT_FINITE}
_MOST_STEPS = 100
_WAIT_S = 20


class BusyPeer(DaemonPeer):
    """A daemon that forty requests reach between any two looks at it."""

    def _traffic(self, model: str) -> tuple[int, object]:
        answer = super()._traffic(model)
        self.ask(model, 40)
        return answer


class World:
    """What is outside of the device's disk: bundles on a stick, and the memory that /run is.

    Args:
        folder: its path is short, because of the socket.
    """

    def __init__(self, folder: Path) -> None:
        self.bundles = folder / "bundles"
        self.run = folder / "run"

    def publish(self, *versions: int) -> None:
        """Make the bundles."""
        self.bundles.mkdir(parents=True, exist_ok=True)
        for version in versions:
            draft = Manifest(
                name=MODEL,
                version=version,
                release_counter=version,
                runtime="litert>=2.3,<3",
                probation=Probation(min_requests=30, min_s=1.0, max_s=60.0),
            )
            bundle = self.bundles / f"{MODEL}-{version}.bundle"
            build_bundle(dict(files_of(version)), bundle, draft)

    def digest(self, version: int) -> str:
        """Of a bundle."""
        raw = (self.bundles / f"{MODEL}-{version}.bundle").read_bytes()
        return hashlib.sha256(raw).hexdigest()

    def wish(self, version: int) -> Wish:
        """The fleet's, that has just this version."""
        bundle = self.bundles / f"{MODEL}-{version}.bundle"
        return Wish(
            assignment=Assignment(version, "spring", version, window_open=True, opens_at=NOW),
            target=Target(
                path=bundle_path(MODEL, version),
                location=bundle.name,
                length=bundle.stat().st_size,
                sha256=self.digest(version),
                role="models-digits",
                facts=facts_of(read_manifest(bundle)),
            ),
            source=str(self.bundles),
            floor=0,
            blocked=frozenset(),
            versions={"root": 1, "targets": 4},
        )

    def daemon(self, root: Path) -> BusyPeer:
        """The one that serves from a device's disk, whatever becomes of the updater."""
        peer = BusyPeer(self.run, root / "models")
        peer.faults = {
            self.digest(version): fault
            for version, fault in FAULTS.items()
            if (self.bundles / f"{MODEL}-{version}.bundle").exists()
        }
        return peer

    def reboot(self) -> None:
        """What is in memory is gone."""
        (self.run / MARK).unlink(missing_ok=True)


class Clock:
    """One for waiting, and one on the wall that somebody may set.

    Attributes:
        now: of this boot.
        set_s: seconds that the wall's is ahead.
    """

    def __init__(self) -> None:
        self.now = NOW
        self.set_s = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.set_s


def no_promise(_fact: object) -> None:
    """Nobody is told."""


class InstallBox:
    """A device's updater in one of its lives.

    Args:
        boot_id: another one after each loss of power.
        promise: is told what is durable.
    """

    def __init__(
        self,
        root: Path,
        world: World,
        *,
        boot_id: str = "boot-1",
        promise: Callable[[tuple[str, object]], None] = no_promise,
    ) -> None:
        self.root, self.world = root, world
        self.state_folder = root / "state"
        self.staging = self.state_folder / "staging"
        self.ballast = self.state_folder / "ballast"
        self.clock = Clock()
        self.journal = Journal(self.state_folder / "journal")
        self.history = History(self.state_folder / "history.jsonl", max_bytes=4000, max_files=50)
        self.quarantine = Quarantine(self.state_folder / "quarantine.json")
        self.store = Store(root / "store", root / "models")
        self.transfers = Transfers(Limits())
        self._promise = promise
        self.installer = Installer(
            staging=self.staging,
            journal=self.journal,
            store=self.store,
            quarantine=self.quarantine,
            history=self.history,
            daemon=DaemonLink(world.run / "inferd.sock"),
            device=DeviceFacts("amd64", "litert", "2.3.1"),
            transfers=self.transfers,
            lives=world.run / MARK,
            ballast=self.ballast,
            boot_id=boot_id,
            clock=self.clock.wall,
            monotonic=self.clock.monotonic,
        )

    @property
    def record(self) -> Record:
        """Where the update stands."""
        return self.journal.load(MODEL)

    @property
    def current(self) -> str | None:
        """The digest of what is served."""
        return self.store.current(MODEL)

    @property
    def serves(self) -> int:
        """The version of what is served; 0 for nothing."""
        if self.current is None:
            return 0
        self.store.verify(MODEL, self.current)
        return next(v for v in range(1, 10) if self.world.digest(v) == self.current)

    def start(self) -> InstallBox:
        """What a start of the updater does first."""
        atomic.make_folder(self.state_folder)
        self.installer.recover()
        return self

    def step(self, version: int) -> Step:
        """One step towards a version."""
        step = self.installer.step(MODEL, self.world.wish(version))
        self._promise(("record", self.record))
        self._promise(("current", self.current))
        return step

    def update(self, version: int) -> Step:
        """Take steps until nothing is left to do but to wait; returns the last one."""
        for _ in range(_MOST_STEPS):
            if (step := self.step(version)).moved:
                continue
            if self.record.state is State.DOWNLOADING and not step.failed:
                self.transfers.wait(_WAIT_S)
            elif self.record.state is State.PROBATION and step.waiting_for == "its probation":
                self.clock.now += 1
            else:
                return step
        raise AssertionError(f"{_MOST_STEPS} steps, now in {self.record.state}")

    def go_to(self, state: State, version: int) -> InstallBox:
        """Take steps towards a version until its record is in this state."""
        for _ in range(_MOST_STEPS):
            if self.record.state is state and self.record.version == version:
                return self
            if not self.step(version).moved:
                self.transfers.wait(_WAIT_S)
                self.clock.now += 1
        raise AssertionError(f"{_MOST_STEPS} steps, now in {self.record.state}")

    def roll_back(self, version: int) -> bool:
        """Go back by an operator's word, while the fleet wishes this version."""
        found = self.installer.roll_back(MODEL, "he does not like it")
        self._promise(("record", self.record))
        self.update(version)
        return found

    def events(self) -> list[dict[str, object]]:
        """All that the history tells, oldest first."""
        return [dict(line.event) for line in self.history.read(limit=10_000)]

    def moves(self, serial: int) -> list[dict[str, object]]:
        """The moves of one update, as the history tells them."""
        return [
            event
            for event in self.events()
            if event.get("serial") == serial and "transition" in event
        ]

    def states(self, serial: int) -> list[str]:
        """The states that an update went through, as the history tells them."""
        return [str(event["state"]).upper() for event in self.moves(serial)]

    def leftovers(self) -> list[str]:
        """What an update that is over should not leave behind."""
        return [
            str(path.relative_to(self.root))
            for path in sorted(self.root.rglob("*"))
            if path.name.endswith((".new", ".part", ".corrupt"))
            or ".gone-" in path.name
            or path.parent in {self.ballast, self.staging, self.root / "store" / ".incoming"}
        ]


def prepare(root: Path, world: World) -> None:
    """A device that serves version 1."""
    with world.daemon(root):
        InstallBox(root, world).start().update(1)


def update_to_two(root: Path) -> None:
    """A good version arrives. The world is beside the root, and its daemon runs."""
    InstallBox(root, World(root.parent)).start().update(2)


def try_the_broken(root: Path) -> None:
    """A broken version arrives, and is rolled back from."""
    InstallBox(root, World(root.parent)).start().update(BROKEN)


def start(root: Path) -> None:
    """The updater starts again, in the same boot."""
    InstallBox(root, World(root.parent)).start()


def snapshot(root: Path) -> dict[str, object]:
    """Every file, link and folder with its content and mode."""
    return dict(_entries(root, root))


def _entries(root: Path, folder: Path) -> Iterator[tuple[str, object]]:
    for path in sorted(folder.iterdir()):
        name = str(path.relative_to(root))
        if path.is_symlink():
            yield name, ("link", str(path.readlink()))
        elif path.is_dir():
            yield name, ("folder", path.stat().st_mode)
            yield from _entries(root, path)
        else:
            yield name, ("file", path.stat().st_mode, path.read_bytes())
