"""TF Serving's REST API as its clients see it: the real service, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio
import requests
from support.daemon import running_daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# y = x + x for float32 (1, 4), without a signature
DOUBLE = Path(__file__).resolve().parents[3] / "daemon" / "cli" / "selftest.tflite"
SPEC_OF_X = {
    "dtype": "DT_FLOAT",
    "tensor_shape": {
        "dim": [{"size": "1", "name": ""}, {"size": "4", "name": ""}],
        "unknown_rank": False,
    },
    "name": "x:0",
}

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Client:
    """A script's `requests` against one server; every path starts at its root."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()

    async def send(self, method: str, path: str, **options: Any) -> requests.Response:
        call = partial(self._session.request, method, self.url + path, timeout=60, **options)
        return await asyncio.to_thread(call)

    async def get(self, path: str) -> requests.Response:
        return await self.send("GET", path)

    async def predict(self, model: str, body: object, **options: Any) -> requests.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send("POST", f"/v1/models/{model}:predict", data=data, **options)

    async def works(self) -> bool:
        """Whether an ordinary request is answered as ever."""
        response = await self.predict("double", {"instances": [[1, 2, 3, 4]]})
        return response.json() == {"predictions": [[2.0, 4.0, 6.0, 8.0]]}

    def close(self) -> None:
        self._session.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    broken = tmp_path_factory.mktemp("models") / "broken.tflite"
    broken.write_bytes(b"this is no model")
    served = [
        {"path": DOUBLE, "name": "double", "labels": {"stable": 1}},
        {"path": DOUBLE, "name": "b:c d"},
        {"path": broken, "name": "broken"},
    ]
    async with running_daemon(served, http={"max_body_mib": 1}) as daemon:
        client = Client(daemon.url)
        yield client
        client.close()


# Predict.


async def test_rows_are_answered_as_predictions(client: Client):
    response = await client.predict("double", {"instances": [[1, 2, 3, 4.5]]})

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == {"predictions": [[2.0, 4.0, 6.0, 9.0]]}


async def test_columns_are_answered_as_outputs(client: Client):
    response = await client.predict("double", {"inputs": {"x": [[1, 2, 3, 4]]}})

    assert response.json() == {"outputs": [[2.0, 4.0, 6.0, 8.0]]}


@pytest.mark.parametrize(
    "which", ["", "/versions/1", "/versions/0", "/versions/0001", "/labels/stable"]
)
async def test_version_and_label_find_the_model(client: Client, which: str):
    response = await client.predict(f"double{which}", {"instances": [[1, 2, 3, 4]]})

    assert response.json() == {"predictions": [[2.0, 4.0, 6.0, 8.0]]}


async def test_paths_are_matched_without_regard_to_case(client: Client):
    body = {"instances": [[1, 2, 3, 4]]}

    response = await client.send("POST", "/V1/Models/double/Versions/1:PREDICT", json=body)

    assert response.json() == {"predictions": [[2.0, 4.0, 6.0, 8.0]]}


async def test_names_are_percent_decoded(client: Client):
    response = await client.predict("b%3Ac%20d", {"instances": [[1, 2, 3, 4]]})

    assert response.json() == {"predictions": [[2.0, 4.0, 6.0, 8.0]]}


async def test_the_query_is_ignored(client: Client):
    body = {"instances": [[1, 2, 3, 4]]}

    response = await client.send("POST", "/v1/models/double:predict?key=1", json=body)

    assert response.status_code == 200


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "image/jpeg", ""])
async def test_the_content_type_of_a_request_is_ignored(client: Client, content_type: str):
    headers = {"Content-Type": content_type}

    response = await client.predict("double", {"instances": [[1, 2, 3, 4]]}, headers=headers)

    assert response.status_code == 200


async def test_gzip_bodies_are_inflated(client: Client):
    body = gzip.compress(b'{"instances": [[1, 2, 3, 4]]}')

    response = await client.predict("double", body, headers={"Content-Encoding": "gzip"})

    assert response.json() == {"predictions": [[2.0, 4.0, 6.0, 8.0]]}


