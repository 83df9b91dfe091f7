"""Blocks of bytes <-> tensors: Triton's binary tensor data. Pure.

Little-endian and row-major, which is also how this machine keeps them: numbers are views of the
body, not copies. BOOL is one byte. A BYTES element is its length (uint32) and its bytes.

Source: Triton's extension_binary_data.md.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, cast

import numpy as np

from accelerators.base import DataType
from daemon.errors import BadTensor, TooLarge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerators.base import Array, TensorSpec

_LENGTH = struct.Struct("<I")
MAX_STRINGS = 1_500_000
"""Of one tensor. Each is an object of its own, so a second's work and 100 MB are here."""


def numbers_from_block(
    body: bytes, start: int, size_bytes: int, spec: TensorSpec, shape: Sequence[int]
) -> Array:
    """The tensor in `body[start : start + size_bytes]`, which lies within the body.

    Returns:
        A read-only view of the body, aligned or not; BOOL is a copy, since any byte but 0 is true.

    Raises:
        BadTensor: the block has not the size of that shape.
    """
    count = math.prod(shape)
    expected_bytes = count * spec.datatype.itemsize
    if size_bytes != expected_bytes:
        raise BadTensor(
            f"unexpected total byte size {size_bytes} for input '{spec.name}', "
            f"expecting {expected_bytes}: {spec.datatype.value} of shape {list(shape)}"
        )
    if spec.datatype is DataType.BOOL:
        truths: Array = np.frombuffer(body, np.uint8, count, start) != 0
        return truths.reshape(shape)
    array = np.frombuffer(body, spec.datatype.dtype, count, start).reshape(shape)
    return cast("Array", array)


def strings_from_block(
    body: bytes, start: int, size_bytes: int, count: int, name: str
) -> list[bytes]:
    """The `count` length-prefixed elements that fill a block.

    Raises:
        BadTensor: a length runs over the end, or there are fewer or more elements.
        TooLarge: more than `MAX_STRINGS`.
    """
    if count > MAX_STRINGS:
        raise TooLarge(
            f"input '{name}': {count} strings are more than the {MAX_STRINGS} taken at a time",
            limit=MAX_STRINGS,
            unit="values",
        )
    if count * _LENGTH.size > size_bytes:
        raise BadTensor(
            f"input '{name}': {count} BYTES elements need at least {count * _LENGTH.size} bytes, "
            f"got {size_bytes}"
        )
    end = start + size_bytes
    elements: list[bytes] = []
    unpack = _LENGTH.unpack_from
    while start < end and len(elements) < count:
        if start + _LENGTH.size > end:
            raise BadTensor(f"input '{name}': the length of element {len(elements)} is cut off")
        (length,) = unpack(body, start)
        start += _LENGTH.size
        if start + length > end:
            raise BadTensor(
                f"input '{name}': element {len(elements)} says it has {length} bytes, "
                f"{end - start} are left"
            )
        elements.append(body[start : start + length])
        start += length
    if start != end or len(elements) != count:
        raise BadTensor(
            f"input '{name}': expected {count} BYTES elements in {size_bytes} bytes, "
            f"found {len(elements)} with {end - start} bytes left"
        )
    return elements


def media_from_block(
    body: bytes, start: int, size_bytes: int, shape: Sequence[int], name: str
) -> tuple[bytes, ...]:
    """Encoded files, length-prefixed as BYTES are; a single one may come without its prefix.

    A file does not pass for a prefixed one by mistake: its first four bytes, read as a length, are
    over 900 MB for JPEG, PNG, GIF, WebP and WAV; a BMP's equal its size only at 1.3 GB.

    Raises:
        BadTensor: several files whose lengths do not fit the block.
    """
    end = start + size_bytes
    if shape[0] == 1:
        has_prefix = (
            size_bytes >= _LENGTH.size
            and _LENGTH.unpack_from(body, start)[0] == size_bytes - _LENGTH.size
        )
        return (body[start + _LENGTH.size : end] if has_prefix else body[start:end],)
    return tuple(strings_from_block(body, start, size_bytes, shape[0], name))


def block_from_strings(array: Array) -> bytes:
    """The elements of a BYTES tensor in row-major order, each after its length."""
    pack = _LENGTH.pack
    return b"".join(pack(len(element)) + element for element in array.reshape(-1).tolist())
