"""Class maps to grey PNGs. Pure."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PNG_COMPRESSION = 1  # zlib's fastest: masks are flat, more effort saves little
_MAX_MASK_CLASS = 0xFFFF  # what a 16-bit grey PNG holds
_BYTE_CLASSES = 256


def write_mask(classes: NDArray[np.integer]) -> bytes:
    """A grey PNG of class numbers, which take 8 bits where all fit, else 16.

    Args:
        classes: integers (height, width); those that 16 bits cannot hold become 65535.
    """
    least, largest = int(classes.min()), int(classes.max())
    if least < 0 or largest > _MAX_MASK_CLASS:
        outside = (classes < 0) | (classes > _MAX_MASK_CLASS)
        classes, largest = np.where(outside, _MAX_MASK_CLASS, classes), _MAX_MASK_CLASS
    dtype = np.uint8 if largest < _BYTE_CLASSES else np.uint16
    target = BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(classes, dtype))
    picture.save(target, "PNG", compress_level=_PNG_COMPRESSION)
    return target.getvalue()
