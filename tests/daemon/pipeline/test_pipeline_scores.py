"""Scores are ordered, dequantized and calibrated, whatever numbers a model gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from accelerators.base import Quantization, ScoreCalibration, ScoreTransformation
from daemon.pipeline.scores import Calibrator, best_first, real_values

NUMBERS = st.sampled_from([np.uint8, np.int8, np.int64, np.float32, np.float16])
ROWS = NUMBERS.flatmap(lambda dtype: arrays.arrays(dtype, st.integers(1, 60)))


@given(values=ROWS, count=st.integers(0, 70))
def test_the_best_come_first_equal_ones_in_order_and_nan_last(values, count):
    def rank(index):
        value = values[index].item()
        return (math.isnan(value), 0 if math.isnan(value) else -value, index)

    found = best_first(values, count)

    assert found.tolist() == sorted(range(len(values)), key=rank)[:count]


def test_quantized_values_become_real():
    values = np.array([0, 128, 255], np.uint8)

    assert real_values(values, Quantization(0.5, 128)).tolist() == [-64.0, 0.0, 63.5]


def test_values_without_quantization_stay():
    assert real_values(np.array([3], np.int64), None).tolist() == [3.0]


def calibrate(scores, classes, *lines, transformation=ScoreTransformation.IDENTITY):
    calibrator = Calibrator.of(ScoreCalibration(transformation, -1.0, lines))
    return calibrator.apply(np.float32(scores), np.array(classes)).tolist()


def test_a_score_is_calibrated_by_the_line_of_its_class():
    lines = ((1.0, 2.0, 0.5, None), (0.5, 1.0, 0.0, None))

    calibrated = calibrate([0.25, 0.0], [0, 1], *lines)

    assert calibrated == pytest.approx([1 / (1 + math.exp(-1.0)), 0.25])


def test_classes_without_a_line_and_low_scores_get_the_default():
    lines = ((1.0, 1.0, 0.0, 0.5), None)

    assert calibrate([0.4, 0.9, 0.9, 0.9], [0, 1, 2, -1], *lines) == [-1.0] * 4


@pytest.mark.parametrize(
    ("transformation", "score", "logit"),
    [
        (ScoreTransformation.LOG, 0.5, math.log(0.5)),
        (ScoreTransformation.LOG, 0.0, math.log(1e-16)),
        (ScoreTransformation.INVERSE_LOGISTIC, 0.75, math.log(3.0)),
    ],
)
def test_scores_are_transformed_before_calibration(transformation, score, logit):
    calibrated = calibrate([score], [0], (1.0, 1.0, 0.0, None), transformation=transformation)

    assert calibrated == pytest.approx([1 / (1 + math.exp(-logit))])


@pytest.mark.parametrize("transformation", ScoreTransformation)
def test_extreme_scores_are_calibrated_without_a_warning(transformation):
    scores = [-1e30, -1.0, 0.0, 1.0, 2.0, 1e30]

    calibrated = calibrate(scores, [0] * 6, (1.0, 9.0, 1.0, None), transformation=transformation)

    assert all(0.0 <= value <= 1.0 for value in calibrated)


def test_nan_stays_nan():
    assert math.isnan(calibrate([math.nan], [0], (1.0, 1.0, 0.0, 0.1))[0])


def test_no_calibration_is_none():
    assert Calibrator.of(None) is None
    assert Calibrator.of(ScoreCalibration(ScoreTransformation.LOG, 0.0, ())) is None