async def test_chunked_bodies_are_read(client: Client):
    chunks = (piece for piece in (b'{"instances": ', b"[[1, 2, 3, 4]]}"))

    response = await client.send("POST", "/v1/models/double:predict", data=chunks)

    assert response.json() == {"predictions": [[2.0, 4.0, 6.0, 8.0]]}


async def test_nan_and_infinities_go_through(client: Client):
    response = await client.predict("double", b'{"instances": [[NaN, Infinity, -Infinity, 1]]}')

    row = response.json()["predictions"][0]
    assert math.isnan(row[0])
    assert row[1:] == [math.inf, -math.inf, 2.0]
    assert b"[NaN,Infinity,-Infinity,2.0]" in response.content


async def test_a_deadline_that_is_no_number_is_refused(client: Client):
    headers = {"Inferd-Timeout-Ms": "soon"}

    response = await client.predict("double", {"instances": [[1, 2, 3, 4]]}, headers=headers)

    assert response.status_code == 400
    assert "Inferd-Timeout-Ms" in response.json()["error"]


# Classify and regress.


@pytest.mark.parametrize("method", ["classify", "regress"])
async def test_other_methods_are_refused_for_predict_signatures(client: Client, method: str):
    body = {"examples": [{"x": [1.0]}]}

    response = await client.send("POST", f"/v1/models/double:{method}", json=body)

    assert response.status_code == 400
    assert f"tensorflow/serving/{method}. Was: tensorflow/serving/predict" in response.text


# Status and metadata.


@pytest.mark.parametrize("which", ["", "/versions/1", "/versions/0", "/labels/stable"])
async def test_status_of_a_model_that_answers(client: Client, which: str):
    response = await client.get(f"/v1/models/double{which}")

    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }


async def test_status_of_a_model_that_cannot_be_served_is_200_with_the_reason(client: Client):
    response = await client.get("/v1/models/broken")

    (status,) = response.json()["model_version_status"]
    assert response.status_code == 200
    assert status["state"] == "END"
    assert status["status"]["error_code"] != "OK"
    assert status["status"]["error_message"]


async def test_status_of_an_unknown_model_is_404(client: Client):
    response = await client.get("/v1/models/half")

    assert response.status_code == 404
    assert response.json() == {"error": "Could not find any versions of model half"}


async def test_status_of_an_unknown_version_is_404(client: Client):
    response = await client.get("/v1/models/double/versions/7")

    assert response.status_code == 404
    assert response.json() == {"error": "Could not find version 7 of model double"}


@pytest.mark.parametrize("which", ["", "/versions/1", "/versions/0", "/labels/stable"])
async def test_metadata_has_tf_servings_form(client: Client, which: str):
    response = await client.get(f"/v1/models/double{which}/metadata")

    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == {
        "model_spec": {"name": "double", "signature_name": "", "version": "1"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {"x": SPEC_OF_X},
                        "outputs": {"y": {**SPEC_OF_X, "name": "y:0"}},
                        "method_name": "tensorflow/serving/predict",
                        "defaults": {},
                    }
                }
            }
        },
    }


async def test_metadata_of_an_unknown_model_is_404(client: Client):
    response = await client.get("/v1/models/half/metadata")

    assert response.status_code == 404
    assert response.json() == {"error": "Servable not found for request: Latest(half)"}


# What is not there.


async def test_predict_of_an_unknown_model_is_404(client: Client):
    response = await client.predict("half", {"instances": [1]})

    assert response.status_code == 404
    assert response.json() == {"error": "Servable not found for request: Latest(half)"}


async def test_predict_of_an_unknown_version_is_404(client: Client):
    response = await client.predict("double/versions/7", {"instances": [1]})

    assert response.status_code == 404
    assert response.json() == {"error": "Servable not found for request: Specific(double, 7)"}


async def test_predict_of_a_model_that_cannot_be_served_says_why(client: Client):
    response = await client.predict("broken", {"instances": [1]})

    assert response.status_code == 503
    assert response.json()["error"].startswith("model 'broken'")


@pytest.mark.parametrize(
    "path", ["/v1/models/double/labels/x", "/v1/models/double/labels/x/metadata"]
)
async def test_an_unknown_label_is_400(client: Client, path: str):
    response = await client.get(path)

    assert response.status_code == 400
    assert response.json() == {"error": "Unrecognized servable version label: x"}


