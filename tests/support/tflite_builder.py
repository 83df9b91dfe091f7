"""Builds small, real .tflite files for tests, each named after what it does.

`Graph` puts operators together; the functions below it are the models tests ask for. Only the
runtime's own schema and flatbuffers are needed.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.bool_): schema.TensorType.BOOL,
    np.dtype(object): schema.TensorType.STRING,
    np.dtype(np.complex64): schema.TensorType.COMPLEX64,
}
_RESOURCE = schema.TensorType.RESOURCE


@dataclass
class Model:
    """A model under construction: subgraphs, signatures and metadata share its buffers."""

    parts: Any = field(default_factory=schema.ModelT)
    codes: dict[tuple[int, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts.version = 3
        self.parts.description = "made for a test"
        self.parts.operatorCodes = []
        self.parts.buffers = [schema.BufferT()]
        self.parts.subgraphs = []
        self.parts.signatureDefs = []
        self.parts.metadata = []

    def graph(self, name: str = "main") -> Graph:
        return Graph(self, name)

    def code(self, builtin: int, custom: str = "") -> int:
        if (builtin, custom) not in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = builtin
            code.deprecatedBuiltinCode = min(builtin, 127)
            code.customCode = custom or None
            code.version = 1
            self.codes[builtin, custom] = len(self.parts.operatorCodes)
            self.parts.operatorCodes.append(code)
        return self.codes[builtin, custom]

    def buffer(self, data: bytes) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.parts.buffers.append(buffer)
        return len(self.parts.buffers) - 1

    def sign(
        self,
        graph: Graph,
        inputs: dict[str, int],
        outputs: dict[str, int],
        name: str = "serving_default",
    ) -> None:
        definition = schema.SignatureDefT()
        definition.signatureKey = name
        definition.subgraphIndex = graph.index
        definition.inputs = [_tensor_map(*pair) for pair in inputs.items()]
        definition.outputs = [_tensor_map(*pair) for pair in outputs.items()]
        self.parts.signatureDefs.append(definition)

    def attach(self, name: str, data: bytes) -> None:
        entry = schema.MetadataT()
        entry.name = name
        entry.buffer = self.buffer(data)
        self.parts.metadata.append(entry)

    def build(self) -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.parts.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _tensor_map(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = name
    entry.tensorIndex = index
    return entry


class Graph:
    """One subgraph: tensors by index, operators in order."""

    def __init__(self, model: Model, name: str) -> None:
        self.model = model
        self.parts = schema.SubGraphT()
        self.parts.name = name
        self.parts.tensors = []
        self.parts.operators = []
        self.index = len(model.parts.subgraphs)
        model.parts.subgraphs.append(self.parts)

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: Any = np.float32,
        *,
        variable: bool = False,
        quantization: tuple[float, int] | None = None,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name = name
        tensor.type = dtype if isinstance(dtype, int) else _TYPES[np.dtype(dtype)]
        tensor.shape = [1 if size == -1 else size for size in shape]
        if -1 in shape:
            tensor.shapeSignature = list(shape)
        tensor.isVariable = variable
        if quantization:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [quantization[0]]
            tensor.quantization.zeroPoint = [quantization[1]]
        self.parts.tensors.append(tensor)
        return len(self.parts.tensors) - 1

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> int:
        array = np.asarray(value, dtype)
        index = self.tensor(name, array.shape, dtype)
        self.parts.tensors[index].buffer = self.model.buffer(array.tobytes())
        return index

    def resource(self, name: str) -> int:
        return self.tensor(name, (), _RESOURCE)

    def op(
        self,
        name: str,
        inputs: list[int],
        outputs: list[int],
        options: Any = None,
        custom: str = "",
    ) -> None:
        operator = schema.OperatorT()
        operator.opcodeIndex = self.model.code(getattr(schema.BuiltinOperator, name), custom)
        operator.inputs = inputs
        operator.outputs = outputs
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self.parts.operators.append(operator)

    def between(self, inputs: list[int], outputs: list[int]) -> None:
        self.parts.inputs = inputs
        self.parts.outputs = outputs


def _options(name: str, **values: Any) -> Any:
    options = getattr(schema, f"{name}OptionsT")()
    for key, value in values.items():
        setattr(options, key, value)
    return options


def mlp(
    sizes: tuple[int, ...] = (8, 16, 4),
    *,
    batch: int = -1,
    seed: int = 0,
    signature: str | None = "serving_default",
) -> bytes:
    """Dense layers with relu, then softmax: float32 (batch, sizes[0]) to (batch, sizes[-1])."""
    rng = np.random.default_rng(seed)
    model = Model()
    graph = model.graph()
    first = last = graph.tensor("serving_default_x:0", (batch, sizes[0]))
    for number, (before, after) in enumerate(pairwise(sizes)):
        weights = graph.constant(f"w{number}", rng.normal(size=(after, before)) * 0.3)
        bias = graph.constant(f"b{number}", rng.normal(size=after))
        output = graph.tensor(f"h{number}", (batch, after))
        relu = number < len(sizes) - 2
        function = (
            schema.ActivationFunctionType.RELU if relu else schema.ActivationFunctionType.NONE
        )
        options = _options("FullyConnected", fusedActivationFunction=function)
        graph.op("FULLY_CONNECTED", [last, weights, bias], [output], options)
        last = output
    result = graph.tensor("StatefulPartitionedCall:0", (batch, sizes[-1]))
    graph.op("SOFTMAX", [last], [result], _options("Softmax", beta=1.0))
    graph.between([first], [result])
    if signature:
        model.sign(graph, {"x": first}, {"probabilities": result}, signature)
    return model.build()


def scale(factor: float = 2.0, *, batch: int = -1, width: int = 4) -> bytes:
    """Gives y = factor * x, float32 (batch, width)."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("x", (batch, width))
    y = graph.tensor("y", (batch, width))
    graph.op("MUL", [x, graph.constant("factor", factor)], [y], _options("Mul"))
    graph.between([x], [y])
    return model.build()


