"""What a model takes and what it gives means: tables, metadata, shapes merged once. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from daemon.pipeline.inputs import AudioInput, ImageInput, describe_input, refuse_media_keys
from daemon.pipeline.outputs import (
    ClassificationOutput,
    DetectionOutput,
    Output,
    OutputFacts,
    SegmentationOutput,
    count_classes,
    describe_output,
    pad_metadata,
)

if TYPE_CHECKING:
    from accelerators.base import ModelReport, SignatureSpec, TensorMetadata, TensorSpec
    from daemon.modelfile import InputTable, ModelTables, OutputTable


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

    Only the default signature has one: the others speak tensors.

    Attributes:
        input_kind, output_kind: what it takes and gives.
        input: the media input's tensor; None where input_kind is TENSOR.
        labels: class names by class index; () when the model has none.
        image: set where input_kind is IMAGE. audio: set where it is AUDIO.
        output: what the outputs mean; None where output_kind is TENSOR.
        notes: what the operator should know of it though it works: labels that do not fit.
    """

    input_kind: InputKind
    output_kind: OutputKind
    input: TensorSpec | None = None
    labels: tuple[str, ...] = ()
    image: ImageInput | None = None
    audio: AudioInput | None = None
    output: Output | None = None
    notes: tuple[str, ...] = ()


def build_profile(
    tables: ModelTables,
    report: ModelReport,
    label_lines: tuple[str, ...],
    *,
    default_top_k: int = 5,
) -> ModelProfile:
    """Merge what `model.toml`, the packed metadata, and the shapes say, in that order.

    Args:
        tables: the model's `model.toml`, empty when it has none.
        report: what the worker found out.
        label_lines: lines of the label file that the tables name or that lies beside the model;
            () when there is none.
        default_top_k: classes listed where neither the request nor the tables say.

    Raises:
        ValueError: the tables contradict the model (an image kind for a rank-1 input...); the
            message is for the operator.
    """
    signature = report.signatures[0]
    media = _describe_media(tables.input, signature, report.metadata.inputs)
    image = media if isinstance(media, ImageInput) else None
    audio = media if isinstance(media, AudioInput) else None
    listed = tables.output.labels if isinstance(tables.output.labels, tuple) else ()
    facts = OutputFacts(
        specs=signature.outputs,
        metadata=pad_metadata(report.metadata.outputs, len(signature.outputs)),
        labels=listed or label_lines,
        takes_pictures=image is not None,
        takes_sounds=audio is not None,
        default_top_k=default_top_k,
    )
    output = describe_output(tables.output, facts)
    return ModelProfile(
        input_kind=_input_kind(image, audio),
        output_kind=_output_kind(output),
        input=signature.inputs[0] if media is not None else None,
        labels=output.names if output is not None else (),
        image=image,
        audio=audio,
        output=output,
        notes=_label_notes(tables.output, label_lines, output, signature),
    )


def _label_notes(
    table: OutputTable,
    label_lines: tuple[str, ...],
    output: Output | None,
    signature: SignatureSpec,
) -> tuple[str, ...]:
    """Tells of more or fewer labels than classes: names would be wrong or missing."""
    if output is None or not output.names:
        return ()
    count, classes = len(output.names), count_classes(output, signature.outputs)
    if classes in (None, count):
        return ()
    given = f"the list of labels packed in the file has {count} lines"
    if isinstance(table.labels, tuple):
        given = f"model.toml lists {count} labels"
    elif label_lines:
        given = f"{table.labels or 'labels.txt'} has {count} lines"
    return (f"{given}, the model {classes} classes",)


def _describe_media(
    table: InputTable, signature: SignatureSpec, metadata: tuple[TensorMetadata, ...]
) -> ImageInput | AudioInput | None:
    count = len(signature.inputs)
    if count == 1:
        return describe_input(table, signature.inputs[0], pad_metadata(metadata, 1)[0])
    reason = f"its default signature takes {count} inputs"
    if table.kind in ("image", "audio"):
        raise ValueError(f"input.kind is {table.kind} but the model takes tensors: {reason}")
    refuse_media_keys(table, reason)
    return None


def _input_kind(image: ImageInput | None, audio: AudioInput | None) -> InputKind:
    if image is not None:
        return InputKind.IMAGE
    return InputKind.TENSOR if audio is None else InputKind.AUDIO


def _output_kind(output: Output | None) -> OutputKind:
    match output:
        case ClassificationOutput():
            return OutputKind.CLASSIFICATION
        case DetectionOutput():
            return OutputKind.DETECTION
        case SegmentationOutput():
            return OutputKind.SEGMENTATION
        case None:
            return OutputKind.TENSOR
