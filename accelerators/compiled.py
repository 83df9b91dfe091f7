"""CompiledModel: a model that the runtime has compiled for a GPU or an NPU, all of it or nothing.

With the `Interpreter`, the only module that imports the runtime. What it takes care of:
- A file is opened by an `Interpreter` first, which checks it and describes it; CompiledModel does
  neither, and crashes with damaged files.
- The CPU is never allowed beside the device: the runtime would use it without a word.
- `write` takes the wrong type and too few numbers without complaint: both are checked before it.
- Drivers tell of some failures only on stderr, and answer: what they write is looked at after every
  run. See `accelerators.devicetext`.
- A device that has failed is opened anew before the next run: a lost one stays lost otherwise.
- After a resize, buffers are made anew. A device that keeps to the sizes it was compiled for, and
  does not say so, is given several rows one by one, where the CPU shows that rows stand alone.
Source: measured on LiteRT 2.3.0.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel, Environment, GpuOptions, Options
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import IntelOpenVinoGraphBackend, IntelOpenVinoOptions

from accelerators.base import DataType, LoadSpec
from accelerators.coverage import each_once
from accelerators.devicetext import Unproven, errors, stderr_pipe
from accelerators.interpreter import (
    DeviceFailure,
    Entry,
    Interpreter,
    OutOfMemory,
    Port,
    RuntimeFailure,
    shorten_text,
)
from accelerators.probe import prove_rows
from accelerators.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerators.base import Array, Coverage
    from accelerators.outline import Outline

_ERRORS = (RuntimeError, ValueError, TypeError, OverflowError, KeyError, IndexError)

# What a buffer can hold; the runtime has no more.
_TYPES = frozenset(
    {
        DataType.BOOL,
        DataType.INT8,
        DataType.UINT8,
        DataType.INT32,
        DataType.FP16,
        DataType.FP32,
    }
)


class Target(Protocol):
    """A kind of device, as `CompiledRunner` needs it.

    Attributes:
        name: in sentences: "GPU".
        resizes: other shapes than the file's may be asked for.
        options: of the runtime.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 (above)

    @property
    def resizes(self) -> bool: ...  # noqa: D102 (above)

    @property
    def options(self) -> Any: ...  # noqa: ANN401, D102 (above; a class of the runtime)

    def explain(self, text: str) -> str:
        """Why the model was not compiled, by what was written to stderr; "" when not known."""

    def prove(self, text: str, operators: int) -> Coverage:
        """How much of the model the device has.

        Args:
            text: what was written to stderr.
            operators: of the model's main graph.

        Raises:
            Unproven: that it is this device, and that it has all of the model, does not follow.
        """


def gpu_options() -> Any:  # noqa: ANN401 (a class of the runtime)
    """The GPU alone, reckoning with 32 bits where the model does."""
    return Options(
        hardware_accelerators=HardwareAccelerator.GPU, gpu_options=GpuOptions(enforce_f32=True)
    )


def npu_options(openvino_device: str) -> Any:  # noqa: ANN401 (a class of the runtime)
    """OpenVINO alone, on its device "npu", "gpu" or "cpu"."""
    backend = IntelOpenVinoGraphBackend[openvino_device.upper()]
    return Options(
        hardware_accelerators=HardwareAccelerator.NPU,
        intel_openvino_options=IntelOpenVinoOptions(graph_backend=backend),
    )


@dataclass(slots=True)
class _Binding:
    """An entry's buffers: in the runtime's order to run, in the ports' order to fill and read."""

    signature: int
    inputs: list[Any]
    outputs: list[Any]
    filled: list[Any]
    read: list[tuple[Any, np.dtype[np.generic], tuple[int, ...]]]


