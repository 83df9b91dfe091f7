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


def waves(datatype: DataType, shape: tuple[int, ...], rng: Random) -> Array:
    """Numbers of the same ranges that change slowly, as pictures and sounds do.

    Noise looks alike to many models: they give much the same answer to all of it.
    """
    if datatype.dtype.kind not in "fiu":
        return invented(datatype, shape, rng)
    place = np.arange(math.prod(shape), dtype=np.float64)
    periods = [rng.uniform(8, 64), rng.uniform(500, 5000)]
    parts = [np.sin(2 * np.pi * (place / period + rng.random())) for period in periods]
    share = ((parts[0] + parts[1]) / 4 + 0.5).reshape(shape)  # 0 to 1
    if datatype.dtype.kind == "f":
        return share.astype(datatype.dtype)
    if datatype.itemsize == 1:
        return (share * 255).astype(np.uint8).view(datatype.dtype)
    return np.round(share).astype(datatype.dtype)


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