async def test_predict_with_an_unknown_label_is_400(client: Client):
    response = await client.predict("double/labels/x", {"instances": [1]})

    assert response.status_code == 400
    assert response.json() == {"error": "Unrecognized servable version label: x"}


@pytest.mark.parametrize("path", ["", "/metadata"])
async def test_a_version_beyond_int64_is_400(client: Client, path: str):
    response = await client.get(f"/v1/models/double/versions/9223372036854775808{path}")

    assert response.status_code == 400
    assert response.json() == {
        "error": "Failed to convert version: 9223372036854775808 to numeric."
    }


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/versions/1"])
async def test_status_needs_a_name(client: Client, path: str):
    response = await client.get("/v1/models")

    assert response.status_code == 400
    assert response.json() == {"error": "Missing model name in request."}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/"),
        ("GET", "/v1/foo"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/models/double/"),
        ("GET", "/v1/models/double/versions/x"),
        ("GET", "/v1/models/double/versions/1/labels/stable"),
        ("GET", "/v1/models/double:predict"),
        ("POST", "/v1/models/double"),
        ("POST", "/v1/models/double:explain"),
        ("POST", "/v1/models/:predict"),
        ("POST", "/v1/models/a/b:predict"),
        ("PUT", "/v1/models/double:predict"),
        ("DELETE", "/v1/models/double"),
        ("PATCH", "/v1/models/double/metadata"),
        ("OPTIONS", "/v1/models/double"),
    ],
)
async def test_other_verbs_and_paths_are_malformed(client: Client, method: str, path: str):
    response = await client.send(method, path)

    assert response.status_code == 400
    assert response.json() == {"error": f"Malformed request: {method} {path}"}


async def test_options_of_a_page_is_answered_and_grants_nothing(client: Client):
    headers = {"Origin": "https://example.org"}

    response = await client.send("OPTIONS", "/v1/models/double", headers=headers)

    assert response.status_code == 200
    assert "Access-Control-Allow-Origin" not in response.headers


# Bad input: refused with words, and the next request works.

DEEP = b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (
            b'{"instances": [[1, 2, 3, 4]',
            "JSON Parse error: Missing a comma or ] after an array element.",
        ),
        (b'{"instances": \xff\xfe}', "JSON Parse error: Invalid encoding in string. at offset: 14"),
        (b"\x00" * 100, "JSON Parse error: Invalid value. at offset: 0"),
        (b'{"instances": [[1e999, 2, 3, 4]]}', "JSON Parse error: Number too big"),
        (DEEP, "JSON Parse error: The document is nested too deeply."),
        (b"[1]", "JSON Value: [1] Is not object"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"instances": [[1, 2, 3]]}', "unexpected shape for input 'x'"),
        (b'{"instances": [1, 2, 3, 4]}', "unexpected shape for input 'x'"),
        (b'{"inputs": 1}', "unexpected shape for input 'x'"),
        (b'{"inputs": []}', "unexpected shape for input 'x'"),
        (b'{"instances": [[1, 2, 3, 4], [5]]}', "Failed to process element: 1"),
        (b'{"instances": [["1", 2, 3, 4]]}', "Type: String is not of expected type: float"),
        (b'{"instances": [[true, 2, 3, 4]]}', "Type: True is not of expected type: float"),
        (b'{"instances": [[null, 2, 3, 4]]}', "Type: Null is not of expected type: float"),
        (b'{"instances": [[1e39, 2, 3, 4]]}', "to float without loss of precision."),
        (b'{"instances": [{"b64": "AAAA"}]}', "Type: Object is not of expected type: float"),
        (b'{"instances": [{"y": 1}]}', "JSON object: does not have named input: y"),
        (b'{"inputs": {"y": 1}}', "Missing named input: x in 'inputs' object."),
        (b'{"signature_name": "f", "inputs": 1}', 'Serving signature name: "f" not found'),
        (b'{"signature_name": "\\ud800", "inputs": 1}', "Serving signature name: "),
    ],
    ids=lambda value: repr(value[:30]),
)
async def test_bad_bodies_are_refused_and_the_next_request_works(
    client: Client, body: bytes, error: str
):
    response = await client.predict("double", body)

    assert response.status_code == 400
    assert error in response.json()["error"]
    assert await client.works()