def free_picture() -> bytes:
    """Gives y = x + 1 for float32 (-1, -1, -1, 3): the caller chooses three dimensions."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("x", (-1, -1, -1, 3))
    y = graph.tensor("y", (-1, -1, -1, 3))
    graph.op("ADD", [x, graph.constant("one", 1.0)], [y], _options("Add"))
    graph.between([x], [y])
    return model.build()


def softmax_over_all(width: int = 8) -> bytes:
    """Softmax over a constant reshape to (1, -1): more rows give wrong numbers and no error."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("x", (1, width))
    flat = graph.tensor("flat", (1, width))
    y = graph.tensor("y", (1, width))
    back = graph.tensor("back", (1, width))
    graph.op(
        "RESHAPE",
        [x, graph.constant("s", [1, -1], np.int32)],
        [flat],
        _options("Reshape", newShape=[1, -1]),
    )
    graph.op("SOFTMAX", [flat], [y], _options("Softmax", beta=1.0))
    shape = graph.constant("t", [-1, width], np.int32)
    graph.op("RESHAPE", [y, shape], [back], _options("Reshape", newShape=[-1, width]))
    graph.between([x], [back])
    return model.build()


def anchors(width: int = 8) -> bytes:
    """A constant reshape to (1, -1, 4), as detectors have it: rows come out in one."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("x", (1, width))
    y = graph.tensor("y", (1, width // 4, 4))
    shape = graph.constant("s", [1, -1, 4], np.int32)
    graph.op("RESHAPE", [x, shape], [y], _options("Reshape", newShape=[1, -1, 4]))
    graph.between([x], [y])
    return model.build()


def hog(mebibytes: int, *, on_call: bool = False) -> bytes:
    """Needs so many MiB for one intermediate tensor: y = sum over tiles of x, float32 (1, 1024).

    With `on_call` the number of tiles is the second input, int32 (2,).
    """
    model = Model()
    graph = model.graph()
    rows = mebibytes * 256
    x = graph.tensor("x", (1, 1024))
    tiles = (
        graph.tensor("tiles", (2,), np.int32)
        if on_call
        else graph.constant("n", [rows, 1], np.int32)
    )
    big = graph.tensor("big", (1, 1024) if on_call else (rows, 1024))
    y = graph.tensor("y", (1, 1024))
    graph.op("TILE", [x, tiles], [big], _options("Tile"))
    axis = graph.constant("axis", [0], np.int32)
    graph.op("SUM", [big, axis], [y], _options("Reducer", keepDims=True))
    graph.between([x, tiles] if on_call else [x], [y])
    return model.build()


def accumulator() -> bytes:
    """Gives y = x + what came before, float32 (1, 1): a recurrent cell's variable tensor."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("x", (1, 1))
    state = graph.tensor("state", (1, 1), variable=True)
    y = graph.tensor("y", (1, 1))
    one = graph.constant("one", [[1.0]])
    bias = graph.constant("bias", [0.0])
    none = schema.ActivationFunctionType.NONE
    graph.op("RNN", [x, one, one, bias, state], [y], _options("RNN", fusedActivationFunction=none))
    graph.between([x], [y])
    return model.build()


