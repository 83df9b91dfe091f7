"""TF Serving's REST API on models of every kind: signatures, types, batches, pictures, state."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio
from support import tflite_builder
from support.daemon import running_daemon
from support.tfserving_client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")


# Models built here.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def built(
    tmp_path_factory: pytest.TempPathFactory, demo_model: Path
) -> AsyncIterator[Client]:
    folder = tmp_path_factory.mktemp("models")
    models = {
        "signatures": tflite_builder.two_signatures(),
        "strings": tflite_builder.strings(),
        "where": tflite_builder.where(),
        "gather": tflite_builder.gather(),
        "scalar": tflite_builder.scalar_double(),
        "scale": tflite_builder.scale(),
        "counter": tflite_builder.counter(),
        "complex": tflite_builder.complex_output(),
        "hang": tflite_builder.hangs_while_at_most(0.0),
    }
    for name, content in models.items():
        (folder / f"{name}.tflite").write_bytes(content)
    for version, factor in (("1", 2.0), ("0002", 3.0)):
        file = folder / "tree" / version / "model.tflite"
        file.parent.mkdir(parents=True)
        file.write_bytes(tflite_builder.scale(factor, width=1))
    tree = {"path": folder / "tree", "version_policy": "all", "labels": {"stable": 1, "canary": 2}}
    served = [folder / f"{name}.tflite" for name in models]
    async with running_daemon([*served, demo_model, tree]) as daemon:
        client = Client(daemon.url)
        yield client
        client.close()


@pytest.mark.parametrize(
    ("signature", "answer"), [("add", [[4, 4], [4, 4]]), ("mul", [[3, 3], [3, 3]])]
)
async def test_a_signature_is_called_by_name(built: Client, signature: str, answer: object):
    inputs = {"a": [[1, 1], [1, 1]], "b": [[3, 3], [3, 3]]}

    response = await built.predict("signatures", {"signature_name": signature, "inputs": inputs})

    assert response.json() == {"outputs": answer}


async def test_rows_of_several_inputs_are_objects(built: Client):
    rows = [{"a": [1, 2], "b": [3, 4]}, {"b": [5, 6], "a": [7, 8]}]

    response = await built.predict("signatures", {"instances": rows})

    assert response.json() == {"predictions": [[4, 6], [12, 14]]}


async def test_metadata_lists_every_signature(built: Client):
    response = await built.get("/v1/models/signatures/metadata")

    signatures = response.json()["metadata"]["signature_def"]["signature_def"]
    assert {name: set(spec["inputs"]) for name, spec in signatures.items()} == {
        "add": {"a", "b"},
        "mul": {"a", "b"},
    }


@pytest.mark.parametrize(
    ("which", "answer"),
    [
        ("", 30.0),
        ("/versions/0", 30.0),
        ("/versions/1", 20.0),
        ("/versions/2", 30.0),
        ("/labels/stable", 20.0),
        ("/labels/canary", 30.0),
    ],
)
async def test_each_version_answers_by_number_and_label(built: Client, which: str, answer: float):
    response = await built.predict(f"tree{which}", {"inputs": [[10]]})

    assert response.json() == {"outputs": [[answer]]}


@pytest.mark.parametrize(
    ("which", "versions"),
    [
        ("", ["2", "1"]),
        ("/versions/0", ["2", "1"]),
        ("/versions/1", ["1"]),
        ("/labels/stable", ["1"]),
        ("/labels/canary", ["2"]),
    ],
)
async def test_status_lists_versions_newest_first(built: Client, which: str, versions: list[str]):
    response = await built.get(f"/v1/models/tree{which}")

    assert [s["version"] for s in response.json()["model_version_status"]] == versions


@pytest.mark.parametrize("rows", [1, 2, 7])
async def test_a_free_dimension_takes_any_number_of_rows(built: Client, rows: int):
    body = {"instances": [[row, 0, 0, 0] for row in range(rows)]}

    response = await built.predict("scale", body)

    assert response.json()["predictions"] == [[2 * row, 0, 0, 0] for row in range(rows)]


async def test_bytes_that_are_no_text_survive_as_base64(built: Client):
    row = ["grün", {"b64": "/wA="}]

    response = await built.predict("strings", {"instances": [row, row]})

    assert response.json() == {"predictions": [row, row]}


async def test_bools_go_in_and_int64_of_any_length_comes_out(built: Client):
    body = {"inputs": [False, True, False, True, True, False]}

    response = await built.predict("where", body)

    assert response.json() == {"outputs": [[1], [3], [4]]}


async def test_numbers_are_no_bools(built: Client):
    response = await built.predict("where", {"inputs": [0, 1, 0, 1, 1, 0]})

    assert response.status_code == 400
    assert response.json() == {"error": "JSON Value: 0 Type: Number is not of expected type: bool"}


async def test_a_column_of_rank_0_is_a_lone_value(built: Client):
    response = await built.predict("scalar", {"inputs": 2.5})

    assert response.json() == {"outputs": 5.0}


async def test_rows_do_not_fit_a_model_of_rank_0(built: Client):
    response = await built.predict("scalar", {"instances": [2.5]})

    assert response.status_code == 400
    assert "unexpected shape for input 'x'" in response.json()["error"]


async def test_an_input_that_the_model_fails_on_is_500_and_the_next_request_works(built: Client):
    failed = await built.predict("gather", {"inputs": [1000]})
    answered = await built.predict("gather", {"inputs": [1]})

    assert failed.status_code == 500
    assert failed.json()["error"]
    assert answered.json() == {"outputs": [[2.0, 3.0]]}


async def test_an_input_beyond_int32_is_refused_before_the_model_sees_it(built: Client):
    response = await built.predict("gather", {"inputs": [2**31]})

    assert response.status_code == 400
    assert response.json()["error"].endswith("is not of expected type: int32")


async def test_a_call_that_outlives_its_deadline_is_504(built: Client):
    headers = {"Inferd-Timeout-Ms": "200"}

    response = await built.predict("hang", {"inputs": [-1.0]}, headers=headers)

    assert response.status_code == 504
    assert response.json()["error"]


async def test_a_signature_without_inputs_is_called_with_an_empty_object(built: Client):
    await built.predict("counter", {"signature_name": "add", "inputs": [5.0]})

    response = await built.predict("counter", {"signature_name": "total", "inputs": {}})

    assert response.json() == {"outputs": [5.0]}


async def test_a_model_with_an_output_without_json_form_answers_by_its_other_signature(
    built: Client,
):
    good = await built.predict("complex", {"signature_name": "good", "inputs": [1, 2, 3, 4]})
    bad = await built.predict("complex", {"signature_name": "bad", "inputs": [1, 2, 3, 4]})

    assert good.json() == {"outputs": [2.0, 4.0, 6.0, 8.0]}
    assert bad.status_code == 400
    assert bad.json()["error"]


@pytest.mark.parametrize("layout", ["instances", "inputs"])
async def test_a_picture_in_base64_is_decoded_for_a_model_that_takes_pictures(
    built: Client, demo_model: Path, layout: str
):
    labels = (demo_model / "labels.txt").read_text().split("\n")
    picture = (demo_model / "samples" / "bag.png").read_bytes()

    response = await built.predict(
        "fashion", {layout: [{"b64": base64.b64encode(picture).decode()}]}
    )

    ((scores,),) = response.json().values()
    assert labels[int(np.argmax(scores))] == "bag"


async def test_what_is_no_picture_is_refused_and_the_next_request_works(
    built: Client, demo_model: Path
):
    picture = (demo_model / "samples" / "bag.png").read_bytes()
    whole, cut = (
        {"instances": [{"b64": base64.b64encode(data).decode()}]}
        for data in (picture, picture[: len(picture) // 2])
    )

    refused = await built.predict("fashion", cut)
    answered = await built.predict("fashion", whole)

    assert refused.status_code == 400
    assert refused.json()["error"]
    assert answered.status_code == 200


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

    ((scores,),) = response.json().values()
    top = case["expected"]["top1"]
    assert int(np.argmax(scores)) == top["index"]
    assert max(scores) / 256 == pytest.approx(top["score"], abs=0.06)


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
