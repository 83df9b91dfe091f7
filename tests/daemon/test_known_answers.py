"""Every case of the shared set gets its known answer through HTTP, in the protocol that fits it.

With both runtimes, each as its machines have it.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from support.boxes import overlap
from support.daemon import daemon_process, free_port, wait_settled
from support.tflite_runtime import armv7_requirements, python_with

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"
EXPECTED = SHARED / "expected.json"
pytestmark = [pytest.mark.shared, pytest.mark.timeout(300)]
if not EXPECTED.exists():
    pytest.skip("the shared set of models is not here", allow_module_level=True)
FACTS = json.loads(EXPECTED.read_text())

TABLES = {
    "cifar_int8": ("cifar10.txt", ""),
    "micro_speech": ("micro_speech.txt", ""),
    "movie": ("movie_review_labels.txt", ""),
    "deeplab_dm05": ("pascal_voc.txt", ""),
    "mnv2_quant": (None, ""),
    "err_hang": (None, "[limits]\ntimeout_ms = 500\n"),
}
"""What these files do not say of themselves: labels, a shorter time limit."""


def cases(*kinds):
    return [pytest.param(case, id=case["id"]) for case in FACTS["cases"] if case["kind"] in kinds]


def make_folders(root: Path) -> list[Path]:
    """Each model in a folder named by its id, with the labels that its file lacks."""
    folders = []
    for name, facts in FACTS["models"].items():
        folder = root / name
        folder.mkdir(parents=True)
        shutil.copy(SHARED / facts["file"], folder / "model.tflite")
        labels, toml = TABLES.get(name, (None, ""))
        if labels:
            shutil.copy(SHARED / "labels" / labels, folder / "labels.txt")
        if toml:
            (folder / "model.toml").write_text(toml)
        folders.append(folder)
    return folders


ROUNDING = {"litert": 0.0, "tflite": 0.035}
"""By how much a runtime's kernels may move a score: what is known was found with LiteRT, and
tflite-runtime's kernels round quantized values in other places."""


@pytest.fixture(scope="module", params=ROUNDING)
def runtime(request):
    return request.param


@pytest.fixture(scope="module")
def url(runtime, tmp_path_factory):
    python = Path(sys.executable) if runtime == "litert" else python_with(*armv7_requirements())
    root = tmp_path_factory.mktemp("known")
    folders = make_folders(root / "models")
    with daemon_process(folders, root=root, port=free_port(), python=python) as daemon:
        wait_settled(daemon.url)
        yield daemon.url


def post(url, path, **options):
    return requests.post(url + path, timeout=60, **options)


def answer_to_file(url, case, **params):
    body = (SHARED / case["input"]["file"]).read_bytes()
    response = post(url, f"/api/models/{case['model']}/predict", data=body, params=params)
    assert response.status_code == 200, response.text
    return response.json()


def infer(url, model, inputs, signature=None):
    """KServe v2 in JSON; outputs by name as arrays."""
    body = {
        "inputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": list(np.shape(data)),
                "data": data.tolist() if isinstance(data, np.ndarray) else data,
            }
            for name, (datatype, data) in inputs.items()
        ]
    }
    if signature:
        body["parameters"] = {"signature": signature}
    response = post(url, f"/v2/models/{model}/infer", json=body)
    assert response.status_code == 200, response.text
    return {
        out["name"]: np.array(out["data"]).reshape(out["shape"])
        for out in response.json()["outputs"]
    }


@pytest.mark.parametrize("case", cases("classification"))
def test_a_picture_is_classified_as_it_is_known(url, runtime, case):
    expected = case["expected"]["top1"]

    best = answer_to_file(url, case)["classification"][0]

    assert (best["label"], best["index"]) == (expected["label"], expected["index"])
    tolerance = case["expected"]["score_tolerance_same_input"] + ROUNDING[runtime]
    assert best["score"] == pytest.approx(expected["score"], abs=tolerance)


@pytest.mark.parametrize("case", cases("batch classification"))
def test_a_batch_of_digits_is_read_right(url, case):
    digits = np.load(SHARED / case["input"]["npy"])

    response = post(url, f"/v1/models/{case['model']}:predict", json={"instances": digits.tolist()})

    scores = np.array(response.json()["predictions"])
    assert scores.argmax(axis=1).tolist() == case["expected"]["argmax"]
    golden = np.load(SHARED / case["expected"]["output_npy"]).astype(int)
    assert np.abs(scores - golden).max() <= 1


