"""A model's scores: stored numbers to real ones, calibrated, best first. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from accelerators.base import ScoreTransformation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accelerators.base import Array, Quantization, ScoreCalibration

_LEAST_SCORE = 1e-16  # scores are lifted to this before a logarithm is taken


def real_values(values: Array, quantization: Quantization | None) -> NDArray[np.float64]:
    """Real = (stored - zero_point) * scale, in float64."""
    if quantization is not None:
        return (values.astype(np.float64) - quantization.zero_point) * quantization.scale
    return values.astype(np.float64, copy=False)


def best_first(values: Array, count: int) -> NDArray[np.intp]:
    """Indexes of the `count` largest values of a row, largest first; none for a count below 1.

    Equal values keep their order; NaN comes last.
    """
    size = len(values)
    if count < 1:
        return np.empty(0, np.intp)
    if values.dtype.kind == "f" and np.isnan(values).any():
        return _best_first_with_nan(values, count)
    if count >= size:
        return _descending(values)
    least = np.partition(values, size - count)[size - count]
    above = np.flatnonzero(values > least)
    equal = np.flatnonzero(values == least)[: count - len(above)]
    return np.concatenate((above[_descending(values[above])], equal))


def _descending(values: Array) -> NDArray[np.intp]:
    # Stable and without negating: the least integer has no negative.
    last = len(values) - 1
    return last - np.argsort(values[::-1], kind="stable")[::-1]


def _best_first_with_nan(values: Array, count: int) -> NDArray[np.intp]:
    is_nan = np.isnan(values)
    numbers, nans = np.flatnonzero(~is_nan), np.flatnonzero(is_nan)
    return np.concatenate((numbers[_descending(values[numbers])], nans))[:count]


@dataclass(frozen=True, slots=True)
class Calibrator:
    """The packed per-class sigmoid calibration, ready for arrays of scores.

    Attributes:
        parameters: float64 (classes, 4): scale, slope, offset, least score (-inf when none);
            NaN for a class without a line.
    """

    transformation: ScoreTransformation
    default_score: float
    parameters: NDArray[np.float64] = field(compare=False)

    @staticmethod
    def of(calibration: ScoreCalibration | None) -> Calibrator | None:
        """The calibrator for a model's calibration; None when it has none."""
        if calibration is None or not calibration.lines:
            return None
        rows = [
            (np.nan,) * 4 if line is None else (*line[:3], -np.inf if line[3] is None else line[3])
            for line in calibration.lines
        ]
        return Calibrator(
            calibration.transformation, calibration.default_score, np.array(rows, np.float64)
        )

    def apply(self, scores: Array, classes: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Calibrated scores, 0..scale each.

        Args:
            scores: real scores (n,).
            classes: the class index of each; one without a line gets the default score.
        """
        known = (classes >= 0) & (classes < len(self.parameters))
        lines = self.parameters[np.where(known, classes, 0)]
        scale, slope, offset, least = lines.T
        raw = scores.astype(np.float64)
        logit = slope * self._transformed(raw) + offset
        # exp of a large positive number would overflow: 500 is beyond any difference in float64.
        calibrated = scale / (1.0 + np.exp(-np.clip(logit, -500.0, 500.0)))
        is_default = ~known | np.isnan(scale) | (raw < least)
        return np.where(is_default, self.default_score, calibrated)

    def _transformed(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        match self.transformation:
            case ScoreTransformation.LOG:
                return np.log(np.maximum(scores, _LEAST_SCORE))
            case ScoreTransformation.INVERSE_LOGISTIC:
                inside = np.clip(scores, _LEAST_SCORE, 1.0 - np.finfo(np.float64).epsneg)
                return np.log(inside) - np.log1p(-inside)
            case _:
                return scores
