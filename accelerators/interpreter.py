"""Interpreter: the runtime by tensor indexes, with its surprises taken out.

What it takes care of:
- Signatures are mapped to subgraphs and indexes once; runner objects are never made, because they
  resize and allocate on every call and forbid the index calls while they live.
- A view of a tensor is never kept across a call into the runtime.
- Error texts pile up inside the runtime: only what is new is passed on.
- A rank-0 result is a number to the runtime's binding, and an array of shape () here.
- It often says nothing when an allocation fails: the C library's errno tells.
Source: measured on LiteRT 2.3.0 and tflite-runtime 2.14.0.
"""

from __future__ import annotations

import ctypes
import errno
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from accelerators.base import DataType, Quantization, TensorSpec
from accelerators.coverage import Node, measure_coverage
from accelerators.runtime import runtime

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from accelerators.base import Array, Coverage
    from accelerators.delegates import Delegate
    from accelerators.outline import Outline

DEFAULT_SIGNATURE = "serving_default"
TENSORS_MAX = 500  # inputs or outputs of a signature: their shapes travel in one message
_TEXT_MAX = 300  # characters of a runtime's message: its start and its end say what went wrong
_NAME_MAX = 500  # characters of a tensor's or signature's name that are shown or matched

_LET_GO = "the device does not take the model with inputs of this shape"

_DELEGATED = "DELEGATE"  # what the binding calls a node that stands for a delegate's part

# What the binding raises for a bad model, a bad input or a full memory.
_ERRORS = (RuntimeError, ValueError, TypeError, MemoryError, OverflowError)


class RuntimeFailure(Exception):
    """The runtime refused or failed; the message is its own, made short.

    Attributes:
        text: the message in full, at most 10,000 characters.
    """

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message)
        self.text = text or message


class OutOfMemory(RuntimeFailure):
    """It failed because no memory could be had."""


class DeviceFailure(RuntimeFailure):
    """A device, or its library, refused or failed; the message is a sentence of its own."""


class Unusable(Exception):
    """A signature has a tensor that cannot be offered; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of an entry: where it is in its subgraph."""

    spec: TensorSpec
    index: int
    is_bytes: bool
    has_no_view: bool  # strings have none, and of a rank-0 tensor the binding gives a number


@dataclass(slots=True)
class Entry:
    """One callable of the model.

    Attributes:
        shapes: of the inputs, as the runtime has them allocated now; () before the first time.
        start: of the inputs, to begin with; () for those in the file.
        row_by_row: the device runs one row at a time, whatever the inputs have.
    """

    name: str
    subgraph: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    shapes: tuple[tuple[int, ...], ...] = ()
    start: tuple[tuple[int, ...], ...] = ()
    row_by_row: bool = False


def runtime_name() -> str:
    """Name and version of the runtime, e.g. "litert 2.3.0"."""
    return str(runtime())


