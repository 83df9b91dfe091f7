"""A device whose updater's service runs in the test's own process.

The fleet, its web server, trust, disk and network are real; in the daemon's place is a peer
(daemonpeer.py), for what the service does does not depend on a model's arithmetic.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import tflite_builder
from support.box import MODEL
from support.daemonpeer import DaemonPeer
from support.fleet import Clock, Fleet, Server
from support.servicebox import QUICK, wait_until

from updater.bundle import build_bundle, folder_files
from updater.desired import Device
from updater.device import utc_offset_s
from updater.history import History
from updater.journal import Record
from updater.manifest import Manifest
from updater.quarantine import Quarantine
from updater.report import model_status
from updater.service import Settings, UpdateService
from updater.state import State
from updater.store import Store
from updater.target import facts_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from http.server import SimpleHTTPRequestHandler

    from updater.manifest import Probation
    from updater.outbox import Reporter
    from updater.report import ModelStatus, Status

OURS = frozenset({"updates", "look", "transfer", "herald", "document-watch", "transfer-watch"})
"""The service's threads."""


class Ear(DaemonPeer):
    """A daemon that keeps what it is told, and may be held up in a probe.

    Attributes:
        reports: in order.
        events: numbers, in the order of their coming.
        takes_events: False: MQTT is off.
        kinds: of the devices it has.
        probes: how many have begun.
        hold: a probe waits for it.
    """

    def __init__(self, folder: Path, links: Path) -> None:
        super().__init__(folder, links)
        self.reports: list[dict[str, Any]] = []
        self.events: list[int] = []
        self.takes_events = True
        self.kinds = ["cpu"]
        self.probes = 0
        self.hold = threading.Event()
        self.hold.set()

    def answer(self, method: str, path: str, document: dict[str, Any]) -> tuple[int, object]:
        if path == "/api/updates/events":
            if not self.takes_events:
                return 503, {"error": "MQTT is off"}
            self.events += [event["sequence"] for event in document["events"]]
            return 200, {"taken": self.events[-1]}
        if path == "/api/devices":
            return 200, {"devices": [{"kind": kind, "up": True} for kind in self.kinds]}
        if path == "/api/updates":
            self.reports.append(document)
        if path == "/api/updates/probe":
            self.probes += 1
            self.hold.wait()
        return super().answer(method, path, document)


