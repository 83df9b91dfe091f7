"""Engine: one model, loaded, warmed and probed in this process, ready to be called.

The rules of a load, in order:
1. READ: the file is opened once; what is hashed is what is run, also when the path is replaced.
2. PARSE: it must be a flatbuffer of the right kind before the runtime sees it.
3. ALLOCATE: each signature must be planned; one that cannot is left out and noted.
4. WARM: each signature is invoked once with ones, and with zeros only when ones fail: zeros are the
   input that known models hang on. A signature that fails is left out and noted.
5. A stateful model is then made anew, so that the first client finds the file's own start state.
6. Batches are allowed only up to a size whose rows were seen to equal their single runs.
A model none of whose signatures is left is refused.

After any failed resize, and when memory ran out, the interpreter is made anew: the runtime is not
to be trusted then. A stateful model loses its state by that. Another model's is also made anew when
the runtime has piled up many complaints, which it never lets go.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from accelerators import registry
from accelerators.base import DataType, ModelReport, SignatureSpec, TensorSpec
from accelerators.errors import InvokeFailed, LoadStage, ModelRefused
from accelerators.flatbuffer import DamagedFile
from accelerators.interpreter import (
    Entry,
    Interpreter,
    OutOfMemory,
    Port,
    RuntimeFailure,
    runtime_name,
)
from accelerators.metadata import read_metadata
from accelerators.outline import IDENTIFIER, Outline, read_outline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerators.base import Array, LoadSpec, ModelMetadata

_REASON_MAX = 500  # characters, as ModelRefused promises
_NOTES_MAX = 20
_AUTOMATIC_BATCH = 8  # rows; larger gains nothing on any model measured
_PROBE_ROWS = 4  # different rows in a probe: enough to tell a mixed row from its own
_PROBE_SHARE = 0.1  # of the load's time limit that the probe may take
_COMPLAINTS_MAX = 64 << 10  # characters: hundreds of failed calls
_SEED = 20240607  # of the rows a probe invents; any fixed number

# A float row may differ from its single run by so much of the output's range: kernels add up in
# another order. Measured: 4e-7 of the range; a mixed row differs by tenths.
_TOLERANCE = 1e-4


class Engine:
    """One model in this process. One thread at a time."""

    def __init__(
        self,
        file: BinaryIO,
        choice: registry.Choice,
        threads: int,
        interpreter: Interpreter,
        entries: tuple[Entry, ...],
        *,
        stateful: bool,
    ) -> None:
        self._file = file
        self._choice = choice
        self._threads = threads
        self._interpreter = interpreter
        self._entries = entries
        self._stateful = stateful
        self._rows_max = 1

    def run(self, signature: int, inputs: Sequence[Array]) -> tuple[list[Array], float]:
        """Invoke a signature, by its place in the report, with inputs in the report's order.

        Returns:
            The outputs in the report's order and the seconds inside invoke. The arrays are views
            into the runtime, valid until the next call: copy them and let them go.

        Raises:
            InvokeFailed: an input has a shape the model does not take, or the runtime failed.
            MemoryError: there is not even enough to set the model up again.
        """
        # Recovery waits until the exception is gone: its frames keep the old interpreter alive.
        with contextlib.suppress(OutOfMemory):
            return self._run(signature, inputs)
        self._recover()
        # What earlier calls left behind is gone now: that may have been all that was missing.
        with contextlib.suppress(OutOfMemory):
            return self._run(signature, inputs)
        self._recover()
        raise InvokeFailed("the call needs more memory than the model may take")

    def _run(self, signature: int, inputs: Sequence[Array]) -> tuple[list[Array], float]:
        entry = self._entries[signature]
        shapes = tuple([array.shape for array in inputs])
        if shapes != entry.shapes:
            self._reshape(signature, entry, shapes)
        try:
            seconds = self._interpreter.run(entry, inputs)
            return self._interpreter.results(entry), seconds
        except OutOfMemory:
            raise
        except RuntimeFailure as exc:
            reason = str(exc)
        if self._interpreter.complaints > _COMPLAINTS_MAX and not self._stateful:
            self._recover()
        raise InvokeFailed(reason)

    def renew(self) -> None:
        """Make the interpreter anew, with the variables the file starts with.

        Raises:
            RuntimeFailure: the runtime does not accept the file any more.
        """
        del self._interpreter  # first, so that never two are in memory
        self._interpreter = self._choice.kind.open(_path_of(self._file), self._threads)
        for entry in self._entries:
            self._interpreter.allocate(entry)

    def close(self) -> None:
        """Let the model and its file go."""
        self._entries = ()
        del self._interpreter
        self._file.close()

    def allow_rows(self, rows: int) -> None:
        """Accept up to so many rows where the first dimension is fixed."""
        self._rows_max = rows

    def _reshape(self, signature: int, entry: Entry, shapes: tuple[tuple[int, ...], ...]) -> None:
        rows = self._rows_max if signature == 0 else 1
        _check_shapes(entry, shapes, rows)
        try:
            self._interpreter.resize(entry, shapes)
        except OutOfMemory:
            raise
        except RuntimeFailure as exc:
            reason = str(exc)
        else:
            return
        self._recover()
        raise InvokeFailed(f"the model cannot take inputs of this shape: {reason}")

    def _recover(self) -> None:
        try:
            self.renew()
        except RuntimeFailure as exc:
            # Nothing is left to serve with: end this worker, the next one starts clean.
            raise MemoryError(f"the model cannot be set up again: {exc}") from exc


def load(
    spec: LoadSpec, *, proven_batch: int, on_stage: Callable[[LoadStage], None]
) -> tuple[Engine, ModelReport]:
    """Load a model by the rules above.

    Args:
        spec: what to load. Its time limit is the caller's to keep.
        proven_batch: the `max_batch` an earlier load of the same file has found; 0 to probe.
        on_stage: told before each stage, so that a crash can be placed.

    Raises:
        ModelRefused: the model cannot be served.
        MemoryError: there is not enough for it.
    """
    started = time.monotonic()
    on_stage(LoadStage.READ)
    file = _open(spec.path)
    try:
        return _load(spec, file, proven_batch, on_stage, started)
    except BaseException:
        file.close()
        raise


def _load(
    spec: LoadSpec,
    file: BinaryIO,
    proven_batch: int,
    on_stage: Callable[[LoadStage], None],
    started: float,
) -> tuple[Engine, ModelReport]:
    digest, outline, metadata, notes = _examine(file, on_stage)
    choice = registry.choose(spec.accelerators, outline)
    try:
        interpreter = choice.kind.open(_path_of(file), spec.threads)
        entries, left_out = interpreter.entries(outline)
    except OutOfMemory as exc:
        raise MemoryError("to parse the file") from exc
    except RuntimeFailure as exc:
        raise _refused(LoadStage.PARSE, f"the runtime does not accept the file: {exc}") from exc
    notes.extend(left_out)

    tried = _try_out(interpreter, entries, outline, notes, on_stage)
    engine = Engine(
        file, choice, spec.threads, interpreter, tried.entries, stateful=outline.stateful
    )
    del interpreter  # the engine may drop it for another
    if outline.stateful:
        _renewed(engine)
    max_batch = proven_batch or _probe(engine, tried, outline, spec)
    engine.allow_rows(max_batch)
    signatures = tuple(_describe(entry, tried.results[entry.name]) for entry in tried.entries)
    if max_batch > 1:
        signatures = (_open_rows(signatures[0]), *signatures[1:])
    report = ModelReport(
        digest=digest,
        runtime=runtime_name(),
        device=choice.device,
        requested_device=spec.accelerators[0],
        degraded_reason=choice.degraded_reason[:_REASON_MAX],
        signatures=signatures,
        metadata=metadata,
        stateful=outline.stateful,
        max_batch=max_batch,
        memory_bytes=private_bytes(),
        load_s=tried.allocated_at - started,
        warm_s=tried.warm_s,
        notes=tuple(note[:_REASON_MAX] for note in notes[:_NOTES_MAX]),
    )
    return engine, report


def private_bytes() -> int:
    """Memory that only this process has; 0 when the kernel does not say."""
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text("ascii")
    except OSError:
        return 0
    lines = [line.split() for line in rollup.splitlines() if line.startswith("Private_")]
    return sum(int(words[1]) for words in lines) * 1024


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise _refused(LoadStage.READ, f"cannot read {path}: {reason}") from exc


def _path_of(file: BinaryIO) -> str:
    """A path to the very file that is open, whatever its name points to by now."""
    return f"/proc/self/fd/{file.fileno()}"


def _examine(
    file: BinaryIO, on_stage: Callable[[LoadStage], None]
) -> tuple[str, Outline, ModelMetadata, list[str]]:
    """Digest, outline, metadata and what is wrong with the latter."""
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as exc:
        if isinstance(exc, OSError):
            raise _refused(LoadStage.READ, f"cannot read the file: {exc.strerror}") from exc
        raise _refused(LoadStage.PARSE, "the file is empty, not a valid Flatbuffer") from exc
    with mapped, memoryview(mapped) as data:
        digest = hashlib.sha256(data).hexdigest()
        on_stage(LoadStage.PARSE)
        return digest, *_parse(data, file)


def _parse(data: memoryview, file: BinaryIO) -> tuple[Outline, ModelMetadata, list[str]]:
    if data[4:8] != IDENTIFIER:
        raise _refused(
            LoadStage.PARSE,
            "the file is not a TFLite model (not a valid Flatbuffer: it lacks the mark TFL3)",
        )
    metadata, problem = read_metadata(data, file)
    notes = [problem] if problem else []
    try:
        return read_outline(data), metadata, notes
    except DamagedFile as exc:
        raise _refused(
            LoadStage.PARSE, f"the file is damaged (not a valid Flatbuffer): {exc}"
        ) from exc


@dataclass(frozen=True, slots=True)
class _TriedOut:
    """The entries that work, and what they gave."""

    entries: tuple[Entry, ...]
    results: dict[str, list[Array]]
    allocated_at: float  # monotonic
    warm_s: float


def _try_out(
    interpreter: Interpreter,
    entries: tuple[Entry, ...],
    outline: Outline,
    notes: list[str],
    on_stage: Callable[[LoadStage], None],
) -> _TriedOut:
    """Rules 3 and 4: allocate and invoke every entry."""
    results: dict[str, list[Array]] = {}

    def allocate(entry: Entry) -> None:
        _allocate(interpreter, entry, outline)

    def warm(entry: Entry) -> None:
        results[entry.name] = _warm(interpreter, entry)

    on_stage(LoadStage.ALLOCATE)
    entries = _usable(entries, notes, LoadStage.ALLOCATE, allocate)
    allocated_at = time.monotonic()
    on_stage(LoadStage.WARM)
    entries = _usable(entries, notes, LoadStage.WARM, warm)
    return _TriedOut(entries, results, allocated_at, time.monotonic() - allocated_at)


def _usable(
    entries: tuple[Entry, ...],
    notes: list[str],
    stage: LoadStage,
    attempt: Callable[[Entry], None],
) -> tuple[Entry, ...]:
    """The entries for which `attempt` succeeds; the others are noted.

    Raises:
        ModelRefused: none is left.
        MemoryError: none is left, for want of memory.
    """
    usable: list[Entry] = []
    reasons: list[str] = []
    exhausted = False
    for entry in entries:
        try:
            attempt(entry)
        except RuntimeFailure as exc:
            exhausted = exhausted or isinstance(exc, OutOfMemory)
            reasons.append(str(exc))
            notes.append(f"signature '{entry.name[:100]}' is left out: {exc}")
        else:
            usable.append(entry)
    if usable:
        return tuple(usable)
    if exhausted:
        raise MemoryError(reasons[0])
    raise _refused(stage, reasons[0] if reasons else "; ".join(notes) or "it has no signature")


def _allocate(interpreter: Interpreter, entry: Entry, outline: Outline) -> None:
    for port in entry.inputs:
        if port.is_bytes and not port.spec.shape:
            raise RuntimeFailure(
                f"input '{port.spec.name}' is a single string (rank 0), which the runtime reads "
                "from the wrong memory"
            )
    try:
        interpreter.allocate(entry)
        _give_empty_dimensions_a_size(interpreter, entry)
    except OutOfMemory as exc:
        raise OutOfMemory("to allocate the model") from exc
    except RuntimeFailure as exc:
        raise RuntimeFailure(_explain(exc, outline)) from exc


def _give_empty_dimensions_a_size(interpreter: Interpreter, entry: Entry) -> None:
    """A dimension the caller may choose is 1 until somebody chooses."""
    shapes = tuple(tuple(size or 1 for size in shape) for shape in entry.shapes)
    if shapes != entry.shapes:
        interpreter.resize(entry, shapes)


def _explain(failure: RuntimeFailure, outline: Outline) -> str:
    """The runtime's words about a missing operator, with what an operator of the box can do."""
    text = failure.text
    if "Select TensorFlow op" in text:
        names = ", ".join(outline.flex[:10]) or "unknown"
        return (
            f"the model needs TensorFlow's own operators ({names}), which are not here: Select "
            "TensorFlow op(s) are not supported; convert it with built-in operators only"
        )
    _, found, rest = text.partition("unresolved custom op: ")
    if found:
        name = rest.split(maxsplit=1)[0].rstrip(".")[:100] if rest.strip() else "?"
        return f"the model needs an operator that is not here (unresolved custom op: {name})"
    return f"the tensors cannot be planned: {failure}"


