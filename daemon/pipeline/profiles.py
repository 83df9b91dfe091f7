"""What a model takes and what it gives means: tables, metadata, shapes merged once. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerators.base import ModelReport, ScoreCalibration, TensorSpec
    from daemon.modelfile import ModelTables


class InputKind(Enum):
    """What a client may send besides tensors."""

    IMAGE = "image"
    AUDIO = "audio"
    TENSOR = "tensor"


class OutputKind(Enum):
    """What the outputs mean."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"
    SEGMENTATION = "segmentation"
    TENSOR = "tensor"


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Everything the pipeline needs to know of one model version, decided at load.

    Attributes:
        input_kind, output_kind: what it takes and gives.
        input: the media input's tensor; None where input_kind is TENSOR.
        labels: class names by class index; () when the model has none.
    """

    input_kind: InputKind
    output_kind: OutputKind
    input: TensorSpec | None = None
    labels: tuple[str, ...] = ()
    calibration: ScoreCalibration | None = None


def build_profile(
    tables: ModelTables, report: ModelReport, label_lines: tuple[str, ...]
) -> ModelProfile:
    """Merge what `model.toml`, the packed metadata, and the shapes say, in that order.

    Args:
        tables: the model's `model.toml`, empty when it has none.
        report: what the worker found out.
        label_lines: lines of the label file that the tables name or that lies beside the model;
            () when there is none.

    Raises:
        ValueError: the tables contradict the model (an image kind for a rank-1 input...); the
            message is for the operator.
    """
    raise NotImplementedError
