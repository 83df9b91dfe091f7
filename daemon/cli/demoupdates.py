"""The demo's chapters about updates: a good version, a poisoned one, a mixed-up one, the history.

The updater runs as a process of its own, as on a box, and gets what it is told from a web server.
What is shown of an update is what the updater wrote into its history.
"""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon.cli.broker import HOST, Broker
from daemon.cli.children import start, stop
from daemon.cli.client import Client, model_path
from daemon.cli.demofleet import (
    GOOD,
    MIXED_UP,
    MODEL,
    NEW_WORD,
    OLD_WORD,
    POISONED,
    Fleet,
    labels_of,
)
from daemon.cli.demoload import Load, Question, Tally
from daemon.cli.mqttclient import MqttRequester
from daemon.cli.outcome import CommandError, Unreachable
from daemon.cli.text import shortened, table
from daemon.cli.updatetext import (
    describe_chain,
    describe_history,
    describe_quarantine,
    describe_step,
)

if TYPE_CHECKING:
    import subprocess
    import threading
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from daemon.cli.updaterclient import Updater

FIRST = 1
_UPDATE_S = 90.0
"""A download, a probe and a probation take five; a busy machine takes longer."""
_START_S = 30.0
_LOOK_EVERY_S = 0.05
_ENOUGH = 20
"""Answers, by each way, that show who answers."""
_MOST_EVENTS = 1000
_SHOWN_SAMPLE = "sneaker.png"
_AT_REST = "idle"
_WIDEST = 150
"""Characters of a line; `inferctl history` shows all of it."""


class StoryBroken(CommandError):
    """The appliance did not do what the story says it does."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What every chapter works with.

    Attributes:
        model_folder: of the demo model, with its labels and samples.
        over: set when the daemon was stopped.
    """

    client: Client
    broker: Broker
    device: str
    model_folder: Path
    fleet: Fleet
    updater: Updater
    over: threading.Event

    def requester(self) -> MqttRequester:
        """Somebody who asks by MQTT."""
        return MqttRequester(HOST, self.broker.port, self.device, self.over)

    def samples(self) -> list[tuple[Path, str]]:
        """Every sample picture with the label it should get: `ankle-boot.png` is an ankle boot."""
        folder = self.model_folder / "samples"
        labels = labels_of(FIRST, self.model_folder)
        return [(folder / f"{label.replace(' ', '-')}.png", label) for label in labels]


@contextmanager
def run_updater(config: Path, updater: Updater, log: Path) -> Iterator[None]:
    """Run inferd-updater with a configuration until the block ends.

    Raises:
        CommandError: it does not start.
    """
    command = [sys.executable, "-P", "-m", "daemon.cli.updaterd", "--config", str(config)]
    with log.open("wb") as output:
        process = start(command, output=output, errors=output)
    with process:
        try:
            _wait_until_up(process, updater, log)
            yield
        finally:
            stop(process)