@pytest.mark.parametrize("case", cases("detection"))
def test_objects_are_found_where_they_are(url, case):
    expected = case["expected"]

    found = answer_to_file(url, case, threshold=expected["threshold"])["detection"]

    assert [box["label"] for box in found] == [d["label"] for d in expected["detections"]]
    scores = [d["score"] for d in expected["detections"]]
    assert [b["score"] for b in found] == pytest.approx(
        scores, abs=expected["score_tolerance_same_input"]
    )
    overlaps = [
        overlap(box["box"], known["box_ymin_xmin_ymax_xmax"])
        for box, known in zip(found, expected["detections"], strict=True)
    ]
    assert min(overlaps) >= expected["min_iou_same_input"]


@pytest.mark.parametrize(
    "case", [c for c in cases("audio classification") if "file" in c.values[0]["input"]]
)
def test_a_sound_is_named(url, case):
    best = answer_to_file(url, case)["classification"][0]

    known = case["expected"]["top3"][0]
    assert best["label"] == known["label"]
    assert best["score"] == pytest.approx(known["score"], abs=case["expected"]["score_tolerance"])


@pytest.mark.parametrize(
    "case", [c for c in cases("audio classification") if "npy" in c.values[0]["input"]]
)
def test_sound_features_sent_raw_are_named(url, case):
    features = np.load(SHARED / case["input"]["npy"])

    response = post(
        url,
        f"/api/models/{case['model']}/predict",
        data=features.tobytes(),
        headers={"Content-Type": "application/octet-stream"},
    )

    answer = response.json()
    assert answer["outputs"][0]["data"] == case["expected"]["raw"]
    assert answer["classification"][0]["label"] == case["expected"]["label"]


def raw_scalar(model, value):
    """A real number as the model's own input stores it."""
    return ("INT8", np.array([[int(value)]])) if "int8" in model else ("FP32", np.array([[value]]))


@pytest.mark.parametrize("case", cases("regression"))
def test_a_curve_is_followed_point_by_point(url, case):
    model = case["model"]
    spec = requests.get(f"{url}/v2/models/{model}", timeout=60).json()
    name = spec["inputs"][0]["name"]
    points = case["expected"]["points"]

    got = [infer(url, model, {name: raw_scalar(model, p["raw_in"])}) for p in points]

    raw = [next(iter(outputs.values())).item() for outputs in got]
    tolerance = 1 if "int8" in model else case["expected"]["tolerance_y"]
    assert raw == pytest.approx([p["raw_out"] for p in points], abs=tolerance)


@pytest.mark.parametrize("case", cases("segmentation"))
def test_a_picture_is_cut_into_classes(url, case):
    answer = answer_to_file(url, case)["segmentation"]

    mask = np.array(Image.open(io.BytesIO(base64.b64decode(answer["mask_png"]))))
    golden = np.load(SHARED / case["expected"]["output_npy"]).reshape(mask.shape)
    assert (mask == golden).mean() >= case["expected"]["pixel_agreement_min"]
    shares = {entry["label"]: entry["share"] for entry in answer["classes"]}
    known = case["expected"]["class_fractions"]
    assert {k: shares.get(k, 0) for k in known} == pytest.approx(known, abs=0.01)


@pytest.mark.parametrize("case", cases("text classification"))
def test_token_ids_are_judged(url, case):
    tokens = np.zeros(case["input"]["shape"], np.int32)
    ids = case["input"]["token_ids_without_padding"]
    tokens[0, : len(ids)] = ids

    response = post(
        url,
        f"/api/models/{case['model']}/predict",
        data=tokens.tobytes(),
        headers={"Content-Type": "application/octet-stream"},
    )

    best = response.json()["classification"][0]
    assert best["label"] == case["expected"]["label"]
    known = case["expected"]["scores"][best["label"]]
    assert best["score"] == pytest.approx(known, abs=case["expected"]["tolerance"])


KSERVE_TYPES = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "string": "BYTES"}


def load_tensor(facts):
    if "npy" in facts:
        return np.load(SHARED / facts["npy"])
    kind = object if facts["dtype"] == "string" else facts["dtype"]
    return np.array(facts["data"], kind).reshape(facts["shape"])


