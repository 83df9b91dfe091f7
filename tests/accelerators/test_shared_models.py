"""The shared real models load, are described and answer as is known of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerators.base import DataType, Quantization
from accelerators.errors import CallTimedOut, LoadStage, ModelRefused

pytestmark = pytest.mark.shared


@pytest.fixture(scope="session")
def known(shared_models) -> dict[str, Any]:
    return dict(json.loads((shared_models / "expected.json").read_text()))


@pytest.fixture
def path_of(shared_models, known):
    def path(model: str) -> Path:
        return Path(shared_models / known["models"][model]["file"])

    return path


def case(known, name: str) -> dict[str, Any]:
    return next(dict(c) for c in known["cases"] if c["id"] == name)


def array_of(description, shared_models) -> np.ndarray:
    if "npy" in description:
        return np.load(shared_models / description["npy"])
    if description["dtype"] == "string":
        words = [word.encode() for word in description["data"]]
        return np.array(words, object).reshape(description["shape"])
    return np.array(description["data"], description["dtype"]).reshape(description["shape"])


SERVED = [
    "mnv1_float",
    "mnv1_quant",
    "mnv2_quant",
    "cifar_int8",
    "fc_mnist",
    "ssd",
    "yamnet",
    "micro_speech",
    "sine_float",
    "sine_int8",
    "deeplab_dm05",
    "movie",
    "cpu_twin",
    "multi_sig",
    "reverse_sig",
    "dyn",
    "string",
    "gather_string",
    "training",
    "err_hang",
]


@pytest.mark.parametrize("model", SERVED)
async def test_digest_and_shapes_are_the_files(open_pool, path_of, known, model):
    facts = known["models"][model]

    report = (await open_pool(path_of(model))).pool.report

    assert report.digest == facts["sha256"]
    assert report.notes == ()
    assert {s.name for s in report.signatures} == set(facts["signatures"] or ["serving_default"])
    if not facts["signatures"]:
        shapes = [list(spec.shape) for spec in report.signatures[0].inputs]
        assert shapes == [tensor["sig"] for tensor in facts["inputs"]]


@pytest.mark.parametrize(
    ("model", "stage", "words"),
    [
        ("err_garbage", LoadStage.PARSE, "not a valid Flatbuffer"),
        ("err_custom", LoadStage.ALLOCATE, "unresolved custom op: Sinh"),
        ("err_flex", LoadStage.ALLOCATE, "Select TensorFlow op"),
        ("err_quant", LoadStage.PARSE, "quantized_dimension must be in range"),
        ("edgetpu", LoadStage.ALLOCATE, "unresolved custom op: edgetpu-custom-op"),
        ("err_abort", LoadStage.PROCESS, "killed by SIGABRT while it allocated the model"),
    ],
)
async def test_what_cannot_be_served_is_refused_with_its_reason(
    open_pool, path_of, model, stage, words
):
    with pytest.raises(ModelRefused, match=words) as caught:
        await open_pool(path_of(model))

    assert caught.value.stage is stage


async def test_input_that_hangs_costs_its_own_call_only(open_pool, path_of):
    bench = await open_pool(path_of("err_hang"), call_timeout_s=0.5)

    with pytest.raises(CallTimedOut):
        await bench.call(arg0=np.array(0, np.float32))

    assert float((await bench.call(arg0=np.array(1, np.float32)))["tfl.while"]) == 2.0
    assert np.isnan(float((await bench.call(arg0=np.array(np.nan, np.float32)))["tfl.while"]))


@pytest.mark.parametrize(
    "name",
    [
        "multi_sig-add",
        "multi_sig-mul",
        "multi_sig-sub",
        "reverse_sig",
        "dyn-batch1",
        "dyn-batch3",
        "string",
        "gather_string",
    ],
)
async def test_numeric_cases(open_pool, path_of, known, shared_models, name):
    expected = case(known, name)
    bench = await open_pool(path_of(expected["model"]))
    inputs = {n: array_of(d, shared_models) for n, d in expected["inputs"].items()}

    outputs = await bench.call(expected["signature"] or "", **inputs)

    for output, description in expected["expected"].items():
        wanted = array_of(description, shared_models)
        assert outputs[output].dtype == wanted.dtype
        if wanted.dtype == object:
            assert outputs[output].tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(outputs[output], wanted, atol=expected["tolerance_abs"])


async def test_digits_in_one_batch_equal_the_known_answer(open_pool, path_of, shared_models):
    bench = await open_pool(path_of("fc_mnist"))
    x = np.load(shared_models / "golden/fc_mnist.batch10.input.npy")

    (answer,) = (await bench.call(**{bench.pool.report.signatures[0].inputs[0].name: x})).values()

    assert bench.pool.report.max_batch == 8
    assert answer.argmax(axis=1).tolist() == list(range(10))
    np.testing.assert_array_equal(
        answer, np.load(shared_models / "golden/fc_mnist.batch10.output.npy")
    )


async def test_training_sequence(open_pool, path_of, known, shared_models):
    bench = await open_pool(path_of("training"), instances=3)
    signatures = {signature.name: signature for signature in bench.pool.report.signatures}

    for step in case(known, "training-sequence")["steps"]:
        shapes = {spec.name: spec.shape for spec in signatures[step["signature"]].inputs}
        inputs = {
            n: np.array(v if isinstance(v, list) else v["data"], np.float32).reshape(shapes[n])
            for n, v in step["inputs"].items()
        }
        outputs = await bench.call(step["signature"], **inputs)
        for name, wanted in step["outputs"].items():
            assert list(outputs[name].shape) == wanted["shape"]
            np.testing.assert_allclose(outputs[name].ravel(), wanted["data"], rtol=1e-4, atol=1e-5)


async def test_detector_has_its_real_shapes_labels_and_boxes(open_pool, path_of, shared_models):
    bench = await open_pool(path_of("ssd"))
    report = bench.pool.report
    x = np.load(shared_models / "golden/ssd-cat.input.npy")

    outputs = await bench.call(normalized_input_image_tensor=x)

    shapes = {spec.name: spec.shape for spec in report.signatures[0].outputs}
    assert shapes == {name: array.shape for name, array in outputs.items()}
    assert shapes["TFLite_Detection_PostProcess"] == (1, 10, 4)
    assert report.metadata.outputs[0].box_order == (1, 0, 3, 2)
    assert len(report.metadata.outputs[1].labels) == 90
    assert report.metadata.inputs[0].content == "image"


async def test_quantization_and_datatypes_are_described(open_pool, path_of):
    report = (await open_pool(path_of("mnv2_quant"))).pool.report
    signature = report.signatures[0]

    assert signature.inputs[0].datatype is DataType.UINT8
    assert signature.inputs[0].quantization == Quantization(0.0078125, 128)
    assert len(report.metadata.outputs[0].labels) == 1001
    assert report.max_batch == 1


@pytest.mark.parametrize("picture", ["cat", "bird", "sunflower", "parrot", "grace_hopper"])
async def test_classifier_gives_the_known_scores(open_pool, path_of, shared_models, picture):
    bench = await open_pool(path_of("mnv2_quant"))
    x = np.load(shared_models / f"golden/mnv2_quant-{picture}.input.npy")

    (answer,) = (await bench.call(input=x)).values()

    wanted = np.load(shared_models / f"golden/mnv2_quant-{picture}.output.npy")
    np.testing.assert_allclose(answer.astype(int), wanted.astype(int), atol=2)