def _warm(interpreter: Interpreter, entry: Entry) -> list[Array]:
    """Invoke once; returns copies of the results."""
    try:
        interpreter.run(entry, [_filled(port, shape, 1) for port, shape in _ports(entry)])
    except OutOfMemory as exc:
        raise OutOfMemory("for the first invocation") from exc
    except RuntimeFailure as failure:
        try:
            interpreter.run(entry, [_filled(port, shape, 0) for port, shape in _ports(entry)])
        except RuntimeFailure:
            raise RuntimeFailure(f"the first invocation failed: {failure}") from failure
    return [array.copy() for array in interpreter.results(entry)]


def _ports(entry: Entry) -> list[tuple[Port, tuple[int, ...]]]:
    return list(zip(entry.inputs, entry.shapes, strict=True))


def _filled(port: Port, shape: tuple[int, ...], value: int) -> Array:
    if port.is_bytes:
        return np.full(shape, str(value).encode(), object)
    return np.full(shape, value, port.spec.datatype.dtype)


def _renewed(engine: Engine) -> None:
    try:
        engine.renew()
    except RuntimeFailure as exc:
        raise _refused(LoadStage.WARM, f"the model cannot be set up twice: {exc}") from exc


def _check_shapes(entry: Entry, shapes: tuple[tuple[int, ...], ...], rows_max: int) -> None:
    """Compare with the description; `rows_max` is what a fixed first dimension of 1 may become.

    Raises:
        InvokeFailed: a shape does not fit.
    """
    for port, shape in zip(entry.inputs, shapes, strict=True):
        spec = port.spec
        fits = len(shape) == len(spec.shape) and all(
            size == wanted or (wanted == -1 and size > 0)
            for size, wanted in zip(shape[1:], spec.shape[1:], strict=True)
        )
        if fits and spec.shape:
            wanted, size = spec.shape[0], shape[0]
            fits = size == wanted or (size > 0 and (wanted == -1 or size <= rows_max))
        if not fits:
            raise InvokeFailed(
                f"input '{spec.name}' has shape {list(shape)}, the model takes {list(spec.shape)}"
            )