async def test_bad_gzip_is_refused_and_the_next_request_works(client: Client):
    response = await client.predict("double", b"{}", headers={"Content-Encoding": "gzip"})

    assert response.status_code == 400
    assert response.json()["error"]
    assert await client.works()


async def test_a_body_that_inflates_beyond_the_limit_is_refused(client: Client):
    bomb = gzip.compress(b" " * 3_000_000)

    response = await client.predict("double", bomb, headers={"Content-Encoding": "gzip"})

    assert response.status_code == 413
    assert await client.works()


async def test_a_body_beyond_the_limit_is_refused(client: Client):
    response = await client.predict("double", b" " * 2_000_000)

    assert response.status_code == 413
    assert response.json()["error"]
    assert await client.works()


@pytest.mark.parametrize(
    "name", ["%ff", "a%2Fb%3Ac", "%00", "..%2F..", "%0d%0aX", "x" * 2000, "%F0%9F%98%80"]
)
async def test_odd_names_are_not_found_and_the_next_request_works(client: Client, name: str):
    response = await client.predict(name, {"instances": [1]})

    assert response.status_code == 404
    assert response.json()["error"].startswith("Servable not found for request: Latest(")
    assert await client.works()


# Real models.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(shared_models: Path) -> AsyncIterator[Client]:
    expected = json.loads((shared_models / "expected.json").read_text())
    served = [
        {"path": shared_models / expected["models"][name]["file"], "name": name}
        for name in (
            "fc_mnist",
            "cifar_int8",
            "mnv2_quant",
            "multi_sig",
            "reverse_sig",
            "dyn",
            "string",
            "gather_string",
            "sine_int8",
            "movie",
            "training",
        )
    ]
    async with running_daemon(served) as daemon:
        client = Client(daemon.url)
        yield client
        client.close()


@pytest.fixture(scope="module")
def cases(shared_models: Path) -> dict[str, Any]:
    expected = json.loads((shared_models / "expected.json").read_text())
    return {case["id"]: case for case in expected["cases"]}


def read_tensor(shared_models: Path, tensor: dict[str, Any]) -> list[Any]:
    """A tensor of expected.json as nested lists."""
    if "npy" in tensor:
        return np.load(shared_models / tensor["npy"]).tolist()
    return np.array(tensor["data"], dtype=object).reshape(tensor["shape"]).tolist()


@pytest.mark.shared
async def test_ten_digits_in_one_batch_are_all_right(real: Client, cases, shared_models: Path):
    case = cases["fc_mnist-batch10"]
    digits = np.load(shared_models / case["input"]["npy"]).tolist()

    response = await real.predict("fc_mnist", {"instances": digits})

    predictions = np.array(response.json()["predictions"])
    golden = np.load(shared_models / case["expected"]["output_npy"])
    assert predictions.argmax(axis=1).tolist() == case["truth"]
    np.testing.assert_allclose(predictions, golden, atol=1)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["cat", "bird", "pets"])
async def test_int8_tensors_give_the_known_answers(
    real: Client, cases, shared_models: Path, name: str
):
    golden = shared_models / "golden" / f"cifar_int8-{name}"
    pixels = np.load(f"{golden}.input.npy").tolist()

    response = await real.predict("cifar_int8", {"instances": pixels})

    expected = np.load(f"{golden}.output.npy")
    np.testing.assert_allclose(response.json()["predictions"], expected, atol=3)


@pytest.mark.shared
@pytest.mark.parametrize("signature", ["add", "mul", "sub"])
@pytest.mark.parametrize("layout", ["instances", "inputs"])
async def test_signatures_are_called_by_name(
    real: Client, cases, shared_models: Path, signature: str, layout: str
):
    case = cases[f"multi_sig-{signature}"]
    inputs = {name: read_tensor(shared_models, t) for name, t in case["inputs"].items()}
    rows = [{"a": a, "b": b} for a, b in zip(inputs["a"], inputs["b"], strict=True)]
    body = {"instances": rows} if layout == "instances" else {"inputs": inputs}

    response = await real.predict("multi_sig", {"signature_name": signature, **body})

    (answer,) = response.json().values()
    np.testing.assert_allclose(answer, read_tensor(shared_models, case["expected"]["output"]))


