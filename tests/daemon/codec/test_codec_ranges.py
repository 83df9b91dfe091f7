"""Numbers are taken by the type that holds them all, or the first that does not fit is told."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accelerators.base import DataType
from daemon.codec.ranges import INTEGER_LIMITS, OutOfRange, make_floats, make_integers


@pytest.mark.parametrize("datatype", INTEGER_LIMITS)
def test_the_limits_are_numpys(datatype):
    limits = np.iinfo(datatype.dtype)

    assert INTEGER_LIMITS[datatype] == (limits.min, limits.max)


@pytest.mark.parametrize("datatype", INTEGER_LIMITS)
def test_both_ends_of_a_range_are_taken_into_an_array_of_ones_own(datatype):
    low, high = INTEGER_LIMITS[datatype]

    array = make_integers([low, high], datatype)

    assert array.tolist() == [low, high]
    assert array.dtype == datatype.dtype
    assert array.flags.writeable


@pytest.mark.parametrize("datatype", INTEGER_LIMITS)
@pytest.mark.parametrize("excess", [1, 2**70])
def test_the_first_integer_past_either_end_is_told(datatype, excess):
    low, high = INTEGER_LIMITS[datatype]
    for beyond in (low - excess, high + excess):
        with pytest.raises(OutOfRange) as caught:
            make_integers([low, high, beyond, beyond], datatype)

        assert caught.value.index == 2


@pytest.mark.parametrize("datatype", [*INTEGER_LIMITS, DataType.FP32, DataType.FP64])
def test_no_numbers_are_an_empty_array(datatype):
    make = make_integers if datatype in INTEGER_LIMITS else make_floats

    array = make([], datatype)

    assert (array.shape, array.dtype) == ((0,), datatype.dtype)


def test_a_float_is_rounded_to_the_nearest():
    assert make_floats([0.1, 1], DataType.FP32).tolist() == [float(np.float32(0.1)), 1.0]


@pytest.mark.parametrize("beyond", [1e39, -1e39, 10**39])
def test_the_first_number_beyond_a_float32_is_told(beyond):
    with pytest.raises(OutOfRange) as caught:
        make_floats([math.inf, math.nan, beyond, 1e40], DataType.FP32)

    assert caught.value.index == 2


def test_the_first_integer_beyond_a_double_is_told():
    with pytest.raises(OutOfRange) as caught:
        make_floats([1.5, 2, -(10**400), 10**500], DataType.FP64)

    assert caught.value.index == 2


def test_infinities_and_nan_stay_what_they_are():
    array = make_floats([math.inf, -math.inf, math.nan], DataType.FP32)

    assert array[:2].tolist() == [math.inf, -math.inf]
    assert math.isnan(array[2])