class InsideBox:
    """The device.

    Attributes:
        clock: its wall clock.
        settings: of the next service that `start` makes.
        service: of the present life.
    """

    def __init__(self, root: Path, fleet: Fleet, server: Server, daemon: Ear) -> None:
        self.root, self.fleet, self.server, self.daemon = root, fleet, server, daemon
        self.state_folder = root / "state"
        self.clock = Clock(fleet.clock.now)
        self.store = Store(root / "store", root / "models")
        self.quarantine = Quarantine(self.state_folder / "quarantine.json")
        self.history = History(self.state_folder / "history.jsonl")
        self.settings = Settings(
            state=self.state_folder,
            store=root / "store",
            links=root / "models",
            daemon_socket=daemon.socket_path,
            device=Device("box-1"),
            source=server.url,
            anchor=fleet.anchor,
            scratch=root / "run/look",
            poll_interval_s=3600,
            clock=self.clock,
        )
        self.service = UpdateService(self.settings)

    def change(self, **settings: Any) -> None:
        """Other settings, from the next `start` on."""
        self.settings = replace(self.settings, **settings)

    def start(
        self, reporters: Collection[Reporter] | None = None, *, is_patient: bool = False
    ) -> None:
        """Begin a life of the service; it has recovered when this returns.

        Args:
            is_patient: wait until it looks by itself, which takes some seconds.
        """
        self.service = UpdateService(self.settings, reporters=reporters)
        self.service.start()
        self.service.recovered.result(30)
        if self.settings.source and not is_patient:
            self.service.hint("operator")

    def restart(self) -> None:
        """End this life in good order and begin another."""
        self.service.stop()
        self.start()

    def ship(
        self,
        version: int,
        value: float = 2.0,
        *,
        model: str = MODEL,
        probation: Probation = QUICK,
    ) -> None:
        """Sign and assign a version."""
        self.add(version, value, model=model, probation=probation)
        self.fleet.assign(model, version)

    def add(
        self,
        version: int,
        value: float = 2.0,
        *,
        model: str = MODEL,
        probation: Probation = QUICK,
        accelerators: tuple[str, ...] = (),
    ) -> None:
        """Sign a version that multiplies by `value`; nobody is assigned it."""
        folder = self.fleet.folder / f"{model}-{version}"
        folder.mkdir()
        (folder / "model.tflite").write_bytes(tflite_builder.scale(value, batch=1))
        (folder / "model.toml").write_text(f'[model]\nname = "{model}"\nversion = {version}\n')
        bundle = folder.with_suffix(".bundle")
        draft = Manifest(
            name=model,
            version=version,
            release_counter=version,
            runtime="litert>=2",
            accelerators=accelerators,
            probation=probation,
        )
        manifest = build_bundle(folder_files(folder), bundle, draft)
        self.fleet.repository.add([(bundle, facts_of(manifest))])

    def digest(self, version: int, model: str = MODEL) -> str:
        """Of a version's bundle."""
        return self.bundle_path(version, model).rpartition("/")[2].split(".")[0]

    def bundle_path(self, version: int, model: str = MODEL) -> str:
        """Where the server has it."""
        folder = self.fleet.path / "targets" / model
        (found,) = folder.glob(f"*.{model}-{version}.bundle")
        return f"/{found.relative_to(self.fleet.path)}"

    def look(self) -> None:
        """Have it look now, as an operator may; returns when it has."""
        looks = self.looks
        self.service.hint("operator")
        wait_until(lambda: self.looks > looks and not self.service.status().is_busy)

    @property
    def looks(self) -> int:
        """How often the server was asked for news."""
        return self.server.requests.count("/metadata/timestamp.json")

    @property
    def utc_offset_s(self) -> int:
        """Of this machine, which the device's windows go by."""
        return utc_offset_s(self.clock.now)

    @property
    def status(self) -> Status:
        return self.service.status()

    def model(self, name: str = MODEL) -> ModelStatus:
        """What the service says of a model; nothing much while it knows none of that name."""
        nothing = model_status(
            Record(name), current="", current_version=0, arrived_bytes=0, waiting_for=""
        )
        return next((model for model in self.status.models if model.model == name), nothing)

    def current(self, model: str = MODEL) -> int:
        """The version that is current; 0 for none."""
        return self.model(model).current_version

    def settle(self, version: int, model: str = MODEL) -> None:
        """Wait until this version is current and nothing is left to do, with a client asking."""

        def is_settled() -> bool:
            self.daemon.ask(model, 40)
            found = self.model(model)
            return (found.state, found.current_version) == (State.IDLE.value, version)

        wait_until(is_settled)

    def install(self, version: int, value: float = 2.0) -> None:
        """Ship a version and have it come in."""
        self.ship(version, value)
        self.service.hint("operator")
        self.settle(version)

    def events(self) -> list[str]:
        """What the history tells, oldest first."""
        return [str(line.event["event"]) for line in self.history.read(limit=1000)]

    @contextmanager
    def held_up(self, path: str = "") -> Iterator[threading.Event]:
        """The server takes requests for this path (or all) and answers none until the block ends.

        Gives an event that is set when there is such a request.
        """
        asked, go_on = threading.Event(), threading.Event()

        def hold(handler: SimpleHTTPRequestHandler) -> None:
            asked.set()
            go_on.wait()
            handler.close_connection = True

        self.server.answers[path] = hold
        try:
            yield asked
        finally:
            del self.server.answers[path]
            go_on.set()


@contextmanager
def inside_box(folder: Path) -> Iterator[InsideBox]:
    """A device that nothing was installed on yet, until the block ends.

    Args:
        folder: the fleet's.
    """
    fleet = Fleet(folder / "fleet", now=time.time())
    # A unix socket's path may have 107 characters, which a test's own folder exceeds.
    root = Path(tempfile.mkdtemp(prefix="inferd-"))
    try:
        with Server(fleet.path).running() as server, Ear(root / "run", root / "models") as daemon:
            box = InsideBox(root, fleet, server, daemon)
            try:
                yield box
            finally:
                daemon.hold.set()
                box.service.stop()
    finally:
        with contextlib.suppress(PermissionError):
            shutil.rmtree(root)


def threads() -> set[str]:
    """Names of the service's threads that are alive."""
    return {thread.name for thread in threading.enumerate()} & OURS
