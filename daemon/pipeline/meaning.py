"""Output tensors to labels, boxes and masks: one meaning per row of the input. Pure.

Rules:
1. Scores are dequantized and calibrated, and listed best first; equal ones keep the model's order,
   NaN comes last and is dropped by any threshold.
2. A class without a label is named by its index.
3. Boxes are (ymin, xmin, ymax, xmax), 0..1 of the picture that was sent, and end at its edges; a
   box that is not made of numbers is left out.
4. top_k and threshold: the request's, else model.toml's, else the metadata's, else the default
   of 5 classes, all boxes, no threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import numpy as np

from daemon.errors import PredictionFailed
from daemon.pipeline.outputs import ClassificationOutput, DetectionOutput, SegmentationOutput
from daemon.pipeline.scores import best_first, real_values
from daemon.tensors import (
    Box,
    Category,
    Classification,
    ClassShare,
    Detection,
    Meaning,
    Segmentation,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from accelerators.base import Array, TensorSpec
    from daemon.pipeline.images import Placement
    from daemon.pipeline.profiles import ModelProfile

_MAX_COUNTED_CLASS = 0xFFFF  # beyond it, counting in a table takes more than sorting


def interpret(
    profile: ModelProfile,
    outputs: Mapping[str, Array],
    *,
    rows: int,
    placements: Sequence[Placement | None] = (),
    top_k: int | None = None,
    threshold: float | None = None,
) -> tuple[Meaning, ...]:
    """Give the outputs of the default signature their meaning.

    Args:
        profile: of the model.
        outputs: by name; all that the profile's output uses.
        rows: rows of the input they came from, at least 1.
        placements: what `prepare` said; () where the inputs were tensors.
        top_k, threshold: the request's; None for the model's own.

    Returns:
        One per row; () when the model's outputs have no meaning.

    Raises:
        PredictionFailed: the outputs do not have the shapes that this meaning needs.
    """
    match profile.output:
        case None:
            return ()
        case ClassificationOutput() as output:
            return _classify(output, outputs, rows, top_k, threshold)
        case DetectionOutput() as output:
            where = placements or (None,) * rows
            return _detect(output, outputs, where, top_k, threshold)
        case SegmentationOutput() as output:
            return _segment(output, outputs, rows, threshold)
        case _:
            assert_never(profile.output)


def _classify(
    output: ClassificationOutput,
    outputs: Mapping[str, Array],
    rows: int,
    top_k: int | None,
    threshold: float | None,
) -> tuple[Classification, ...]:
    scores = _scores_by_row(output.name, outputs[output.name], rows)
    count = output.top_k if top_k is None else top_k
    least = output.threshold if threshold is None else threshold
    return tuple(Classification(_categories(output, row, count, least)) for row in scores)


def _scores_by_row(name: str, values: Array, rows: int) -> Array:
    """Stored scores (rows, classes)."""
    if values.ndim == 2 and rows == 1 and len(values) > 1:  # noqa: PLR2004
        # One sound, scored frame by frame.
        frames: Array = values.mean(axis=0, keepdims=True, dtype=np.float64)
        return frames
    if not values.size or values.size % rows:
        raise _unexpected(name, values)
    return values.reshape(rows, -1)


def _categories(
    output: ClassificationOutput, stored: Array, count: int, least: float | None
) -> tuple[Category, ...]:
    if output.calibrator is None:
        # Dequantizing keeps the order, so that only what is listed needs it.
        indexes = best_first(stored, count)
        scores = real_values(stored[indexes], output.quantization)
    else:
        calibrated = output.calibrator.apply(
            real_values(stored, output.quantization), np.arange(len(stored))
        )
        indexes = best_first(calibrated, count)
        scores = calibrated[indexes]
    names = output.names
    return tuple(
        Category(label=_name(names, index), index=index, score=score)
        for index, score in zip(indexes.tolist(), scores.tolist(), strict=True)
        if least is None or score >= least
    )


def _detect(
    output: DetectionOutput,
    outputs: Mapping[str, Array],
    placements: Sequence[Placement | None],
    top_k: int | None,
    threshold: float | None,
) -> tuple[Detection, ...]:
    rows = len(placements)
    boxes = _real(outputs, output.boxes)
    if boxes.size == 0 or boxes.size % (rows * 4):
        raise _unexpected(output.boxes.name, boxes)
    boxes = boxes.reshape(rows, -1, 4)
    classes = _row_lists(outputs, output.classes, boxes.shape[:2])
    scores = _row_lists(outputs, output.scores, boxes.shape[:2])
    counts = _counts(outputs, output, boxes.shape[:2])
    least = output.threshold if threshold is None else threshold
    count = output.top_k if top_k is None else top_k
    return tuple(
        Detection(
            _boxes(output, boxes[row, :n], classes[row, :n], scores[row, :n], where, count, least)
        )
        for row, (n, where) in enumerate(zip(counts, placements, strict=True))
    )


def _boxes(  # noqa: PLR0917 (three arrays of one row, and what to do with them)
    output: DetectionOutput,
    boxes: NDArray[np.float64],
    raw_classes: NDArray[np.float64],
    scores: NDArray[np.float64],
    placement: Placement | None,
    top_k: int | None,
    least: float | None,
) -> tuple[Box, ...]:
    usable = np.isfinite(boxes).all(axis=1) & np.isfinite(raw_classes)
    classes = np.where(usable, raw_classes, 0).astype(np.int64)
    if output.calibrator is not None:
        scores = output.calibrator.apply(scores, classes)
    if least is not None:
        usable &= scores >= least
    kept = np.flatnonzero(usable)
    kept = kept[best_first(scores[kept], len(kept) if top_k is None else top_k)]
    corners = _placed(boxes[kept][:, output.columns], placement)
    names = output.names
    return tuple(
        Box(label=_name(names, index), index=index, score=score, box=tuple(box))
        for index, score, box in zip(
            classes[kept].tolist(), scores[kept].tolist(), corners.tolist(), strict=True
        )
    )


def _placed(boxes: NDArray[np.float64], placement: Placement | None) -> NDArray[np.float64]:
    """Boxes of the model's frame on the picture that was sent, cut at its edges."""
    if placement is not None:
        shift, scale = placement.shift_y, placement.scale_y
        shift_x, scale_x = placement.shift_x, placement.scale_x
        boxes = boxes * (scale, scale_x, scale, scale_x) + (shift, shift_x, shift, shift_x)
    return np.clip(boxes, 0.0, 1.0)


