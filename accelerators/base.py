"""What the daemon and the workers say to each other about a model: plain, immutable facts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path  # noqa: TC003 (dataclass fields are evaluated by tools)
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    """A tensor. BYTES tensors are object arrays whose every element is `bytes`, rank >= 1."""


class DataType(Enum):
    """A tensor's element type, by its KServe v2 name."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype that holds this type; object for BYTES."""
        return _NUMPY_DTYPES[self]

    @property
    def itemsize(self) -> int:
        """Bytes per element; 0 for BYTES, whose elements differ in length."""
        return 0 if self is DataType.BYTES else self.dtype.itemsize


_NUMPY_DTYPES: dict[DataType, np.dtype[np.generic]] = {
    DataType.BOOL: np.dtype(np.bool_),
    DataType.UINT8: np.dtype(np.uint8),
    DataType.UINT16: np.dtype(np.uint16),
    DataType.UINT32: np.dtype(np.uint32),
    DataType.UINT64: np.dtype(np.uint64),
    DataType.INT8: np.dtype(np.int8),
    DataType.INT16: np.dtype(np.int16),
    DataType.INT32: np.dtype(np.int32),
    DataType.INT64: np.dtype(np.int64),
    DataType.FP16: np.dtype(np.float16),
    DataType.FP32: np.dtype(np.float32),
    DataType.FP64: np.dtype(np.float64),
    DataType.BYTES: np.dtype(object),
}


class Isolation(Enum):
    """Where a model's interpreter lives."""

    PROCESS = "process"  # in a supervised worker process of its own
    THREAD = "thread"  # in a thread of the daemon: a crash of the model is a crash of the daemon


@dataclass(frozen=True, slots=True)
class Quantization:
    """Per-tensor affine quantization: real = (stored - zero_point) * scale."""

    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a signature.

    Attributes:
        name: as the signature names it; the tensor's own name where the file has no signature.
        datatype: its element type.
        shape: -1 marks a dimension the caller may choose.
        quantization: None for tensors that hold real values, strings or class numbers.
    """

    name: str
    datatype: DataType
    shape: tuple[int, ...]
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True)
class SignatureSpec:
    """One callable entry of a model. Inputs and outputs keep the order of the interpreter."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ScoreTransformation(Enum):
    """What the packed score calibration does to a score before its sigmoid is taken."""

    IDENTITY = "identity"
    LOG = "log"
    INVERSE_LOGISTIC = "inverse_logistic"


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """Per-class sigmoid calibration of scores, from the metadata's calibration file.

    score = scale / (1 + exp(-(slope * transform(s) + offset))); a class whose line is empty, or
    whose uncalibrated score is below its min_score, gets default_score.
    Source: TFLite metadata schema, ScoreCalibrationOptions.

    Attributes:
        lines: per class index (scale, slope, offset, min_score or None), or None when not given.
    """

    transformation: ScoreTransformation
    default_score: float
    lines: tuple[tuple[float, float, float, float | None] | None, ...]


