"""`demo`: a story in chapters, told with a real daemon, a real broker and a real model.

The daemon runs in this process; the story runs in a thread beside it and knows no more of the
daemon than any client does. A chapter is a function that gets the `Stage` and raises when the
appliance does not do what the chapter says. A new chapter is one function and one line in CHAPTERS.
"""

from __future__ import annotations

import asyncio
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli.broker import HOST, Broker, run_broker
from daemon.cli.client import Client, model_path, parse_address
from daemon.cli.inprocess import build_config, run_daemon
from daemon.cli.mqttclient import MqttRequester
from daemon.cli.outcome import CommandError, ExitCode
from daemon.cli.scratch import scratch_folder
from daemon.cli.serve import describe_models
from daemon.cli.text import milliseconds, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from daemon.app import Running

MODEL = "fashion"
DEVICE = "demo"
USUAL_PORT = 8080
# In a clone, then as installed.
MODEL_FOLDERS = (
    Path(__file__).resolve().parents[2] / "examples" / "demo" / MODEL,
    Path("/usr/share/inferd/demo") / MODEL,
)
_SHOWN_SAMPLE = "sneaker.png"
_ANSWER_TOPIC = "answers/me"


class StoryBroken(CommandError):
    """The appliance did not do what the story says it does."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What every chapter works with.

    Attributes:
        model_folder: of the demo model, with its labels and samples.
    """

    client: Client
    broker: Broker
    model_folder: Path

    def samples(self) -> list[tuple[Path, str]]:
        """Every sample picture with the label it should get: `ankle-boot.png` is an ankle boot."""
        labels = (self.model_folder / "labels.txt").read_text().splitlines()
        folder = self.model_folder / "samples"
        return [(folder / f"{label.replace(' ', '-')}.png", label) for label in labels]


@dataclass(frozen=True, slots=True)
class Chapter:
    """One thing the appliance can do."""

    title: str
    tell: Callable[[Stage], None]


def demo(arguments: argparse.Namespace) -> ExitCode:
    """Tell the story; then stay up until Ctrl-C, or with --once end."""
    with scratch_folder() as folder:
        broker_folder, root = folder / "broker", folder / "root"
        broker_folder.mkdir()
        with run_broker(broker_folder) as broker:
            play(broker, root, once=arguments.once)
    return ExitCode.DONE


def play(broker: Broker, root: Path, *, once: bool) -> None:
    """Run a daemon below `root`, connected to `broker`, and tell the story.

    Raises:
        CommandError: something did not go as it should.
    """
    model_folder = find_model_folder()
    config = build_config(
        root,
        [model_folder],
        listen=f"{HOST}:{0 if once or not _is_free(USUAL_PORT) else USUAL_PORT}",
        mqtt_url=broker.url,
        allow_anonymous=False,
        log_level="warning",
        device_id=DEVICE,
    )
    started_at = time.monotonic()
    stories: list[asyncio.Task[None]] = []

    def on_ready(running: Running) -> None:
        print(f"broker   {broker.program} at {broker.url}")
        ready_s = time.monotonic() - started_at
        print(f"daemon   inferd at {running.addresses[0]}, ready after {ready_s:.2f} s")
        print(f"models   {describe_models(running.service.models())}")
        stage = Stage(Client(parse_address(running.addresses[0])), broker, model_folder)
        story = asyncio.create_task(asyncio.to_thread(tell, stage), name="story")
        story.add_done_callback(lambda done: _after(done, running, once=once))
        stories.append(story)

    run_daemon(config, on_ready)
    if not stories:
        raise StoryBroken("the daemon was stopped before it was ready")
    if stories[0].cancelled():
        raise StoryBroken("the daemon was stopped in the middle of the story")
    stories[0].result()


def _after(story: asyncio.Task[None], running: Running, *, once: bool) -> None:
    if once or story.cancelled() or story.exception() is not None:
        running.stop()
        return
    print(f"\nThe daemon stays up at {running.addresses[0]}; Ctrl-C ends it.", flush=True)


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
        chapter.tell(stage)
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
    with MqttRequester(HOST, stage.broker.port, DEVICE) as requester:
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