@pytest.mark.shared
async def test_the_first_signature_answers_where_there_is_no_serving_default(real: Client):
    ones = np.ones((10, 10)).tolist()

    response = await real.predict("multi_sig", {"inputs": {"a": ones, "b": ones}})

    assert response.json()["outputs"] == (np.ones((10, 10)) * 2).tolist()


@pytest.mark.shared
async def test_several_outputs_are_objects_by_name(real: Client, cases, shared_models: Path):
    case = cases["reverse_sig"]
    inputs = {name: read_tensor(shared_models, t) for name, t in case["inputs"].items()}
    expected = {name: read_tensor(shared_models, t) for name, t in case["expected"].items()}

    columns = await real.predict("reverse_sig", {"inputs": inputs})
    rows = await real.predict(
        "reverse_sig", {"instances": [{name: rows[0] for name, rows in inputs.items()}]}
    )

    assert columns.json() == {"outputs": expected}
    assert rows.json() == {"predictions": [{name: v[0] for name, v in expected.items()}]}


@pytest.mark.shared
@pytest.mark.parametrize("batch", [1, 3])
async def test_a_free_first_dimension_takes_any_batch(
    real: Client, cases, shared_models: Path, batch: int
):
    case = cases[f"dyn-batch{batch}"]
    inputs = {name: read_tensor(shared_models, t) for name, t in case["inputs"].items()}

    response = await real.predict("dyn", {"inputs": inputs})

    expected = read_tensor(shared_models, case["expected"]["tfl.add"])
    np.testing.assert_allclose(response.json()["outputs"], expected, atol=1e-5)


@pytest.mark.shared
async def test_strings_come_back_as_text_and_other_bytes_as_base64(real: Client):
    row = ["h\u00e9llo", "", {"b64": "/w=="}]

    response = await real.predict("string", {"instances": [row]})

    assert response.json() == {"predictions": [row]}


@pytest.mark.shared
async def test_a_string_of_rank_0_is_refused_and_the_next_request_works(real: Client):
    refused = await real.predict("string", {"inputs": "x"})
    answered = await real.predict("string", {"inputs": [["a", "b", "c"]]})

    assert refused.status_code == 400
    assert answered.json() == {"outputs": [["a", "b", "c"]]}


@pytest.mark.shared
async def test_strings_and_int64_go_together(real: Client, cases, shared_models: Path):
    case = cases["gather_string"]
    inputs = {name: read_tensor(shared_models, t) for name, t in case["inputs"].items()}

    response = await real.predict("gather_string", {"inputs": inputs})

    assert response.json() == {"outputs": ["item7", "item0", "item3"]}


@pytest.mark.shared
async def test_int8_points_are_answered_in_one_batch(real: Client, cases):
    points = cases["sine_int8"]["expected"]["points"]

    response = await real.predict("sine_int8", {"instances": [[int(p["raw_in"])] for p in points]})

    expected = [[p["raw_out"]] for p in points]
    np.testing.assert_allclose(response.json()["predictions"], expected, atol=1)


@pytest.mark.shared
@pytest.mark.parametrize("case_id", ["movie-0", "movie-1"])
async def test_int32_tokens_are_classified(real: Client, cases, case_id: str):
    case = cases[case_id]
    tokens = case["input"]["token_ids_without_padding"]

    response = await real.predict("movie", {"instances": [tokens + [0] * (256 - len(tokens))]})

    scores = case["expected"]["scores"]
    np.testing.assert_allclose(
        response.json()["predictions"],
        [[scores["Negative"], scores["Positive"]]],
        atol=case["expected"]["tolerance"],
    )


@pytest.mark.shared
async def test_integers_out_of_range_are_refused_and_not_wrapped(real: Client):
    image = np.zeros((28, 28), int).tolist()
    image[3][4] = 256

    response = await real.predict("fc_mnist", {"instances": [image]})

    assert response.status_code == 400
    assert response.json()["error"] == (
        "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
        "JSON Value: 256 Type: Number is not of expected type: uint8"
    )


