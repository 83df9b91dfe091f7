"""Real KServe v2 clients get the known answers of the shared models, unchanged, over every form."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from support.daemon_thread import daemon_in_thread
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

pytestmark = pytest.mark.shared

MODELS = {
    "mnv2": "mobilenet_v2_1.0_224_quant.tflite",
    "cifar": "cifar10_resnet8_int8.tflite",
    "digits": "fc_mnist_qat_uint8.tflite",
    "ssd": "coco_ssd_mobilenet_v1_quant_meta.tflite",
    "yamnet": "yamnet_classifier_meta.tflite",
    "deeplab": "deeplabv3_mnv2_dm05_pascal_quant.tflite",
    "movie": "movie_review_avg_word_vec.tflite",
    "sine": "hello_world_sine_float.tflite",
    "multi": "multi_signature_add_mul_sub.tflite",
    "reverse": "reverse_signature_two_in_two_out.tflite",
    "dyn": "simple_add_dynamic_batch.tflite",
    "text": "string_identity_with_signature.tflite",
    "gather": "gather_string.tflite",
}

ANGLES = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.fixture(scope="module")
def url(shared_models):
    served = [{"path": shared_models / "models" / file, "name": n} for n, file in MODELS.items()]
    with daemon_in_thread(served) as daemon:
        yield daemon.url


@pytest.fixture
def client(url):
    with InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def golden(shared_models):
    return lambda name: np.load(shared_models / "golden" / f"{name}.npy")


@pytest.fixture(scope="module")
def cases(shared_models):
    document = json.loads((shared_models / "expected.json").read_text())
    return {case["id"]: case for case in document["cases"]}


def tensor(name, array, *, binary=True, datatype=None):
    given = InferInput(name, array.shape, datatype or np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def wanted(*names, binary=True, classes=0):
    return [InferRequestedOutput(n, binary_data=binary, class_count=classes) for n in names]


def texts(*elements):
    array = np.empty(len(elements), dtype=object)
    array[:] = [element.encode() for element in elements]
    return array


def picture(name, data, shape=(1,)):
    array = np.empty(shape, dtype=object)
    array.reshape(-1)[:] = data
    return tensor(name, array, datatype="BYTES")


FORMS = pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])


class TestKnownAnswers:
    @FORMS
    @pytest.mark.parametrize("case", ["cat", "bird", "parrot"])
    def test_an_unsigned_quantised_classifier(self, client, golden, binary, case):
        given = golden(f"mnv2_quant-{case}.input")

        result = client.infer(
            "mnv2",
            [tensor("input", given, binary=binary)],
            outputs=wanted("MobilenetV2/Predictions/Softmax", binary=binary),
        )

        output = result.as_numpy("MobilenetV2/Predictions/Softmax")
        expected = golden(f"mnv2_quant-{case}.output")
        assert output.argmax() == expected.argmax()
        np.testing.assert_allclose(output.astype(int), expected.astype(int), atol=2)

    @FORMS
    def test_a_signed_quantised_classifier(self, client, golden, binary):
        given = golden("cifar_int8-cat.input")

        result = client.infer("cifar", [tensor("input_1_int8", given, binary=binary)])

        output = result.as_numpy("Identity_int8")
        assert output.dtype == np.int8
        assert output.argmax() == golden("cifar_int8-cat.output").argmax()

    @FORMS
    def test_ten_rows_at_once(self, client, golden, binary):
        given = golden("fc_mnist.batch10.input")

        result = client.infer("digits", [tensor("input_1", given, binary=binary)])

        assert result.as_numpy("Identity").argmax(axis=1).tolist() == list(range(10))

    @FORMS
    def test_int64_outputs(self, client, golden, shared_models, binary):
        data = (shared_models / "inputs" / "bird_segmentation.bmp").read_bytes()

        result = client.infer(
            "deeplab",
            [picture("MobilenetV2/MobilenetV2/input", [data])],
            outputs=wanted("ArgMax", binary=binary),
        )

        mask = result.as_numpy("ArgMax")
        assert mask.dtype == np.int64
        assert np.mean(mask == golden("deeplab_dm05-bird.output").reshape(mask.shape)) > 0.99

    @FORMS
    def test_several_inputs_of_a_free_number_of_rows(self, client, golden, binary):
        given = [
            tensor(name, golden(f"dyn-batch3.in.{name}"), binary=binary)
            for name in ("arg0", "arg1")
        ]

        result = client.infer("dyn", given)

        np.testing.assert_array_equal(
            result.as_numpy("tfl.add"), golden("dyn-batch3.out.tfl_add"), strict=True
        )

    @FORMS
    def test_inputs_and_outputs_go_by_name_whatever_their_order(self, client, cases, binary):
        case = cases["reverse_sig"]
        arrays = {n: np.float32(v["data"]).reshape(v["shape"]) for n, v in case["inputs"].items()}
        given = [tensor(name, arrays[name], binary=binary) for name in ("y", "x")]

        result = client.infer("reverse", given, outputs=wanted("sum", "prod", binary=binary))

        assert [output["name"] for output in result.get_response()["outputs"]] == ["sum", "prod"]
        np.testing.assert_allclose(result.as_numpy("sum"), arrays["x"] + arrays["y"])
        np.testing.assert_allclose(result.as_numpy("prod"), arrays["x"] * arrays["y"])

    @FORMS
    @pytest.mark.parametrize("signature", ["add", "mul", "sub"])
    def test_the_parameter_signature_selects_one(self, client, cases, binary, signature):
        case = cases[f"multi_sig-{signature}"]
        given = [
            tensor(n, np.float32(v["data"]).reshape(v["shape"]), binary=binary)
            for n, v in case["inputs"].items()
        ]

        result = client.infer("multi", given, parameters={"signature": signature})

        expected = case["expected"]["output"]
        np.testing.assert_allclose(
            result.as_numpy("output").reshape(-1), np.ravel(expected["data"]), atol=1e-5
        )

    @FORMS
    def test_texts(self, client, binary):
        given = texts("héllo", "", "wörld ✓").reshape(1, 3)

        result = client.infer(
            "text",
            [tensor("a", given, binary=binary)],
            outputs=wanted("output_0", binary=binary),
        )

        elements = result.as_numpy("output_0").reshape(-1).tolist()
        assert [e if isinstance(e, bytes) else e.encode() for e in elements] == given[0].tolist()

    def test_a_megabyte_of_texts(self, client):
        given = texts(*("word" for _ in range(300_000))).reshape(-1, 3)

        result = client.infer("text", [tensor("a", given)])

        assert result.as_numpy("output_0").shape == given.shape

    @FORMS
    def test_texts_beside_int64_indices(self, client, binary):
        given = texts(*(f"item{i}" for i in range(10)))
        indices = np.array([7, 0, 3], dtype=np.int64)

        result = client.infer(
            "gather",
            [tensor("indices", indices, binary=binary), tensor("input", given, binary=binary)],
            outputs=wanted("output"),
        )

        assert result.as_numpy("output").tolist() == [b"item7", b"item0", b"item3"]

    def test_a_detector_answers_its_raw_outputs(self, client, golden, cases):
        (cat,) = cases["ssd-cat"]["expected"]["detections"]
        boxes, classes, scores, count = (
            f"TFLite_Detection_PostProcess{suffix}" for suffix in ("", ":1", ":2", ":3")
        )

        result = client.infer(
            "ssd", [tensor("normalized_input_image_tensor", golden("ssd-cat.input"))]
        )

        assert result.as_numpy(count).item() == 10
        assert result.as_numpy(classes).reshape(-1)[0] == cat["class_index"]
        assert result.as_numpy(scores).reshape(-1)[0] == pytest.approx(cat["score"], abs=0.02)
        np.testing.assert_allclose(
            result.as_numpy(boxes).reshape(-1, 4)[0], cat["box_ymin_xmin_ymax_xmax"], atol=0.02
        )


class TestEncodedMedia:
    def test_a_jpeg_in_a_bytes_tensor_is_decoded_and_resized(self, client, shared_models):
        data = (shared_models / "inputs" / "parrot.jpg").read_bytes()

        result = client.infer(
            "mnv2",
            [picture("input", [data])],
            outputs=wanted("MobilenetV2/Predictions/Softmax", classes=1),
        )

        (best,) = result.as_numpy("MobilenetV2/Predictions/Softmax").reshape(-1)
        assert b":macaw" in best

    def test_several_pictures_are_rows(self, client, shared_models):
        data = [
            (shared_models / "inputs" / f"digit{digit}.png").read_bytes() for digit in (4, 2, 7)
        ]

        result = client.infer("digits", [picture("input_1", data, (3,))])

        assert result.as_numpy("Identity").argmax(axis=1).tolist() == [4, 2, 7]

    def test_a_sound_in_a_bytes_tensor_is_decoded(self, client, shared_models):
        data = (shared_models / "inputs" / "speech.wav").read_bytes()
        name = "tower0/network/layer32/final_output"

        result = client.infer(
            "yamnet", [picture("waveform_binary", [data])], outputs=wanted(name, classes=1)
        )

        assert result.as_numpy(name).reshape(-1)[0].endswith(b":0:Speech")

    def test_a_raw_body_may_be_a_picture(self, url, shared_models):
        answer = requests.post(
            f"{url}/v2/models/mnv2/infer",
            data=(shared_models / "inputs" / "parrot.jpg").read_bytes(),
            headers={"Inference-Header-Content-Length": "0"},
            timeout=30,
        )

        json_bytes = int(answer.headers["Inference-Header-Content-Length"])
        scores = np.frombuffer(answer.content[json_bytes:], np.uint8)
        assert json.loads(answer.content[:json_bytes])["outputs"][0]["shape"] == [1, 1001]
        assert scores.argmax() == 89

    def test_a_truncated_jpeg_is_refused(self, client, shared_models):
        data = (shared_models / "inputs" / "parrot.jpg").read_bytes()[:5000]

        with pytest.raises(InferenceServerException) as refusal:
            client.infer("mnv2", [picture("input", [data])])

        assert refusal.value.status() == "400"

    def test_a_text_in_place_of_a_picture_is_refused(self, client):
        with pytest.raises(InferenceServerException) as refusal:
            client.infer("mnv2", [picture("input", [b"no picture at all"])])

        assert refusal.value.status() == "400"


class TestForms:
    @pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("answer_coding", [None, "gzip", "deflate"])
    def test_compression_both_ways_changes_no_number(
        self, client, golden, request_coding, answer_coding
    ):
        given = golden("mnv2_quant-cat.input")

        result = client.infer(
            "mnv2",
            [tensor("input", given)],
            request_compression_algorithm=request_coding,
            response_compression_algorithm=answer_coding,
        )

        output = result.as_numpy("MobilenetV2/Predictions/Softmax")
        assert output.argmax() == golden("mnv2_quant-cat.output").argmax()

    @pytest.mark.parametrize(("accepted", "coding"), [("gzip", "gzip"), ("deflate", "deflate")])
    def test_a_large_json_answer_is_compressed_when_asked_for(self, url, golden, accepted, coding):
        given = golden("mnv2_quant-cat.input")
        document = {
            "inputs": [
                {
                    "name": "input",
                    "shape": given.shape,
                    "datatype": "UINT8",
                    "data": given.tolist(),
                }
            ]
        }

        answer = requests.post(
            f"{url}/v2/models/mnv2/infer",
            json=document,
            headers={"Accept-Encoding": accepted},
            timeout=30,
        )

        assert answer.headers["Content-Encoding"] == coding
        assert len(answer.json()["outputs"][0]["data"]) == 1001

    def test_a_raw_body_is_the_single_input(self, url):
        answer = requests.post(
            f"{url}/v2/models/sine/infer",
            data=np.float32([[1.5707964]]).tobytes(),
            headers={"Inference-Header-Content-Length": "0"},
            timeout=30,
        )

        json_bytes = int(answer.headers["Inference-Header-Content-Length"])
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert np.frombuffer(answer.content[json_bytes:], np.float32)[0] == pytest.approx(
            1, abs=0.1
        )

    def test_a_curl_body_without_a_json_content_type_is_read(self, url):
        given = {"name": "dense_input", "shape": [1, 1], "datatype": "FP32", "data": [0]}

        answer = requests.post(
            f"{url}/v2/models/sine/infer",
            data=json.dumps({"inputs": [given]}),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            timeout=30,
        )

        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("application/json")
        assert "Inference-Header-Content-Length" not in answer.headers

    def test_the_id_is_echoed_and_details_come_when_asked_for(self, client):
        result = client.infer(
            "sine",
            [tensor("dense_input", np.float32([[0]]))],
            request_id="r-1",
            parameters={"inferd_details": True},
        )

        answer = result.get_response()
        assert answer["id"] == "r-1"
        assert answer["model_version"] == "1"
        assert answer["parameters"]["device"] == "cpu"
        assert answer["parameters"]["degraded"] is False
        assert answer["parameters"]["total_ms"] > 0

    def test_priority_and_timeout_are_taken(self, client):
        result = client.infer(
            "sine", [tensor("dense_input", np.float32([[0]]))], priority=1, timeout=30_000_000
        )

        assert result.as_numpy("dense_2").shape == (1, 1)

    def test_sequences_are_refused(self, client):
        with pytest.raises(InferenceServerException, match="sequences are not offered"):
            client.infer("sine", [tensor("dense_input", np.float32([[0]]))], sequence_id=5)

    def test_a_version_may_be_named(self, client):
        given = [tensor("dense_input", np.float32([[0]]))]

        assert client.infer("sine", given, model_version="1") is not None
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'sine' ver"):
            client.infer("sine", given, model_version="2")

    def test_the_async_client_gets_its_answers(self, url):
        with InferenceServerClient(url.removeprefix("http://"), concurrency=4) as client:
            pending = [
                client.async_infer("sine", [tensor("dense_input", np.float32([[angle]]))])
                for angle in ANGLES
            ]
            values = [p.get_result(timeout=30).as_numpy("dense_2")[0, 0] for p in pending]

        np.testing.assert_allclose(values, np.sin(ANGLES), atol=0.15)


class TestDescriptions:
    def test_metadata_names_tensors_as_the_signature_does(self, client):
        metadata = client.get_model_metadata("reverse")

        assert metadata["versions"] == ["1"]
        assert {spec["name"] for spec in metadata["inputs"]} == {"x", "y"}
        assert {spec["name"] for spec in metadata["outputs"]} == {"sum", "prod"}

    def test_the_configuration_is_the_one_clients_batch_by(self, client):
        config = client.get_model_config("dyn")

        assert config["max_batch_size"] > 1
        assert [spec["dims"] for spec in config["input"]] == [[128, 4], [128, 4]]
        assert config["input"][0]["data_type"] == "TYPE_FP32"

    def test_every_model_is_described_and_ready(self, client):
        index = client.get_model_repository_index()

        assert {entry["name"]: entry["state"] for entry in index} == dict.fromkeys(MODELS, "READY")
        assert all(client.is_model_ready(name) for name in MODELS)
        assert all(client.get_model_metadata(name)["outputs"] for name in MODELS)

    def test_statistics_count_what_was_answered(self, client):
        before = client.get_inference_statistics("gather", "1")["model_stats"][0]
        given = [
            tensor("indices", np.zeros(3, np.int64)),
            tensor("input", texts(*"abcdefghij")),
        ]

        client.infer("gather", given)

        after = client.get_inference_statistics("gather")["model_stats"][0]
        assert after["inference_stats"]["success"]["count"] == (
            before["inference_stats"]["success"]["count"] + 1
        )
        assert after["execution_count"] == before["execution_count"] + 1
        assert after["inference_stats"]["compute_infer"]["ns"] > 0
        assert after["last_inference"] > 0


class TestRefusals:
    def refusal(self, client, name, given, **options):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(name, given, **options)
        return SimpleNamespace(status=caught.value.status(), message=caught.value.message())

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([], "missing 'dense_input'"),
            ([("other", np.float32([[1]]))], "unexpected inference input 'other'"),
            ([("dense_input", np.float32([1]))], "unexpected shape"),
            ([("dense_input", np.float64([[1]]))], "data-type is 'FP64'"),
            (
                [("dense_input", np.float32([[1]])), ("more", np.float32([[1]]))],
                "unexpected inference input 'more'",
            ),
        ],
    )
    def test_inputs_that_are_not_the_models_are_400(self, client, given, message):
        refusal = self.refusal(client, "sine", [tensor(name, array) for name, array in given])

        assert refusal.status == "400"
        assert message in refusal.message

    def test_an_unknown_output_is_400(self, client):
        given = [tensor("dense_input", np.float32([[1]]))]

        refusal = self.refusal(client, "sine", given, outputs=wanted("nothing"))

        assert refusal.status == "400"
        assert "unexpected inference output 'nothing'" in refusal.message

    def test_shared_memory_is_501(self, client):
        given = InferInput("dense_input", [1, 1], "FP32")
        given.set_shared_memory("region", 4)

        refusal = self.refusal(client, "sine", [given])

        assert refusal.status == "501"
        assert "shared memory is not offered" in refusal.message

    def test_the_daemon_goes_on_after_every_refusal(self, client):
        for _ in range(20):
            self.refusal(client, "sine", [])

        assert client.infer("sine", [tensor("dense_input", np.float32([[0]]))]) is not None
