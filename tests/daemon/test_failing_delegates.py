"""However a delegate fails, its model is served all the same, and the operator reads what is wrong.

Each model wishes for a delegate that fails in its own way; one neighbour's works.
"""

from __future__ import annotations

import pytest
import requests
from support import tflite_builder as models
from support.daemon import daemon_process, free_port, wait_settled
from support.eventually import eventually_true
from support.standin import build_standin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OLD = "old"  # built for an older runtime
FAILURES = {
    "good": {},
    "silent": {"fail": "create-silent"},
    "refusing": {"speed": "high"},
    "unprepared": {"fail": "prepare"},
    "idle": {"claim": "none"},
    "broken": {"fail": "invoke"},
    "crashing": {"fail": "crash-create"},
    "dying": {"fail": "crash-invoke"},
    "hanging": {"fail": "hang-invoke"},
    "lying": {"fail": "wrong"},
    "mad": {"fail": "nan"},
    OLD: {},
}
VERDICTS = {
    "good": ("agrees", ""),
    "silent": ("refused", "cannot open it, and does not say why"),
    "refusing": ("refused", "unknown option 'speed'"),
    "unprepared": ("refused", "its driver fails with the model"),
    "idle": ("refused", "it took none of the model's 3 operators"),
    "broken": ("refused", "the first invocation failed: standin: device lost"),
    "crashing": ("failed", "killed by SIGSEGV while it opened the device"),
    "dying": ("failed", "killed by SIGSEGV during the first invocation"),
    "hanging": ("failed", "did not come back within 15 s during the first invocation"),
    "lying": ("differs", "its answers differ from the CPU's"),
    "mad": ("differs", "its answers differ from the CPU's"),
    OLD: ("failed", "most likely it is built for an older TFLite"),
}
DATA = [0.5, -1, 2, 0, 1, 3, -2, 0.25]
QUESTION = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 8], "data": DATA}]}


@pytest.fixture(scope="module")
def url(standin, tmp_path_factory):
    root = tmp_path_factory.mktemp("failing")
    old = build_standin(root / "libold.so", "-DOLD_ABI")
    delegates = [
        {
            "name": name,
            "path": str(old if name == OLD else standin.library),
            "options": options,
        }
        for name, options in FAILURES.items()
    ]
    delegates.append({"name": "missing", "path": str(root / "libmissing.so")})
    folders = [make_folder(root / "models" / each["name"], each["name"]) for each in delegates]
    tables = {"accelerators": {"external": delegates}, "defaults": {"load_timeout_ms": 15_000}}
    with daemon_process(folders, root=root, port=free_port(), **tables) as daemon:
        wait_settled(daemon.url)
        yield daemon.url


def make_folder(folder, wish):
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes(models.mlp())
    (folder / "model.toml").write_text(f'[placement]\naccelerators = ["external:{wish}"]\n')
    return folder


def trial_of(url, model) -> dict:
    entry = requests.get(f"{url}/api/models/{model}", timeout=60).json()
    trials = {trial["device"]: trial for trial in entry["versions"][0]["placement"]}
    return trials.get(f"external:{model}", {})


def ask(url, model) -> dict:
    response = requests.post(f"{url}/api/models/{model}/predict", json=QUESTION, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("model", VERDICTS)
def test_the_reason_is_told(url, model):
    eventually_true(lambda: trial_of(url, model).get("verdict") == VERDICTS[model][0], 100)

    assert VERDICTS[model][1] in trial_of(url, model)["reason"]


@pytest.mark.parametrize("model", [m for m in VERDICTS if m != "good"])
def test_its_model_is_answered_by_the_cpu_and_says_so(url, model):
    answer, good = ask(url, model), ask(url, "good")

    assert (answer["device"], answer["requested_device"]) == ("cpu", f"external:{model}")
    assert answer["degraded"]
    expected = good["outputs"][0]["data"]
    assert answer["outputs"][0]["data"] == pytest.approx(expected, abs=1e-5)


def test_the_good_neighbour_stays_on_its_device(url):
    answer = ask(url, "good")

    assert (answer["device"], answer["degraded"]) == ("external:good", False)


def test_a_library_that_is_missing_is_told_with_the_next_step(url):
    listed = requests.get(f"{url}/api/devices", timeout=60).json()["devices"]
    (device,) = [each for each in listed if each["id"] == "external:missing"]

    assert not device["up"]
    assert "libmissing.so cannot be had: No such file or directory" in device["problem"]
    assert "inferd.toml" in device["next_step"]
    assert ask(url, "missing")["device"] == "cpu"
