"""What a measured model is asked: its own samples where it has some, else random numbers."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np

from accelerators.base import DataType
from daemon.errors import RequestError
from daemon.pipeline.media import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from accelerators.base import Array, SignatureSpec, TensorSpec
    from daemon.pipeline.media import MediaLimits
    from daemon.pipeline.profiles import ModelProfile

SAMPLES_FOLDER = "samples"
OPEN_SIZES = (1, 64, 256)
"""Sizes to try in turn for dimensions that callers choose, as a load does."""

_SEED = 1
_RANDOM_ROWS = 4  # different ones, so that no cache holds them all and nothing is asked twice
_SAMPLES_MAX = 16  # files; more would say nothing new
_SAMPLE_BYTES_MAX = 64 << 20  # as large as a body may be by default


def read_samples(
    folder: Path, profile: ModelProfile, limits: MediaLimits
) -> list[Mapping[str, Array]]:
    """The pictures or sounds of a model's folder, as tensors.

    Args:
        folder: the model's.
        profile: says how a picture or sound becomes the input.
        limits: what is still decoded.

    Returns:
        One request each, in the order of their names. Empty when the model takes neither, or there
        is none that it can take; files of another kind are passed over.
    """
    if profile.input is None:
        return []
    found: list[Mapping[str, Array]] = []
    for data in _contents(folder / SAMPLES_FOLDER):
        try:
            media = prepare(profile, (data,), limits=limits)
        except RequestError:
            continue
        found.append({profile.input.name: media.rows})
        if len(found) == _SAMPLES_MAX:
            break
    return found


def random_rows(signature: SignatureSpec, open_size: int) -> list[Mapping[str, Array]]:
    """Requests of one row with numbers that are the same at every call.

    Floats are above 0 and up to 1, bytes from their whole range; other numbers are 0 or 1, since
    they may be indexes.

    Args:
        signature: what to fill.
        open_size: for dimensions after the first that callers choose.
    """
    rng = random.Random(_SEED)  # noqa: S311 (nobody gains by guessing it)
    return [
        {spec.name: _random_tensor(spec, open_size, rng) for spec in signature.inputs}
        for _ in range(_RANDOM_ROWS)
    ]


def describe_inputs(inputs: Mapping[str, Array]) -> str:
    """Datatypes and shapes: "uint8 [1, 28, 28, 1]"."""
    told = (f"{array.dtype} {list(array.shape)}" for array in inputs.values())
    return ", ".join(told) or "no inputs"


def _contents(folder: Path) -> Iterator[bytes]:
    """What is in the files of a folder, by name; nothing where it cannot be read."""
    try:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.stat().st_size <= _SAMPLE_BYTES_MAX:
                yield path.read_bytes()
    except OSError:
        return


def _random_tensor(spec: TensorSpec, open_size: int, rng: random.Random) -> Array:
    shape = tuple(
        (open_size if place else 1) if size == -1 else size for place, size in enumerate(spec.shape)
    )
    count = math.prod(shape)
    if spec.datatype is DataType.BYTES:
        return np.array([rng.randbytes(3).hex().encode() for _ in range(count)], object).reshape(
            shape
        )
    values = np.frombuffer(rng.randbytes(count), np.uint8).reshape(shape)
    dtype = spec.datatype.dtype
    if dtype.kind == "f":
        return ((values + 1.0) / 256).astype(dtype)  # not 0, on which known models hang
    if dtype.itemsize == 1 and dtype.kind in "iu":
        return values.view(dtype)
    return (values % 2).astype(dtype)