class CompiledRunner:
    """One model, compiled for one device. See `accelerators.runner.Runner`."""

    def __init__(self, path: str, target: Target) -> None:
        """Check the file; it is compiled when its entries are asked for or allocated.

        Raises:
            RuntimeFailure: the runtime does not accept the file.
            DeviceFailure: there is no telling what the device does.
        """
        try:
            self._stderr = stderr_pipe()
        except OSError as exc:
            raise DeviceFailure(f"a model on the {target.name} needs its own process") from exc
        self._path = path
        self._target = target
        self._description = Interpreter(path, threads=1)
        self._model: Any = None
        self._bindings: dict[str, _Binding] = {}
        self._results: list[Array] = []
        self._coverage: Coverage | None = None

    @property
    def coverage(self) -> Coverage | None:
        """How much of the model the device took; None before it is compiled."""
        return self._coverage

    @property
    def complaints(self) -> int:
        """Nothing piles up: 0."""
        return 0

    def entries(self, outline: Outline) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
        """The callables that can be offered, default first, and why others cannot.

        Raises:
            RuntimeFailure: the runtime cannot describe the model.
            DeviceFailure: the device cannot be had, or does not take the whole model.
        """
        entries, left_out = self._description.entries(outline)
        reasons = {entry.name: self._why_unusable(entry, outline) for entry in entries}
        usable = tuple(entry for entry in entries if not reasons[entry.name])
        noted = (f"signature '{name}' is left out: {why}" for name, why in reasons.items() if why)
        if entries and not usable:
            raise DeviceFailure(reasons[entries[0].name])
        self._compile()
        return usable, (*left_out, *noted)

    def shape(self, entry: Entry, port: Port) -> tuple[int, ...]:
        """The shape a tensor has in the file."""
        return self._description.shape(entry, port)

    def allocate(self, entry: Entry) -> None:
        """Plan the entry's tensors with `entry.start` as input shapes.

        Raises:
            DeviceFailure: the device cannot have them.
        """
        shapes = entry.start or tuple(self.shape(entry, port) for port in entry.inputs)
        self.resize(entry, shapes)

    def resize(self, entry: Entry, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Plan the entry's tensors with other input shapes.

        Raises:
            DeviceFailure: the device cannot have them. The runner is not to be used again.
        """
        if self._model is None:
            self._compile()
        with _Watch(self, "cannot have inputs of this shape"):
            if not entry.row_by_row:
                self._bindings[entry.name] = self._bind(entry, shapes)
            elif len({shape[0] for shape in shapes}) > 1:
                raise ValueError(f"they have different numbers of rows: {shapes}")
            elif entry.name not in self._bindings:
                one_row = tuple((1, *shape[1:]) for shape in shapes)
                self._bindings[entry.name] = self._bind(entry, one_row)
        entry.shapes = shapes

    def run(self, entry: Entry, inputs: Sequence[Array]) -> float:
        """Set the inputs, whose shapes must be `entry.shapes`, run, and fetch the outputs.

        Returns:
            Seconds for the device to run and to give back what it has.

        Raises:
            DeviceFailure: it failed, or an input is not what it has a buffer for.
        """
        for port, array, shape in zip(entry.inputs, inputs, entry.shapes, strict=True):
            _check(port, array, shape)
        if entry.name not in self._bindings:  # it has failed
            self.resize(entry, entry.shapes)
        pieces: list[Sequence[Array]] = [inputs]
        if entry.row_by_row:
            pieces = [[a[row : row + 1] for a in inputs] for row in range(len(inputs[0]))]
        seconds = 0.0
        parts: list[list[Array]] = []
        with _Watch(self, "failed"):
            for piece in pieces:
                outputs, took_s = _run(self._model, self._bindings[entry.name], piece)
                parts.append(outputs)
                seconds += took_s
        columns = zip(*parts, strict=True)
        self._results = parts[0] if len(parts) == 1 else [np.concatenate(c) for c in columns]
        return seconds

    def results(self, entry: Entry) -> list[Array]:  # noqa: ARG002 (as of every Runner)
        """The outputs of the last run; arrays of the caller's own."""
        results, self._results = self._results, []
        return results

    def _compile(self) -> None:
        """Have the device compile the file, and prove that it did.

        Raises:
            DeviceFailure: it did not.
        """
        operators = self._description.operators
        self._stderr.take()
        try:
            # A new one each time: it keeps the device, which may be lost.
            environment = Environment.create()
            model = CompiledModel.from_file(
                self._path, environment=environment, options=self._target.options
            )
        except MemoryError as exc:
            raise OutOfMemory(f"to compile the model for the {self._target.name}") from exc
        except _ERRORS as exc:
            text = self._stderr.take()
            said = self._target.explain(text) or "; ".join(errors(text)[:2]) or str(exc)
            raise DeviceFailure(_short(said), text[-10_000:]) from exc
        text = self._stderr.take()
        try:
            coverage = self._target.prove(text, len(operators))
        except Unproven as exc:
            raise DeviceFailure(str(exc), text[-10_000:]) from exc
        self._coverage = replace(coverage, taken=each_once(operators))
        self._model = model

    def _bind(self, entry: Entry, shapes: tuple[tuple[int, ...], ...]) -> _Binding:
        model = self._model
        names = model.get_signature_list()
        named = entry.name in names
        signature = model.get_signature_index(entry.name) if named else 0
        key = entry.name if named else next(iter(names))
        into = _order(names[key]["inputs"], entry.inputs, named=named)
        out = _order(names[key]["outputs"], entry.outputs, named=named)
        for place, port, shape in zip(into, entry.inputs, shapes, strict=True):
            self._resize(signature, place, port, shape)
        inputs = model.create_input_buffers(signature)
        outputs = model.create_output_buffers(signature)
        filled = [inputs[place] for place in into]
        for buffer, port, shape in zip(filled, entry.inputs, shapes, strict=True):
            _expect(buffer, port, shape)
        read = [
            (outputs[place], port.spec.datatype.dtype, _expect(outputs[place], port))
            for place, port in zip(out, entry.outputs, strict=True)
        ]
        return _Binding(signature, inputs, outputs, filled, read)

    def _resize(self, signature: int, place: int, port: Port, shape: tuple[int, ...]) -> None:
        known = self._model.get_signature_by_index(signature)
        details = self._model.get_input_tensor_details(known["key"])
        now = tuple(details[known["inputs"][place]]["shape"])
        if now == shape:
            return
        if not self._target.resizes:
            raise ValueError(
                f"input '{port.spec.name}' has shape {list(shape)}, and the model is compiled for "
                f"{list(now)}"
            )
        self._model.resize_input_tensor(place, shape, signature, strict=False)

    def _why_unusable(self, entry: Entry, outline: Outline) -> str:
        """Why an entry cannot run on the device; "" when it can."""
        for port in (*entry.inputs, *entry.outputs):
            spec = port.spec
            if spec.datatype not in _TYPES:
                types = ", ".join(sorted(each.value for each in _TYPES))
                return (
                    f"'{spec.name}' is {spec.datatype.value}, and the {self._target.name} can have "
                    f"{types} only"
                )
        return "" if self._target.resizes else self._why_not_of_one_size(entry, outline)

    def _why_not_of_one_size(self, entry: Entry, outline: Outline) -> str:
        """Why an entry is not for a device that keeps to the sizes it was compiled for."""
        shapes = [port.spec.shape for port in entry.inputs]
        if not any(-1 in shape for shape in shapes):
            growing = [port.spec.name for port in entry.outputs if -1 in port.spec.shape]
            if not growing:
                return ""
            return (
                f"the size of output '{growing[0]}' is not known before it is there, and the "
                f"{self._target.name} runs the sizes it was compiled for"
            )
        only_rows = all(shape[:1] == (-1,) and -1 not in shape[1:] for shape in shapes)
        if only_rows and self._rows_stand_alone(entry, outline):
            entry.row_by_row = True
            return ""
        return (
            f"the {self._target.name} runs the sizes it was compiled for, and inputs have open "
            f"ones ({', '.join(str(list(shape)) for shape in shapes)}): convert the model with "
            "fixed sizes"
        )

    def _rows_stand_alone(self, entry: Entry, outline: Outline) -> bool:
        """Whether a row's answer is the same whichever rows come with it, as the CPU has it."""
        try:
            interpreter = Interpreter(self._path, threads=1)
            entries, _ = interpreter.entries(outline)
            same = next(each for each in entries if each.name == entry.name)
            interpreter.allocate(same)
            with Path(self._path).open("rb") as file:
                session = Session(
                    file,
                    lambda: Interpreter(self._path, threads=1),
                    interpreter,
                    (same,),
                    stateful=False,
                )
                del interpreter  # the session may drop it for another
                spec = LoadSpec(Path(self._path), max_batch=2)
                return prove_rows(session, same, spec, warm_s=0.0) > 1
        except OutOfMemory:
            raise
        except RuntimeFailure:  # the CPU lacks an operator: then it can show nothing
            return False

    def end_run(self, what: str, exc: BaseException | None) -> None:
        """Say what went wrong in a step, if anything did; the model is let go then.

        Raises:
            OutOfMemory, DeviceFailure: something went wrong.
        """
        text = self._stderr.take()
        said = errors(text)
        if exc is None and not said:
            return
        self._model = None
        self._bindings = {}
        self._results = []
        if isinstance(exc, MemoryError):
            raise OutOfMemory(f"the {self._target.name} {what}") from exc
        if exc is not None and not isinstance(exc, _ERRORS):
            return
        reason = _short("; ".join(said[:2]) or str(exc))
        raise DeviceFailure(f"the {self._target.name} {what}: {reason}", text[-10_000:]) from exc


class _Watch:
    """Context of a step on the device: turns errors, told or only written, into DeviceFailure."""

    __slots__ = ("_runner", "_what")

    def __init__(self, runner: CompiledRunner, what: str) -> None:
        self._runner = runner
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        self._runner.end_run(self._what, exc)


def _run(model: Any, binding: _Binding, inputs: Sequence[Array]) -> tuple[list[Array], float]:  # noqa: ANN401 (a class of the runtime)
    """Once through the device: the outputs, and the seconds it took."""
    for buffer, array in zip(binding.filled, inputs, strict=True):
        buffer.write(array)
    begin = time.monotonic()
    model.run_by_index(binding.signature, binding.inputs, binding.outputs)
    outputs = [_read(*each) for each in binding.read]
    return outputs, time.monotonic() - begin


def _order(names: Sequence[str], ports: Sequence[Port], *, named: bool) -> list[int]:
    """Where each port stands among the runtime's; without names, both have the file's order."""
    if len(names) != len(ports):
        raise ValueError(f"the runtime has {len(names)} tensors where the file has {len(ports)}")
    if not named:
        return list(range(len(ports)))
    return [names.index(port.spec.name) for port in ports]


def _expect(buffer: Any, port: Port, shape: tuple[int, ...] | None = None) -> tuple[int, ...]:  # noqa: ANN401 (a class of the runtime)
    """The buffer's shape, which must be `shape` where it is given, and its type the port's."""
    details = buffer.get_tensor_details()
    found = tuple(int(size) for size in details["shape"])
    if np.dtype(details["dtype"]) != port.spec.datatype.dtype or shape not in (None, found):
        raise ValueError(
            f"tensor '{port.spec.name}' became {details['dtype']} {list(found)} on the device"
        )
    return found


def _check(port: Port, array: Array, shape: tuple[int, ...]) -> None:
    if array.dtype != port.spec.datatype.dtype or array.shape != shape:
        raise DeviceFailure(
            f"input '{port.spec.name}' is {array.dtype} {list(array.shape)}, and the model takes "
            f"{port.spec.datatype.dtype} {list(shape)}"
        )


def _read(buffer: Any, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:  # noqa: ANN401 (a class of the runtime)
    count = int(np.prod(shape, dtype=np.int64))
    array: Array = buffer.read(count, dtype).reshape(shape)
    return array


def _short(text: str) -> str:
    return shorten_text(text) or "it does not say why"
