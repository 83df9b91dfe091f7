"""The KServe v2 endpoints answer as Triton's do, on models made here; hostile requests get 4xx."""

from __future__ import annotations

import gzip
import json
from urllib.parse import quote

import numpy as np
import pytest
import requests
from support.daemon_thread import daemon_in_thread
from support.selftest_model import build
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from daemon.version import VERSION

ODD_NAME = "line 1:left"
GIVEN = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "double.tflite").write_bytes(build())
    (folder / "broken.tflite").write_bytes(b"this is no model")
    return folder


@pytest.fixture(scope="module")
def url(folder):
    served = [
        folder / "double.tflite",
        folder / "broken.tflite",
        {"path": folder / "double.tflite", "name": ODD_NAME},
    ]
    with daemon_in_thread(served, http={"max_body_mib": 1}) as daemon:
        yield daemon.url


@pytest.fixture
def client(url):
    with InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


@pytest.fixture
def healthy_url(folder):
    """A daemon of the test's own, all of whose models answer."""
    with daemon_in_thread([folder / "double.tflite"]) as daemon:
        yield daemon.url


def get(url, path):
    return requests.get(url + path, timeout=30)


def post(url, path, **options):
    return requests.post(url + path, timeout=30, **options)


def infer(url, document=None, *, data=None, path="/v2/models/double/infer", headers=None):
    body = json.dumps(document) if data is None else data
    return post(url, path, data=body, headers=headers)


