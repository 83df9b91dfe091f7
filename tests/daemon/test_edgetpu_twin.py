"""A file that is compiled for a device, without the device: its CPU model answers, or nobody does.

Real files of the shared set for the Edge TPU; a stand-in where a device must come and go.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import requests
from support import tflite_builder
from support.daemon import daemon_process, free_port, wait_settled
from support.daemon_thread import daemon_in_thread
from support.eventually import eventually_true

from accelerators import edgetpu
from accelerators.registry import HardwareSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"
COMPILED, TWIN = "edgetpu", "cpu_twin"  # their names in the shared set
TWICE = [2.0, 4.0, 6.0, 8.0]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def known(shared_models) -> dict[str, Any]:
    if any(device.id != "edgetpu" for device in edgetpu.find(HardwareSettings())):
        pytest.skip("an Edge TPU is connected to this machine")
    return dict(json.loads((shared_models / "expected.json").read_text()))


@pytest.fixture(scope="module")
def url(known, tmp_path_factory) -> Iterator[str]:
    """A daemon with the compiled file: alone, with its CPU model, and with one it may not use."""
    root = tmp_path_factory.mktemp("twins")
    wishes = 'accelerators = ["edgetpu"]\n'
    twin = 'cpu_model = "for-cpu.tflite"\n'
    tables = {
        "alone": wishes,
        "unnamed": wishes,  # what lies beside it is not taken unless it is named
        "twin": wishes + twin,
        "required": wishes + twin + "required = true\n",
        "cpu-only": twin,
        "missing": wishes + twin,
    }
    for name, text in tables.items():
        folder = root / "models" / name
        folder.mkdir(parents=True)
        (folder / "model.toml").write_text(f"[placement]\n{text}")
        shutil.copy(SHARED / known["models"][COMPILED]["file"], folder / "model.tflite")
        if name not in {"alone", "missing"}:
            shutil.copy(SHARED / known["models"][TWIN]["file"], folder / "for-cpu.tflite")
    folders = [root / "models" / name for name in tables]
    with daemon_process(folders, root=root, port=free_port()) as daemon:
        wait_settled(daemon.url)
        yield daemon.url


def version_of(url: str, model: str) -> dict[str, Any]:
    listed = requests.get(f"{url}/api/models/{model}", timeout=60).json()
    return dict(listed["versions"][0])


def ask(url: str, model: str, picture: str = "inputs/cat.bmp") -> requests.Response:
    body = (SHARED / picture).read_bytes()
    return requests.post(f"{url}/api/models/{model}/predict", data=body, timeout=60)


@pytest.mark.parametrize("model", ["alone", "unnamed"])
def test_without_its_cpu_model_nothing_answers_and_the_reason_says_what_to_do(url, model):
    version = version_of(url, model)

    assert version["state"] == "UNAVAILABLE"
    for words in ("no Edge TPU is connected", "compiled for the Edge TPU", "placement.cpu_model"):
        assert words in version["reason"]
    refused = ask(url, model)
    assert refused.status_code == 503
    assert version["reason"] in refused.json()["error"]


def test_the_refusal_takes_less_than_a_second(url):
    seconds = []
    for _ in range(5):  # the quickest counts: other work on the machine is not what is measured
        began = time.monotonic()
        refused = requests.post(f"{url}/api/models/alone/load", timeout=60)
        seconds.append(time.monotonic() - began)
        assert "no Edge TPU is connected" in refused.text

    assert min(seconds) < 1


@pytest.mark.parametrize("case", ["cpu_twin-cat", "cpu_twin-bird", "cpu_twin-parrot"])
def test_its_cpu_model_answers_and_every_answer_says_that_it_is_degraded(url, known, case):
    facts = next(each for each in known["cases"] if each["id"] == case)
    expected = facts["expected"]["top1"]

    answer = ask(url, "twin", facts["input"]["file"]).json()

    best = answer["classification"][0]
    assert (best["label"], best["index"]) == (expected["label"], expected["index"])
    tolerance = facts["expected"]["score_tolerance_same_input"]
    assert best["score"] == pytest.approx(expected["score"], abs=tolerance)
    origin = (answer["device"], answer["requested_device"], answer["degraded"])
    assert origin == ("cpu", "edgetpu", True)


def test_lists_and_metrics_say_that_it_is_degraded_and_why(url):
    version = version_of(url, "twin")

    assert (version["state"], version["device"]) == ("READY", "cpu")
    assert (version["requested_device"], version["degraded"]) == ("edgetpu", True)
    assert version["degraded_reason"] == "edgetpu: no Edge TPU is connected"
    verdicts = {trial["device"]: trial["verdict"] for trial in version["placement"]}
    assert verdicts == {"cpu": "agrees", "edgetpu": "absent"}
    info = 'inferd_model_info{degraded="true",device="cpu",model="twin",requested_device="edgetpu"'
    assert info in requests.get(f"{url}/metrics", timeout=60).text


def test_where_the_device_is_required_the_cpu_model_does_not_answer(url):
    reason = version_of(url, "required")["reason"]

    assert "placement.required asks for edgetpu" in reason
    assert "no Edge TPU is connected" in reason
    assert ask(url, "required").status_code == 503


def test_without_a_wish_for_the_device_the_cpu_model_is_all_that_runs(url):
    answer = ask(url, "cpu-only").json()

    origin = (answer["device"], answer["requested_device"], answer["degraded"])
    assert origin == ("cpu", "cpu", False)


def test_a_cpu_model_that_is_not_there_is_named(url):
    version = version_of(url, "missing")

    assert version["state"] == "UNAVAILABLE"
    assert "placement.cpu_model: " in version["reason"]
    assert "for-cpu.tflite cannot be read: No such file" in version["reason"]


# A device that comes and goes, and files whose answers tell which of them has answered.


@pytest.fixture
def serve(standin, tmp_path):
    """A daemon with a file for the stand-in and one for the CPU, as a context; and its device."""
    node = tmp_path / "dsp"

    def start(compiled: bytes, cpu_model: bytes):
        folder = tmp_path / "m"
        folder.mkdir()
        (folder / "model.tflite").write_bytes(compiled)
        (folder / "for-cpu.tflite").write_bytes(cpu_model)
        (folder / "model.toml").write_text(
            '[placement]\naccelerators = ["external:dsp"]\ncpu_model = "for-cpu.tflite"\n'
        )
        device = {
            "name": "dsp",
            "path": str(standin.library),
            "node": str(node),
            "options": {"node": str(node), "claim": "all"},
        }
        return daemon_in_thread([folder], accelerators={"external": [device]})

    return start, node


def infer(url: str) -> tuple[list[float], str, bool]:
    """The answer to (1, 2, 3, 4), what gave it, and whether that is degraded."""
    answer = requests.post(
        f"{url}/api/models/m/predict",
        data=np.array([[1, 2, 3, 4]], np.float32).tobytes(),
        headers={"Content-Type": "application/octet-stream"},
        timeout=60,
    ).json()
    data = np.ravel(answer["outputs"][0]["data"]).tolist()
    return data, answer["device"], answer["degraded"]


def test_the_compiled_file_runs_on_its_device_and_the_other_on_the_cpu(serve):
    start, node = serve
    # The same answers from other bytes, within what a device may differ by.
    compiled, cpu_model = (tflite_builder.scale(factor, batch=1) for factor in (2.0, 2.001))
    node.touch()

    with start(compiled, cpu_model) as daemon:
        assert infer(daemon.url) == (TWICE, "external:dsp", False)

        node.unlink()
        eventually_true(lambda: infer(daemon.url)[1:] == ("cpu", True))
        answer, *_ = infer(daemon.url)
        assert answer == pytest.approx(2.001 * np.arange(1, 5), rel=1e-6)

        node.touch()
        eventually_true(lambda: infer(daemon.url)[1:] == ("external:dsp", False))
        assert infer(daemon.url)[0] == TWICE


def test_a_compiled_file_that_is_another_model_never_answers(serve):
    start, node = serve
    compiled, cpu_model = (tflite_builder.scale(factor, batch=1) for factor in (3.0, 2.0))
    node.touch()

    with start(compiled, cpu_model) as daemon:
        assert infer(daemon.url) == (TWICE, "cpu", True)
        version = version_of(daemon.url, "m")

    verdicts = {trial["device"]: trial["verdict"] for trial in version["placement"]}
    assert verdicts["external:dsp"] == "differs"


def test_a_compiled_file_with_other_inputs_than_its_cpu_model_never_answers(serve):
    start, node = serve
    compiled = tflite_builder.scale(2.0, batch=1, width=8)
    node.touch()

    with start(compiled, tflite_builder.scale(2.0, batch=1)) as daemon:
        assert infer(daemon.url) == (TWICE, "cpu", True)
        version = version_of(daemon.url, "m")

    trial = next(each for each in version["placement"] if each["device"] == "external:dsp")
    assert trial["verdict"] in {"differs", "refused"}
    assert trial["reason"]
