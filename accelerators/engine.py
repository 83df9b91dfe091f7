"""Loads a model in this process, warms and probes it, and says what it is.

The rules of a load, in order:
1. READ: the file is opened once; what is hashed is what is run, also when the path is replaced.
2. PARSE: it must be a flatbuffer of the right kind before the runtime sees it.
3. ALLOCATE: each signature must be planned; one that cannot is left out and noted.
4. WARM: each signature is invoked once with ones, and with zeros only when ones fail: zeros are the
   input that known models hang on. A signature that fails is left out and noted.
5. A stateful model is then made anew, so that the first client finds the file's own start state.
6. Batches are allowed only up to a size whose rows were seen to equal their single runs.
A model none of whose signatures is left is refused.
"""

from __future__ import annotations

import hashlib
import mmap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from accelerators.base import CPU, Isolation, ModelReport, SignatureSpec, TensorSpec
from accelerators.errors import LoadStage, ModelRefused
from accelerators.flatbuffer import DamagedFile
from accelerators.interpreter import (
    DeviceFailure,
    Entry,
    OutOfMemory,
    RuntimeFailure,
    runtime_name,
)
from accelerators.metadata import read_metadata
from accelerators.outline import IDENTIFIER, Outline, read_outline
from accelerators.probe import filled, ports_of, prove_rows
from accelerators.registry import KINDS
from accelerators.runtime import NoRuntime, runtime
from accelerators.session import Session, path_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerators.base import Array, LoadSpec, ModelMetadata
    from accelerators.runner import Runner

_REASON_MAX = 500  # characters, as ModelRefused promises
_NOTES_MAX = 20

# Sizes tried for dimensions the caller chooses (height, width, length), until the model can be
# planned: 1 as the converter writes it is too small for a convolution without padding.
_OPEN_SIZES = (1, 64, 256)


def load(
    spec: LoadSpec, *, proven_batch: int, on_stage: Callable[[LoadStage], None]
) -> tuple[Session, ModelReport]:
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
    try:
        runtime()
    except NoRuntime as exc:
        raise _refused(LoadStage.PROCESS, str(exc)) from exc
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
) -> tuple[Session, ModelReport]:
    digest, outline, metadata, notes = _examine(file, on_stage)
    kind = KINDS.get(spec.device.kind)
    problem = kind.check(outline) if kind else f"there is no kind '{spec.device.kind[:40]}'"
    if kind is None or problem:
        raise _refused(LoadStage.ALLOCATE, problem)
    if spec.isolation is Isolation.THREAD and kind is not KINDS[CPU.kind]:
        reason = f"a model on {spec.device.id} needs a process of its own, as drivers crash"
        raise _refused(LoadStage.OPEN, reason)

    def open_() -> Runner:
        return kind.open(path_of(file), spec.threads, spec.device)

    if spec.device.kind != CPU.kind:
        on_stage(LoadStage.OPEN)
    runner, tried = _open_and_try(open_, outline, on_stage)
    notes.extend((*tried.notes, *runtime().faults))
    coverage = runner.coverage
    session = Session(file, open_, runner, tried.entries, stateful=outline.stateful)
    del runner  # the session may drop it for another
    try:
        if outline.stateful or tried.notes:  # one that has failed at something is not to be trusted
            session.renew()
        max_batch = 1
        if not outline.stateful:
            max_batch = proven_batch or prove_rows(session, tried.entries[0], spec, tried.warm_s)
    except RuntimeFailure as exc:
        raise _refused(LoadStage.WARM, f"the model cannot be set up twice: {exc}") from exc
    session.allow_rows(max_batch)
    signatures = tuple(_describe(entry, tried.results[entry.name]) for entry in tried.entries)
    if max_batch > 1:
        signatures = (_open_rows(signatures[0]), *signatures[1:])
    report = ModelReport(
        digest=digest,
        runtime=runtime_name(),
        device=spec.device.id,
        requested_device=spec.device.id,
        degraded_reason="",
        signatures=signatures,
        metadata=metadata,
        stateful=outline.stateful,
        max_batch=max_batch,
        memory_bytes=private_bytes(),
        load_s=tried.allocated_at - started,
        warm_s=tried.warm_s,
        notes=tuple(note[:_REASON_MAX] for note in notes[:_NOTES_MAX]),
        coverage=coverage,
    )
    return session, report


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
    notes: tuple[str, ...]
    allocated_at: float  # monotonic
    warm_s: float


