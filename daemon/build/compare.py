"""How well answers agree with what is right, or with another model's answers. Pure.

What is compared, in this order:
1. Where the data says which class is right: the share of right answers (accuracy). The loss is the
   original's share minus the variant's; without an original there is none.
2. Where an output tells classes apart: the share of items with the original's best class
   (agreement). The loss is the share of the others.
3. Else every output, number by number: the largest difference from the original's, over the span
   that the original's output has over all items; where it has none, the difference itself. Text
   and other things that are no numbers differ by 1 or not at all.

An output of one number per item tells two classes apart, 0 and 1: by whether it is above 0.5 where
the numbers are probabilities; above 0 where the original (without one: the variant) has any number
outside of 0..1, for they are logits then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from daemon.build.choose import Measure
from daemon.build.errors import BadData
from daemon.pipeline.outputs import ClassificationOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accelerators.base import Array, SignatureSpec, TensorSpec
    from daemon.build.rows import Row
    from daemon.pipeline.profiles import ModelProfile

    _Counts = NDArray[np.int64]
    """One for each threshold."""

_THRESHOLDS = (0.5, 0.0)  # of probabilities, of logits
_GUESSES = 1.5
"""That many times the accuracy of guessing is not much better yet."""
_MOST_GUESSED = 0.6  # of few classes
_DIGITS = 9
"""Of a share: 0.98 - 0.97 must not be more than 0.01."""


def find_scores(signature: SignatureSpec, profile: ModelProfile, *, has_classes: bool) -> str:
    """The output that tells classes apart; "" where there is none.

    Args:
        signature: the model's default one.
        profile: of the model.
        has_classes: the data says which class is right.

    Raises:
        BadData: it does, but no output tells classes apart.
    """
    if isinstance(profile.output, ClassificationOutput):
        return profile.output.name
    if not has_classes:
        return ""
    fitting = [spec for spec in signature.outputs if _tells_classes(spec)]
    if len(fitting) == 1:
        return fitting[0].name
    shapes = ", ".join(f"'{spec.name}' {list(spec.shape)}" for spec in signature.outputs)
    told = "several outputs" if fitting else "no output"
    raise BadData(
        f"the data has classes, but {told} of the model could tell them apart: {shapes}; leave "
        "the classes out, and answers are compared with the original's"
    )


def _no_counts() -> _Counts:
    return np.zeros(len(_THRESHOLDS), np.int64)


@dataclass(slots=True)
class Comparison:
    """Counts answers, one item after the other.

    Attributes:
        scores: as `find_scores` says.
        items: that were added.
    """

    scores: str
    items: int = 0
    _right: _Counts = field(default_factory=_no_counts)
    _right_originals: _Counts = field(default_factory=_no_counts)
    _agreeing: _Counts = field(default_factory=_no_counts)
    _has_classes: bool = False
    _has_originals: bool = False
    _has_logits: bool = False
    _largest: dict[str, float] = field(default_factory=dict)
    _spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    _is_finite: bool = True

    def add(self, outputs: Row, original: Row | None, class_number: int | None) -> None:
        """Count one item.

        Args:
            outputs: of the variant.
            original: of the original; None where there is none.
            class_number: the right one; None where nobody knows.
        """
        self.items += 1
        self._has_classes |= class_number is not None
        self._has_originals |= original is not None
        if self.scores:
            scores = None if original is None else original[self.scores]
            self._count(outputs[self.scores], scores, class_number)
        if original is not None:
            self._subtract(outputs, original)

    @property
    def measure(self) -> Measure | None:
        """What could be told; None when there was nothing to compare with."""
        if self.scores and self._has_classes:
            return Measure.ACCURACY
        if not self._has_originals:
            return None
        return Measure.AGREEMENT if self.scores else Measure.DIFFERENCE

    @property
    def quality(self) -> float | None:
        """The share of right or agreeing answers, or the largest difference."""
        match self.measure:
            case Measure.ACCURACY:
                return round(self._counted(self._right) / self.items, _DIGITS)
            case Measure.AGREEMENT:
                return round(self._counted(self._agreeing) / self.items, _DIGITS)
            case Measure.DIFFERENCE:
                return self.loss
            case _:
                return None

    @property
    def original_quality(self) -> float | None:
        """The original's own share of right answers; None where that is not what is told."""
        if self.measure is not Measure.ACCURACY or not self._has_originals:
            return None
        return round(self._counted(self._right_originals) / self.items, _DIGITS)

    @property
    def loss(self) -> float | None:
        """From 0 on, as `Measure` says; None when there was nothing to compare with."""
        match self.measure:
            case Measure.ACCURACY if self._has_originals:
                lost = self._counted(self._right_originals) - self._counted(self._right)
                return round(max(0, lost) / self.items, _DIGITS)
            case Measure.AGREEMENT:
                return round(1 - self._counted(self._agreeing) / self.items, _DIGITS)
            case Measure.DIFFERENCE:
                return round(max(map(self._relative, self._largest), default=0.0), _DIGITS)
            case _:
                return None

    @property
    def problem(self) -> str:
        """Why its answers are none; "" when they are."""
        if self._is_finite:
            return ""
        return "answers with NaN or infinity where the original does not"

    def _count(self, scores: Array, original: Array | None, class_number: int | None) -> None:
        """Count by each threshold: which of them is the right one shows in the end."""
        self._has_logits |= _is_logit(scores if original is None else original)
        best = _best_classes(scores)
        self._right += best == class_number
        if original is not None:
            first = _best_classes(original)
            self._agreeing += best == first
            self._right_originals += first == class_number

    def _counted(self, counts: _Counts) -> int:
        return int(counts[_THRESHOLDS.index(0.0 if self._has_logits else 0.5)])

    def _subtract(self, outputs: Row, original: Row) -> None:
        for name, wanted in original.items():
            got = outputs[name]
            if wanted.dtype.kind not in "fiub" or got.shape != wanted.shape:
                self._note(name, 0.0 if np.array_equal(got, wanted) else 1.0)
                continue
            numbers, wanted_numbers = got.astype(np.float64), wanted.astype(np.float64)
            if not wanted.size or not np.isfinite(wanted_numbers).all():
                continue
            if not np.isfinite(numbers).all():
                self._is_finite = False
                continue
            self._note(name, float(np.abs(numbers - wanted_numbers).max()))
            self._widen(name, float(wanted_numbers.min()), float(wanted_numbers.max()))

    def _note(self, name: str, difference: float) -> None:
        self._largest[name] = max(difference, self._largest.get(name, 0.0))

    def _widen(self, name: str, low: float, high: float) -> None:
        lowest, highest = self._spans.get(name, (math.inf, -math.inf))
        self._spans[name] = (min(low, lowest), max(high, highest))

    def _relative(self, name: str) -> float:
        low, high = self._spans.get(name, (0.0, 0.0))
        return self._largest[name] / (high - low if high > low else 1.0)