def error(answer, status):
    """The message of an answer that must be a refusal with that status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/json")
    return answer.json()["error"]


class TestHealth:
    def test_live_has_no_body(self, url):
        answer = get(url, "/v2/health/live")

        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["Content-Length"] == "0"

    def test_ready_is_400_while_a_wanted_model_cannot_answer(self, url, client):
        assert (get(url, "/v2/health/ready").status_code, client.is_server_live()) == (400, True)
        assert not client.is_server_ready()

    def test_ready_is_200_when_every_model_answers(self, healthy_url):
        answer = get(healthy_url, "/v2/health/ready")

        assert (answer.status_code, answer.content) == (200, b"")


class TestDescriptions:
    @pytest.mark.parametrize("path", ["/v2", "/v2/"])
    def test_the_server_names_itself_and_its_extensions(self, url, path):
        document = get(url, path).json()

        assert (document["name"], document["version"]) == ("inferd", VERSION)
        assert {"binary_tensor_data", "statistics"} <= set(document["extensions"])

    def test_models_are_listed(self, url):
        assert get(url, "/v2/models").json() == {"models": ["broken", "double", ODD_NAME]}

    @pytest.mark.parametrize("path", ["/v2/models/double", "/v2/models/double/versions/1"])
    def test_a_model_is_described(self, url, path):
        assert get(url, path).json() == {
            "name": "double",
            "versions": ["1"],
            "platform": "tflite",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4]}],
        }

    def test_a_model_has_a_configuration(self, url):
        config = get(url, "/v2/models/double/config").json()

        assert config["name"] == "double"
        assert config["max_batch_size"] == 0
        assert config["input"][0]["dims"] == [1, 4]

    @pytest.mark.parametrize("path", ["/v2/models/double", "/v2/models/double/versions/1"])
    def test_a_ready_model_says_so_without_a_body(self, url, path):
        answer = get(url, path + "/ready")

        assert (answer.status_code, answer.content) == (200, b"")

    @pytest.mark.parametrize("path", ["/v2/models/broken", "/v2/models/broken/versions/1"])
    def test_a_model_that_cannot_answer_is_not_ready(self, url, path):
        assert error(get(url, path + "/ready"), 400) == "Model version not ready"

    @pytest.mark.parametrize("what", ["", "/config", "/stats", "/ready"])
    def test_an_unknown_model_is_404_in_tritons_words(self, url, what):
        message = error(get(url, "/v2/models/foo" + what), 404)

        assert message.startswith("Request for unknown model: 'foo' is not found")

    @pytest.mark.parametrize("what", ["", "/config", "/stats", "/ready"])
    def test_an_unknown_version_is_404(self, url, what):
        message = error(get(url, "/v2/models/double/versions/9" + what), 404)

        assert message == "Request for unknown model: 'double' version 9 is not found"

    def test_a_model_that_failed_to_load_says_why(self, url):
        message = error(infer(url, {"inputs": []}, path="/v2/models/broken/infer"), 503)

        assert message.startswith("Request for unknown model: 'broken' has no available versions")
        assert "not a TFLite model" in message

    def test_statistics_list_every_model_that_was_loaded(self, url):
        entries = get(url, "/v2/models/stats").json()["model_stats"]

        assert {entry["name"] for entry in entries} == {"double", ODD_NAME}

    def test_a_name_may_be_percent_encoded(self, url):
        name = quote(ODD_NAME, safe="")

        assert get(url, f"/v2/models/{name}").json()["name"] == ODD_NAME
        answer = infer(url, {"inputs": [GIVEN]}, path=f"/v2/models/{name}/infer")
        assert answer.json()["model_name"] == ODD_NAME

    @pytest.mark.parametrize("name", ["a%2Fb", "a%252Fb", "%00", "a:b", "x" * 2000, "%ff", ".."])
    def test_odd_names_are_unknown_models_and_nothing_else(self, url, name):
        answer = requests.Session().get(f"{url}/v2/models/{name}/config", timeout=30)

        assert answer.status_code == 404
        assert "error" in answer.json()


class TestRouting:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/v2"),
            ("POST", "/v2/health/live"),
            ("POST", "/v2/models/double"),
            ("GET", "/v2/models/double/infer"),
            ("PUT", "/v2/models/double/infer"),
            ("GET", "/v2/repository/index"),
            ("GET", "/v2/repository/models/double/load"),
            ("DELETE", "/v2/models/double"),
        ],
    )
    def test_a_wrong_method_is_405(self, url, method, path):
        answer = requests.request(method, url + path, timeout=30)

        assert error(answer, 405) == "Method Not Allowed"

    @pytest.mark.parametrize(
        "path",
        [
            "/v2/nothing",
            "/v2/models/double/nothing",
            "/v2/models/double/versions/v1",
            "/v2/models/double/versions/-1/ready",
            "/v2/models/double/versions/" + "1" * 100,
            "/v2/models/double/versions",
        ],
    )
    def test_an_unknown_path_is_404(self, url, path):
        assert error(get(url, path), 404) == "Not Found"


class TestInference:
    def test_json_in_json_out(self, url):
        answer = infer(url, {"id": "", "inputs": [GIVEN]})

        assert answer.json() == {
            "model_name": "double",
            "model_version": "1",
            "id": "",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2, 4, 6, 8]}],
        }

    def test_special_floats_go_through_as_strings(self, url):
        given = {**GIVEN, "data": ["NaN", "Infinity", "-Infinity", 1.5]}

        answer = infer(url, {"inputs": [given]})

        assert answer.json()["outputs"][0]["data"] == ["NaN", "Infinity", "-Infinity", 3.0]

    def test_binary_in_binary_out(self, client):
        given = InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(np.float32([[1, 2, 3, 4]]))

        result = client.infer("double", [given])

        assert result.as_numpy("y").tolist() == [[2, 4, 6, 8]]

    def test_a_gzipped_request_counts_its_header_length_uncompressed(self, url):
        given = {k: v for k, v in GIVEN.items() if k != "data"}
        head = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": 16}}]}).encode()
        body = gzip.compress(head + np.float32([1, 2, 3, 4]).tobytes())

        answer = infer(url, data=body, headers={"Content-Encoding": "gzip", HEADER: str(len(head))})

        assert answer.json()["outputs"][0]["data"] == [2, 4, 6, 8]

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "the body is empty"),
            (b"{", "JSON Parse error"),
            (b"[]", "must be a JSON object"),
            (b'{"inputs": [{"name": "x", "data": [NaN]}]}', "send the strings"),
            (b"[" * 200_000, "depth limit"),
            (b'{"id": "\xff"}', "not UTF-8"),
            (b"{}", "'inputs'"),
            (b'{"inputs": []}', "missing 'x'"),
        ],
    )
    def test_a_hostile_body_is_400_with_the_reason(self, url, data, message):
        assert message in error(infer(url, data=data), 400)

    @pytest.mark.parametrize(
        ("length", "message"),
        [
            ("-1", "inference header size should be in range (0, 9), got: -1"),
            ("10", "inference header size should be in range (0, 9), got: 10"),
            ("ten", "Unable to parse Inference-Header-Content-Length, got: ten"),
            ("0", "unexpected total byte size 9"),
        ],
    )
    def test_a_bad_header_length_is_400(self, url, length, message):
        assert message in error(infer(url, data=b"123456789", headers={HEADER: length}), 400)

    @pytest.mark.parametrize(
        ("block", "message"),
        [(bytes(15), "expecting 1 additional bytes"), (bytes(17), "unexpected additional input")],
    )
    def test_short_and_long_binary_data_is_400(self, url, block, message):
        given = {k: v for k, v in GIVEN.items() if k != "data"}
        head = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": 16}}]}).encode()

        answer = infer(url, data=head + block, headers={HEADER: str(len(head))})

        assert message in error(answer, 400)

    def test_a_body_over_the_limit_is_413(self, url):
        answer = infer(url, data=bytes(1024 * 1024 + 1))

        assert "larger than" in error(answer, 413)

    def test_a_gzip_bomb_is_413(self, url):
        bomb = gzip.compress(bytes(64 * 1024 * 1024))

        answer = infer(url, data=bomb, headers={"Content-Encoding": "gzip"})

        assert "larger than" in error(answer, 413)

    def test_what_is_not_gzip_is_400(self, url):
        answer = infer(url, data=b"plain", headers={"Content-Encoding": "gzip"})

        assert "Content-Encoding" in error(answer, 400)

    def test_a_passed_deadline_is_504(self, url):
        document = {"inputs": [GIVEN], "parameters": {"timeout": 1}}

        assert "deadline" in error(infer(url, document), 504)

    def test_large_json_is_decoded_off_the_loop_with_the_same_answer(self, folder):
        data = b'{"inputs": [%s]}' % json.dumps(GIVEN).encode()
        padded = data + b" " * (2 * 1024 * 1024)

        with daemon_in_thread([folder / "double.tflite"]) as daemon:
            answer = infer(daemon.url, data=padded)

        assert answer.json()["outputs"][0]["data"] == [2, 4, 6, 8]


class TestRepository:
    def test_an_empty_body_lists_all_versions(self, client):
        entries = {entry["name"]: entry for entry in client.get_model_repository_index()}

        assert entries["double"] == {
            "name": "double",
            "version": "1",
            "state": "READY",
            "reason": "",
        }
        assert entries["broken"]["state"] == "UNAVAILABLE"
        assert entries["broken"]["reason"]

    def test_only_ready_models_are_listed_when_asked(self, url):
        entries = post(url, "/v2/repository/index", json={"ready": True}).json()

        assert {entry["name"] for entry in entries} == {"double", ODD_NAME}

    @pytest.mark.parametrize("data", [b"[]", b"{", b'{"ready": 1}'])
    def test_a_bad_body_is_400(self, url, data):
        error(post(url, "/v2/repository/index", data=data), 400)

    def test_a_model_is_unloaded_and_loaded_again(self, healthy_url):
        with InferenceServerClient(healthy_url.removeprefix("http://")) as client:
            client.unload_model("double")
            was_ready = client.is_model_ready("double")
            client.load_model("double")

            assert not was_ready
            assert client.is_model_ready("double")
            assert infer(healthy_url, {"inputs": [GIVEN]}).status_code == 200

    def test_an_unloaded_model_answers_503_and_is_listed(self, healthy_url):
        post(healthy_url, "/v2/repository/models/double/unload")

        message = error(infer(healthy_url, {"inputs": [GIVEN]}), 503)

        assert message.startswith("Request for unknown model: 'double' ")
        (entry,) = post(healthy_url, "/v2/repository/index").json()
        assert entry["state"] == "UNAVAILABLE"

    def test_model_bytes_are_refused(self, client):
        files = {"file:1/model.tflite": build()}

        with pytest.raises(InferenceServerException, match="model files are not taken") as refusal:
            client.load_model("double", config="{}", files=files)

        assert refusal.value.status() == "403"

    def test_a_configuration_is_refused(self, client):
        with pytest.raises(InferenceServerException, match=r"model\.toml") as refusal:
            client.load_model("double", config="{}")

        assert refusal.value.status() == "501"

    @pytest.mark.parametrize("parameters", [{}, {"note": 1}, None])
    def test_other_parameters_of_a_load_are_ignored(self, url, parameters):
        answer = post(url, "/v2/repository/models/double/load", json={"parameters": parameters})

        assert (answer.status_code, answer.content) == (200, b"")

    def test_load_parameters_that_are_no_object_are_400(self, url):
        answer = post(url, "/v2/repository/models/double/load", json={"parameters": [1]})

        assert "'parameters'" in error(answer, 400)

    @pytest.mark.parametrize("verb", ["load", "unload"])
    def test_an_unknown_model_is_404(self, url, verb):
        error(post(url, f"/v2/repository/models/foo/{verb}"), 404)

    def test_a_model_that_cannot_load_says_why(self, url):
        message = error(post(url, "/v2/repository/models/broken/load"), 503)

        assert message.startswith("failed to load 'broken': the file is not a TFLite model")

    @pytest.mark.parametrize("path", ["index", "models/double/load", "models/double/unload"])
    def test_a_repository_name_is_501(self, url, path):
        message = error(post(url, f"/v2/repository/mine/{path}"), 501)

        assert message == "'repository_name' specification is not supported"


class TestSettings:
    def test_log_settings_are_told_and_not_changed(self, url, client):
        assert client.get_log_settings()["log_error"] is True
        error(post(url, "/v2/logging", json={"log_info": False}), 501)

    @pytest.mark.parametrize("path", ["/v2/trace/setting", "/v2/models/double/trace/setting"])
    def test_traces_are_off_and_stay_off(self, url, path):
        assert get(url, path).json()["trace_level"] == ["OFF"]
        error(post(url, path, json={"trace_level": ["TIMESTAMPS"]}), 501)

    def test_trace_settings_of_an_unknown_model_are_404(self, url):
        error(get(url, "/v2/models/foo/trace/setting"), 404)

    @pytest.mark.parametrize("kind", ["system", "cuda"])
    def test_there_is_no_shared_memory(self, url, kind):
        base = f"/v2/{kind}sharedmemory"

        assert get(url, base + "/status").json() == []
        assert post(url, base + "/unregister").status_code == 200
        assert post(url, base + "/region/r/unregister").status_code == 200
        assert "Unable to find" in error(get(url, base + "/region/r/status"), 404)
        assert "not offered" in error(post(url, base + "/region/r/register", json={}), 501)