def counter() -> bytes:
    """Signatures `add` (x to the new total) and `total`; a resource variable, float32 (1,)."""
    model = Model()
    add, total, init = model.graph("add"), model.graph("total"), model.graph("init")
    _variable(init, assign=init.constant("zero", [0.0]))
    init.between([], [])

    x = add.tensor("x", (1,))
    y = add.tensor("y", (1,))
    once = _options("CallOnce", initSubgraphIndex=init.index)
    add.op("CALL_ONCE", [], [], once)
    before = _variable(add)
    add.op("ADD", [before, x], [y], _options("Add"))
    _variable(add, assign=y)
    add.between([x], [y])

    total.op("CALL_ONCE", [], [], once)
    value = _variable(total)
    total.between([], [value])
    model.sign(add, {"x": x}, {"y": y}, "add")
    model.sign(total, {}, {"value": value}, "total")
    return model.build()


def _variable(graph: Graph, *, assign: int | None = None) -> int:
    handle = graph.resource("handle")
    graph.op("VAR_HANDLE", [], [handle], _options("VarHandle", container="", sharedName="v"))
    if assign is not None:
        graph.op("ASSIGN_VARIABLE", [handle, assign], [], _options("AssignVariable"))
        return assign
    value = graph.tensor("value", (1,))
    graph.op("READ_VARIABLE", [handle], [value], _options("ReadVariable"))
    return value


def hangs_while_at_most(limit: float) -> bytes:
    """Gives y = x for float32 (1,) above `limit`; at or below it never comes back."""
    model = Model()
    main, cond, body = model.graph("main"), model.graph("cond"), model.graph("body")
    x, y = main.tensor("x", (1,)), main.tensor("y", (1,))
    options = _options("While", condSubgraphIndex=cond.index, bodySubgraphIndex=body.index)
    main.op("WHILE", [x], [y], options)
    main.between([x], [y])

    a, b = cond.tensor("a", (1,)), cond.tensor("b", (1,), np.bool_)
    cond.op("LESS_EQUAL", [a, cond.constant("limit", [limit])], [b], _options("LessEqual"))
    cond.between([a], [b])

    c, d = body.tensor("c", (1,)), body.tensor("d", (1,))
    body.op("MUL", [c, body.constant("one", [1.0])], [d], _options("Mul"))
    body.between([c], [d])
    return model.build()