def is_binary(signature: SignatureSpec, scores: str) -> bool:
    """Whether that output has one number, for two classes."""
    return math.prod(_row_shape(signature, scores)) == 1


def count_classes(signature: SignatureSpec, scores: str) -> int:
    """How many classes that output tells apart."""
    return max(2, *_row_shape(signature, scores))


def _row_shape(signature: SignatureSpec, scores: str) -> tuple[int, ...]:
    return next(spec.shape[1:] for spec in signature.outputs if spec.name == scores)


def is_guess(accuracy: float, classes: int) -> bool:
    """Whether so many right answers, 0..1, are not much better than guessing."""
    return accuracy <= min(_GUESSES / classes, _MOST_GUESSED)


def best_class(scores: Array, threshold: float = _THRESHOLDS[0]) -> int:
    """The class of one item's scores; of equal ones the first.

    A sound that is scored frame by frame counts by its mean, as the daemon's answers do.
    """
    if scores.ndim == 2 and len(scores) > 1:  # noqa: PLR2004 (frames, classes)
        scores = scores.mean(axis=0)
    if scores.size == 1:
        return int(scores.ravel()[0] > threshold)
    return int(np.argmax(scores))


def _best_classes(scores: Array) -> _Counts:
    """The class by each threshold: int64 (2,)."""
    return np.array([best_class(scores, threshold) for threshold in _THRESHOLDS])


def _is_logit(scores: Array) -> bool:
    return scores.size == 1 and not 0 <= scores.ravel()[0] <= 1


def _tells_classes(spec: TensorSpec) -> bool:
    """One row of numbers per item; or one number, where those are probabilities."""
    if spec.datatype.dtype.kind not in "fiu" or -1 in spec.shape[1:]:
        return False
    sizes = [size for size in spec.shape[1:] if size != 1]
    return len(sizes) == 1 or (not sizes and spec.datatype.dtype.kind == "f")