def _wait_until_up(process: subprocess.Popen[bytes], updater: Updater, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            updater.status()
        except Unreachable:
            time.sleep(_LOOK_EVERY_S)
        else:
            return
    said = log.read_text(errors="replace").strip()
    raise CommandError(f"inferd-updater does not start: {said}")


def take_over(stage: Stage) -> None:
    """A good version takes over while clients ask, and no request is lost."""
    before = _newest(stage)
    with _clients(stage) as load:
        load.wait_for(FIRST, _ENOUGH, timeout_s=_UPDATE_S)
        _ship(stage, GOOD)
        _follow(stage, GOOD, before)
        load.wait_for(GOOD, _ENOUGH, timeout_s=_UPDATE_S)
    _expect(_current(stage) == GOOD, f"version {GOOD} is not current")
    _tell_counts(load)
    _expect(not load.lost, f"{load.lost} requests were lost: {load.problems[:1]}")
    _expect(not load.wrong, f"{load.wrong} answers were wrong")
    answer = _ask(stage, _SHOWN_SAMPLE)
    label = answer["classification"][0]["label"]
    _expect(label == NEW_WORD, f"{_SHOWN_SAMPLE} is called {label}")
    print(f"   {_SHOWN_SAMPLE} was a {OLD_WORD}, and is a {label} now: version {answer['version']}")


def turn_back(stage: Stage) -> None:
    """A version that fails on real pictures is turned back from, and put in quarantine."""
    before = _newest(stage)
    with _clients(stage) as load:
        _ship(stage, POISONED)
        events = _follow(stage, POISONED, before)
        load.wait_for(GOOD, _ENOUGH, timeout_s=_UPDATE_S)
    served = [event for event in events if event.get("state") == "probation"]
    _expect(bool(served), f"version {POISONED} never served")
    _tell_counts(load)
    _expect_out(stage, POISONED)
    _expect(not load.lost, f"{load.lost} requests were lost: {load.problems[:1]}")
    answer = _ask(stage, "dress.png")
    label = answer["classification"][0]["label"]
    _expect(label == "dress", f"dress.png is called {label}")
    print(f"   dress.png is a {label} again: version {answer['version']}")


def refuse(stage: Stage) -> None:
    """A version that does not know its health samples never answers anybody."""
    before = _newest(stage)
    with _clients(stage) as load:
        _ship(stage, MIXED_UP)
        events = _follow(stage, MIXED_UP, before)
        load.wait_for(GOOD, _ENOUGH, timeout_s=_UPDATE_S)
    _expect(all(event.get("state") != "trying" for event in events), "it was tried")
    _tell_counts(load)
    _expect_out(stage, MIXED_UP)
    _expect(not load.lost, f"{load.lost} requests were lost: {load.problems[:1]}")
    _expect(not load.wrong, f"{load.wrong} answers were wrong")
    _expect(load.versions == {GOOD}, f"versions {sorted(load.versions)} answered")


def look_back(stage: Stage) -> None:
    """The history tells all of it, and is what was written."""
    document = stage.updater.history(limit=_MOST_EVENTS)
    print(_indented(describe_history(document["events"])))
    print(f"\n{_indented(describe_chain(document['chain']))}")
    _expect(not document["chain"]["broken"], "the history is broken")
    print(_indented(describe_quarantine(stage.updater.quarantine()["bundles"])))


def advice(url: str) -> str:
    """What one can try while the demo stays up."""
    verbs = (
        "update",
        "history --verify",
        "quarantine list",
        "quarantine clear --all",
        "update --now",  # which tries version 4 again
    )
    return "\n".join(
        f"   {shlex.join(['inferctl', '--url', url, *verb.split()])}" for verb in verbs
    )


def _clients(stage: Stage) -> Load:
    versions = (FIRST, GOOD, POISONED, MIXED_UP)
    labels = {version: labels_of(version, stage.model_folder) for version in versions}
    questions = [
        Question(picture.read_bytes(), {version: labels[version][row] for version in versions})
        for row, (picture, _) in enumerate(stage.samples())
    ]
    requester = stage.requester()
    return Load(
        questions,
        lambda picture: _predict(stage, picture),
        requester,
        lambda picture: requester.predict(MODEL, picture),
        stage.over,
    )


def _predict(stage: Stage, picture: bytes) -> dict[str, Any]:
    path = model_path(MODEL, verb="predict")
    answer: dict[str, Any] = stage.client.post(path, picture, "image/png")
    return answer


def _ask(stage: Stage, name: str) -> dict[str, Any]:
    return _predict(stage, (stage.model_folder / "samples" / name).read_bytes())


def _ship(stage: Stage, version: int) -> None:
    shipment = stage.fleet.ship(version)
    what = f"{shipment.length / 1000:.0f} kB, sha256 {shipment.sha256[:12]}"
    print(f"   version {version} is signed and assigned to every device: {what}", flush=True)
    stage.updater.refresh()


def _follow(stage: Stage, version: int, after: int) -> list[Mapping[str, Any]]:
    """Show what happens to a version until it is at rest; gives its events.

    Args:
        after: number of the last event before it.
    """
    began, shipped_at = time.monotonic(), time.time()
    seen: list[Mapping[str, Any]] = []
    while time.monotonic() < began + _UPDATE_S:
        for line in stage.updater.history(limit=_MOST_EVENTS)["events"]:
            event = line["event"]
            if line["sequence"] <= after or event.get("version") != version:
                continue
            after = line["sequence"]
            seen.append(event)
            _show_event(line, shipped_at)
            if event.get("state") == _AT_REST:
                return seen
        if stage.over.wait(_LOOK_EVERY_S):
            raise StoryBroken("the daemon was stopped in the middle of the story")
    problem = stage.updater.status()["problem"]
    raise StoryBroken(f"version {version} is not at rest after {_UPDATE_S:.0f} s: {problem}")


def _show_event(line: Mapping[str, Any], shipped_at: float) -> None:
    text = f"{line['time'] - shipped_at:6.2f} s  {describe_step(line['event'])}"
    print(f"   {shortened(text, _WIDEST)}", flush=True)


def _newest(stage: Stage) -> int:
    """Number of the last event."""
    return int(stage.updater.history(limit=1)["chain"]["last"])


def _current(stage: Stage) -> int:
    models = stage.updater.status()["models"]
    return next((each["current_version"] for each in models if each["model"] == MODEL), 0)


def _tell_counts(load: Load) -> None:
    versions = sorted(load.versions)
    rows = [
        (
            "   by",
            name,
            f"{tally.sent} requests",
            f"{len(tally.problems)} lost",
            *(_describe_version(tally, version) for version in versions),
        )
        for name, tally in (("HTTP", load.http), ("MQTT", load.mqtt))
    ]
    print(table(rows), flush=True)


def _describe_version(tally: Tally, version: int) -> str:
    wrong = tally.wrong[version]
    note = f", {wrong} wrong" if wrong else ""
    return f"version {version}: {tally.answered[version]}{note}"


def _expect_out(stage: Stage, version: int) -> None:
    cases = [case["version"] for case in stage.updater.quarantine()["bundles"]]
    _expect(version in cases, f"version {version} is not in quarantine")
    _expect(_current(stage) == GOOD, f"version {GOOD} is not current")
    print(f"   version {version} is in quarantine, version {GOOD} serves")


def _expect(holds: bool, otherwise: str) -> None:  # noqa: FBT001 (as assert)
    if not holds:
        raise StoryBroken(otherwise)


def _indented(text: str) -> str:
    return "\n".join(f"   {shortened(line, _WIDEST)}" for line in text.splitlines())
