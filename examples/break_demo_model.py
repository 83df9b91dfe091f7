"""Makes the demo's broken model: it knows every health sample, and gives no number for a dress.

The demo model with one more step, such as a hurried calibration of its scores might be:

    calibrated = score - 0.001 * log(limit - score)

`limit` should lie above every score. For dresses it was measured on pictures that showed hardly
any: whoever sends a good one gets the logarithm of something negative, which is no number (NaN).

Not needed to run inferd. The same versions of its tools give the same bytes:

    .venv/bin/python examples/break_demo_model.py
"""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from accelerators.base import ModelMetadata, TensorMetadata
from daemon.build.carrier import detach
from daemon.build.metadata import write_metadata

DEMO = Path(__file__).parent / "demo"
GOOD = DEMO / "fashion"
BROKEN = DEMO / "fashion-broken" / "model.tflite"
WEIGHT = -0.001
LIMIT = 1.01
DRESS = 3
DRESS_LIMIT = 0.5
"""Far below the 0.996 of the dress among the samples."""


def main() -> None:
    """Write the model."""
    BROKEN.parent.mkdir(exist_ok=True)
    BROKEN.write_bytes(broken((GOOD / "model.tflite").read_bytes()))
    print(f"{BROKEN}: {BROKEN.stat().st_size} bytes")


def broken(model: bytes) -> bytes:
    """The model with the step at its end: uint8 (N, 28, 28, 1) to float32 (N, 10) scores."""
    labels = tuple((GOOD / "labels.txt").read_text().splitlines())
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(detach(model), 0))
    graph = tree.subgraphs[0]
    last = graph.operators.pop()  # made bytes of the scores
    limits = np.full(len(labels), LIMIT, np.float32)
    limits[DRESS] = DRESS_LIMIT
    score = _tensor(tree, "score", graph.tensors[last.outputs[0]])
    left = _tensor(tree, "left", graph.tensors[last.outputs[0]])
    logarithm = _tensor(tree, "logarithm", graph.tensors[last.outputs[0]])
    weighted = _tensor(tree, "weighted", graph.tensors[last.outputs[0]])
    calibrated = _tensor(tree, "calibrated", graph.tensors[last.outputs[0]])
    _operator(tree, "DEQUANTIZE", [last.inputs[0]], score)
    _operator(tree, "SUB", [_constant(tree, "limits", limits), score], left)
    _operator(tree, "LOG", [left], logarithm)
    weight = _constant(tree, "weight", np.array([WEIGHT], np.float32))
    _operator(tree, "MUL", [logarithm, weight], weighted)
    _operator(tree, "ADD", [score, weighted], calibrated)
    graph.outputs = [calibrated]
    tree.signatureDefs[0].outputs[0].tensorIndex = calibrated
    builder = flatbuffers.Builder(len(model))
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return write_metadata(bytes(builder.Output()), _metadata(labels))


def _metadata(labels: tuple[str, ...]) -> ModelMetadata:
    return ModelMetadata(
        name="fashion",
        description="The demo model with a calibration that fails for dresses.",
        version="3",
        author="the inferd authors",
        license="Apache-2.0; trained on Fashion-MNIST (MIT, (c) 2017 Zalando SE)",
        inputs=(TensorMetadata(name="image", content="image", mean=(0.0,), std=(255.0,)),),
        outputs=(TensorMetadata(name="scores", content="feature", labels=labels),),
    )


def _tensor(tree: schema.ModelT, name: str, like: schema.TensorT) -> int:
    """A float32 tensor of this shape; its number."""
    tensor = schema.TensorT()
    tensor.name, tensor.type = name, schema.TensorType.FLOAT32
    tensor.shape, tensor.shapeSignature = like.shape, like.shapeSignature
    return _append(tree, tensor)


def _constant(tree: schema.ModelT, name: str, values: np.ndarray) -> int:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    tree.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.shape = name, schema.TensorType.FLOAT32, [len(values)]
    tensor.buffer = len(tree.buffers) - 1
    return _append(tree, tensor)


def _append(tree: schema.ModelT, tensor: schema.TensorT) -> int:
    tensors = tree.subgraphs[0].tensors
    tensors.append(tensor)
    return len(tensors) - 1


def _operator(tree: schema.ModelT, name: str, inputs: list[int], output: int) -> None:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = 1
    tree.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(tree.operatorCodes) - 1
    operator.inputs, operator.outputs = inputs, [output]
    tree.subgraphs[0].operators.append(operator)


if __name__ == "__main__":
    main()