def falls_without_end() -> bytes:
    """A loop whose body is the loop: passes the verifier, kills its process while it is loaded."""
    model = Model()
    main, cond = model.graph("main"), model.graph("cond")
    x, y = main.tensor("x", (1,)), main.tensor("y", (1,))
    options = _options("While", condSubgraphIndex=cond.index, bodySubgraphIndex=main.index)
    main.op("WHILE", [x], [y], options)
    main.between([x], [y])

    a, b = cond.tensor("a", (1,)), cond.tensor("b", (1,), np.bool_)
    cond.op("LESS_EQUAL", [a, cond.constant("limit", [1.0])], [b], _options("LessEqual"))
    cond.between([a], [b])
    return model.build()


def not_a_number_above(limit: float, *, factor: float = 2.0) -> bytes:
    """Gives y = factor * x, float32 (1, 4); NaN where x is above `limit`."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", (1, 4)), graph.tensor("y", (1, 4))
    room, root, nothing = (graph.tensor(name, (1, 4)) for name in ("room", "root", "nothing"))
    graph.op("SUB", [graph.constant("limit", limit), x], [room], _options("Sub"))
    graph.op("SQRT", [room], [root])
    graph.op("MUL", [root, graph.constant("zero", 0.0)], [nothing], _options("Mul"))
    graph.op("ADD", [_scaled(graph, x, factor), nothing], [y], _options("Add"))
    graph.between([x], [y])
    return model.build()


def slow(rounds: int, *, factor: float = 2.0) -> bytes:
    """Gives y = factor * x, float32 (1, 4), after so many rounds of a loop: 10000 take a ms."""
    model = Model()
    main = model.graph("main")
    x, start = main.tensor("x", (1, 4)), main.constant("start", [0.0])
    return _looping(
        main, x, start, while_=("LESS", float(rounds)), step=("ADD", 1.0), factor=factor
    )


def hangs_above(limit: float, *, factor: float = 2.0) -> bytes:
    """Gives y = factor * x, float32 (1, 4); one x above `limit` and it never comes back."""
    model = Model()
    main = model.graph("main")
    x = main.tensor("x", (1, 4))
    return _looping(
        main, x, _largest(main, x), while_=("GREATER", limit), step=("MUL", 1.0), factor=factor
    )


def kills_above(limit: float, *, factor: float = 2.0) -> bytes:
    """Gives y = factor * x, float32 (1, 4); one x above `limit` kills the process."""
    model = Model()
    main = model.graph("main")
    x = main.tensor("x", (1, 4))
    return _risky(main, x, _largest(main, x), limit, factor, kills=True)


def fails_above(limit: float, *, factor: float = 2.0) -> bytes:
    """Gives y = factor * x, float32 (1, 4); the runtime refuses a call with an x above `limit`."""
    model = Model()
    main = model.graph("main")
    x = main.tensor("x", (1, 4))
    return _risky(main, x, _largest(main, x), limit, factor, kills=False)


def kills_at_call(number: int, *, factor: float = 2.0) -> bytes:
    """Gives y = factor * x, float32 (1, 4); an interpreter's call of that number kills it."""
    model = Model()
    main = model.graph("main")
    x = main.tensor("x", (1, 4))
    return _risky(main, x, _calls(main), number - 0.5, factor, kills=True)


