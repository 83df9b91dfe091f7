"""A box whose accelerator comes and goes, clients that ask it, and eyes on what it tells.

The device is the stand-in delegate, set to answer a tenth too much, which the models tolerate: so
each answer shows by itself what made it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import queue
import random
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families
from support import tflite_builder
from support.mqtt_client import TestClient

if TYPE_CHECKING:
    from pathlib import Path

    from support.standin import Standin

DEVICE = "external:sim"
FACTORS = {"double": 2.0, "triple": 3.0}
"""Each model gives this times its input."""

_DEVICE_FACTOR = 1.1
_MODEL = f"""
[placement]
accelerators = ["{DEVICE}"]
tolerance = 0.2
"""


@dataclass(frozen=True)
class Node:
    """What is there while the device is."""

    path: Path

    def plug_in(self) -> None:
        self.path.touch()

    def pull_out(self) -> None:
        self.path.unlink()


def write_models(folder: Path) -> list[Path]:
    """The models' folders: one multiplication each, on the device if it is there."""
    for name, factor in FACTORS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "model.tflite").write_bytes(tflite_builder.scale(factor))
        (folder / name / "model.toml").write_text(_MODEL, encoding="utf-8")
    return [folder / name for name in FACTORS]


def device_tables(standin: Standin, node: Node, lock: Path) -> dict[str, Any]:
    """`[accelerators]` with the device: one process at a time may have it open."""
    options = {"node": str(node.path), "lock": str(lock), "fail": "wrong", "delay_us": 1000}
    external = {
        "name": "sim",
        "path": str(standin.library),
        "options": options,
        "node": str(node.path),
        "exclusive": True,
    }
    return {"external": [external]}


class Asker(threading.Thread, ABC):
    """Asks the models in turn, one question after the other, until `finish`.

    Attributes:
        answers: right ones so far, by model and device.
        wrong, failed: what was not a right answer, in words.
        longest_s: that an answer took.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.answers: dict[tuple[str, str], int] = {}
        self.wrong: list[str] = []
        self.failed: list[str] = []
        self.longest_s = 0.0
        self._is_over = threading.Event()

    @abstractmethod
    def ask(self, model: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer's document; raises OSError or LookupError when there is none."""

    def run(self) -> None:
        chance = random.Random(self.name)
        for model in itertools.cycle(FACTORS):
            if self._is_over.is_set():
                return
            x = [float(chance.randint(1, 1000)) for _ in range(4)]
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": x}]}
            begun = time.monotonic()
            try:
                answer = self.ask(model, body)
            except (OSError, LookupError) as exc:
                self.failed.append(f"{model}: {exc!r}")
                continue
            self.longest_s = max(self.longest_s, time.monotonic() - begun)
            self._judge(model, x, answer)

    def finish(self) -> None:
        """Ask no more, and wait for the last answer."""
        self._is_over.set()
        self.join(60)
        assert not self.is_alive()

    def _judge(self, model: str, x: list[float], answer: dict[str, Any]) -> None:
        if "outputs" not in answer:
            self.failed.append(f"{model}: {answer}")
            return
        device = answer["device"]
        factor = FACTORS[model] * (_DEVICE_FACTOR if device == DEVICE else 1.0)
        got = answer["outputs"][0]["data"]
        right = all(
            math.isclose(y, factor * each, rel_tol=1e-5) for y, each in zip(got, x, strict=True)
        )
        told = (device, answer["requested_device"], answer["degraded"])
        truthful = told in {(DEVICE, DEVICE, False), ("cpu", DEVICE, True)}
        if right and truthful and answer["model"] == model:
            self.answers[model, device] = self.answers.get((model, device), 0) + 1
        else:
            self.wrong.append(f"{x} gave {answer}")