class Interpreter:
    """One interpreter of one model. One thread at a time."""

    def __init__(self, path: str, *, threads: int, delegate: Delegate | None = None) -> None:
        """Parse the file, and let the delegate take what it can of the model.

        Raises:
            RuntimeFailure: the runtime does not accept the file.
            DeviceFailure: the delegate fails, or takes nothing.
        """
        self._delegate = delegate
        self._coverage: Coverage | None = None
        self._seen_text = ""
        _errno().value = 0
        try:
            self._runtime = runtime().interpreter(model_path=path, num_threads=threads)
        except _ERRORS as exc:
            raise self._failure(exc) from exc
        self._core: Any = self._runtime._interpreter  # noqa: SLF001 (the calls that name a subgraph are only there)
        if delegate is not None:
            self._coverage = self._hand_over(delegate)

    def __del__(self) -> None:
        # In this order: what the runtime lets go of belongs to the delegate.
        self._core = self._runtime = None
        self._delegate = None

    def entries(self, outline: Outline) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
        """The callables that can be offered, default first, and why others cannot.

        Inputs and outputs stand in the order their subgraph declares.

        Raises:
            RuntimeFailure: the runtime cannot describe the model.
        """
        try:
            return self._entries(outline)
        except _ERRORS as exc:
            raise self._failure(exc) from exc

    @property
    def coverage(self) -> Coverage | None:
        """How much of the model a delegate took; None without one."""
        return self._coverage

    @property
    def operators(self) -> tuple[str, ...]:
        """Names of those in the main graph, one by one."""
        return tuple(str(self._core.NodeName(number)) for number in range(self._core.NumNodes()))

    @property
    def complaints(self) -> int:
        """Characters of the messages that have piled up in the runtime."""
        return len(self._seen_text)

    def shape(self, entry: Entry, port: Port) -> tuple[int, ...]:
        """The shape a tensor has now."""
        return tuple(int(d) for d in self._core.TensorSize(port.index, entry.subgraph))

    def allocate(self, entry: Entry) -> None:
        """Plan the entry's tensors with `entry.start` as input shapes.

        Raises:
            RuntimeFailure: an operator is missing, or does not fit its inputs.
        """
        entry.shapes = tuple(self.shape(entry, port) for port in entry.inputs)
        self.resize(entry, entry.start or entry.shapes)

    def resize(self, entry: Entry, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Plan the entry's tensors with other input shapes.

        Raises:
            RuntimeFailure: the model cannot take them. The interpreter is not to be used again.
            DeviceFailure: the device does not; nor is it then.
        """
        try:
            for port, shape, current in zip(entry.inputs, shapes, entry.shapes, strict=True):
                if shape != current:
                    size = np.array(shape, np.int32)
                    self._core.ResizeInputTensor(port.index, size, False, entry.subgraph)
            if entry.subgraph:
                self._core.AllocateTensors(entry.subgraph)
            else:
                # tflite-runtime takes its fast kernels for the CPU only by the call that names no
                # subgraph, which is for the first one; without them it is 20 times slower.
                self._core.AllocateTensors()
        except _ERRORS as exc:
            failure = self._failure(exc)
            if self._is_let_go and not isinstance(failure, OutOfMemory):
                raise DeviceFailure(f"{_LET_GO}: {failure}") from exc
            raise failure from exc
        if self._is_let_go:
            raise DeviceFailure(_LET_GO)
        entry.shapes = shapes

    def run(self, entry: Entry, inputs: Sequence[Array]) -> float:
        """Set the inputs, whose shapes must be `entry.shapes`, and invoke.

        Returns:
            Seconds inside invoke.

        Raises:
            RuntimeFailure: the runtime refused an input or failed.
        """
        core = self._core
        subgraph = entry.subgraph
        try:
            for port, array in zip(entry.inputs, inputs, strict=True):
                if port.has_no_view or not array.size:
                    core.SetTensor(port.index, array, subgraph)
                else:
                    core.tensor(core, port.index, subgraph)[...] = array
            begin = time.monotonic()
            core.Invoke(subgraph)
            return time.monotonic() - begin
        except _ERRORS as exc:
            raise self._failure(exc) from exc

    def results(self, entry: Entry) -> list[Array]:
        """The outputs of the last run.

        Views of the runtime's own memory, except strings: copy them and drop them before the next
        call of any method.

        Raises:
            RuntimeFailure: an output cannot be read.
        """
        try:
            return [self._read(entry, port) for port in entry.outputs]
        except _ERRORS as exc:
            raise self._failure(exc) from exc

    @property
    def _is_let_go(self) -> bool:
        return self._delegate is not None and self._delegate.let_go

    def _hand_over(self, delegate: Delegate) -> Coverage:
        """Let the delegate take its part. Before any allocation: that lets the runtime's own in."""
        try:
            self._core.ModifyGraphWithDelegate(delegate.address)
        except _ERRORS as exc:
            failure = self._failure(exc)
            if isinstance(failure, OutOfMemory):
                raise failure from exc
            reason = "its driver fails with the model, or is built for another version of TFLite"
            raise DeviceFailure(f"{reason}: {failure}") from exc
        coverage = measure_coverage([self._node(number) for number in range(self._core.NumNodes())])
        if not coverage.claimed:
            raise DeviceFailure(f"it took none of the model's {coverage.operators} operators")
        return coverage

    def _node(self, number: int) -> Node:
        core = self._core
        inputs, outputs = core.NodeInputs(number), core.NodeOutputs(number)
        name = str(core.NodeName(number))
        return Node(tuple(map(int, inputs)), tuple(map(int, outputs)), name == _DELEGATED, name)

    def _read(self, entry: Entry, port: Port) -> Array:
        core = self._core
        if port.is_bytes:
            strings = np.asarray(core.GetTensor(port.index, entry.subgraph), object)
            return strings.reshape(self.shape(entry, port))
        try:
            return np.asarray(core.tensor(core, port.index, entry.subgraph))
        except ValueError:
            # A result without elements has no memory behind it, which the binding takes for an
            # error; anything else is one.
            shape = self.shape(entry, port)
            if 0 not in shape:
                raise
            return np.empty(shape, port.spec.datatype.dtype)

    def _entries(self, outline: Outline) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
        named = self._core.GetSignatureDefs() or {}
        if not named:
            return self._unnamed_entries()
        entries: list[Entry] = []
        left_out: list[str] = []
        for name, definition in named.items():
            try:
                entries.append(self._named_entry(name, definition, outline))
            except Unusable as exc:
                left_out.append(f"signature '{_printable(name)}' is left out: {exc}")
        entries.sort(key=lambda entry: entry.name != DEFAULT_SIGNATURE)
        return tuple(entries), tuple(left_out)

    def _named_entry(self, name: str, definition: Any, outline: Outline) -> Entry:  # noqa: ANN401 (the binding's own dictionary)
        if max(len(definition["inputs"]), len(definition["outputs"])) > TENSORS_MAX:
            raise Unusable(f"it has more than {TENSORS_MAX} inputs or outputs")
        subgraph = int(self._core.GetSubgraphIndexFromSignature(name))
        inputs = self._ports(definition["inputs"], subgraph, outline.inputs)
        outputs = self._ports(definition["outputs"], subgraph, outline.outputs)
        return Entry(name, subgraph, inputs, outputs)

    def _ports(
        self, names: dict[str, int], subgraph: int, orders: tuple[tuple[int, ...], ...]
    ) -> tuple[Port, ...]:
        order = orders[subgraph] if subgraph < len(orders) else ()
        place = {index: place for place, index in reversed(list(enumerate(order)))}
        pairs = sorted(names.items(), key=lambda pair: (place.get(pair[1], pair[1]), pair[0]))
        return tuple(self._port(name, int(index), subgraph) for name, index in pairs)

    def _unnamed_entries(self) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
        inputs = [int(index) for index in self._core.InputIndices()]
        outputs = [int(index) for index in self._core.OutputIndices()]
        if max(len(inputs), len(outputs)) > TENSORS_MAX:
            return (), (f"it has more than {TENSORS_MAX} inputs or outputs",)
        try:
            into, out = self._unnamed_ports(inputs), self._unnamed_ports(outputs)
        except Unusable as exc:
            return (), (str(exc),)
        return (Entry(DEFAULT_SIGNATURE, 0, into, out),), ()

    def _unnamed_ports(self, indexes: list[int]) -> tuple[Port, ...]:
        names = cut_names(str(self._core.TensorName(index, 0)) for index in indexes)
        return tuple(self._port(n, index, 0) for n, index in zip(names, indexes, strict=True))

    def _port(self, name: str, index: int, subgraph: int) -> Port:
        core = self._core
        datatype = _DATATYPES.get(core.TensorType(index, subgraph))
        if datatype is None:
            raise Unusable(f"tensor '{_printable(name)}' has a type that cannot be offered")
        # Without a shape signature the sizes are the ones of the file.
        sizes = core.TensorSizeSignature(index, subgraph)
        if not len(sizes):
            sizes = core.TensorSize(index, subgraph)
        scale, zero_point = core.TensorQuantization(index, subgraph)
        quantized = scale and datatype not in _REAL
        quantization = Quantization(float(scale), int(zero_point)) if quantized else None
        shape = tuple(int(size) for size in sizes)
        spec = TensorSpec(name, datatype, shape, quantization)
        is_bytes = datatype is DataType.BYTES
        return Port(spec, index, is_bytes, has_no_view=is_bytes or not shape)

    def _failure(self, exc: BaseException) -> RuntimeFailure:
        """What the runtime said that it had not said before."""
        text = str(exc)
        new = text.removeprefix(self._seen_text) or text
        self._seen_text = text
        short = shorten_text(new) or "it does not say why"
        code = _errno()
        if isinstance(exc, MemoryError) or code.value == errno.ENOMEM:
            code.value = 0
            return OutOfMemory(short)
        return RuntimeFailure(short, new[:10_000])


def _errno() -> ctypes.c_int:
    """The C library's errno of this thread."""
    locate = ctypes.CDLL(None).__errno_location  # noqa: SLF001 (libc's own name)
    locate.restype = ctypes.c_void_p
    return ctypes.c_int.from_address(locate())


_REAL = frozenset({DataType.FP16, DataType.FP32, DataType.FP64, DataType.BYTES, DataType.BOOL})

# By what the binding gives for a tensor's type; complex numbers, 4-bit integers, resources and
# variants have no name in the wire protocols.
_DATATYPES: dict[object, DataType] = {
    np.bool_: DataType.BOOL,
    np.uint8: DataType.UINT8,
    np.uint16: DataType.UINT16,
    np.uint32: DataType.UINT32,
    np.uint64: DataType.UINT64,
    np.int8: DataType.INT8,
    np.int16: DataType.INT16,
    np.int32: DataType.INT32,
    np.int64: DataType.INT64,
    np.float16: DataType.FP16,
    np.float32: DataType.FP32,
    np.float64: DataType.FP64,
    np.bytes_: DataType.BYTES,
}


def cut_names(names: Iterable[str]) -> tuple[str, ...]:
    """Tensor names without the ":0" of TensorFlow, each different.

    Where cutting would make two alike, the later one keeps its whole name.
    """
    taken: dict[str, None] = {}
    for place, name in enumerate(names):
        cut = name.split(":", 1)[0]
        choices = (cut, name, cut and f"{cut}_{place}", f"tensor_{place}")
        # The last resort is a number that no earlier tensor can have used up.
        chosen = next((c for c in choices if c and c not in taken), f"tensor_{place}_{len(taken)}")
        taken[chosen] = None
    return tuple(taken)


def shorten_text(text: str) -> str:
    """A runtime's message on one line, without its middle when it is long."""
    line = _printable(" ".join(text.split()), limit=100_000)
    line = re.sub(r"See instructions: https?://\S*?(?=Node |\s|$)", "", line)
    line = " ".join(line.split())
    half = _TEXT_MAX // 2 - 3
    return line if len(line) <= _TEXT_MAX else f"{line[:half]} ... {line[-half:]}"


def _printable(text: str, *, limit: int = _NAME_MAX) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:limit])