def leaks(mebibytes: int, *, factor: float = 2.0) -> bytes:
    """Gives y = factor * x, float32 (1, 4); each call takes so many MiB more than the last."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", (1, 4)), graph.tensor("y", (1, 4))
    rows, whole = graph.tensor("rows", (1,)), graph.tensor("whole", (1,), np.int32)
    tiles, big = graph.tensor("tiles", (2,), np.int32), graph.tensor("big", (-1, 1024))
    highest, nothing = graph.tensor("highest", ()), graph.tensor("nothing", ())
    graph.op(
        "MUL", [_calls(graph), graph.constant("each", 256.0 * mebibytes)], [rows], _options("Mul")
    )
    graph.op("CAST", [rows], [whole])
    one = graph.constant("one tile", [1], np.int32)
    graph.op("CONCATENATION", [whole, one], [tiles], _options("Concatenation", axis=0))
    line = graph.constant("line", np.ones((1, 1024)))
    graph.op("TILE", [line, tiles], [big], _options("Tile"))
    axes = graph.constant("axes", [0, 1], np.int32)
    graph.op("REDUCE_MAX", [big, axes], [highest], _options("Reducer", keepDims=False))
    graph.op("MUL", [highest, graph.constant("zero", 0.0)], [nothing], _options("Mul"))
    graph.op("ADD", [_scaled(graph, x, factor), nothing], [y], _options("Add"))
    graph.between([x], [y])
    return model.build()


def _scaled(graph: Graph, x: int, factor: float) -> int:
    y = graph.tensor("scaled", (1, 4))
    graph.op("MUL", [x, graph.constant("factor", factor)], [y], _options("Mul"))
    return y


def _calls(graph: Graph) -> int:
    """How often this interpreter was called, this time included: float32 (1,)."""
    init = graph.model.graph("init")
    _variable(init, assign=init.constant("zero calls", [0.0]))
    init.between([], [])
    _call_once(graph, init)
    calls = graph.tensor("calls", (1,))
    one = graph.constant("one call", [1.0])
    graph.op("ADD", [_variable(graph), one], [calls], _options("Add"))
    _variable(graph, assign=calls)
    return calls


def _call_once(graph: Graph, start: Graph) -> None:
    """Run another graph before the first call of this one."""
    graph.op("CALL_ONCE", [], [], _options("CallOnce", initSubgraphIndex=start.index))


def _largest(graph: Graph, x: int) -> int:
    """The largest of x, float32 (1, 4): float32 (1,)."""
    largest = graph.tensor("largest", (1,))
    axes = graph.constant("axes", [1], np.int32)
    graph.op("REDUCE_MAX", [x, axes], [largest], _options("Reducer", keepDims=False))
    return largest


def _looping(
    main: Graph,
    x: int,
    start: int,
    *,
    while_: tuple[str, float],
    step: tuple[str, float],
    factor: float,
) -> bytes:
    """End a graph with y = factor * x, after a loop over a number of its own, float32 (1,).

    Args:
        while_, step: operator and right operand.
    """
    model = main.model
    cond, body = model.graph("cond"), model.graph("body")
    ended, same = main.tensor("ended", (1,)), main.tensor("same", (1, 4))
    options = _options("While", condSubgraphIndex=cond.index, bodySubgraphIndex=body.index)
    main.op("WHILE", [start, _scaled(main, x, factor)], [ended, same], options)
    y = main.tensor("y", (1, 4))  # what comes out of the loop may not be the graph's own output
    main.op("ADD", [same, main.constant("zero", 0.0)], [y], _options("Add"))
    main.between([x], [y])

    at, kept = cond.tensor("at", (1,)), cond.tensor("kept", (1, 4))
    goes_on = cond.tensor("goes on", (1,), np.bool_)
    name, right = while_
    cond.op(name, [at, cond.constant("bound", [right])], [goes_on], _options(name.capitalize()))
    cond.between([at, kept], [goes_on])

    at, kept, after = body.tensor("at", (1,)), body.tensor("kept", (1, 4)), body.tensor("n", (1,))
    name, right = step
    body.op(name, [at, body.constant("step", [right])], [after], _options(name.capitalize()))
    body.between([at, kept], [after, kept])
    return model.build()


def _risky(main: Graph, x: int, risk: int, limit: float, factor: float, *, kills: bool) -> bytes:
    """End a graph with y = factor * x; with a risk, float32 (1,), above `limit` it fails.

    It fails by a start that wants itself first, which the runtime notices, or by two that want each
    other first, which nothing notices. Neither is run, and so found, before it is needed.
    """
    model = main.model
    good, bad = model.graph("good"), model.graph("bad")
    starts = [model.graph("start"), model.graph("start first")] if kills else [model.graph("start")]
    for graph in (good, bad):
        if graph is bad:
            _call_once(graph, starts[0])
        given = graph.tensor("given", (1, 4))
        graph.between([given], [_scaled(graph, given, factor)])
    for start, first in zip(starts, reversed(starts), strict=True):
        _call_once(start, first)
        start.between([], [])

    is_bad, y = main.tensor("is bad", (1,), np.bool_), main.tensor("y", (1, 4))
    main.op("GREATER", [risk, main.constant("limit", [limit])], [is_bad], _options("Greater"))
    options = _options("If", thenSubgraphIndex=bad.index, elseSubgraphIndex=good.index)
    main.op("IF", [is_bad, x], [y], options)
    main.between([x], [y])
    return model.build()


def two_signatures(*, broken: bool = False) -> bytes:
    """Signatures `add` and `mul` of a and b, float32 (2, 2); broken: `mul` lacks its operator."""
    model = Model()
    for name, operator in (("add", "ADD"), ("mul", "MUL")):
        graph = model.graph(name)
        b = graph.tensor(f"{name}_b:0", (2, 2))
        a = graph.tensor(f"{name}_a:0", (2, 2))
        y = graph.tensor("PartitionedCall:0", (2, 2))
        if broken and name == "mul":
            graph.op("CUSTOM", [a, b], [y], custom="NobodyHasThis")
        else:
            graph.op(operator, [a, b], [y], _options(operator.capitalize()))
        graph.between([b, a], [y])
        model.sign(graph, {"a": a, "b": b}, {"output": y}, name)
    return model.build()


def custom(code: str) -> bytes:
    """One custom operator, which no runtime here has."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", (1, 4)), graph.tensor("y", (1, 4))
    graph.op("CUSTOM", [x], [y], custom=code)
    graph.between([x], [y])
    return model.build()


