"""Requests and results as every front end and the service see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerators.base import Array


class Protocol(Enum):
    """The wire protocol a request came by; the `protocol` label of the metrics."""

    NATIVE = "native"
    TFSERVING = "tfserving"
    KSERVE = "kserve"
    MQTT = "mqtt"


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or a sound, still encoded; content decides which, never a header.

    Attributes:
        data: JPEG, PNG, WebP, BMP, GIF or WAV bytes.
    """

    data: bytes


@dataclass(frozen=True, slots=True)
class MediaBatch:
    """Several encoded pictures or sounds, one row of the model's input each; at least one."""

    items: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """One prediction to make.

    Attributes:
        inputs: by the signature's input names, in any order; or `Media` or `MediaBatch`, which the
            model's profile turns into its single input.
        signature: a name the target has; None for its default.
        deadline: absolute, in `time.monotonic()` seconds.
        request_id: the client's, or one made at the front end; at most 128 characters.
        outputs: names wanted, in that order; None for all.
        want_meaning: labels, boxes or masks are wanted, where the model has a meaning.
        want_outputs: the raw output tensors are wanted.
        top_k: at most so many classes or boxes; None for the model's own setting.
        threshold: least score listed; None for the model's own setting.
    """

    inputs: Mapping[str, Array] | Media | MediaBatch
    deadline: float
    request_id: str
    protocol: Protocol
    signature: str | None = None
    outputs: tuple[str, ...] | None = None
    want_meaning: bool = False
    want_outputs: bool = True
    top_k: int | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, in seconds. `total` runs from admission to the result."""

    queue: float = 0.0
    preprocess: float = 0.0
    invoke: float = 0.0
    postprocess: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Category:
    """One class with its score.

    Attributes:
        label: its name; the index as text where the model has no labels.
        score: as the model gives it, dequantized and calibrated: not always a probability.
    """

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """Classes of one picture, sound or row, best first."""

    categories: tuple[Category, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """One detected object.

    Attributes:
        box: (ymin, xmin, ymax, xmax), 0..1 of the picture that was sent.
    """

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Detection:
    """Objects found in one picture, best score first."""

    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class ClassShare:
    """How much of the picture a class covers, 0..1."""

    label: str
    index: int
    share: float


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A class for every pixel of the model's mask.

    Attributes:
        width, height: of the mask, in its own pixels; it covers the whole picture that was sent,
            unless the model crops or letterboxes it.
        shares: classes that occur, largest share first.
        mask_png: an 8-bit (up to 256 classes) or 16-bit grey PNG whose values are class indexes.
    """

    width: int
    height: int
    shares: tuple[ClassShare, ...]
    mask_png: bytes


Meaning = Classification | Detection | Segmentation


@dataclass(frozen=True, slots=True)
class PredictResult:
    """An answer, and what produced it.

    Attributes:
        outputs: the wanted outputs by name, in the wanted order; the model's raw numbers.
            Empty when the request did not want them.
        meaning: one for each row of the input when it was wanted and the model has one, else ().
    """

    model: str
    version: int
    request_id: str
    device: str
    requested_device: str
    degraded: bool
    timing: Timing
    outputs: Mapping[str, Array] = field(default_factory=dict)
    meaning: tuple[Meaning, ...] = ()
