"""tflite-runtime in place of LiteRT: real daemons in an environment as 32-bit ARM gets it.

Its answers to the shared set of models are in test_known_answers.py.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import requests
from support import tflite_builder as models
from support.daemon import daemon_process, free_port, wait_settled
from support.tflite_runtime import ROOT, armv7_requirements, python_with, requirements_for

if TYPE_CHECKING:
    from pathlib import Path

CALLS = 20
pytestmark = pytest.mark.timeout(300)  # the environment is made by the first test that needs it


@pytest.fixture(scope="module")
def python() -> Path:
    return python_with(*armv7_requirements())


@pytest.fixture
def serve(python, tmp_path):
    """A real daemon with one model, by its address, as a context."""

    def start(model: bytes, tables: str = "", **config):
        folder = tmp_path / "m"
        folder.mkdir()
        (folder / "model.tflite").write_bytes(model)
        (folder / "model.toml").write_text(tables)
        place = {"root": tmp_path, "port": free_port(), "python": python}
        return daemon_process([folder], **place, **config)

    return start


def run(python: Path, *arguments: str) -> str:
    """What a Python program of this repository prints."""
    command = [str(python), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout, done.stderr
    return done.stdout


def infer(url: str, x: np.ndarray) -> requests.Response:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return requests.post(f"{url}/v2/models/m/infer", json={"inputs": [tensor]}, timeout=60)


def restarts(url: str) -> float:
    """Workers that were replaced, for whatever reason."""
    lines = requests.get(f"{url}/metrics", timeout=60).text.splitlines()
    counters = [line for line in lines if line.startswith("inferd_worker_restarts_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in counters)


def version_of(url: str) -> dict[str, Any]:
    wait_settled(url)
    return dict(requests.get(f"{url}/api/models/m", timeout=60).json()["versions"][0])


@pytest.mark.parametrize(
    ("machine", "runtime", "other", "numpy"),
    [
        ("armv7l", "tflite-runtime==2.14.0", "ai-edge-litert", "numpy<2,>=1.26"),
        ("aarch64", "ai-edge-litert<3,>=2.3", "tflite-runtime", "numpy<3,>=1.26"),
        ("x86_64", "ai-edge-litert<3,>=2.3", "tflite-runtime", "numpy<3,>=1.26"),
    ],
)
def test_each_machine_gets_its_runtime_and_the_numpy_it_was_built_for(
    machine, runtime, other, numpy
):
    wanted = requirements_for(machine)

    assert {runtime, numpy} <= set(wanted)
    assert not any(each.startswith(other) for each in wanted)
    assert len([each for each in wanted if each.startswith("numpy")]) == 1


def test_doctor_names_the_runtime_and_why_it_is_not_the_better_one(python):
    findings = json.loads(run(python, "-m", "daemon.cli.main", "doctor", "--json"))["findings"]

    (finding,) = [each for each in findings if each["check"] == "runtime"]
    assert (finding["level"], finding["detail"]) == (
        "OK",
        "tflite 2.14.0 works on cpu; ai-edge-litert is not installed",
    )


def test_beside_numpy_2_it_is_refused_with_what_to_install():
    python = python_with("tflite-runtime==2.14.0", "numpy==2.2.6")

    answer = json.loads(run(python, "-m", "daemon.cli.selftest"))

    assert answer == {
        "problem": "process: no TFLite runtime can be used: tflite-runtime 2.14.0 does not work: "
        "it is built for NumPy 1, here is NumPy 2.2.6: install 'numpy<2'; "
        "ai-edge-litert is not installed"
    }


def test_a_shape_that_fails_and_then_a_good_one_leave_its_worker_alive(serve):
    too_small, picture = np.ones((1, 1, 1, 3), np.float32), np.ones((1, 8, 8, 3), np.float32)
    with serve(models.valid_convolution()) as daemon:
        wait_settled(daemon.url)
        alone = infer(daemon.url, picture)

        for _ in range(CALLS):
            refused = infer(daemon.url, too_small)
            assert "cannot take inputs of this shape" in refused.json()["error"]
            assert infer(daemon.url, picture).json()["outputs"] == alone.json()["outputs"]

        assert alone.status_code == 200
        assert restarts(daemon.url) == 0


def test_interpreters_with_threads_side_by_side_do_not_hang(serve):
    x = np.random.default_rng(0).random((3, 8), np.float32)
    tables = "[placement]\nthreads = 2\ninstances = 2\n[batching]\nmax_size = 4\n"
    with serve(models.mlp((8, 64, 4)), tables) as daemon:
        wait_settled(daemon.url)

        answers = [infer(daemon.url, x).json()["outputs"][0]["data"] for _ in range(CALLS)]

    assert answers == answers[:1] * CALLS
    assert np.reshape(answers[0], (3, 4)).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)


# Prints the operators of a model's first graph once it is planned.
OPERATORS = """
import sys
from accelerators.interpreter import Interpreter
from accelerators.outline import Outline

interpreter = Interpreter(sys.argv[1], threads=1)
entries, _ = interpreter.entries(Outline())
interpreter.allocate(entries[0])
core = interpreter._core
print(*(core.NodeName(number) for number in range(core.NumNodes())))
"""


def test_its_fast_kernels_for_the_cpu_are_used(python, tmp_path):
    file = tmp_path / "mlp.tflite"
    file.write_bytes(models.mlp(batch=1))

    names = run(python, "-c", OPERATORS, str(file)).split()

    assert "DELEGATE" in names


def test_delegates_work_with_it_as_well(serve, standin):
    tables = '[placement]\naccelerators = ["external:dsp"]\n'
    external = [{"name": "dsp", "path": str(standin.library)}]
    with serve(models.mlp(batch=1), tables, accelerators={"external": external}) as daemon:
        version = version_of(daemon.url)

    trial = next(each for each in version["placement"] if each["device"] == "external:dsp")
    assert (version["device"], version["degraded"], trial["verdict"]) == (
        "external:dsp",
        False,
        "agrees",
    )
    taken = ["FULLY_CONNECTED", "SOFTMAX"]
    assert trial["coverage"] == {"operators": 3, "claimed": 3, "partitions": 1, "taken": taken}


@pytest.mark.parametrize("kind", ["gpu", "npu"])
def test_kinds_that_only_litert_can_open_are_refused_with_their_reason(serve, kind):
    with serve(models.mlp(batch=1), f'[placement]\naccelerators = ["{kind}"]\n') as daemon:
        version = version_of(daemon.url)

    assert (version["device"], version["degraded"]) == ("cpu", True)
    assert str(version["degraded_reason"]).startswith(f"{kind}: the runtime")


def test_a_model_that_kills_its_process_costs_only_itself(serve):
    with serve(models.falls_without_end()) as daemon:
        version = version_of(daemon.url)

        assert version["state"] == "UNAVAILABLE"
        assert "killed by SIG" in str(version["reason"])
        assert requests.get(f"{daemon.url}/healthz", timeout=60).ok
