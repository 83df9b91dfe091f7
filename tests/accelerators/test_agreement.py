"""How far a device's answers are from the CPU's, as a share of the output's range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerators.agreement import difference
from accelerators.base import DataType, Quantization, TensorSpec

REAL = TensorSpec("y", DataType.FP32, (1, 4))
BYTE = TensorSpec("y", DataType.UINT8, (1, 4), Quantization(1 / 256, 0))
COUNT = TensorSpec("y", DataType.INT32, (1, 4))


def real(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_equal_answers_do_not_differ():
    assert difference(REAL, [real(1, 2, 3, 4)], [real(1, 2, 3, 4)]) == 0


def test_real_numbers_are_measured_by_the_largest_of_all_calls():
    expected = [real(0, 0, 0, 10), real(0, 0, 0, 1)]
    got = [real(0, 0, 0, 10), real(0, 0, 0, 2)]
    assert difference(REAL, expected, got) == pytest.approx(0.1)


def test_scores_and_pixels_have_the_same_measure():
    small, large = real(0.1, 0.2, 0.3, 0.4), real(10, 20, 30, 40)
    assert difference(REAL, [small], [small * np.float32(1.1)]) == pytest.approx(
        difference(REAL, [large], [large * np.float32(1.1)]), rel=1e-4
    )


def test_quantized_numbers_are_measured_in_steps():
    expected = np.array([[10, 20, 30, 40]], np.uint8)
    assert difference(BYTE, [expected], [expected + 2]) == pytest.approx(2 / 255)


def test_quantized_numbers_do_not_wrap_around():
    low, high = np.array([[0, 0, 0, 0]], np.uint8), np.array([[255, 0, 0, 0]], np.uint8)
    assert difference(BYTE, [low], [high]) == 1
    assert difference(BYTE, [high], [low]) == 1


def test_counts_and_classes_agree_or_do_not():
    ones = np.ones((1, 4), np.int32)
    assert difference(COUNT, [ones], [ones]) == 0
    assert difference(COUNT, [ones], [ones + 1]) == 1


def test_strings_agree_or_do_not():
    spec = TensorSpec("y", DataType.BYTES, (1,))
    a, b = np.array([b"a"], object), np.array([b"b"], object)
    assert difference(spec, [a], [a]) == 0
    assert difference(spec, [a], [b]) == 1


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_on_one_side_differ_by_everything(odd):
    assert difference(REAL, [real(1, 2, 3, 4)], [real(1, 2, 3, odd)]) == 1
    assert difference(REAL, [real(1, 2, 3, odd)], [real(1, 2, 3, 4)]) == 1
    assert difference(REAL, [real(1, 2, 3, odd)], [real(1, 2, 3, odd)]) == 0
    assert difference(REAL, [real(1, 2, 3, odd)], [real(1, 2, 3, 12345)]) == 1
    other = np.inf if odd == -np.inf else -np.inf
    assert difference(REAL, [real(1, 2, 3, odd)], [real(1, 2, 3, other)]) == 1


def test_other_shapes_and_dtypes_differ_by_everything():
    assert difference(REAL, [real(1, 2, 3, 4)], [real(1, 2, 3)]) == 1
    assert difference(REAL, [real(1, 2, 3, 4)], [real(1, 2, 3, 4).astype(np.float64)]) == 1


def test_answers_without_elements_agree():
    empty = np.empty((0, 4), np.float32)
    assert difference(REAL, [empty], [empty]) == 0


def test_nothing_but_zeros_agrees_with_zeros_alone():
    zeros = real(0, 0, 0, 0)
    assert difference(REAL, [zeros], [zeros]) == 0
    assert difference(REAL, [zeros], [real(0, 0, 0, 1e-9)]) == 1


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.floats(0.001, 0.5),
)
def test_a_share_that_is_added_is_the_share_that_is_found(values, share):
    expected = np.array([*values, 1.0], np.float64)
    largest = float(np.abs(expected).max())
    spec = TensorSpec("y", DataType.FP64, (-1,))
    assert difference(spec, [expected], [expected + share * largest]) == pytest.approx(
        share, rel=1e-6
    )
