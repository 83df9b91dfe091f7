"""A model that requires a device waits for it, says so, and serves nowhere else."""

from __future__ import annotations

import json
import struct
import time
from typing import TYPE_CHECKING

import pytest
import requests
from support import tflite_builder as models
from support.daemon_thread import daemon_in_thread
from support.eventually import eventually_true

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.standin import Standin

X = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


class Box:
    def __init__(self, url: str, node: Path) -> None:
        self._url = url
        self.node = node

    def version(self) -> dict[str, object]:
        document = requests.get(f"{self._url}/api/models/scale", timeout=30).json()
        (version,) = document["versions"]
        return version

    def ask(self) -> requests.Response:
        return requests.post(f"{self._url}/api/models/scale/predict", json=X, timeout=30)

    def ask_as_kserve(self, session: requests.Session) -> requests.Response:
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "x",
                        "datatype": "FP32",
                        "shape": [1, 4],
                        "parameters": {"binary_data_size": 16},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        return session.post(
            f"{self._url}/v2/models/scale/infer",
            data=head + struct.pack("<4f", 1, 2, 3, 4),
            headers={"Inference-Header-Content-Length": str(len(head))},
            timeout=30,
        )

    def ask_as_tfserving(self) -> requests.Response:
        url = f"{self._url}/v1/models/scale:predict"
        return requests.post(url, json={"instances": [[1, 2, 3, 4]]}, timeout=30)

    def readiness(self) -> requests.Response:
        return requests.get(f"{self._url}/readyz", timeout=30)


@pytest.fixture
def box(tmp_path: Path, standin: Standin) -> Iterator[Box]:
    node = tmp_path / "node"
    folder = tmp_path / "scale"
    folder.mkdir()
    (folder / "model.tflite").write_bytes(models.scale())
    (folder / "model.toml").write_text(
        '[placement]\naccelerators = ["external"]\nrequired = true\n', encoding="utf-8"
    )
    external = {"name": "dsp", "path": str(standin.library), "node": str(node)}
    tables = {"accelerators": {"external": [external]}, "models": {"poll_interval_s": 0.2}}
    with daemon_in_thread([folder], **tables) as daemon:
        yield Box(daemon.url, node)


def test_it_is_unavailable_with_the_reason_until_the_device_comes(box):
    version = box.version()
    assert version["state"] == "UNAVAILABLE"
    assert "placement.required asks for external" in version["reason"]
    assert str(box.node) in version["reason"]
    assert box.ask().status_code == 503
    assert box.readiness().status_code == 503
    assert str(box.node) in box.readiness().text

    box.node.touch()

    eventually_true(lambda: box.version()["state"] == "READY")
    answer = box.ask().json()
    assert (answer["device"], answer["degraded"]) == ("external:dsp", False)


def test_waiting_looks_the_same_all_the_time(box):
    """It is tried again and again, which is nobody's business while nothing comes of it."""
    states = set()
    end = time.monotonic() + 8  # it is tried every five seconds
    while time.monotonic() < end:
        version = box.version()
        states.add((version["state"], version["reason"]))
    assert len(states) == 1


def test_when_the_device_goes_it_is_unavailable_and_then_back(box):
    box.node.touch()
    eventually_true(lambda: box.version()["state"] == "READY")
    box.node.unlink()

    eventually_true(lambda: box.version()["state"] == "UNAVAILABLE")
    refused = box.ask()

    assert refused.status_code == 503
    assert "external:dsp" in refused.text
    box.node.touch()
    eventually_true(lambda: box.version()["state"] == "READY")
    assert box.ask().json()["device"] == "external:dsp"


def test_answers_of_every_protocol_name_what_made_them(box):
    box.node.touch()
    eventually_true(lambda: box.version()["state"] == "READY")
    with requests.Session() as session:
        # The first goes the ordinary way, the others the express lane.
        answers = [box.ask_as_kserve(session) for _ in range(3)]
    answers.append(box.ask_as_tfserving())

    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["Inferd-Device"] == "external:dsp"
        assert answer.headers["Inferd-Requested-Device"] == "external"
        assert answer.headers["Inferd-Degraded"] == "false"
