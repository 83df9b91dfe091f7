"""Every picture and sound of the shared set gets its known answer through MQTT."""

import json
import shutil
from pathlib import Path

import pytest
from support.daemon import daemon_process, free_port, wait_settled
from support.mosquitto import running_broker
from support.mqtt_client import TestClient

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "models"
EXPECTED = SHARED / "expected.json"
pytestmark = [pytest.mark.shared, pytest.mark.broker, pytest.mark.timeout(300)]
if not EXPECTED.exists():
    pytest.skip("the shared set of models is not here", allow_module_level=True)
FACTS = json.loads(EXPECTED.read_text())
LABELS = {"cifar_int8": "cifar10.txt", "deeplab_dm05": "pascal_voc.txt"}
"""Of models whose file has none."""


def cases(kind):
    found = [case for case in FACTS["cases"] if case["kind"] == kind and "input" in case]
    return [pytest.param(case, id=case["id"]) for case in found if "file" in case["input"]]


MODELS = sorted(
    {
        param.values[0]["model"]
        for kind in ("classification", "detection", "segmentation", "audio classification")
        for param in cases(kind)
    }
)


def make_folder(root, name):
    folder = root / name
    folder.mkdir(parents=True)
    shutil.copy(SHARED / FACTS["models"][name]["file"], folder / "model.tflite")
    if name in LABELS:
        shutil.copy(SHARED / "labels" / LABELS[name], folder / "labels.txt")
    return folder


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Publishes a file of the shared set as MQTT 5 does, and gives the answer."""
    root = tmp_path_factory.mktemp("known")
    folders = [make_folder(root / "models", name) for name in MODELS]
    with (
        running_broker(root) as broker,
        daemon_process(folders, root=root, port=free_port(), mqtt={"url": broker.url}) as daemon,
    ):
        wait_settled(daemon.url)
        client = TestClient(broker.port)
        client.subscribe("inferd/box-1/availability")
        while client.next().payload != b"online":
            pass
        client.subscribe("answers/+")

        def ask(case, **user):
            client.publish(
                f"inferd/box-1/models/{case['model']}/predict",
                (SHARED / case["input"]["file"]).read_bytes(),
                response_topic="answers/1",
                correlation=case["id"].encode(),
                user=[(name, str(value)) for name, value in user.items()],
            )
            answer = client.next()
            assert answer.correlation == case["id"].encode()
            return answer.json

        yield ask
        client.close()


@pytest.mark.parametrize("case", cases("classification"))
def test_a_picture_is_classified_as_it_is_known(ask, case):
    expected = case["expected"]["top1"]

    best = ask(case)["classification"][0]

    assert (best["label"], best["index"]) == (expected["label"], expected["index"])
    tolerance = case["expected"]["score_tolerance_same_input"]
    assert best["score"] == pytest.approx(expected["score"], abs=tolerance)


@pytest.mark.parametrize("case", cases("detection"))
def test_objects_are_found_as_they_are_known(ask, case):
    expected = case["expected"]

    found = ask(case, threshold=expected["threshold"])["detection"]

    assert [box["label"] for box in found] == [d["label"] for d in expected["detections"]]
    assert [box["score"] for box in found] == pytest.approx(
        [d["score"] for d in expected["detections"]], abs=expected["score_tolerance_same_input"]
    )


@pytest.mark.parametrize("case", cases("segmentation"))
def test_a_picture_is_cut_into_its_classes(ask, case):
    answer = ask(case)["segmentation"]

    shares = {share["label"]: share["share"] for share in answer["classes"]}
    assert shares["bird"] == pytest.approx(case["expected"]["class_fractions"]["bird"], abs=0.01)


@pytest.mark.parametrize("case", cases("audio classification"))
def test_a_sound_is_named(ask, case):
    best = ask(case)["classification"][0]

    known = case["expected"]["top3"][0]
    assert best["label"] == known["label"]
    assert best["score"] == pytest.approx(known["score"], abs=case["expected"]["score_tolerance"])
