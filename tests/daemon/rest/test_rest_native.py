"""Predictions by the native API, from the real daemon with real models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import requests
from support import tflite_builder
from support.daemon_thread import daemon_in_thread

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo" / "fashion"
SNEAKER = (DEMO / "samples" / "sneaker.png").read_bytes()
CURL = {"Content-Type": "application/x-www-form-urlencoded"}
OCTETS = {"Content-Type": "application/octet-stream"}
ODD_NAME = "b:c d%2Fé{x}"

BUILT = {
    "signatures": tflite_builder.two_signatures(),
    "strings": tflite_builder.strings(),
    "where": tflite_builder.where(),
    "scale": tflite_builder.scale(),
    "scalar": tflite_builder.scalar_double(),
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    served = []
    for name, content in BUILT.items():
        (root / f"{name}.tflite").write_bytes(content)
        served.append(root / f"{name}.tflite")
    versions = root / "versions"
    for version in ("1", "2"):
        folder = versions / version
        folder.mkdir(parents=True)
        (folder / "model.tflite").write_bytes(tflite_builder.scale(float(version)))
    served.append({"path": versions, "version_policy": "all", "labels": {"stable": 1, "canary": 2}})
    shutil.copytree(DEMO, root / "odd")
    served += [DEMO, {"path": root / "odd", "name": ODD_NAME}]
    with daemon_in_thread(served) as running:
        yield running


@pytest.fixture
def post(daemon):
    session = requests.Session()
    yield lambda path, body=b"", **options: session.post(
        daemon.url + path, data=body, timeout=30, **options
    )
    session.close()


@pytest.fixture
def predict(post):
    def ask(model, body, headers=None, version=None, **params):
        where = f"/versions/{version}" if version else ""
        path = f"/api/models/{model}{where}/predict"
        response = post(path, body, headers=headers, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


def infer_body(shape, data, datatype="FP32", name="x", **more):
    given = {"name": name, "shape": shape, "datatype": datatype, "data": data}
    return json.dumps({"inputs": [given], **more}).encode()


class TestPictures:
    def test_what_curl_sends_gets_labels(self, predict):
        answer = predict("fashion", SNEAKER, CURL)

        assert answer["classification"][0]["label"] == "sneaker"
        assert "outputs" not in answer

    def test_the_answer_names_model_version_device_and_times(self, predict):
        answer = predict("fashion", SNEAKER)

        assert (answer["model"], answer["version"], answer["device"]) == ("fashion", "1", "cpu")
        assert (answer["requested_device"], answer["degraded"]) == ("cpu", False)
        assert list(answer["timing_ms"]) == [
            "queue",
            "preprocess",
            "invoke",
            "postprocess",
            "total",
        ]
        assert answer["timing_ms"]["total"] >= answer["timing_ms"]["invoke"] > 0

    @pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "text/html", None])
    def test_content_decides_not_the_header(self, predict, content_type):
        answer = predict("fashion", SNEAKER, {"Content-Type": content_type})

        assert answer["classification"][0]["label"] == "sneaker"

    def test_a_form_with_a_file_gets_labels(self, post):
        url = "/api/models/fashion/predict"
        request = requests.Request("POST", "http://x", files={"file": ("a.png", SNEAKER)}).prepare()

        answer = post(url, request.body, headers={"Content-Type": request.headers["Content-Type"]})

        assert answer.json()["classification"][0]["label"] == "sneaker"

    def test_lists_are_sorted_best_first_and_cut_by_top_k(self, predict):
        classes = predict("fashion", SNEAKER, top_k=2)["classification"]

        assert len(classes) == 2
        assert classes[0]["score"] >= classes[1]["score"]

    def test_a_threshold_cuts_the_list(self, predict):
        classes = predict("fashion", SNEAKER, top_k=10, threshold=0.5)["classification"]

        assert [c["label"] for c in classes] == ["sneaker"]

    def test_named_outputs_come_beside_the_labels(self, daemon, predict):
        models = requests.get(daemon.url + "/api/models/fashion", timeout=30).json()
        name = models["versions"][0]["outputs"][0]["name"]

        answer = predict("fashion", SNEAKER, outputs=name)

        assert answer["classification"][0]["label"] == "sneaker"
        assert answer["outputs"][0]["name"] == name
        assert len(answer["outputs"][0]["data"]) == 10

    def test_raw_numbers_get_labels_and_tensors(self, predict):
        answer = predict("fashion", bytes(784), OCTETS)

        assert answer["outputs"][0]["datatype"] == "UINT8"
        assert len(answer["classification"]) == 3

    def test_the_clients_request_id_comes_back(self, predict):
        answer = predict("fashion", SNEAKER, {"X-Request-Id": "order 66\t<é>"})

        assert answer["id"] == "order_66__" + "_" * (len(answer["id"]) - 10)

    def test_requests_without_an_id_get_ids_of_their_own(self, predict):
        ids = {predict("fashion", SNEAKER)["id"] for _ in range(3)}

        assert len(ids) == 3

    def test_a_name_with_colon_space_and_percent_is_decoded_once(self, predict):
        answer = predict(requests.utils.quote(ODD_NAME, safe=""), SNEAKER)

        assert answer["model"] == ODD_NAME


class TestTensors:
    def test_json_goes_in_and_out(self, predict):
        answer = predict("scale", infer_body([2, 4], [[1, 2, 3, 4], [5, 6, 7, 8]]))

        assert answer["outputs"] == [
            {
                "name": "y",
                "datatype": "FP32",
                "shape": [2, 4],
                "data": [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0],
            }
        ]

    def test_raw_rows_go_in(self, predict):
        answer = predict("scale", np.arange(8, dtype="<f4").tobytes(), OCTETS)

        assert answer["outputs"][0]["shape"] == [2, 4]
        assert answer["outputs"][0]["data"] == [0, 2, 4, 6, 8, 10, 12, 14]

    def test_nan_and_infinity_travel_as_their_names(self, predict):
        answer = predict("scale", infer_body([1, 4], ["NaN", "Infinity", "-Infinity", 1]))

        assert answer["outputs"][0]["data"] == ["NaN", "Infinity", "-Infinity", 2.0]

    def test_int64_comes_out_as_integers(self, predict):
        flags = [False, True, True, False, False, True]

        answer = predict("where", infer_body([6], flags, "BOOL"))

        assert answer["outputs"][0]["datatype"] == "INT64"
        assert answer["outputs"][0]["data"] == [1, 2, 5]

    def test_strings_that_are_not_utf8_come_out_as_base64(self, predict):
        answer = predict("strings", infer_body([1, 2], ["é", {"b64": "/wA="}], "BYTES", "a"))

        assert answer["outputs"][0]["data"] == ["é", {"b64": "/wA="}]

    def test_a_number_alone_has_an_empty_shape(self, predict):
        answer = predict("scalar", infer_body([], [4]))

        assert (answer["outputs"][0]["shape"], answer["outputs"][0]["data"]) == ([], [8.0])

    @pytest.mark.parametrize(("signature", "expected"), [("add", 5.0), ("mul", 6.0)])
    def test_a_signature_is_named_in_the_parameters(self, predict, signature, expected):
        inputs = [
            {"name": name, "shape": [2, 2], "datatype": "FP32", "data": [value] * 4}
            for name, value in (("a", 2), ("b", 3))
        ]
        body = json.dumps({"inputs": inputs, "parameters": {"signature": signature}})

        assert predict("signatures", body)["outputs"][0]["data"] == [expected] * 4


class TestVersions:
    BODY = infer_body([1, 4], [1, 1, 1, 1])

    def first_number(self, answer):
        return answer["version"], answer["outputs"][0]["data"][0]

    def test_the_newest_answers_when_none_is_named(self, predict):
        assert self.first_number(predict("versions", self.BODY)) == ("2", 2.0)

    def test_a_version_in_the_path_answers(self, predict):
        assert self.first_number(predict("versions", self.BODY, version=1)) == ("1", 1.0)

    def test_a_label_answers(self, predict):
        assert self.first_number(predict("versions", self.BODY, label="stable")) == ("1", 1.0)

    def test_a_version_that_is_not_there_is_404(self, post):
        response = post("/api/models/versions/versions/9/predict", self.BODY)

        assert response.status_code == 404
        assert "has no version 9" in response.json()["error"]

    def test_a_label_that_is_not_there_is_404(self, post):
        response = post("/api/models/versions/predict?label=gold", self.BODY)

        assert response.status_code == 404
        assert "'gold'" in response.json()["error"]

    def test_a_version_and_a_label_are_too_much(self, post):
        response = post("/api/models/versions/versions/1/predict?label=stable", self.BODY)

        assert response.status_code == 400

    @pytest.mark.parametrize("version", ["0", "-1", "one", "1.0", "9" * 30, "%31%0A", "٣"])
    def test_a_version_is_a_whole_number_from_1(self, post, version):
        response = post(f"/api/models/versions/versions/{version}/predict", self.BODY)

        assert response.status_code == 400
        assert "version" in response.json()["error"]


class TestDeadlines:
    @pytest.mark.parametrize("timeout", ["0", "-5", "soon", "1.5", "3600001", "9" * 40, "", "٣"])
    def test_a_bad_deadline_is_malformed(self, post, timeout):
        headers = {"Inferd-Timeout-Ms": timeout.encode()}

        response = post("/api/models/fashion/predict", SNEAKER, headers=headers)

        assert response.status_code == 400
        assert "Inferd-Timeout-Ms" in response.json()["error"]

    def test_a_generous_deadline_is_kept(self, predict):
        assert predict("fashion", SNEAKER, {"Inferd-Timeout-Ms": "3600000"})["classification"]


class TestCounting:
    def metrics(self, daemon):
        return requests.get(daemon.url + "/metrics", timeout=30).text

    def value(self, daemon, outcome, model="fashion", version="1"):
        label = f'model="{model}",outcome="{outcome}",protocol="native",version="{version}"'
        line = next((x for x in self.metrics(daemon).splitlines() if label in x), "0")
        return float(line.rpartition(" ")[2])

    def test_an_answer_is_counted_once(self, daemon, predict):
        before = self.value(daemon, "ok")

        predict("fashion", SNEAKER)

        assert self.value(daemon, "ok") == before + 1

    def test_a_bad_request_is_counted_against_its_model(self, daemon, post):
        before = self.value(daemon, "bad_request")

        post("/api/models/fashion/predict", b"nonsense")

        assert self.value(daemon, "bad_request") == before + 1

    def test_a_model_that_clients_invent_makes_no_series(self, daemon, post):
        before = self.value(daemon, "not_found", model="", version="")

        post("/api/models/invented/predict", b"x")

        assert self.value(daemon, "not_found", model="", version="") == before + 1
        assert "invented" not in self.metrics(daemon)