@pytest.mark.parametrize("case", cases("numeric"))
def test_named_tensors_go_in_and_come_out(url, case):
    inputs = {
        name: (KSERVE_TYPES[facts["dtype"]], load_tensor(facts))
        for name, facts in case["inputs"].items()
    }

    got = infer(url, case["model"], inputs, case["signature"])

    for name, facts in case["expected"].items():
        np.testing.assert_equal(got[name].shape, tuple(facts["shape"]))
        same = load_tensor(facts)
        if facts["dtype"] == "string":
            assert got[name].tolist() == same.tolist()
        else:
            np.testing.assert_allclose(got[name], same, atol=case["tolerance_abs"])


def input_shapes(url, model):
    """The shape of each (signature, input), since the set gives the learning steps flat."""
    version = requests.get(f"{url}/api/models/{model}", timeout=60).json()["versions"][0]
    return {
        (name, spec["name"]): spec["shape"]
        for name, signature in version["signatures"].items()
        for spec in signature["inputs"]
    }


@pytest.mark.parametrize("case", cases("stateful signature sequence"))
def test_a_model_that_learns_keeps_what_it_learnt(url, case):
    shapes = input_shapes(url, case["model"])
    for step in case["steps"]:
        body = {
            "signature_name": step["signature"],
            "inputs": {
                name: np.reshape(data, shapes[step["signature"], name]).tolist()
                for name, data in step["inputs"].items()
            },
        }

        response = post(url, f"/v1/models/{case['model']}:predict", json=body)

        assert response.status_code == 200, response.text
        outputs = response.json()["outputs"]
        if len(step["outputs"]) == 1:
            outputs = {next(iter(step["outputs"])): outputs}
        for name, known in step["outputs"].items():
            want = np.array(known["data"]).reshape(known["shape"])
            np.testing.assert_allclose(outputs[name], want, atol=case["tolerance_abs"])


def test_the_runtime_is_named(url, runtime):
    versions = [
        version
        for model in requests.get(f"{url}/api/models", timeout=60).json()["models"]
        for version in model["versions"]
        if version["state"] == "READY"
    ]

    names = {version["runtime"].partition(" ")[0] for version in versions}
    assert names == {runtime}


REASONS = {
    "error-err_abort": "SIGABRT",
    "error-edgetpu": "Edge TPU",
    "error-err_flex": "Select TensorFlow op",
    "error-err_custom": "Sinh",
    "error-err_garbage": "latbuffer",
    "error-err_quant": "quantized_dimension must be in range",
}
"""A word that the reason must hold, for the operator to know what to do."""


@pytest.mark.parametrize(
    "case", [c for c in cases("error path") if c.values[0]["stage"] != "invoke"]
)
def test_a_model_that_cannot_be_served_says_why(url, case):
    listed = requests.get(f"{url}/api/models/{case['model']}", timeout=60).json()

    version = listed["versions"][0]
    assert version["state"] == "UNAVAILABLE"
    assert REASONS[case["id"]] in version["reason"]
    ready = requests.get(f"{url}/readyz", timeout=60)
    assert ready.status_code == 503
    assert REASONS[case["id"]] in ready.json()["reasons"][case["model"]]


@pytest.mark.parametrize(
    "case", [c for c in cases("error path") if c.values[0]["stage"] == "invoke"]
)
def test_a_model_that_hangs_on_one_value_answers_the_others_and_recovers(url, case):
    path = f"/v1/models/{case['model']}:predict"

    before = post(url, path, json={"inputs": 1.0})
    hung = post(url, path, json={"inputs": 0.0})
    after = post(url, path, json={"inputs": 10.0})

    assert before.json() == {"outputs": 2.0}
    assert hung.status_code == 504
    assert "passed" in hung.json()["error"]
    assert after.json() == {"outputs": 10.0}


def test_every_case_of_the_set_is_in_one_of_these_tests():
    kinds = {case["kind"] for case in FACTS["cases"]}

    assert kinds == {
        "classification",
        "batch classification",
        "detection",
        "audio classification",
        "regression",
        "segmentation",
        "text classification",
        "numeric",
        "stateful signature sequence",
        "error path",
    }