def strings(shape: tuple[int, ...] = (-1, 2)) -> bytes:
    """Strings come out as they went in."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("serving_default_a:0", shape, object)
    graph.between([x], [x])
    model.sign(graph, {"a": x}, {"output_0": x})
    return model.build()


def where(width: int = 6) -> bytes:
    """int64 places (n, 1) of what is true in bool (width,): the output's size is the result's."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", (width,), np.bool_), graph.tensor("y", (-1, 1), np.int64)
    graph.op("WHERE", [x], [y], _options("Where"))
    graph.between([x], [y])
    return model.build()


def gather(rows: int = 4) -> bytes:
    """Gives y = table[index], int32 (1,) to float32 (1, 2); fails for other indexes."""
    model = Model()
    graph = model.graph()
    index = graph.tensor("index", (1,), np.int32)
    y = graph.tensor("y", (1, 2))
    table = graph.constant("table", np.arange(rows * 2).reshape(rows, 2))
    graph.op("GATHER", [table, index], [y], _options("Gather", axis=0))
    graph.between([index], [y])
    return model.build()


def gather_scaled(rows: int = 4) -> bytes:
    """Gives y = 2 * table[index], int32 (1,) to float32 (1, 2); fails for other indexes."""
    model = Model()
    graph = model.graph()
    index = graph.tensor("index", (1,), np.int32)
    row = graph.tensor("row", (1, 2))
    y = graph.tensor("y", (1, 2))
    table = graph.constant("table", np.arange(rows * 2).reshape(rows, 2))
    graph.op("GATHER", [table, index], [row], _options("Gather", axis=0))
    graph.op("MUL", [row, graph.constant("twos", [[2, 2]])], [y], _options("Mul"))
    graph.between([index], [y])
    return model.build()


