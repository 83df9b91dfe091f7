"""A device as a whole, and the fleet that ships to it.

A real publisher with a real web server; a real daemon, a process that may die and be started again;
and the updater's parts in the test's own process, a step at a time.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import requests
from support.daemon import KeptDaemon, free_port
from support.fleet import Fleet
from support.webfolder import serving_folder

from updater.bundle import build_bundle, folder_files
from updater.daemonlink import DaemonLink
from updater.desired import Device, choose
from updater.fetch import Limits
from updater.history import History
from updater.install import Installer, Step, Wish
from updater.journal import Journal
from updater.manifest import Manifest, Probation, parse_manifest
from updater.policy import DeviceFacts
from updater.quarantine import Quarantine
from updater.state import State
from updater.store import Store
from updater.target import facts_of
from updater.transfers import Transfers
from updater.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

MODEL = "double"
SHORT = Probation(min_requests=30, min_s=1.0, max_s=60.0)
"""The shortest that tells something: a percentile wants 20 answers."""
SAMPLES = """
[[health.samples]]
input = "x.npy"
outputs = { y = "y.npy" }
"""
"""In a model.toml: what the file `x_npy` gives is in `y_npy`."""
_LONGEST_S = 90.0
_LOOK_EVERY_S = 0.05


class Publisher:
    """Makes model files into signed, assigned bundles."""

    def __init__(self, fleet: Fleet, work: Path) -> None:
        self.fleet, self.work = fleet, work

    def ship(
        self,
        version: int,
        model: bytes,
        tables: str = "",
        *,
        probation: Probation = SHORT,
        **files: bytes,
    ) -> None:
        """Sign and assign."""
        self.add(version, model, tables, probation=probation, **files)
        self.fleet.assign(MODEL, version)

    def add(
        self,
        version: int,
        model: bytes,
        tables: str = "",
        *,
        probation: Probation = SHORT,
        **files: bytes,
    ) -> None:
        """Sign.

        Args:
            tables: of model.toml, after its [model].
            files: beside the model, `x_npy` for x.npy.
        """
        folder = self.work / f"v{version}"
        folder.mkdir(parents=True)
        (folder / "model.tflite").write_bytes(model)
        identity = f'[model]\nname = "{MODEL}"\nversion = {version}\n'
        (folder / "model.toml").write_text(identity + tables)
        for name, content in files.items():
            (folder / name.replace("_npy", ".npy")).write_bytes(content)
        bundle = self.work / f"{MODEL}-{version}.bundle"
        draft = Manifest(
            name=MODEL,
            version=version,
            release_counter=version,
            runtime="litert>=2",
            probation=probation,
        )
        manifest = build_bundle(folder_files(folder), bundle, draft)
        self.fleet.repository.add([(bundle, facts_of(manifest))])


class Box:
    """A device with its daemon, its updater, and the fleet it belongs to.

    Attributes:
        daemon: the process.
        link: the updater's way to it.
        installer: of the updater's present life (`start`).
    """

    def __init__(self, root: Path, fleet: Fleet, url: str, daemon: KeptDaemon) -> None:
        self.root, self.fleet, self.url, self.daemon = root, fleet, url, daemon
        self.publisher = Publisher(fleet, fleet.folder / "work")
        self.state_folder = root / "var/lib/inferd-updater"
        self.state_folder.mkdir(parents=True, exist_ok=True)
        self.trust = Trust(self.state_folder, fleet.anchor, clock=fleet.clock)
        self.journal = Journal(self.state_folder / "journal")
        self.store = Store(root / "var/lib/inferd/store", root / "var/lib/inferd/models")
        self.quarantine = Quarantine(self.state_folder / "quarantine.json")
        self.history = History(self.state_folder / "history.jsonl")
        self.link = DaemonLink(root / "run/inferd/inferd.sock")
        self.transfers = Transfers(Limits())
        self.installer = self.start()

    def start(self, boot_id: str = "boot-1", *, daemon_grace_s: float = 60.0) -> Installer:
        """Begin another life of the updater."""
        self.transfers.stop()
        self.transfers = Transfers(Limits())
        self.installer = Installer(
            staging=self.state_folder / "staging",
            journal=self.journal,
            store=self.store,
            quarantine=self.quarantine,
            history=self.history,
            daemon=self.link,
            device=DeviceFacts("amd64", "litert", "2.3.0"),
            transfers=self.transfers,
            lives=self.root / "run/inferd/daemon.json",
            ballast=self.state_folder / "ballast",
            boot_id=boot_id,
            clock=self.fleet.clock,
            monotonic=self.fleet.clock,
            daemon_grace_s=daemon_grace_s,
        )
        self.installer.recover()
        return self.installer

    def wish(self) -> Wish | None:
        """What the fleet wishes of the model now."""
        view = self.trust.refresh(self.url)
        assignments = choose(view.desired, Device("box-1"), now=self.fleet.clock())
        assignment = assignments.get(MODEL)
        if assignment is None:
            return None
        return Wish(
            assignment=assignment,
            target=view.find(MODEL, assignment.version),
            source=self.url,
            floor=view.floors.get(MODEL, 0),
            blocked=frozenset(view.desired.blocked),
        )

    def step(self) -> Step:
        """Look what the fleet wishes and take the next step."""
        step = self.installer.step(MODEL, self.wish())
        if self.state is State.DOWNLOADING:
            self.transfers.wait(20)
        return step

    @property
    def state(self) -> State:
        """Of the model's update."""
        return self.journal.load(MODEL).state

    def run(self, *, until: State, client: Client | None = None) -> None:
        """Take steps until this state.

        Args:
            client: asks while a release is on probation; None: somebody does.
        """
        deadline = time.monotonic() + _LONGEST_S
        while self.state is not until:
            step = self.step()
            assert time.monotonic() < deadline, f"in {self.state}: {step.waiting_for}"
            if step.moved:
                continue
            if self.state is State.PROBATION:
                self._have_asked(client)
                self.fleet.clock.now += 1
            else:
                time.sleep(_LOOK_EVERY_S)  # for the daemon, of which no event tells
                self.fleet.clock.now += _LOOK_EVERY_S

    def settle(self, client: Client | None = None) -> None:
        """Take steps until there is nothing to do."""
        self.step()
        self.run(until=State.IDLE, client=client)

    def _have_asked(self, client: Client | None) -> None:
        """Enough for a judgement, if the daemon answers at all."""
        if client is not None:
            client.wait_for_answers(40, timeout_s=0.5)
            return
        with contextlib.suppress(requests.ConnectionError):
            self.ask(40)

    def ask(self, times: int = 1, value: float = 1.0) -> list[float | None]:
        """What the model makes of four equal numbers, or None where it failed."""
        with requests.Session() as session:
            answers = [_post(session, self.daemon.url, value) for _ in range(times)]
        return [_read(answer)[1] if answer.ok else None for answer in answers]

    def asked(self, value: float = 1.0) -> AbstractContextManager[Client]:
        """A client that asks all the time, until the block ends."""
        return asking(self.daemon, value)

    @property
    def current(self) -> int | None:
        """The version that the link names."""
        digest = self.store.current(MODEL)
        if digest is None:
            return None
        raw = (self.store.release(MODEL, digest) / "manifest.json").read_bytes()
        return parse_manifest(raw).version

    def events(self) -> list[str]:
        """What the history tells, oldest first."""
        return [str(line.event["event"]) for line in self.history.read(limit=1000)]


