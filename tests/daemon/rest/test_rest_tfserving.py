"""TF Serving's REST API as its clients see it: the real service, over HTTP."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from support.daemon import running_daemon
from support.tfserving_client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# y = x + x for float32 (1, 4), without a signature
DOUBLE = Path(__file__).resolve().parents[3] / "accelerators" / "selftest.tflite"
SPEC_OF_X = {
    "dtype": "DT_FLOAT",
    "tensor_shape": {
        "dim": [{"size": "1", "name": ""}, {"size": "4", "name": ""}],
        "unknown_rank": False,
    },
    "name": "x:0",
}

pytestmark = pytest.mark.asyncio(loop_scope="module")


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


async def still_works(client: Client) -> bool:
    """Whether an ordinary request is answered as ever."""
    response = await client.predict("double", {"instances": [[1, 2, 3, 4]]})
    return response.json() == {"predictions": [[2.0, 4.0, 6.0, 8.0]]}


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
    assert await still_works(client)


async def test_bad_gzip_is_refused_and_the_next_request_works(client: Client):
    response = await client.predict("double", b"{}", headers={"Content-Encoding": "gzip"})

    assert response.status_code == 400
    assert response.json()["error"]
    assert await still_works(client)


async def test_a_body_that_inflates_beyond_the_limit_is_refused(client: Client):
    bomb = gzip.compress(b" " * 3_000_000)

    response = await client.predict("double", bomb, headers={"Content-Encoding": "gzip"})

    assert response.status_code == 413
    assert await still_works(client)


async def test_a_body_beyond_the_limit_is_refused(client: Client):
    response = await client.predict("double", b" " * 2_000_000)

    assert response.status_code == 413
    assert response.json()["error"]
    assert await still_works(client)


@pytest.mark.parametrize(
    "name", ["%ff", "a%2Fb%3Ac", "%00", "..%2F..", "%0d%0aX", "x" * 2000, "%F0%9F%98%80"]
)
async def test_odd_names_are_not_found_and_the_next_request_works(client: Client, name: str):
    response = await client.predict(name, {"instances": [1]})

    assert response.status_code == 404
    assert response.json()["error"].startswith("Servable not found for request: Latest(")
    assert await still_works(client)
