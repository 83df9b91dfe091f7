"""Real pictures through HTTP on a GPU, an NPU, an external delegate: known answers, device named.

The GPU is SwiftShader's (or the machine's own, with INFERD_TEST_GPU=real), the NPU OpenVINO's
plug-in for the CPU, the delegate the stand-in.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import requests
from support.accelerated import gpu_environment, need_openvino
from support.daemon import daemon_process, free_port, wait_settled
from support.eventually import eventually_true

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"
EXPECTED = SHARED / "expected.json"
pytestmark = [pytest.mark.shared, pytest.mark.timeout(300)]
if not EXPECTED.exists():
    pytest.skip("the shared set of models is not here", allow_module_level=True)
FACTS = json.loads(EXPECTED.read_text())

TOLERANCE = 0.05
"""Of the range of an output: kernels of quantized models round in other places."""

TRIAL_S = 200
"""A GPU in software takes half a second for a picture, and much longer on a busy machine."""

SERVED = {
    "gpu": ["mnv1_quant", "mnv2_quant", "fc_mnist", "micro_speech"],
    "npu": ["mnv1_quant", "mnv2_quant", "fc_mnist", "micro_speech"],
    "external:standin": ["mnv1_float"],
}
LABELS = {"micro_speech": "micro_speech.txt"}


def make_folder(root: Path, model: str, wish: str) -> Path:
    folder = root / model
    folder.mkdir(parents=True)
    shutil.copy(SHARED / FACTS["models"][model]["file"], folder / "model.tflite")
    if model in LABELS:
        shutil.copy(SHARED / "labels" / LABELS[model], folder / "labels.txt")
    (folder / "model.toml").write_text(
        f'[placement]\naccelerators = ["{wish}"]\ntolerance = {TOLERANCE}\n'
    )
    return folder


@contextmanager
def serving(wish: str, root: Path, standin: Callable[[], Path]) -> Iterator[str]:
    """A daemon with the wish's models, all of them tried on the device; or a skip."""
    accelerators: dict[str, object] = {"openvino_device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        if wish == "gpu":
            for name, value in gpu_environment().items():
                patch.setenv(name, value)
        elif wish == "npu":
            need_openvino()
        else:
            accelerators["external"] = [{"name": "standin", "path": str(standin())}]
        folders = [make_folder(root / "models", model, wish) for model in SERVED[wish]]
        tables = {"accelerators": accelerators}
        with daemon_process(folders, root=root, port=free_port(), **tables) as daemon:
            wait_settled(daemon.url)
            for model in SERVED[wish]:
                eventually_true(lambda m=model: is_tried(daemon.url, m, wish), TRIAL_S)
            yield daemon.url


@pytest.fixture(scope="module")
def daemons(request, tmp_path_factory):
    """The address of the wish's daemon, which is started when it is first asked for."""
    urls: dict[str, str] = {}
    with ExitStack() as stack:

        def url_of(wish: str) -> str:
            if wish not in urls:
                root = tmp_path_factory.mktemp("accelerated")
                library = partial(_library, request)
                urls[wish] = stack.enter_context(serving(wish, root, library))
            return urls[wish]

        yield url_of


def _library(request) -> Path:
    return request.getfixturevalue("standin").library


@pytest.fixture
def url(daemons, wish):
    return daemons(wish)


each_wish = pytest.mark.parametrize("wish", SERVED)


def each_case(*kinds):
    """Every case of the shared set on every kind that serves its model."""
    pairs = [
        pytest.param(wish, case, id=f"{wish}-{case['id']}")
        for wish, models in SERVED.items()
        for case in FACTS["cases"]
        if case["kind"] in kinds and case["model"] in models
    ]
    return pytest.mark.parametrize(("wish", "case"), pairs)


def is_tried(url: str, model: str, wish: str) -> bool:
    """Whether the device's trial is over; the CPU answers meanwhile where one takes long."""
    return placement_of(url, model).get(wish, {}).get("verdict") not in (None, "untried")


def placement_of(url: str, model: str) -> dict:
    entry = requests.get(f"{url}/api/models/{model}", timeout=60).json()
    version = entry["versions"][0]
    return {trial["device"]: trial for trial in version["placement"]}


@each_case("classification")
def test_a_picture_gets_its_known_answer_from_the_device_that_was_wished_for(url, wish, case):
    picture = (SHARED / case["input"]["file"]).read_bytes()

    response = requests.post(f"{url}/api/models/{case['model']}/predict", data=picture, timeout=60)

    assert response.status_code == 200, response.text
    answer = response.json()
    best, known = answer["classification"][0], case["expected"]["top1"]
    assert (best["label"], best["index"]) == (known["label"], known["index"])
    assert best["score"] == pytest.approx(known["score"], abs=TOLERANCE)
    assert answer["device"] == answer["requested_device"] == wish
    assert answer["degraded"] is False


@each_case("batch classification")
def test_ten_digits_in_one_call(url, wish, case):
    digits = np.load(SHARED / case["input"]["npy"])
    body = {"instances": digits.tolist()}

    response = requests.post(f"{url}/v1/models/{case['model']}:predict", json=body, timeout=60)

    assert response.status_code == 200, response.text
    scores = np.array(response.json()["predictions"])
    assert scores.argmax(axis=1).tolist() == case["expected"]["argmax"]
    golden = np.load(SHARED / case["expected"]["output_npy"]).astype(int)
    assert np.abs(scores - golden).max() <= TOLERANCE * 255


@each_wish
def test_what_was_measured_is_shown(url, wish):
    model = SERVED[wish][0]

    trial = placement_of(url, model)[wish]

    assert trial["verdict"] == "agrees"
    assert trial["latency_ms"] > 0
    assert trial["memory_bytes"] > 0
    assert trial["difference"] <= TOLERANCE
    coverage = trial["coverage"]
    assert 0 < coverage["claimed"] <= coverage["operators"]
    if wish != "external:standin":  # they take all of a model, or nothing
        assert coverage["claimed"] == coverage["operators"]


@each_case("audio classification")
def test_a_device_that_is_wrong_is_found_out_and_not_used(url, wish, case):
    """LiteRT 2.3.0 gets this model wrong on SwiftShader: whichever device it is, the word is."""
    features = np.load(SHARED / case["input"]["npy"])

    response = requests.post(
        f"{url}/api/models/{case['model']}/predict",
        data=features.tobytes(),
        headers={"Content-Type": "application/octet-stream"},
        timeout=60,
    )

    answer = response.json()
    assert answer["classification"][0]["label"] == case["expected"]["label"]
    trial = placement_of(url, case["model"])[wish]
    if trial["verdict"] == "agrees":
        assert (answer["device"], answer["degraded"]) == (wish, False)
    else:
        assert trial["verdict"] == "differs"
        assert trial["difference"] > TOLERANCE
        assert (answer["device"], answer["degraded"]) == ("cpu", True)
        assert answer["requested_device"] == wish


@each_wish
def test_the_device_is_listed_with_its_models(url, wish):
    devices = requests.get(f"{url}/api/devices", timeout=60).json()["devices"]

    (device,) = [each for each in devices if each["id"] == wish]
    assert device["up"] is True
    assert device["name"]
    assert SERVED[wish][0] in json.dumps(device)


@each_wish
def test_metrics_name_the_device(url, wish):
    text = requests.get(f"{url}/metrics", timeout=60).text

    named = [line for line in text.splitlines() if f'device="{wish}"' in line]
    assert any(line.startswith("inferd_device_up") and line.endswith(" 1.0") for line in named)
    assert any(SERVED[wish][0] in line for line in named)
