"""What a model's outputs mean, from model.toml, the packed metadata, names and shapes. Pure.

Each key of model.toml wins over the metadata, which wins over these guesses:
1. Detection: outputs whose names, in the metadata or the signature, speak of boxes, classes and
   scores; the four of TFLite_Detection_PostProcess; or four of its shapes, on a picture input.
2. Classification: an output with labels; or the only one, of two or more numbers per row, where
   the model has labels or takes pictures or sounds.
3. Segmentation: on a picture input, the only output when it holds an integer, or two or more
   scores, for every pixel. One or three scores per pixel may as well be a picture: then only with
   labels.
4. Everything else: tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from accelerators.base import DataType, TensorMetadata
from daemon.pipeline.scores import Calibrator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerators.base import Quantization, TensorSpec
    from daemon.modelfile import OutputTable

UNNAMED = frozenset({"", "???"})
"""Lines of a label file that name no class."""

_BOX_NUMBERS = 4
_POSTPROCESS = "TFLite_Detection_PostProcess"
_ROLE_WORDS = {
    "count": ("num", "count"),
    "boxes": ("box", "location"),
    "scores": ("score",),
    "classes": ("class", "categor"),
}
"""Parts of names, in the order in which they decide."""

_BOX_COLUMNS = {"ymin_xmin_ymax_xmax": (0, 1, 2, 3), "xmin_ymin_xmax_ymax": (1, 0, 3, 2)}


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    """One score per class.

    Attributes:
        name: of the output.
        names: by class index, the index as text where the labels have no name for it.
        top_k: classes listed when the request does not say.
        threshold: least score listed when the request does not say; None for no bound.
    """

    name: str
    quantization: Quantization | None
    names: tuple[str, ...]
    calibrator: Calibrator | None
    top_k: int
    threshold: float | None


@dataclass(frozen=True, slots=True)
class DetectionOutput:
    """Boxes with a class and a score each.

    Attributes:
        boxes, classes, scores, count: the outputs; count is None when the model has none.
        columns: where ymin, xmin, ymax and xmax stand in a box.
        names: by class index.
        top_k: boxes listed when the request does not say; None for all that the model gives.
        threshold: as in ClassificationOutput.
    """

    boxes: TensorSpec
    classes: TensorSpec
    scores: TensorSpec
    count: TensorSpec | None
    columns: tuple[int, int, int, int]
    names: tuple[str, ...]
    calibrator: Calibrator | None
    top_k: int | None
    threshold: float | None


@dataclass(frozen=True, slots=True)
class SegmentationOutput:
    """A class, or scores of classes, for every pixel.

    Attributes:
        name: of the output.
        classes: scores per pixel; 0 when each pixel holds its class number.
        threshold: where `classes` is 1: the real score from which a pixel is of class 1.
        names: by class index.
    """

    name: str
    classes: int
    quantization: Quantization | None
    threshold: float
    names: tuple[str, ...]


Output = ClassificationOutput | DetectionOutput | SegmentationOutput


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """What is known when the outputs get their meaning.

    Attributes:
        specs: the outputs of the default signature.
        metadata: one per output, empty where the file says nothing.
        labels: lines of the operator's label file; () when there is none.
        takes_pictures, takes_sounds: what the input is.
        default_top_k: for classification when nobody says.
    """

    specs: tuple[TensorSpec, ...]
    metadata: tuple[TensorMetadata, ...]
    labels: tuple[str, ...]
    takes_pictures: bool
    takes_sounds: bool
    default_top_k: int


@dataclass(frozen=True, slots=True)
class _Roles:
    boxes: int
    classes: int
    scores: int
    count: int | None


def describe_output(table: OutputTable, facts: OutputFacts) -> Output | None:
    """What the outputs mean; None when they are only tensors.

    Raises:
        ValueError: the table contradicts the outputs; the message is for the operator.
    """
    match table.kind:
        case "classification":
            output: Output | None = _classification(table, facts, _choose(facts, _has_classes))
        case "detection":
            output = _detection(table, facts, _find_roles(facts))
        case "segmentation":
            output = _segmentation(table, facts, _choose(facts, _has_pixels))
        case "tensor":
            output = None
        case _:
            output = _guess(table, facts)
    _refuse_idle_keys(table, output)
    return output


def count_classes(output: Output, specs: Sequence[TensorSpec]) -> int | None:
    """How many classes the model tells apart; None where its shapes do not say.

    A detector's do not: it gives class numbers. Nor does a mask of class numbers, or one whose only
    score leaves it open whether the background has a label.
    """
    match output:
        case ClassificationOutput():
            shape = next(spec.shape for spec in specs if spec.name == output.name)
            size = max(shape[1:])
            return size if size > 1 else None
        case SegmentationOutput():
            return output.classes if output.classes > 1 else None
        case DetectionOutput():
            return None
        case _:
            assert_never(output)


def pad_metadata(metadata: Sequence[TensorMetadata], count: int) -> tuple[TensorMetadata, ...]:
    """One entry per tensor: metadata that speaks of fewer is filled up, of more is not believed."""
    if len(metadata) > count:
        return (TensorMetadata(),) * count
    return (*metadata, *(TensorMetadata(),) * (count - len(metadata)))


def _refuse_idle_keys(table: OutputTable, output: Output | None) -> None:
    if table.box_order is not None and not isinstance(output, DetectionOutput):
        raise ValueError("output.box_order is set but the outputs are not detections")
    if output is not None:
        return
    for key in ("labels", "top_k", "threshold"):
        if getattr(table, key) is not None:
            raise ValueError(
                f"output.{key} is set but the outputs have no meaning that it could change; "
                "set output.kind"
            )


def _guess(table: OutputTable, facts: OutputFacts) -> Output | None:
    says_boxes = any(entry.content == "bounding_box" for entry in facts.metadata)
    roles = _find_roles(facts) if facts.takes_pictures or says_boxes else None
    if roles is not None:
        return _detection(table, facts, roles)
    labelled = [
        index
        for index, entry in enumerate(facts.metadata)
        if entry.labels and _has_classes(facts.specs[index])
    ]
    if labelled:
        return _classification(table, facts, labelled[0])
    if len(facts.specs) != 1:
        return None
    is_scored = bool(facts.labels) or facts.takes_pictures or facts.takes_sounds
    if is_scored and _has_classes(facts.specs[0]):
        return _classification(table, facts, 0)
    if facts.takes_pictures and _is_guessed_mask(facts):
        return _segmentation(table, facts, 0)
    return None


def _is_guessed_mask(facts: OutputFacts) -> bool:
    spec = facts.specs[0]
    if not _has_pixels(spec):
        return False
    classes = _pixel_classes(spec)
    if classes == 0:
        return spec.quantization is None and spec.datatype.dtype.kind in "iu"
    return classes not in (1, 3) or bool(facts.labels or facts.metadata[0].labels)


def _has_classes(spec: TensorSpec) -> bool:
    """Whether a row holds two or more numbers along one axis."""
    if spec.datatype in (DataType.BYTES, DataType.BOOL):
        return False
    sizes = [size for size in spec.shape[1:] if size != 1]
    return len(sizes) == 1 and sizes[0] > 1


def _has_pixels(spec: TensorSpec) -> bool:
    """Whether a row has a height, a width and perhaps classes."""
    if spec.datatype in (DataType.BYTES, DataType.BOOL) or len(spec.shape) not in (3, 4):
        return False
    return min(spec.shape[1:]) > 0 and min(spec.shape[1:3]) > 1


def _pixel_classes(spec: TensorSpec) -> int:
    """Scores per pixel; 0 where a pixel holds its class."""
    if len(spec.shape) == 3:  # noqa: PLR2004 (batch, height, width)
        return 0
    is_class_number = spec.shape[3] == 1 and _is_class_map(spec)
    return 0 if is_class_number else spec.shape[3]


def _is_class_map(spec: TensorSpec) -> bool:
    return spec.quantization is None and spec.datatype.dtype.kind in "iu"


def _choose(facts: OutputFacts, fits: Callable[[TensorSpec], bool]) -> int:
    """The output that model.toml's kind speaks of.

    Raises:
        ValueError: none fits, or several do and nothing tells them apart.
    """
    fitting = [index for index, spec in enumerate(facts.specs) if fits(spec)]
    labelled = [index for index in fitting if facts.metadata[index].labels]
    sized = [index for index in fitting if facts.specs[index].shape[-1] == len(facts.labels)]
    for candidates in (labelled, sized, fitting):
        if len(candidates) == 1:
            return candidates[0]
    shapes = ", ".join(f"'{spec.name}' {list(spec.shape)}" for spec in facts.specs)
    problem = "several outputs fit" if fitting else "no output fits"
    raise ValueError(f"{problem} output.kind; the model's outputs are {shapes}")


def _classification(table: OutputTable, facts: OutputFacts, index: int) -> ClassificationOutput:
    spec, metadata = facts.specs[index], facts.metadata[index]
    return ClassificationOutput(
        name=spec.name,
        quantization=spec.quantization,
        names=class_names(facts.labels or metadata.labels),
        calibrator=Calibrator.of(metadata.calibration),
        top_k=table.top_k or facts.default_top_k,
        threshold=_first(table.threshold, metadata.score_threshold),
    )


def _segmentation(table: OutputTable, facts: OutputFacts, index: int) -> SegmentationOutput:
    if not facts.takes_pictures:
        raise ValueError("output.kind is segmentation but the model takes no pictures")
    spec, metadata = facts.specs[index], facts.metadata[index]
    return SegmentationOutput(
        name=spec.name,
        classes=_pixel_classes(spec),
        quantization=spec.quantization,
        threshold=0.5 if table.threshold is None else table.threshold,
        names=class_names(facts.labels or metadata.labels),
    )


def _detection(table: OutputTable, facts: OutputFacts, roles: _Roles | None) -> DetectionOutput:
    if roles is None:
        names = ", ".join(f"'{spec.name}'" for spec in facts.specs)
        raise ValueError(
            "output.kind is detection but boxes, classes and scores were not found among the "
            f"outputs {names}"
        )
    specs, metadata = facts.specs, facts.metadata
    scores, classes = metadata[roles.scores], metadata[roles.classes]
    labels = facts.labels or next((entry.labels for entry in metadata if entry.labels), ())
    # Files for detectors trained with a background class name it "???" and the model does not
    # count it: class 0 is the second line.
    if labels and labels[0].strip() == "???":
        labels = labels[1:]
    return DetectionOutput(
        boxes=specs[roles.boxes],
        classes=specs[roles.classes],
        scores=specs[roles.scores],
        count=None if roles.count is None else specs[roles.count],
        columns=_box_columns(table, metadata[roles.boxes]),
        names=class_names(labels),
        calibrator=Calibrator.of(scores.calibration or classes.calibration),
        top_k=table.top_k,
        threshold=_first(table.threshold, scores.score_threshold, classes.score_threshold),
    )


def _box_columns(table: OutputTable, metadata: TensorMetadata) -> tuple[int, int, int, int]:
    if table.box_order is not None:
        return _BOX_COLUMNS[table.box_order]
    if sorted(metadata.box_order) == list(range(_BOX_NUMBERS)):
        left, top, right, bottom = metadata.box_order
        return top, left, bottom, right
    return _BOX_COLUMNS["ymin_xmin_ymax_xmax"]


def _find_roles(facts: OutputFacts) -> _Roles | None:
    """Which output holds what; None unless boxes, classes and scores are all found."""
    packed = _roles_by_words([entry.name for entry in facts.metadata])
    named = _roles_by_words([spec.name for spec in facts.specs])
    for roles in (packed, named, _roles_of_postprocess(facts.specs), _roles_by_shape(facts.specs)):
        if roles is not None and _may_be_boxes(facts.specs[roles.boxes]):
            return roles
    return None


def _may_be_boxes(spec: TensorSpec) -> bool:
    """False where the shape is known and is not one of boxes: it is [] before a first call."""
    return not spec.shape or spec.shape[-1] == _BOX_NUMBERS


def _roles_by_words(names: Sequence[str]) -> _Roles | None:
    found: dict[str, int] = {}
    for index, name in enumerate(names):
        role = _role_of(name.lower())
        if role in found:
            return None
        if role:
            found[role] = index
    if not {"boxes", "classes", "scores"} <= found.keys():
        return None
    return _Roles(found["boxes"], found["classes"], found["scores"], found.get("count"))


def _role_of(name: str) -> str:
    bare = name.replace(_POSTPROCESS.lower(), "")
    for role, words in _ROLE_WORDS.items():
        if any(word in bare for word in words):
            return role
    return ""


def _roles_of_postprocess(specs: Sequence[TensorSpec]) -> _Roles | None:
    """The operator's own names: boxes, classes, scores and count have the suffixes "", :1 to :3."""
    places = {spec.name: index for index, spec in enumerate(specs)}
    suffixes = [places.get(_POSTPROCESS + suffix) for suffix in ("", ":1", ":2", ":3")]
    boxes, classes, scores, count = suffixes
    if boxes is None or classes is None or scores is None:
        return None
    return _Roles(boxes, classes, scores, count)


def _roles_by_shape(specs: Sequence[TensorSpec]) -> _Roles | None:
    """Four outputs of shapes [1, n, 4], [1, n], [1, n] and [1], in the two orders that occur.

    Source: TensorFlow 1's exporter writes boxes, classes, scores, count; TensorFlow 2's writes
    scores, boxes, count, classes.
    """
    if len(specs) != 4:  # noqa: PLR2004
        return None
    shapes = [spec.shape for spec in specs]
    for roles in (_Roles(0, 1, 2, 3), _Roles(1, 3, 0, 2)):
        boxes, lists = shapes[roles.boxes], (shapes[roles.classes], shapes[roles.scores])
        is_boxes = len(boxes) == 3 and boxes[2] == _BOX_NUMBERS  # noqa: PLR2004
        is_count = math.prod(shapes[roles.count or 0]) == 1
        if is_boxes and is_count and all(shape == boxes[:2] for shape in lists):
            return roles
    return None


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Names by class index: the index as text where a line names nothing."""
    stripped = (line.strip().removeprefix("\ufeff") for line in labels)
    return tuple(str(index) if line in UNNAMED else line for index, line in enumerate(stripped))


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
