"""Inputs that are invented, the same ones each time. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from accelerators.base import DataType

if TYPE_CHECKING:
    from random import Random

    from accelerators.base import Array

SEED = 20240607
"""Any fixed number."""

_RANDOM_BYTES = 65_521
"""An input repeats after so many: a prime, so that no two lines of a picture are alike."""


def invented(datatype: DataType, shape: tuple[int, ...], rng: Random) -> Array:
    """Numbers that a model can take: reals from 0 to 1, bytes of the whole range, small indexes."""
    count = math.prod(shape)
    if datatype is DataType.BYTES:
        words = [rng.randbytes(3).hex().encode() for _ in range(count)]
        return np.array(words, object).reshape(shape)
    block = np.frombuffer(rng.randbytes(_RANDOM_BYTES), np.uint8)
    if datatype.dtype.kind == "f":
        values: Array = (block / 256).astype(datatype.dtype)
    elif datatype.itemsize == 1 and datatype is not DataType.BOOL:  # pixels: the whole range
        values = block.view(datatype.dtype)
    else:
        values = (block % 2).astype(datatype.dtype)  # indexes: small ones exist
    return np.resize(values, shape)