class HttpAsker(Asker):
    """By HTTP, on one connection."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name)
        self._url = url
        self._session = requests.Session()

    def ask(self, model: str, body: dict[str, Any]) -> dict[str, Any]:
        url = f"{self._url}/api/models/{model}/predict"
        answer: dict[str, Any] = self._session.post(url, json=body, timeout=60).json()
        return answer

    def finish(self) -> None:
        super().finish()
        self._session.close()


class MqttAsker(Asker):
    """By MQTT 5, each question with its own correlation data."""

    def __init__(self, name: str, port: int) -> None:
        super().__init__(name)
        self._client = TestClient(port)
        self._topic = f"answers/{name}"
        self._client.subscribe(self._topic)
        self._count = 0

    def ask(self, model: str, body: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        number = str(self._count).encode()
        self._client.publish(
            f"inferd/box-1/models/{model}/predict",
            json.dumps(body).encode(),
            response_topic=self._topic,
            correlation=number,
            content_type="application/json",
        )
        try:
            received = self._client.next(60)
        except queue.Empty:
            raise LookupError("no answer") from None
        if received.correlation != number:
            raise LookupError(f"the answer to {received.correlation!r} instead of {number!r}")
        answer: dict[str, Any] = received.json
        return answer

    def finish(self) -> None:
        super().finish()
        self._client.close()


class Watcher:
    """What the box tells of its device, in metrics and in the MQTT state document."""

    def __init__(self, url: str, port: int) -> None:
        self._url = url
        self._client = TestClient(port)
        self._client.subscribe("inferd/box-1/state")
        self._state: dict[str, Any] = {}
        self._session = requests.Session()

    def close(self) -> None:
        self._client.close()
        self._session.close()

    def tells(self, *, is_here: bool) -> bool:
        """Whether both say that the device is (not) here; the models do not use it when not."""
        (metrics_here, metrics), (state_here, state) = self._metrics_say(), self._state_says()
        at_home = dict.fromkeys(FACTORS, ("cpu", True))
        return metrics_here == state_here == is_here and (is_here or metrics == state == at_home)

    def tells_of_use(self) -> bool:
        """Whether both say that the device is here and runs every model."""
        expected = (True, dict.fromkeys(FACTORS, (DEVICE, False)))
        return self._metrics_say() == expected == self._state_says()

    def losses(self) -> int:
        """How often the metrics say that the device was lost."""
        samples = self._samples("inferd_device_losses_total")
        return int(sum(value for labels, value in samples if labels["device"] == DEVICE))

    def _metrics_say(self) -> tuple[bool, dict[str, tuple[str, bool]]]:
        up = [v for labels, v in self._samples("inferd_device_up") if labels["device"] == DEVICE]
        models = {
            labels["model"]: (labels["device"], labels["degraded"] == "true")
            for labels, _ in self._samples("inferd_model_info")
        }
        return up == [1.0], models

    def _samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        text = self._session.get(f"{self._url}/metrics", timeout=30).text
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        ]

    def _state_says(self) -> tuple[bool, dict[str, tuple[str, bool]]]:
        with contextlib.suppress(queue.Empty):
            while True:
                self._state = self._client.next(0.001).json
        up = [each["up"] for each in self._state.get("devices", ()) if each["id"] == DEVICE]
        models = {
            model["name"]: (model["versions"][0]["device"], model["versions"][0]["degraded"])
            for model in self._state.get("models", ())
        }
        return up == [True], models


@dataclass(frozen=True)
class Possessions:
    """What a daemon has: names of its processes, and how much of everything itself.

    Threads and memory, of which it keeps some for next time, are not compared.
    """

    processes: tuple[str, ...]
    descriptors: int
    threads: int = field(compare=False)
    memory_bytes: int = field(compare=False)


def possessions(pid: int) -> Possessions:
    """Of the daemon with this process id, now."""
    daemon = psutil.Process(pid)
    names = []
    for child in daemon.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(child.name())
    return Possessions(
        processes=tuple(sorted(names)),
        descriptors=daemon.num_fds(),
        threads=daemon.num_threads(),
        memory_bytes=daemon.memory_full_info().uss,
    )


def kill_device_process(pid: int) -> None:
    """SIGKILL for the process that has the device open, if there is one."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "inferd-device":
                child.kill()


def chaos_seconds(default: float) -> float:
    """How long: as the environment says, or `default`."""
    return float(os.environ.get("INFERD_CHAOS_S", default))