def negation(width: int = 4) -> bytes:
    """Gives y = not x, bool (1, width)."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", (1, width), np.bool_), graph.tensor("y", (1, width), np.bool_)
    graph.op("LOGICAL_NOT", [x], [y], _options("LogicalNot"))
    graph.between([x], [y])
    return model.build()


def total(width: int = 64) -> bytes:
    """Gives the sum of each row of x, float32 (-1, width) to (-1, 1)."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", (-1, width)), graph.tensor("y", (-1, 1))
    axis = graph.constant("axis", [1], np.int32)
    graph.op("SUM", [x, axis], [y], _options("Reducer", keepDims=True))
    graph.between([x], [y])
    return model.build()


def mixed_rows(width: int = 4) -> bytes:
    """Gives y = x * (sum of x's rows), float32 (-1, width): each row depends on every other."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", (-1, width)), graph.tensor("y", (-1, width))
    total_ = graph.tensor("total", (1, width))
    axis = graph.constant("axis", [0], np.int32)
    graph.op("SUM", [x, axis], [total_], _options("Reducer", keepDims=True))
    graph.op("MUL", [x, total_], [y], _options("Mul"))
    graph.between([x], [y])
    return model.build()


def sum_of_two(width: int = 4) -> bytes:
    """Gives y = a + b, float32 (-1, width) each."""
    model = Model()
    graph = model.graph()
    a, b = graph.tensor("a", (-1, width)), graph.tensor("b", (-1, width))
    y = graph.tensor("y", (-1, width))
    graph.op("ADD", [a, b], [y], _options("Add"))
    graph.between([a, b], [y])
    return model.build()


def repeat(rows: int = 1, width: int = 2) -> bytes:
    """Rows of x as often as `times`, int32 (2,), says: float32 (rows, width) to (n, m)."""
    model = Model()
    graph = model.graph()
    x, times = graph.tensor("x", (rows, width)), graph.tensor("times", (2,), np.int32)
    y = graph.tensor("y", (-1, width))
    graph.op("TILE", [x, times], [y], _options("Tile"))
    graph.between([x, times], [y])
    return model.build()


def scalar_double() -> bytes:
    """Gives y = 2 * x for rank-0 float32."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", ()), graph.tensor("y", ())
    graph.op("MUL", [x, graph.constant("two", 2.0)], [y], _options("Mul"))
    graph.between([x], [y])
    return model.build()


def complex_output() -> bytes:
    """Signature `good` doubles float32 (4,); `bad` gives complex numbers, which no protocol has."""
    model = Model()
    good, bad = model.graph("good"), model.graph("bad")
    x, y = good.tensor("x", (4,)), good.tensor("y", (4,))
    good.op("MUL", [x, good.constant("two", 2.0)], [y], _options("Mul"))
    good.between([x], [y])
    model.sign(good, {"x": x}, {"y": y}, "good")
    c = bad.tensor("c", (4,), np.complex64)
    bad.between([c], [c])
    model.sign(bad, {"c": c}, {"c": c}, "bad")
    return model.build()


@dataclass
class TensorNotes:
    """What `metadata` says of one tensor; see the metadata schema for the numbers."""

    name: str = ""
    content: int = 0  # 1 feature, 2 image, 3 bounding box, 4 audio
    audio: tuple[int, int] = (0, 0)
    box_index: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    threshold: float | None = None
    calibration: tuple[int, float] | None = None  # transformation, default score
    files: tuple[tuple[str, int, str], ...] = ()  # name, type, locale


def metadata(
    inputs: list[TensorNotes], outputs: list[TensorNotes], *, name: str = "a model"
) -> bytes:
    """A TFLITE_METADATA buffer."""
    b = flatbuffers.Builder(256)
    subgraph = _table(
        b,
        {
            2: ("o", _vector(b, [_notes(b, n) for n in inputs])),
            3: ("o", _vector(b, [_notes(b, n) for n in outputs])),
        },
    )
    root = _table(b, {0: ("o", b.CreateString(name)), 3: ("o", _vector(b, [subgraph]))})
    b.Finish(root, file_identifier=b"M001")
    return bytes(b.Output())


