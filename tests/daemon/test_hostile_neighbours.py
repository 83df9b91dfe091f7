"""Models that kill, hang or cannot be read are served next to a good one, which never notices."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading

import psutil
import pytest
import requests
from support.daemon import daemon_process, free_port, wait_settled

FLIPPED = 24
"""Damaged copies: about one in a thousand gets past the verifier and crashes."""


class GoodClient(threading.Thread):
    """Asks the good model one time after the other, and keeps whatever was not a right answer."""

    def __init__(self, url, picture):
        super().__init__(daemon=True)
        self.answered = 0
        self.missed: list[str] = []
        self._url, self._picture = f"{url}/api/models/fashion/predict", picture
        self._done = threading.Event()
        self._more = threading.Condition()

    def run(self):
        with requests.Session() as session:
            while not self._done.is_set():
                answer = session.post(self._url, data=self._picture, timeout=30)
                right = answer.status_code == 200 and (
                    answer.json()["classification"][0]["label"] == "sneaker"
                )
                if not right:
                    self.missed.append(answer.text)
                with self._more:
                    self.answered += 1
                    self._more.notify_all()

    def wait_answers(self, count):
        with self._more:
            wanted = self.answered + count
            assert self._more.wait_for(lambda: self.answered >= wanted, timeout=30)

    def finish(self):
        self._done.set()
        self.join(30)
        return self.missed


@pytest.fixture
def picture(demo_model):
    return (demo_model / "samples" / "sneaker.png").read_bytes()


@pytest.fixture
def damaged(tmp_path, demo_model):
    """The demo model cut short, and with a few bytes changed, as files of their own."""
    good = (demo_model / "model.tflite").read_bytes()
    chance = random.Random(20261122)
    folder = tmp_path / "damaged"
    folder.mkdir()
    for number in range(FLIPPED):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (folder / f"flipped-{number}.tflite").write_bytes(data)
    (folder / "truncated.tflite").write_bytes(good[: len(good) // 2])
    (folder / "empty.tflite").write_bytes(b"")
    (folder / "text.tflite").write_bytes(b"this is no model\n" * 100)
    return sorted(folder.iterdir())


def add_model(folder, source):
    beside = folder / f".{source.name}.tmp"
    shutil.copy(source, beside)
    beside.rename(folder / source.name)


def workers_of(daemon):
    """Processes below the daemon, but for the fork server: its direct child."""
    forkservers = psutil.Process(daemon.process.pid).children()
    return [worker for server in forkservers for worker in server.children()]


@pytest.fixture
def served(tmp_path, demo_model):
    """A daemon with the good model and an empty folder for others."""
    folder = tmp_path / "others"
    folder.mkdir()
    models = {"folders": [str(folder)], "serve": [{"path": demo_model}], "poll_interval_s": 0.1}
    with daemon_process([], root=tmp_path, port=free_port(), models=models) as daemon:
        wait_settled(daemon.url)
        yield daemon, folder


def states(url):
    listed = requests.get(f"{url}/api/models", timeout=30).json()["models"]
    return {model["name"]: model["versions"][0] for model in listed}


def add_all(daemon, folder, sources):
    """Put models into a folder that is served, and wait until each is ready or refused."""
    for source in sources:
        add_model(folder, source)
    wanted = {source.stem for source in sources} | {"fashion"}
    return wait_settled(daemon.url, models=wanted)


def test_damaged_models_are_refused_with_a_reason_and_the_good_one_answers_on(
    served, damaged, picture
):
    daemon, folder = served
    client = GoodClient(daemon.url, picture)
    client.start()

    add_all(daemon, folder, damaged)
    client.wait_answers(20)

    assert client.finish() == []
    listed = states(daemon.url)
    refused = {name: v["reason"] for name, v in listed.items() if v["state"] == "UNAVAILABLE"}
    assert {"truncated", "empty", "text"} <= refused.keys()
    assert all(refused.values())
    ready = requests.get(f"{daemon.url}/readyz", timeout=30).json()
    assert ready["reasons"].keys() == refused.keys()


@pytest.mark.shared
def test_models_that_abort_or_need_what_is_not_here_leave_nothing_behind(
    served, shared_models, picture
):
    daemon, folder = served
    errors = shared_models / "models" / "errors"
    hostile = [path for path in errors.iterdir() if "hang" not in path.stem]
    hostile.append(shared_models / "models" / "mobilenet_v1_0.25_128_quant_edgetpu.tflite")
    client = GoodClient(daemon.url, picture)
    client.start()

    add_all(daemon, folder, hostile)
    client.wait_answers(20)

    assert client.finish() == []
    listed = states(daemon.url)
    assert {v["state"] for name, v in listed.items() if name != "fashion"} == {"UNAVAILABLE"}
    assert "SIGABRT" in listed["blockwise_quantized_abort"]["reason"]
    assert len(workers_of(daemon)) == 1


@pytest.mark.shared
def test_a_model_that_hangs_is_stopped_at_its_limit_while_the_good_one_answers(
    served, shared_models, picture
):
    daemon, folder = served
    hanging = folder / "hanging"
    beside = folder / ".hanging.tmp"
    beside.mkdir()
    shutil.copy(
        shared_models / "models" / "errors" / "nested_while_hang_on_zero.tflite",
        beside / "model.tflite",
    )
    (beside / "model.toml").write_text("[limits]\ntimeout_ms = 300\n")
    beside.rename(hanging)
    wait_settled(daemon.url, models={"hanging", "fashion"})
    client = GoodClient(daemon.url, picture)
    client.start()
    predict = f"{daemon.url}/v1/models/hanging:predict"

    hung = [requests.post(predict, json={"inputs": 0.0}, timeout=30) for _ in range(3)]
    good = requests.post(predict, json={"inputs": 1.0}, timeout=30)
    client.wait_answers(20)

    assert client.finish() == []
    assert [answer.status_code for answer in hung] == [504] * 3
    assert good.json() == {"outputs": 2.0}
    assert len(workers_of(daemon)) == 2


@pytest.mark.shared
def test_a_client_that_hangs_a_model_and_leaves_does_not_hold_it_for_its_whole_limit(
    served, shared_models
):
    daemon, folder = served
    errors = shared_models / "models" / "errors"
    add_all(daemon, folder, [errors / "nested_while_hang_on_zero.tflite"])
    predict = f"{daemon.url}/v1/models/nested_while_hang_on_zero:predict"

    left = requests.post(
        predict, json={"inputs": 0.0}, headers={"Inferd-Timeout-Ms": "100"}, timeout=30
    )
    behind = requests.post(
        predict, json={"inputs": 1.0}, headers={"Inferd-Timeout-Ms": "20000"}, timeout=30
    )

    assert left.status_code == 504
    assert behind.json() == {"outputs": 2.0}


def test_a_daemon_that_is_killed_leaves_no_process(served):
    daemon, _folder = served
    below = psutil.Process(daemon.process.pid).children(recursive=True)
    assert below

    daemon.process.send_signal(signal.SIGKILL)
    _gone, alive = psutil.wait_procs(below, timeout=10)

    assert alive == []


def test_a_daemon_that_is_terminated_leaves_nothing_and_exits_zero(served):
    daemon, _folder = served
    below = psutil.Process(daemon.process.pid).children(recursive=True)

    daemon.process.send_signal(signal.SIGTERM)

    assert daemon.process.wait(30) == 0
    assert [process for process in below if process.is_running()] == []
    assert not os.path.lexists(daemon.root / "run" / "inferd" / "inferd.sock")