@pytest.mark.shared
@pytest.mark.parametrize("layout", ["instances", "inputs"])
async def test_a_picture_in_base64_is_decoded_and_resized(
    real: Client, cases, shared_models: Path, layout: str
):
    case = cases["mnv2_quant-cat"]
    picture = (shared_models / case["input"]["file"]).read_bytes()

    response = await real.predict(
        "mnv2_quant", {layout: [{"b64": base64.b64encode(picture).decode()}]}
    )

    (((scores),),) = (response.json().values(),)
    top = case["expected"]["top1"]
    assert int(np.argmax(scores[0])) == top["index"]
    assert max(scores[0]) / 256 == pytest.approx(top["score"], abs=0.06)


@pytest.mark.shared
async def test_a_cut_picture_is_refused_and_the_next_request_works(
    real: Client, shared_models: Path
):
    picture = (shared_models / "inputs" / "parrot.jpg").read_bytes()
    cut = {"b64": base64.b64encode(picture[: len(picture) // 2]).decode()}
    whole = {"b64": base64.b64encode(picture).decode()}

    refused = await real.predict("mnv2_quant", {"instances": [cut]})
    answered = await real.predict("mnv2_quant", {"instances": [whole]})

    assert refused.status_code == 400
    assert refused.json()["error"]
    assert answered.status_code == 200


@pytest.mark.shared
async def test_a_tensor_of_a_whole_picture_gives_the_known_answer(
    real: Client, cases, shared_models: Path
):
    pixels = np.load(shared_models / "golden" / "mnv2_quant-parrot.input.npy").tolist()

    response = await real.predict("mnv2_quant", {"instances": pixels})

    expected = np.load(shared_models / "golden" / "mnv2_quant-parrot.output.npy")
    np.testing.assert_allclose(response.json()["predictions"], expected, atol=1)


def shape_as(tensor: dict[str, Any], values: list[float]) -> list[Any]:
    """Values in the shape that the metadata of their input says."""
    sizes = [int(dim["size"]) for dim in tensor["tensor_shape"]["dim"]]
    return np.reshape(values, sizes).tolist()


@pytest.mark.shared
async def test_a_stateful_model_keeps_its_state_between_calls(real: Client, cases):
    steps = cases["training-sequence"]["steps"]

    metadata = (await real.get("/v1/models/training/metadata")).json()
    signatures = metadata["metadata"]["signature_def"]["signature_def"]

    answers = []
    for step in steps:
        tensors = signatures[step["signature"]]["inputs"]
        inputs = {name: shape_as(tensors[name], values) for name, values in step["inputs"].items()}
        body = {"signature_name": step["signature"], "inputs": inputs}
        answers.append(await real.predict("training", body))

    for step, answer in zip(steps, answers, strict=True):
        outputs = answer.json()["outputs"]
        named = outputs if isinstance(outputs, dict) else dict.fromkeys(step["outputs"], outputs)
        for name, tensor in step["outputs"].items():
            expected = np.array(tensor["data"]).reshape(tensor["shape"])
            np.testing.assert_allclose(named[name], expected, atol=1e-5)


@pytest.mark.shared
async def test_metadata_tells_free_dimensions_and_every_signature(real: Client):
    multi = (await real.get("/v1/models/multi_sig/metadata")).json()
    string = (await real.get("/v1/models/string/metadata")).json()

    signatures = multi["metadata"]["signature_def"]["signature_def"]
    tensor = string["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["a"]
    assert set(signatures) == {"add", "mul", "sub"}
    assert set(signatures["add"]["inputs"]) == {"a", "b"}
    assert tensor["dtype"] == "DT_STRING"
    assert [dim["size"] for dim in tensor["tensor_shape"]["dim"]] == ["-1", "3"]


@pytest.mark.shared
async def test_a_row_answer_that_is_no_batch_is_refused(real: Client):
    body = {"signature_name": "train", "instances": [{"x": [1.0], "y": [2.0]}]}

    response = await real.predict("training", body)

    assert response.status_code == 400
    assert response.json() == {"error": "Tensor name: loss has no shape information"}