def _describe(entry: Entry, results: list[Array]) -> SignatureSpec:
    """The entry as callers see it: real shapes where the file has none before the first run."""
    outputs = tuple(
        _described_output(port.spec, result.shape)
        for port, result in zip(entry.outputs, results, strict=True)
    )
    return SignatureSpec(entry.name, tuple(port.spec for port in entry.inputs), outputs)


def _described_output(spec: TensorSpec, real: tuple[int, ...]) -> TensorSpec:
    agrees = len(spec.shape) == len(real) and all(
        wanted in (-1, size) for wanted, size in zip(spec.shape, real, strict=True)
    )
    return spec if agrees else replace(spec, shape=real)


def _open_rows(signature: SignatureSpec) -> SignatureSpec:
    """Where callers choose the rows of every input, outputs that follow say so too."""
    if not all(spec.shape[:1] == (-1,) for spec in signature.inputs):
        return signature
    outputs = tuple(replace(spec, shape=(-1, *spec.shape[1:])) for spec in signature.outputs)
    return replace(signature, outputs=outputs)


def _probe(engine: Engine, tried: _TriedOut, outline: Outline, spec: LoadSpec) -> int:
    """How many rows a call may have: see rule 6."""
    entry = tried.entries[0]
    dynamic = all(port.spec.shape[:1] == (-1,) for port in entry.inputs)
    rows = spec.max_batch or (_AUTOMATIC_BATCH if dynamic else 1)
    single = all(shape[:1] == (1,) for shape in entry.shapes)
    if rows == 1 or outline.stateful or not entry.inputs or not single:
        return 1
    if tried.warm_s * (2 * rows + _PROBE_ROWS + 2) > spec.load_timeout_s * _PROBE_SHARE:
        return 1
    engine.allow_rows(rows)
    try:
        agree = _rows_agree(engine, entry, sorted({2, rows}))
    except (InvokeFailed, MemoryError):
        agree = False
    try:
        # Whatever the probe left behind, calls start from the file's own shapes, and warm.
        engine.renew()
        with contextlib.suppress(InvokeFailed):
            engine.run(0, [_filled(port, shape, 1) for port, shape in _ports(entry)])
    except RuntimeFailure as exc:
        raise _refused(LoadStage.WARM, f"the model cannot be set up twice: {exc}") from exc
    return rows if agree else 1


