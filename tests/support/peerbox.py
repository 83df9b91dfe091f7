"""A device whose daemon is a peer and whose power, disk and clocks are the test's.

Everything else is real: trust, store, journal, history, transfers, installer, on files. So it takes
thousands of steps in the time that a real daemon needs to start.
"""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

from support.daemonpeer import MARK, DaemonPeer
from support.fleet import Clock

from updater.daemonlink import DaemonLink
from updater.desired import Device
from updater.errors import UpdateError
from updater.fetch import Limits
from updater.history import History
from updater.install import Installer, Step
from updater.journal import Journal, Record
from updater.policy import DeviceFacts
from updater.quarantine import Quarantine
from updater.store import Store
from updater.transfers import Transfers
from updater.trust import Trust
from updater.wishes import Wished, read_wishes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from updater.view import View

_TAKES_ROOM = frozenset({"write", "append", "mkdir", "link"})
_BALLAST_STEPS = 20
"""Of a way back that the room of the ballast is enough for."""
_TRANSFER_S = 20.0
_LIMITS = Limits()


class PowerLost(Exception):
    """The machine is off: nothing reaches the disk any more."""


class FaultyDisk:
    """Decides before each durable step below a folder what becomes of it.

    Attributes:
        is_full: nothing that takes room is taken; what a way back needs was kept for it.
        lasts: steps until the power is cut; None: it is not.
    """

    def __init__(self, folder: Path, ballast: Path) -> None:
        self._folder, self._ballast = folder, ballast
        self.is_full = False
        self.lasts: int | None = None
        self._room = 0

    def __call__(self, step: str, path: Path) -> None:
        if not path.is_relative_to(self._folder):
            return
        if self.lasts is not None:
            if self.lasts <= 0:
                raise PowerLost
            self.lasts -= 1
        if path.parent == self._ballast and step == "unlink":
            self._room = _BALLAST_STEPS
        if self.is_full and step in _TAKES_ROOM:
            if not self._room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            self._room -= 1


class PeerBox:
    """One device.

    Attributes:
        clock: its wall clock.
        uptime_s: its monotonic clock.
        source: what the network serves it as the repository.
        bytes_from: where bundles come from; None: from there, too.
        boots: how often it was switched on.
        is_on: whether the updater runs.
    """

    def __init__(
        self, root: Path, anchor: bytes, source: Path, *, now: float, limits: Limits = _LIMITS
    ) -> None:
        """Make its folders; `boot` starts it."""
        self.root, self.source = root, source
        self.bytes_from: str | None = None
        self.clock = Clock(now)
        self.uptime_s = 0.0
        self.boots = 0
        self.is_on = False
        self.view: View | None = None
        self.folder = root / "updater"
        self.folder.mkdir(parents=True)
        self.disk = FaultyDisk(root, self.folder / "ballast")
        self.trust = Trust(self.folder, anchor, clock=self.clock)
        self.journal = Journal(self.folder / "journal")
        self.store = Store(root / "store", root / "models")
        self.quarantine = Quarantine(self.folder / "quarantine.json")
        self.history = History(self.folder / "history.jsonl")
        self.daemon = DaemonPeer(root / "run", root / "models")
        self.installer: Installer
        self._limits = limits
        self.transfers = Transfers(limits)

    def boot(self, *, daemon_first: bool = False) -> None:
        """Switch the machine on.

        Raises:
            PowerLost: and it was cut again.
        """
        self.boots += 1
        self.uptime_s = 0.0
        (self.daemon.folder / MARK).unlink(missing_ok=True)  # its folder is in memory
        if daemon_first:
            self.daemon.start()
        self.start_updater()
        if not daemon_first:
            self.daemon.start()

    def start_updater(self) -> None:
        """Begin a life of the updater; at the end of it `stop_updater`."""
        self.is_on = True
        self.transfers = Transfers(self._limits)
        self.installer = Installer(
            staging=self.folder / "staging",
            journal=self.journal,
            store=self.store,
            quarantine=self.quarantine,
            history=self.history,
            daemon=DaemonLink(self.daemon.socket_path),
            device=DeviceFacts("amd64", "litert", "2.3.0"),
            transfers=self.transfers,
            lives=self.daemon.folder / MARK,
            ballast=self.folder / "ballast",
            boot_id=f"boot-{self.boots}",
            clock=self.clock,
            monotonic=lambda: self.uptime_s,
        )
        self.installer.recover()
        self.view = self.trust.current()

    def stop_updater(self) -> None:
        """End the updater's life, as by SIGKILL."""
        self.transfers.stop()
        self.is_on = False

    def lose_power(self) -> None:
        """All that was in memory is gone."""
        self.stop_updater()
        self.daemon.kill()
        self.disk.lasts = None

    def look(self) -> View | None:
        """Ask the repository; what is known when it cannot be believed.

        Raises:
            PowerLost, OSError: as the disk has it.
        """
        try:
            self.view = self.trust.refresh(str(self.source))
        except UpdateError:
            return None
        return self.view

    def wishes(self) -> dict[str, Wished]:
        """What the fleet wishes now, as far as the device knows."""
        return read_wishes(
            self.view,
            Device("box-1"),
            now=self.trust.reference().now,
            places=(self.bytes_from or str(self.source),),
            objection=lambda _model: "",
        )

    def step(self, model: str) -> tuple[Record, Wished | None, Step, Record]:
        """Take one step: the record before, the wish, what came of it, the record after.

        Raises:
            PowerLost, OSError: as the disk has it.
        """
        before = self.journal.load(model)
        wished = self.wishes().get(model)
        step = self.installer.step(model, wished.wish if wished else None)
        self.transfers.wait(_TRANSFER_S)
        return before, wished, step, self.journal.load(model)

    def files(self, model: str) -> dict[str, bytes] | None:
        """Of the current release, but for its manifest; None when there is none."""
        digest = self.store.current(model)
        if digest is None:
            return None
        release = self.store.release(model, digest)
        paths = (path for path in release.rglob("*") if path.is_file())
        found = {str(path.relative_to(release)): path.read_bytes() for path in paths}
        del found["manifest.json"]
        return found

    def leftovers(self) -> Iterator[Path]:
        """Whatever lies on the disk that no rest of an update may leave."""
        yield from (self.folder / "staging").iterdir()
        yield from (path for path in self.folder.rglob(".*") if path.is_file())
        yield from (self.root / "store").glob(".*/*")

    def close(self) -> None:
        """The end of the test."""
        self.stop_updater()
        self.daemon.kill()
        shutil.rmtree(self.root)
