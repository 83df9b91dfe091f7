"""What is asked of every server: which model, in which form, with which answer."""

from __future__ import annotations

import json
import math
import os
import random
from array import array
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "models"
CPUS = len(os.sched_getaffinity(0))

TYPE_CODES = {"uint8": "B", "int8": "b", "float32": "f"}
"""NumPy's names of the types that tensors here have, and the `array` module's."""


class Form(Enum):
    """What a request's body is."""

    BINARY = "binary"
    """One tensor's bytes, in the leanest way the server offers."""
    JSON = "json"
    """One tensor as JSON numbers."""
    JPEG = "jpeg"
    """A picture file; the answer is the best classes or boxes."""
    WAV = "wav"
    """A sound file; the answer is the best classes."""


FILE_FORMS = frozenset({Form.JPEG, Form.WAV})


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the comparison.

    Attributes:
        model: a `.tflite` file, or a folder with `model.tflite` in it.
        file: what is sent, of a form that sends files.
        rows: of one request.
        instances: interpreters side by side.
        has_footprint: whether memory and start-up are measured with it too.
    """

    name: str
    model: Path
    form: Form
    file: Path | None = None
    rows: int = 1
    instances: int = 1
    has_footprint: bool = False

    @property
    def model_file(self) -> Path:
        """The TFLite file itself."""
        return self.model / "model.tflite" if self.model.is_dir() else self.model

    def missing(self) -> Path | None:
        """The first file it needs that is not here."""
        needed = [self.model, *([self.file] if self.file else [])]
        return next((file for file in needed if not file.exists()), None)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as clients know it.

    Attributes:
        dtype: NumPy's name.
        dims: -1 where the size is open.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]

    @property
    def datatype(self) -> str:
        """KServe's name of the type."""
        return {"uint8": "UINT8", "int8": "INT8", "float32": "FP32"}[self.dtype]


@dataclass(frozen=True, slots=True)
class Case:
    """A workload, and what the raw runtime said of it: what any server must be asked and answer.

    Attributes:
        expected: the first output's numbers for a tensor; for a file the index of the best class.
    """

    workload: Workload
    source: Tensor
    sink: Tensor
    expected: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that is sent."""
        return with_rows(self.source.dims, self.workload.rows)

    def body(self) -> bytes:
        """The tensor's bytes or the file."""
        return make_body(self.workload, self.source.dtype, self.shape)

    def numbers(self) -> list[int] | list[float]:
        """The tensor's numbers, flat."""
        return array(TYPE_CODES[self.source.dtype], self.body()).tolist()

    def read_output(self, raw: bytes) -> tuple[float, ...]:
        """The first output's numbers, from its bytes."""
        return tuple(array(TYPE_CODES[self.sink.dtype], raw))

    def is_right(self, answer: tuple[float, ...]) -> bool:
        """Whether this is the raw runtime's answer, to the last bit."""
        return answer == self.expected


def with_rows(dims: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The shape of a request's tensor."""
    return (rows, *dims[1:]) if dims[0] == -1 else dims


def make_body(workload: Workload, dtype: str, shape: tuple[int, ...]) -> bytes:
    """The workload's body, the same in every process."""
    if workload.file is not None:
        return workload.file.read_bytes()
    size = math.prod(shape) * array(TYPE_CODES[dtype]).itemsize
    return random.Random(0).randbytes(size)  # noqa: S311 (numbers, not secrets)


def predictor_settings(workload: Workload) -> str:
    """What `peers/inside/predictor.py` reads."""
    settings = {
        "model": str(workload.model_file),
        "form": workload.form.value,
        "rows": workload.rows,
    }
    return json.dumps(settings)


def _shared(name: str) -> Path:
    return SHARED / "models" / name


DIGITS = _shared("fc_mnist_qat_uint8.tflite")
MOBILENET = _shared("mobilenet_v2_1.0_224_quant.tflite")
_PHOTO = SHARED / "inputs" / "cat_720p.jpg"

WORKLOADS = (
    Workload("fc_mnist", DIGITS, Form.BINARY, has_footprint=True),
    Workload("fc_mnist-8-rows", DIGITS, Form.BINARY, rows=8),
    Workload("cifar10_resnet8", _shared("cifar10_resnet8_int8.tflite"), Form.BINARY),
    Workload("mobilenet_v2", MOBILENET, Form.BINARY, has_footprint=True),
    Workload("mobilenet_v2-all-cores", MOBILENET, Form.BINARY, instances=CPUS),
    Workload("mobilenet_v2-json", MOBILENET, Form.JSON),
    Workload("mobilenet_v2-jpeg", MOBILENET, Form.JPEG, file=_PHOTO),
    Workload(
        "ssd_300-jpeg",
        _shared("coco_ssd_mobilenet_v1_quant_meta.tflite"),
        Form.JPEG,
        file=_PHOTO,
    ),
    Workload(
        "yamnet-wav",
        _shared("yamnet_classifier_meta.tflite"),
        Form.WAV,
        file=SHARED / "inputs" / "yes_1000ms.wav",
    ),
)

TINY = Workload("fashion", ROOT / "examples" / "demo" / "fashion", Form.BINARY, has_footprint=True)
"""For `--quick`: its model is in this repository."""