# Lines of one label file: ten times the 21,843 classes of the largest known one.
LABELS_MAX = 200_000


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """What the metadata packed in the file says of one input or output, in subgraph order.

    Attributes:
        name: the metadata's name for it ("image", "probability", "location"...); may be "".
        content: "image", "audio", "bounding_box", "feature" or "" when not said.
        mean, std: per channel or one for all, of the float view of the input; () when not said.
        sample_rate: Hz, for audio; 0 when not said.
        channels: for audio; 0 when not said.
        labels: lines of the tensor's label file, at most LABELS_MAX, () when it has none. An empty
            line or "???" is kept, so that line numbers stay class numbers.
        calibration: for outputs with a score calibration file.
        score_threshold: the metadata's own, or None.
        box_order: for bounding boxes: which of (left, top, right, bottom) stands at each place of
            the tensor's last axis, e.g. (1, 0, 3, 2) means left is at 1; () when not said.
    """

    name: str = ""
    description: str = ""
    content: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sample_rate: int = 0
    channels: int = 0
    labels: tuple[str, ...] = ()
    calibration: ScoreCalibration | None = None
    score_threshold: float | None = None
    box_order: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The metadata packed in a TFLite file (TFLITE_METADATA buffer and appended zip)."""

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """One thing that can run models, as its kind's module found it.

    Attributes:
        id: the kind where there can be one of it ("cpu", "gpu", "npu"), else the kind, a colon and
            what tells it from others ("edgetpu:usb-1-1.4", "external:dsp").
        kind: a name of `accelerators.registry`.
        name: what its maker calls it; "" when not known.
        driver: what opens it, with its version; "" when not known. With another driver, what was
            measured before no longer counts.
        problem: why it cannot be used now, in one plain sentence; "" when it can.
        next_step: what an operator can do about the problem; "" when there is none.
        library: the file of its delegate; "" where the runtime brings it.
        options: for the library or the runtime: name and value.
        exclusive: only one process may have it open at a time.
    """

    id: str
    kind: str
    name: str = ""
    driver: str = ""
    problem: str = ""
    next_step: str = ""
    library: str = ""
    options: tuple[tuple[str, str], ...] = ()
    exclusive: bool = False

    @property
    def up(self) -> bool:
        """Whether it can be used now, as far as is known."""
        return not self.problem


CPU = Device("cpu", "cpu")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an answer comes from.

    Attributes:
        device: id of what ran the model.
        requested_device: the first wish of its placement.
        degraded: a wish before `device` could not be met.
    """

    device: str = "cpu"
    requested_device: str = "cpu"
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a model a delegate took.

    Attributes:
        operators: of the model's main graph.
        claimed: of these, on the device; the others run on the CPU.
        partitions: pieces of the graph that the device runs one by one.
        taken: names of the operators on the device, each once, in the order of the alphabet.
    """

    operators: int
    claimed: int
    partitions: int
    taken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a worker found out about a model while it loaded, warmed and probed it.

    Attributes:
        digest: sha256 of the file, lower-case hex.
        runtime: name and version of what runs it, e.g. "litert 2.3.0".
        device: id of what really runs it.
        requested_device: the first wish of its placement.
        degraded_reason: why a wish before `device` is not met; "" when none is missed.
        signatures: at least one. The first is the default: `serving_default` where the file has it.
        metadata: empty when the file carries none.
        stateful: it keeps variables between calls: one interpreter, never batched.
        max_batch: largest number of rows per call for which a probe at load has shown that every
            row equals its single run; 1 when batching is not proven. For the default signature.
        memory_bytes: private memory of the worker after warm-up; 0 when unknown.
        load_s, warm_s: seconds for parse + allocate, and for the first invocation.
        notes: what an operator should know though the model serves: a signature that is left out,
            metadata that cannot be read. One sentence each.
        coverage: how much the device took; None on the CPU, which takes everything.
    """

    digest: str
    runtime: str
    device: str
    requested_device: str
    degraded_reason: str
    signatures: tuple[SignatureSpec, ...]
    metadata: ModelMetadata
    stateful: bool
    max_batch: int
    memory_bytes: int
    load_s: float
    warm_s: float
    notes: tuple[str, ...] = ()
    coverage: Coverage | None = None

    @property
    def degraded(self) -> bool:
        """True when the model runs on something else for want of what was asked for."""
        return bool(self.degraded_reason)

    @property
    def origin(self) -> Origin:
        """As its answers say it."""
        return Origin(self.device, self.requested_device, self.degraded)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Which file to load, how, and within which limits.

    Attributes:
        path: the .tflite file. It must never change in place: replace it by rename.
        device: where to run it.
        threads: interpreter threads, 1..64.
        instances: interpreters that run side by side, 1..64; a stateful model gets one whatever
            this says.
        memory_mib: private memory a worker may take beyond what it was forked with.
        call_timeout_s: a call that runs longer gets its worker killed.
        load_timeout_s: parse, allocate, warm and probe together.
        max_batch: rows to probe for; 1 switches the probe off; 0 lets the model decide (8 where the
            first dimension of every input is -1, otherwise 1).
        recycle_after_calls: replace a worker after so many calls; 0 never.
    """

    path: Path
    device: Device = CPU
    threads: int = 1
    instances: int = 1
    isolation: Isolation = Isolation.PROCESS
    memory_mib: int = 1024
    call_timeout_s: float = 30.0
    load_timeout_s: float = 60.0
    max_batch: int = 0
    recycle_after_calls: int = 0


@dataclass(slots=True)  # not frozen: made for every call, and that costs a microsecond
class CallResult:
    """What one call brought back.

    Attributes:
        outputs: by the signature's output names; the arrays are the caller's own.
        invoke_s: seconds inside the runtime's invoke, as the worker measured them.
        started_at, finished_at: CLOCK_MONOTONIC seconds at which the worker took the call up and
            was done with it; the same clock as `time.monotonic()` in every process.
        origin: what ran it.
    """

    outputs: Mapping[str, Array]
    invoke_s: float
    started_at: float
    finished_at: float
    origin: Origin = Origin()