def _rows_agree(engine: Engine, entry: Entry, sizes: list[int]) -> bool:
    """Whether each row of larger calls equals the row's own call."""
    rng = np.random.default_rng(_SEED)
    rows = [
        [_random(port, shape, rng) for port, shape in _ports(entry)] for _ in range(_PROBE_ROWS)
    ]
    singles = [_copied(engine, row) for row in rows]
    for size in sizes:
        picks = [number % _PROBE_ROWS for number in range(size)]
        columns = [[rows[pick][place] for pick in picks] for place in range(len(entry.inputs))]
        together = _copied(engine, [np.concatenate(column) for column in columns])
        for place, output in enumerate(together):
            expected = [singles[pick][place] for pick in picks]
            if any(one.shape[:1] != (1,) for one in expected):
                return False
            if not _equal(output, np.concatenate(expected)):
                return False
    return True


def _copied(engine: Engine, inputs: list[Array]) -> list[Array]:
    outputs, _ = engine.run(0, inputs)
    return [output.copy() for output in outputs]


def _random(port: Port, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    datatype = port.spec.datatype
    if datatype is DataType.BYTES:
        words = [rng.bytes(3).hex().encode() for _ in range(int(np.prod(shape)))]
        return np.array(words, object).reshape(shape)
    if datatype is DataType.BOOL:
        return rng.integers(0, 2, shape).astype(np.bool_)
    kind = datatype.dtype.kind
    if kind == "f":
        return rng.random(shape).astype(datatype.dtype)
    if datatype.itemsize == 1:  # pixels: the whole range
        low = -128 if kind == "i" else 0
        return rng.integers(low, low + 256, shape).astype(datatype.dtype)
    return rng.integers(0, 2, shape).astype(datatype.dtype)  # indexes: small ones exist


def _equal(output: Array, expected: Array) -> bool:
    if output.shape != expected.shape:
        return False
    if output.dtype.kind != "f":
        return bool(np.array_equal(output, expected))
    scale = float(np.nanmax(np.abs(expected), initial=0.0)) if expected.size else 0.0
    atol = _TOLERANCE * scale if np.isfinite(scale) else 0.0
    return bool(np.allclose(output, expected, rtol=_TOLERANCE, atol=atol, equal_nan=True))


def _refused(stage: LoadStage, reason: str) -> ModelRefused:
    return ModelRefused(stage, reason[:_REASON_MAX])
