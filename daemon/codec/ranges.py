"""Python's numbers to tensors of a type that holds them all, or which one it does not hold. Pure.

Every step is a few calls that run in C, also where they look for a fault: a million numbers with
one that does not fit are refused about as fast as they would have been taken.
"""

from __future__ import annotations

import sys
from itertools import compress, count
from typing import TYPE_CHECKING

import numpy as np

from accelerators.base import DataType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from accelerators.base import Array


def _limits(datatype: DataType) -> tuple[int, int]:
    bits = datatype.itemsize * 8
    if datatype.value.startswith("U"):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


INTEGER_LIMITS = {
    datatype: _limits(datatype)
    for datatype in (
        DataType.UINT8,
        DataType.UINT16,
        DataType.UINT32,
        DataType.UINT64,
        DataType.INT8,
        DataType.INT16,
        DataType.INT32,
        DataType.INT64,
    )
}
"""The least and the largest number of every integer type."""


class OutOfRange(Exception):
    """A number that its type does not hold.

    Attributes:
        index: the first such number's.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def make_integers(values: Sequence[int], datatype: DataType) -> Array:
    """An array of an integer type, rank 1, the caller's own.

    Args:
        values: all of them `int`.
        datatype: one of `INTEGER_LIMITS`.

    Raises:
        OutOfRange: a value is outside the type's range.
    """
    low, high = INTEGER_LIMITS[datatype]
    try:
        if datatype is DataType.UINT8:
            return np.frombuffer(bytearray(values), np.uint8)
        if datatype is DataType.UINT64:
            if min(values, default=0) >= 0:
                return np.fromiter(values, np.uint64, len(values))
        else:
            wide = np.fromiter(values, np.int64, len(values))
            if not values or (wide.min() >= low and wide.max() <= high):
                return wide.astype(datatype.dtype, copy=False)
    except (ValueError, OverflowError):
        pass  # a number is out of range: found below
    raise OutOfRange(first_true(not low <= value <= high for value in values))


def make_floats(values: Sequence[float], datatype: DataType) -> Array:
    """An array of FP32 or FP64, rank 1, the caller's own; numbers are rounded to the nearest.

    Args:
        values: all of them `int` or `float`; NaN and infinities stay what they are.
        datatype: FP32 or FP64.

    Raises:
        OutOfRange: a finite value is outside the type's range.
    """
    try:
        wide = np.fromiter(values, np.float64, len(values))
    except OverflowError:
        most = sys.float_info.max
        raise OutOfRange(
            first_true(type(value) is int and abs(value) > most for value in values)
        ) from None
    return round_floats(wide, datatype)


def round_floats(wide: Array, datatype: DataType) -> Array:
    """Numbers of float64 as FP32 or FP64, rounded to the nearest; `wide` itself where it is that.

    Raises:
        OutOfRange: a finite value is outside the type's range.
    """
    if datatype is DataType.FP64:
        return wide
    with np.errstate(over="ignore"):
        array = wide.astype(np.float32)
    if not np.isfinite(array).all():
        overflown = np.isinf(array) & np.isfinite(wide)
        if overflown.any():
            raise OutOfRange(int(overflown.argmax()))
    return array


def first_true(facts: Iterable[bool]) -> int:
    """The place of the first fact that holds; there is one."""
    return next(compress(count(), facts))