def _notes(b: Any, notes: TensorNotes) -> int:
    fields: dict[int, tuple[str, Any]] = {0: ("o", b.CreateString(notes.name))}
    if notes.content:
        properties = {
            1: {},
            2: {},
            3: {0: ("o", _numbers(b, notes.box_index, "I"))},
            4: {0: ("I", notes.audio[0]), 1: ("I", notes.audio[1])},
        }[notes.content]
        fields[3] = ("o", _table(b, {0: ("B", notes.content), 1: ("o", _table(b, properties))}))
    units = []
    if notes.mean:
        options = _table(
            b, {0: ("o", _numbers(b, notes.mean, "f")), 1: ("o", _numbers(b, notes.std, "f"))}
        )
        units.append(_table(b, {0: ("B", 1), 1: ("o", options)}))
    if notes.calibration:
        options = _table(b, {0: ("b", notes.calibration[0]), 1: ("f", notes.calibration[1])})
        units.append(_table(b, {0: ("B", 2), 1: ("o", options)}))
    if notes.threshold is not None:
        units.append(_table(b, {0: ("B", 3), 1: ("o", _table(b, {0: ("f", notes.threshold)}))}))
    if units:
        fields[4] = ("o", _vector(b, units))
    if notes.files:
        fields[6] = (
            "o",
            _vector(
                b,
                [
                    _table(
                        b,
                        {
                            0: ("o", b.CreateString(n)),
                            2: ("b", k),
                            3: ("o", b.CreateString(locale)),
                        },
                    )
                    for n, k, locale in notes.files
                ],
            ),
        )
    return _table(b, fields)


def _table(b: Any, fields: dict[int, tuple[str, Any]]) -> int:
    b.StartObject(max(fields, default=0) + 1)
    prepend = {
        "o": b.PrependUOffsetTRelativeSlot,
        "B": b.PrependUint8Slot,
        "b": b.PrependInt8Slot,
        "I": b.PrependUint32Slot,
        "f": b.PrependFloat32Slot,
    }
    for slot, (kind, value) in fields.items():
        prepend[kind](slot, value, 0)
    return int(b.EndObject())


def _vector(b: Any, offsets: list[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


def _numbers(b: Any, values: tuple[float, ...], code: str) -> int:
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        (b.PrependUint32 if code == "I" else b.PrependFloat32)(value)
    return int(b.EndVector())


def with_metadata(packed: bytes, files: dict[str, bytes]) -> bytes:
    """A classifier with this metadata buffer and these packed files."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", (1, 3)), graph.tensor("y", (1, 3))
    graph.op("SOFTMAX", [x], [y], _options("Softmax", beta=1.0))
    graph.between([x], [y])
    model.attach("TFLITE_METADATA", packed)
    return with_files(model.build(), files)


def labelled(count: int) -> bytes:
    """That classifier with so many packed labels: "label 0" and so on."""
    packed = metadata([TensorNotes("x")], [TensorNotes("y", 1, files=(("labels.txt", 2, ""),))])
    labels = "\n".join(f"label {number}" for number in range(count))
    return with_metadata(packed, {"labels.txt": labels.encode()})


def with_files(model: bytes, files: dict[str, bytes]) -> bytes:
    """A model file with a zip of these files behind it."""
    if not files:
        return model
    both = io.BytesIO(model)
    both.seek(0, io.SEEK_END)
    with zipfile.ZipFile(both, "a") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return both.getvalue()


def valid_convolution() -> bytes:
    """3x3 convolution without padding of float32 (-1, -1, -1, 3): a picture of 1x1 is too small."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("x", (-1, -1, -1, 3))
    y = graph.tensor("y", (-1, -1, -1, 1))
    weights = graph.constant("w", np.ones((1, 3, 3, 3)))
    bias = graph.constant("b", [0.0])
    options = _options("Conv2D", padding=schema.Padding.VALID, strideW=1, strideH=1)
    graph.op("CONV_2D", [x, weights, bias], [y], options)
    graph.between([x], [y])
    return model.build()
