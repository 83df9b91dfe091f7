"""The whole way of an update: a real publisher, a real web server, a real daemon and real models.

Good releases are kept. Bad ones are turned back from, whatever is wrong with them, and put in
quarantine; the release before answers on.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import requests
from support import tflite_builder
from support.daemon import daemon_process, free_port
from support.fleet import START, Fleet
from support.webfolder import serving_folder

from updater.bundle import build_bundle, folder_files
from updater.daemonlink import DaemonLink
from updater.desired import Device, choose
from updater.fetch import Limits
from updater.history import History
from updater.install import Installer, Wish
from updater.journal import Journal
from updater.manifest import Manifest, Probation, parse_manifest
from updater.policy import DeviceFacts
from updater.quarantine import Quarantine
from updater.state import State
from updater.store import Store
from updater.target import facts_of
from updater.trust import Trust

MODEL = "double"
SHORT = Probation(min_requests=30, min_s=1.0, max_s=60.0)
_MOST_STEPS = 200


class Box:
    """A device with its daemon, its updater, and the fleet it belongs to."""

    def __init__(self, root: Path, fleet: Fleet, url: str, http: str) -> None:
        state = root / "var/lib/inferd-updater"
        state.mkdir(parents=True, exist_ok=True)
        self.root, self.fleet, self.url, self.http = root, fleet, url, http
        self.trust = Trust(state, fleet.anchor, clock=fleet.clock)
        self.journal = Journal(state / "journal")
        self.store = Store(root / "var/lib/inferd/store", root / "var/lib/inferd/models")
        self.quarantine = Quarantine(state / "quarantine.json")
        self.history = History(state / "history.jsonl")
        self.daemon = DaemonLink(root / "run/inferd/inferd.sock")
        self.installer = self.start()

    def start(self, boot_id: str = "boot-1") -> Installer:
        self.installer = Installer(
            staging=self.root / "var/lib/inferd-updater/staging",
            journal=self.journal,
            store=self.store,
            quarantine=self.quarantine,
            history=self.history,
            daemon=self.daemon,
            device=DeviceFacts("amd64", "litert", "2.3.0"),
            limits=Limits(),
            boot_id=boot_id,
            clock=self.fleet.clock,
            on_progress=lambda _model, _there, _length: None,
        )
        self.installer.recover()
        return self.installer

    def wish(self) -> Wish | None:
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

    def step(self):
        return self.installer.step(MODEL, self.wish())

    @property
    def state(self) -> State:
        return self.journal.load(MODEL).state

    def run(self, *, until: State) -> None:
        """Take steps until this state, with clients asking while a release is on probation."""
        for _ in range(_MOST_STEPS):
            if self.state is until:
                return
            step = self.step()
            if self.state is State.PROBATION and not step.moved:
                self.ask(40)
                self.fleet.clock.now += 1
        raise AssertionError(f"in {self.state} for {_MOST_STEPS} steps: {step.waiting_for}")

    def settle(self) -> None:
        """Take steps until there is nothing to do."""
        self.step()
        self.run(until=State.IDLE)

    def ask(self, times: int = 1, value: float = 1.0) -> list[float | None]:
        """What the model makes of four equal numbers, or None where it failed."""
        document = {
            "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value] * 4}]
        }
        answers = []
        with requests.Session() as session:
            for _ in range(times):
                answer = session.post(f"{self.http}/v2/models/{MODEL}/infer", json=document)
                good = answer.status_code == 200
                answers.append(answer.json()["outputs"][0]["data"][0] if good else None)
        return answers

    @property
    def current(self) -> int | None:
        digest = self.store.current(MODEL)
        if digest is None:
            return None
        raw = (self.store.release(MODEL, digest) / "manifest.json").read_bytes()
        return parse_manifest(raw).version

    def events(self) -> list[str]:
        return [str(line.event["event"]) for line in self.history.read(limit=1000)]


class Publisher:
    """Makes folders into signed, assigned bundles."""

    def __init__(self, fleet: Fleet, work: Path) -> None:
        self.fleet, self.work = fleet, work

    def ship(self, version: int, model: bytes, tables: str = "", **files: bytes) -> None:
        self.add(version, model, tables, **files)
        self.fleet.assign(MODEL, version)

    def add(self, version: int, model: bytes, tables: str = "", **files: bytes) -> str:
        folder = self.work / f"v{version}"
        folder.mkdir()
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
            probation=SHORT,
        )
        manifest = build_bundle(folder_files(folder), bundle, draft)
        self.fleet.repository.add([(bundle, facts_of(manifest))])
        return manifest.name


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path / "fleet")


@pytest.fixture
def box(tmp_path, fleet):
    # A unix socket's path may have 107 characters, which pytest's folders exceed.
    root = Path(tempfile.mkdtemp(prefix="inferd-"))
    tables = {"models": {"folders": ["var/lib/inferd/models"]}}
    (root / "var/lib/inferd/models").mkdir(parents=True)
    try:
        with (
            serving_folder(fleet.path) as url,
            daemon_process([], root=root, port=free_port(), **tables) as daemon,
        ):
            wait_until_up(daemon.url)
            yield Box(root, fleet, url, daemon.url)
    finally:
        shutil.rmtree(root)


@pytest.fixture
def publisher(fleet, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    return Publisher(fleet, work)


def wait_until_up(url):
    for _ in range(300):
        try:
            if requests.get(f"{url}/healthz", timeout=5).ok:
                return
        except requests.ConnectionError:
            threading.Event().wait(0.05)
    raise AssertionError("the daemon does not come up")


def npy(values) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([values], np.float32))
    return file.getvalue()


SAMPLES = """
[[health.samples]]
input = "x.npy"
outputs = { y = "y.npy" }
"""


def test_a_first_release_comes_in_is_watched_and_kept(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))

    box.settle()

    assert box.current == 1
    assert box.ask(value=3.0) == [6.0]
    assert box.events()[0] == "assigned"
    assert {"fetch", "publish", "probed", "try begins", "watch", "commit", "done"} < set(
        box.events()
    )


def test_a_newer_release_takes_over_with_no_request_lost(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    answers: list[float | None] = []
    done = threading.Event()

    def load():
        while not done.is_set():
            answers.extend(box.ask(10))

    client = threading.Thread(target=load)
    client.start()
    box.settle()
    done.set()
    client.join()

    assert box.current == 2
    assert set(answers) == {2.0, 5.0}


def bad_at_load() -> bytes:
    return b"\x1c\x00\x00\x00TFL3 and nothing else"


BAD = {
    "does not load": (bad_at_load(), "", {}),
    "hangs at the first call": (
        tflite_builder.hangs_while_at_most(0.0),
        "[limits]\ntimeout_ms = 500\n",
        {},
    ),
    "answers wrongly": (
        tflite_builder.scale(5.0, batch=1),
        SAMPLES,
        {"x_npy": npy([1, 1, 1, 1]), "y_npy": npy([2, 2, 2, 2])},
    ),
    "answers its samples with NaN": (tflite_builder.scale(float("nan"), batch=1), "", {}),
    "takes more memory than it says": (
        tflite_builder.hog(64),
        "[health]\nmax_memory_mib = 8\n",
        {},
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_release_never_answers_anybody_and_is_put_in_quarantine(box, publisher, fault):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    model, tables, files = BAD[fault]
    publisher.ship(2, model, tables, **files)

    box.settle()

    assert box.current == 1
    assert box.ask(5) == [2.0] * 5
    (case,) = box.quarantine.entries()
    assert (case.model, case.version) == (MODEL, 2)
    assert "try begins" not in box.events()[box.events().index("done") + 1 :]


def test_a_release_that_was_put_in_quarantine_is_not_tried_again(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, bad_at_load())
    box.settle()

    step = box.step()

    assert not step.moved
    assert "has failed here before" in step.waiting_for


def test_a_release_that_fails_on_real_traffic_is_turned_back_from(box, publisher):
    """Its sample is good; what clients send makes it divide by nothing."""
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    good = {"x_npy": npy([1, 1, 1, 1]), "y_npy": npy([3e38, 3e38, 3e38, 3e38])}
    tables = SAMPLES + "tolerance = 1e37\n"
    publisher.ship(2, tflite_builder.scale(3e38, batch=1), tables, **good)
    box.step()
    box.run(until=State.PROBATION)
    assert box.current == 2

    box.ask(3, value=10.0)  # which overflows
    box.run(until=State.IDLE)

    assert box.current == 1
    assert box.ask() == [2.0]
    assert "NaN or infinity" in box.quarantine.entries()[0].reason


def test_a_release_that_loses_its_place_in_the_fleets_wish_is_dropped(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    box.step()
    publisher.fleet.assign(MODEL, 1)

    box.settle()

    assert box.current == 1
    assert not box.quarantine.entries()
    assert "abandon" in box.events()


def test_an_operator_goes_back_and_the_release_stays_out(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    box.settle()

    assert box.installer.roll_back(MODEL, "the operator says so")
    box.run(until=State.IDLE)

    assert box.current == 1
    assert box.ask() == [2.0]
    assert "has failed here before" in box.step().waiting_for
    assert not box.installer.roll_back(MODEL, "there is nothing before")


def test_the_fleet_goes_back_by_wishing_the_older_release(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    box.settle()
    publisher.fleet.assign(MODEL, 1)

    box.settle()

    assert box.current == 1
    assert box.ask() == [2.0]
    assert not box.quarantine.entries()


def test_a_candidate_that_two_boots_did_not_survive_is_dropped(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    box.step()
    box.run(until=State.TRYING)
    box.start("boot-2")
    assert (box.state, box.journal.load(MODEL).tries) == (State.TRYING, 2)

    box.start("boot-3")
    assert box.state is State.ROLLING_BACK
    box.run(until=State.IDLE)

    assert box.current == 1
    assert box.quarantine.entries()[0].version == 2


def test_without_the_network_nothing_is_lost_and_it_goes_on_later(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    wish = box.wish()
    gone = Wish(wish.assignment, wish.target, "http://127.0.0.1:9/", wish.floor, wish.blocked)
    for _ in range(3):
        step = box.installer.step(MODEL, gone)
    assert box.state is State.DOWNLOADING
    assert step.waiting_for

    box.settle()

    assert box.current == 1


def test_without_the_daemon_nothing_is_switched(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.installer = box.start()
    box.installer._daemon = DaemonLink(box.root / "nobody.sock")
    for _ in range(6):
        step = box.step()

    assert box.state is State.VERIFIED
    assert "does not answer" in step.waiting_for
    assert box.current is None


def test_the_history_tells_it_all_and_is_unbroken(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()

    lines = box.history.read(limit=100)
    assert lines[0].time == START
    assert lines[0].event["signed_by"]
    assert all(line.event["model"] == MODEL for line in lines)
    assert box.history.verify().broken is None
