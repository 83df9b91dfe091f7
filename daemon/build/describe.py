"""What the standard metadata of a model shall say, from what the daemon knows of it. Pure.

1. What a file says already stays, unless it was said anew.
2. An input that takes pictures gets its mean and std: those that the daemon uses, also where they
   are its default. One that takes sounds gets their rate and channels.
3. The output that labels name gets them.
4. The standard describes a file's first subgraph. Where another one is the default signature's,
   only the name, the version and the description are written: the rest would be taken for the
   wrong tensors'.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from accelerators.flatbuffer import Buffer
from daemon.pipeline.outputs import (
    ClassificationOutput,
    DetectionOutput,
    SegmentationOutput,
    pad_metadata,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerators.base import ModelMetadata, ModelReport, TensorMetadata
    from daemon.pipeline.inputs import AudioInput, ImageInput
    from daemon.pipeline.outputs import Output
    from daemon.pipeline.profiles import ModelProfile

_SIGNATURES = 7  # slot of the TFLite schema's table Model
_KEY, _SUBGRAPH = 2, 4  # slots of SignatureDef
_SIGNATURES_MAX = 1000


def describe(
    report: ModelReport,
    profile: ModelProfile,
    *,
    name: str,
    version: int,
    description: str,
    labels: Sequence[str],
    is_first: bool,
) -> ModelMetadata:
    """The metadata to write into a model's file.

    Args:
        report, profile: of the model with its tables and labels.
        description: "" to keep the file's own.
        labels: class names by class number; () to keep the file's own.
        is_first: as `is_default_first` says.
    """
    old = report.metadata
    said = replace(old, name=name, version=str(version), description=description or old.description)
    if not is_first:
        return replace(said, inputs=(), outputs=())
    signature = report.signatures[0]
    inputs = list(pad_metadata(old.inputs, len(signature.inputs)))
    if profile.image is not None:
        inputs[0] = _picture(inputs[0], profile.image)
    if profile.audio is not None:
        inputs[0] = _sound(inputs[0], profile.audio)
    outputs = list(pad_metadata(old.outputs, len(signature.outputs)))
    if labels and profile.output is not None:
        wanted = _labelled(profile.output)
        place = next(n for n, spec in enumerate(signature.outputs) if spec.name == wanted)
        content = outputs[place].content or "feature"
        outputs[place] = replace(outputs[place], labels=tuple(labels), content=content)
    return replace(said, inputs=tuple(inputs), outputs=tuple(outputs))


def is_default_first(data: bytes, signature: str) -> bool:
    """Whether a signature's subgraph is the first of a file.

    Args:
        data: a whole model file.
        signature: that the daemon calls where a request names none.

    Raises:
        DamagedFile: it is no model file.
    """
    model = Buffer(memoryview(data)).root()
    places = {
        each.text(_KEY): each.integer(_SUBGRAPH, "I")
        for each in model.tables(_SIGNATURES, limit=_SIGNATURES_MAX)
    }
    return places.get(signature, 0) == 0


def _picture(old: TensorMetadata, image: ImageInput) -> TensorMetadata:
    pixels = image.pixels
    said = replace(old, content="image")
    if pixels.mean is None or pixels.std is None:
        return said
    mean, std = (tuple(float(x) for x in each.ravel()) for each in (pixels.mean, pixels.std))
    return replace(said, mean=mean, std=std)


def _sound(old: TensorMetadata, audio: AudioInput) -> TensorMetadata:
    return replace(old, content="audio", sample_rate=audio.sample_rate_hz, channels=audio.channels)


def _labelled(output: Output) -> str:
    match output:
        case ClassificationOutput() | SegmentationOutput():
            return output.name
        case DetectionOutput():
            return output.classes.name