def _open_and_try(
    open_: Callable[[], Runner], outline: Outline, on_stage: Callable[[LoadStage], None]
) -> tuple[Runner, _TriedOut]:
    """Open the file and try its entries, with open dimensions of several sizes if need be."""
    refusal: ModelRefused | None = None
    for size in _OPEN_SIZES:
        try:
            runner = open_()
            entries, left_out = runner.entries(outline)
        except OutOfMemory as exc:
            raise MemoryError("to parse the file") from exc
        except DeviceFailure as exc:
            raise _refused(LoadStage.OPEN, str(exc)) from exc
        except RuntimeFailure as exc:
            raise _refused(LoadStage.PARSE, f"the runtime does not accept the file: {exc}") from exc
        for entry in entries:
            entry.start = _start_shapes(runner, entry, size)
        try:
            return runner, _try_out(runner, entries, outline, left_out, on_stage)
        except ModelRefused as exc:
            refusal = refusal or exc  # what it says of the file's own shapes is what matters
            if not any(-1 in port.spec.shape[1:] for entry in entries for port in entry.inputs):
                break
    raise refusal or _refused(LoadStage.ALLOCATE, "it has no signature")


def _start_shapes(runner: Runner, entry: Entry, size: int) -> tuple[tuple[int, ...], ...]:
    """Shapes to begin with: open dimensions after the rows are `size` where the file says none."""
    shapes = []
    for port in entry.inputs:
        now = runner.shape(entry, port)
        open_ = port.spec.shape
        shapes.append(
            tuple(
                size if place and n <= 1 and open_[place : place + 1] == (-1,) else n or 1
                for place, n in enumerate(now)
            )
        )
    return tuple(shapes)


def _try_out(
    runner: Runner,
    entries: tuple[Entry, ...],
    outline: Outline,
    left_out: tuple[str, ...],
    on_stage: Callable[[LoadStage], None],
) -> _TriedOut:
    """Rules 3 and 4: allocate and invoke every entry."""
    results: dict[str, list[Array]] = {}
    notes = list(left_out)

    def allocate(entry: Entry) -> None:
        _allocate(runner, entry, outline)

    def warm(entry: Entry) -> None:
        results[entry.name] = _warm(runner, entry)

    on_stage(LoadStage.ALLOCATE)
    entries = _usable(entries, notes, LoadStage.ALLOCATE, allocate)
    allocated_at = time.monotonic()
    on_stage(LoadStage.WARM)
    entries = _usable(entries, notes, LoadStage.WARM, warm)
    warm_s = time.monotonic() - allocated_at
    return _TriedOut(entries, results, tuple(notes), allocated_at, warm_s)


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


def _allocate(runner: Runner, entry: Entry, outline: Outline) -> None:
    for port in entry.inputs:
        if port.is_bytes and not port.spec.shape:
            raise RuntimeFailure(
                f"input '{port.spec.name}' is a single string (rank 0), which the runtime reads "
                "from the wrong memory"
            )
    try:
        runner.allocate(entry)
    except OutOfMemory as exc:
        raise OutOfMemory("to allocate the model") from exc
    except DeviceFailure:
        raise
    except RuntimeFailure as exc:
        raise RuntimeFailure(_explain(exc, outline)) from exc


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


def _warm(runner: Runner, entry: Entry) -> list[Array]:
    """Invoke once; returns copies of the results."""
    try:
        runner.run(entry, [filled(port, shape, 1) for port, shape in ports_of(entry)])
    except OutOfMemory as exc:
        raise OutOfMemory("for the first invocation") from exc
    except RuntimeFailure as failure:
        try:
            runner.run(entry, [filled(port, shape, 0) for port, shape in ports_of(entry)])
        except RuntimeFailure:
            raise RuntimeFailure(f"the first invocation failed: {failure}") from failure
    return [array.copy() for array in runner.results(entry)]


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


def _refused(stage: LoadStage, reason: str) -> ModelRefused:
    return ModelRefused(stage, reason[:_REASON_MAX])
