"""`demo`: a story in chapters, told with a real daemon, a real broker and a real model.

The daemon runs in this process; the updater, the broker and the fleet's web server run beside it.
The story runs in a thread and knows no more of them than any client does. A chapter is a function
that gets the `Stage` and raises when the appliance does not do what the chapter says. A new chapter
is one function and one line in CHAPTERS.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import demoupdates
from daemon.cli.broker import HOST, Broker, run_broker
from daemon.cli.client import Client, model_path, parse_address
from daemon.cli.demofleet import MODEL, Fleet, web_server
from daemon.cli.demoupdates import Stage, StoryBroken, run_updater
from daemon.cli.inprocess import build_config, run_daemon
from daemon.cli.outcome import CommandError, ExitCode, Unreachable
from daemon.cli.scratch import scratch_folder
from daemon.cli.serve import describe_models
from daemon.cli.text import milliseconds, table
from daemon.cli.updaterclient import SOCKET_NAME, Updater

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from daemon.app import Running

DEVICE = "demo"
USUAL_PORT = 8080
# In a clone, then as installed.
MODEL_FOLDERS = (
    Path(__file__).resolve().parents[2] / "examples" / "demo" / MODEL,
    Path("/usr/share/inferd/demo") / MODEL,
)
_SHOWN_SAMPLE = "sneaker.png"
_ANSWER_TOPIC = "answers/me"
_MODELS = Path("var/lib/inferd/models")
_LONGEST_SOCKET_PATH = 107
"""Bytes. Source: unix(7), sun_path."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """One thing the appliance can do."""

    title: str
    tell: Callable[[Stage], None]


def demo(arguments: argparse.Namespace) -> ExitCode:
    """Tell the story; then stay up until Ctrl-C, or with --once end."""
    with scratch_folder() as folder:
        broker_folder = folder / "broker"
        broker_folder.mkdir()
        with run_broker(broker_folder) as broker:
            play(broker, folder, once=arguments.once)
    return ExitCode.DONE


def play(broker: Broker, folder: Path, *, once: bool) -> None:
    """Run a fleet, an updater and a daemon below `folder`, and tell the story.

    Raises:
        CommandError: something did not go as it should.
    """
    model_folder = find_model_folder()
    fleet = Fleet(folder / "fleet", model_folder)
    root = folder / "root"
    _set_up(root, model_folder, fleet.begin())
    with _run_folder(root) as run, web_server(fleet.path, folder / "web.log") as url:
        updater = Updater(run / SOCKET_NAME)
        config = folder / "inferd.toml"
        config.write_text(_updater_config(root, run, url))
        with run_updater(config, updater, folder / "updater.log"):
            _run(broker, root, run, _Cast(model_folder, fleet, updater, url), once=once)


@dataclass(frozen=True, slots=True)
class _Cast:
    """Who takes part beside the daemon.

    Attributes:
        url: where the fleet's repository is served.
    """

    model_folder: Path
    fleet: Fleet
    updater: Updater
    url: str


def _set_up(root: Path, model_folder: Path, anchor: bytes) -> None:
    """A box as it leaves the workshop: version 1 on its disk, and whom it is to trust."""
    shutil.copytree(model_folder, root / _MODELS / MODEL)
    anchor_file = root / "etc" / "inferd" / "root.json"
    anchor_file.parent.mkdir(parents=True)
    anchor_file.write_bytes(anchor)


@contextmanager
def _run_folder(root: Path) -> Iterator[Path]:
    """Where the sockets go: below `root`, unless that makes their paths too long."""
    below = root / "run" / "inferd"
    if len(bytes(below / SOCKET_NAME)) <= _LONGEST_SOCKET_PATH:
        below.mkdir(parents=True)
        yield below
        return
    with scratch_folder(Path("/tmp")) as folder:  # noqa: S108 (a folder of our own in it)
        yield folder


def _updater_config(root: Path, run: Path, url: str) -> str:
    """What the updater is told; what is JSON here is TOML as well."""
    return (
        f"[device]\nid = {json.dumps(DEVICE)}\n"
        f"[paths]\nroot = {json.dumps(str(root))}\nrun = {json.dumps(str(run))}\n"
        f"[updates]\nsource = {json.dumps(url)}\n"
    )


def _run(broker: Broker, root: Path, run: Path, cast: _Cast, *, once: bool) -> None:
    config = build_config(
        root,
        [],
        listen=f"{HOST}:{0 if once or not _is_free(USUAL_PORT) else USUAL_PORT}",
        mqtt_url=broker.url,
        allow_anonymous=False,
        log_level="error",  # what goes wrong on purpose is told by the story
        device_id=DEVICE,
        more={
            "paths": {"run": str(run)},
            "http": {"unix_socket": True},
            "models": {"folders": [str(_MODELS)], "serve": []},
        },
    )
    started_at = time.monotonic()
    stories: list[asyncio.Task[None]] = []
    over = threading.Event()

    def on_ready(running: Running) -> None:
        print(f"broker   {broker.program} at {broker.url}")
        ready_s = time.monotonic() - started_at
        print(f"daemon   inferd at {running.addresses[0]}, ready after {ready_s:.2f} s")
        print(f"updater  inferd-updater, looks for updates at {cast.url}")
        print(f"models   {describe_models(running.service.models())}", flush=True)
        client = Client(parse_address(running.addresses[0]))
        stage = Stage(client, broker, DEVICE, cast.model_folder, cast.fleet, cast.updater, over)
        story = asyncio.create_task(asyncio.to_thread(tell, stage), name="story")
        story.add_done_callback(lambda done: _after(done, running, run, over, once=once))
        stories.append(story)

    run_daemon(config, on_ready)
    if not stories:
        raise StoryBroken("the daemon was stopped before it was ready")
    if stories[0].cancelled():
        raise StoryBroken("the daemon was stopped in the middle of the story")
    stories[0].result()


def _after(
    story: asyncio.Task[None], running: Running, run: Path, over: threading.Event, *, once: bool
) -> None:
    over.set()
    if once or story.cancelled() or story.exception() is not None:
        running.stop()
        return
    print(f"\nThe daemon stays up at {running.addresses[0]}, and so does the updater. Try:")
    print(demoupdates.advice(f"unix:{run / 'inferd.sock'}"))
    print("Ctrl-C ends it.", flush=True)


def find_model_folder() -> Path:
    """The demo model's folder.

    Raises:
        CommandError: it is not on this machine.
    """
    for folder in MODEL_FOLDERS:
        if (folder / "model.tflite").is_file():
            return folder
    places = " or ".join(str(folder) for folder in MODEL_FOLDERS)
    raise CommandError(f"the demo model is not in {places}")


def tell(stage: Stage) -> None:
    """Tell every chapter, in order.

    Raises:
        CommandError: the appliance did not do what a chapter says.
    """
    for number, chapter in enumerate(CHAPTERS, 1):
        print(f"\n{number}. {chapter.title}")
        try:
            chapter.tell(stage)
        except Unreachable as error:
            raise StoryBroken(f"somebody has left in the middle of the story: {error}") from error
    print(f"\nAll {len(CHAPTERS)} chapters went as they should.", flush=True)


def predict_over_http(stage: Stage) -> None:
    """Send every sample picture as it lies on disk."""
    path = model_path(MODEL, verb="predict")

    def ask(picture: bytes) -> dict[str, Any]:
        answer: dict[str, Any] = stage.client.post(path, picture, "image/png")
        return answer

    _ask_about_samples(stage, ask)
    sample = stage.model_folder / "samples" / _SHOWN_SAMPLE
    print(f"   {shlex.join(['curl', '--data-binary', f'@{sample}', stage.client.url + path])}")


def predict_over_mqtt(stage: Stage) -> None:
    """Publish the same pictures and take the answers from the response topic."""
    with stage.requester() as requester:
        requester.wait_until_online()
        _ask_about_samples(stage, lambda picture: requester.predict(MODEL, picture))
        topic = requester.request_topic(MODEL)
    sample = stage.model_folder / "samples" / _SHOWN_SAMPLE
    port = str(stage.broker.port)
    # Not mosquitto_rr: Debian 12's (2.0.11) sends an empty message where a file is given.
    listen = ["mosquitto_sub", "-p", port, "-t", _ANSWER_TOPIC, "-C", "1"]
    ask = ["mosquitto_pub", "-V", "5", "-p", port, "-t", topic, "-f", str(sample)]
    ask += ["-D", "publish", "response-topic", _ANSWER_TOPIC]
    print(f"   {shlex.join(listen)} &\n   {shlex.join(ask)}")


CHAPTERS = (
    Chapter("Pictures in by HTTP, names out", predict_over_http),
    Chapter("The same pictures by MQTT", predict_over_mqtt),
    Chapter("A signed version 2 arrives, and takes over while clients ask", demoupdates.take_over),
    Chapter(
        "Version 3 knows its health samples, but fails on real pictures", demoupdates.turn_back
    ),
    Chapter("Version 4 does not know its health samples", demoupdates.refuse),
    Chapter("What happened, as the updater has written it down", demoupdates.look_back),
)


def _ask_about_samples(stage: Stage, ask: Callable[[bytes], dict[str, Any]]) -> None:
    rows, wrong = [], []
    for picture, label in stage.samples():
        answer = ask(picture.read_bytes())
        best = answer["classification"][0]
        invoke = milliseconds(answer["timing_ms"]["total"])
        rows.append((" ", picture.name, best["label"], f"{best['score']:.3f}", invoke))
        if best["label"] != label:
            wrong.append(picture.name)
    print(table(rows))
    if wrong:
        raise StoryBroken(f"answered wrongly: {', '.join(wrong)}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the daemon does: a connection of an earlier run that is still closing does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