class Client(threading.Thread):
    """Asks one question after the other, and keeps count of what comes back.

    Attributes:
        answers: (version, value) to how often that was the answer.
        refusals: what else it was told, by a daemon that was ready before.
        lost: what was asked of such a daemon and never answered.
    """

    def __init__(self, daemon: KeptDaemon, value: float) -> None:
        super().__init__(name="client", daemon=True)
        self.answers: Counter[tuple[int, float | str]] = Counter()
        self.refusals: list[str] = []
        self.lost: list[str] = []
        self._daemon, self._value = daemon, value
        self._changed = threading.Condition()
        self._ending = threading.Event()

    @property
    def versions(self) -> set[int]:
        """Those that have answered."""
        return {version for version, _ in self.answers}

    def run(self) -> None:
        with requests.Session() as session:
            while not self._ending.is_set():
                life = self._daemon.ready_life
                try:
                    answer = _post(session, self._daemon.url, self._value)
                except requests.RequestException as exc:
                    if life is not None and self._daemon.outlives(life):
                        self.lost.append(str(exc))
                    self._ending.wait(_LOOK_EVERY_S)
                    continue
                if answer.ok:
                    with self._changed:
                        self.answers[_read(answer)] += 1
                        self._changed.notify_all()
                elif life is not None:
                    self.refusals.append(answer.text)

    def wait_for_answers(self, count: int, *, timeout_s: float = _LONGEST_S) -> bool:
        """Wait until so many more have come; False when they have not."""
        with self._changed:
            wanted = self.answers.total() + count
            return self._changed.wait_for(lambda: self.answers.total() >= wanted, timeout_s)

    def stop(self) -> None:
        """Ask no more."""
        self._ending.set()
        self.join(_LONGEST_S)


@contextmanager
def asking(daemon: KeptDaemon, value: float = 1.0) -> Iterator[Client]:
    """A client that asks a daemon all the time, until the block ends."""
    client = Client(daemon, value)
    client.start()
    try:
        yield client
    finally:
        client.stop()


@contextmanager
def running_box(folder: Path, **tables: Any) -> Iterator[Box]:
    """A device that serves nothing yet, until the block ends.

    Args:
        folder: the fleet's.
        tables: of the daemon's configuration.
    """
    fleet = Fleet(folder / "fleet")
    # A unix socket's path may have 107 characters, which a test's own folder exceeds.
    root = Path(tempfile.mkdtemp(prefix="inferd-"))
    models = root / "var/lib/inferd/models"
    models.mkdir(parents=True)
    tables = {"models": {"folders": ["var/lib/inferd/models"]}, **tables}
    daemon = KeptDaemon(root, port=free_port(), **tables)
    try:
        with serving_folder(fleet.path) as url, daemon:
            box = Box(root, fleet, url, daemon)
            try:
                yield box
            finally:
                box.transfers.stop()
    finally:
        shutil.rmtree(root)


def _post(session: requests.Session, url: str, value: float) -> requests.Response:
    document = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value] * 4}]}
    return session.post(f"{url}/v2/models/{MODEL}/infer", json=document, timeout=_LONGEST_S)


def _read(answer: requests.Response) -> tuple[int, float | str]:
    """Version and the first number, which may be "NaN"."""
    document = answer.json()
    return int(document["model_version"]), document["outputs"][0]["data"][0]


def npy(*values: float) -> bytes:
    """A file for a health sample: one row of these numbers."""
    file = io.BytesIO()
    np.save(file, np.array([values], np.float32))
    return file.getvalue()