def _row_lists(
    outputs: Mapping[str, Array], spec: TensorSpec, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    values = _real(outputs, spec)
    if values.size != shape[0] * shape[1]:
        raise _unexpected(spec.name, values)
    return values.reshape(shape)


def _counts(
    outputs: Mapping[str, Array], output: DetectionOutput, shape: tuple[int, ...]
) -> list[int]:
    """How many boxes of each row the model means; all where it does not say."""
    rows, boxes = shape
    if output.count is None:
        return [boxes] * rows
    values = _real(outputs, output.count).reshape(-1)
    if values.size != rows:
        raise _unexpected(output.count.name, values)
    bounded = np.clip(np.nan_to_num(values, nan=boxes), 0, boxes)
    return [int(value) for value in bounded]


def _real(outputs: Mapping[str, Array], spec: TensorSpec) -> NDArray[np.float64]:
    return real_values(np.asarray(outputs[spec.name]), spec.quantization)


def _segment(
    output: SegmentationOutput,
    outputs: Mapping[str, Array],
    rows: int,
    threshold: float | None,
) -> tuple[Segmentation, ...]:
    values = outputs[output.name]
    if values.ndim not in (3, 4) or len(values) != rows or values.size == 0:
        raise _unexpected(output.name, values)
    least = output.threshold if threshold is None else threshold
    return tuple(_mask(output, row, least) for row in values)


def _mask(output: SegmentationOutput, values: Array, least: float) -> Segmentation:
    from daemon.pipeline.masks import write_mask  # noqa: PLC0415 (see daemon.pipeline.libraries)

    classes = _class_map(output, values, least)
    height, width = classes.shape
    return Segmentation(
        width=width,
        height=height,
        shares=_shares(output.names, classes),
        mask_png=write_mask(classes),
    )


def _class_map(output: SegmentationOutput, values: Array, least: float) -> NDArray[np.integer]:
    """Class numbers (height, width) of one row."""
    if output.classes == 0:
        return values.reshape(values.shape[:2])  # type: ignore[return-value]  # integers, by profile
    if output.classes == 1:
        return (real_values(values[..., 0], output.quantization) >= least).astype(np.uint8)
    classes: NDArray[np.intp] = values.argmax(axis=-1)
    return classes


def _shares(names: tuple[str, ...], classes: NDArray[np.integer]) -> tuple[ClassShare, ...]:
    indexes, counts = _occurrences(classes)
    order = best_first(counts, len(counts))
    return tuple(
        ClassShare(label=_name(names, index), index=index, share=count / classes.size)
        for index, count in zip(indexes[order].tolist(), counts[order].tolist(), strict=True)
    )


def _occurrences(
    classes: NDArray[np.integer],
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    flat = classes.reshape(-1)
    if flat.min() < 0 or flat.max() > _MAX_COUNTED_CLASS:
        return np.unique(flat, return_counts=True)
    counts = np.bincount(flat)
    indexes = np.flatnonzero(counts)
    return indexes, counts[indexes]


def _name(names: tuple[str, ...], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _unexpected(name: str, values: Array) -> PredictionFailed:
    return PredictionFailed(
        f"the model's output '{name}' has shape {list(values.shape)}, "
        "which its kind of answer cannot have"
    )
