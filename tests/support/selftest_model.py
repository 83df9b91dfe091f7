"""Builds the model that a runtime is tried with: y = x + x, four floats.

Run it to write accelerators/selftest.tflite anew; a test holds that this changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

TARGET = Path(__file__).resolve().parents[2] / "accelerators" / "selftest.tflite"
_SCHEMA_VERSION = 3
_SHAPE = (1, 4)


def build() -> bytes:
    """Return the file's bytes."""
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 0], [1]
    operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
    operator.builtinOptions = schema.AddOptionsT()
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [_tensor("x"), _tensor("y")], [operator]
    graph.inputs, graph.outputs, graph.name = [0], [1], b"main"
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1
    model = schema.ModelT()
    model.version, model.description = _SCHEMA_VERSION, b"y = x + x"
    model.operatorCodes, model.subgraphs, model.buffers = [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _tensor(name: str) -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name.encode(), list(_SHAPE), 0
    tensor.type = schema.TensorType.FLOAT32
    return tensor


if __name__ == "__main__":
    TARGET.write_bytes(build())
