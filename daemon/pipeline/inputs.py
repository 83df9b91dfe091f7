"""What a model's input takes, from model.toml, the packed metadata and its shape. Pure.

Each key of model.toml wins over the metadata, which wins over these guesses:
1. A picture: rank 4 with 3 or 4 channels last or 3 first, sides of at least 16; one channel last
   when it is square as well; rank 3 of UINT8 when it is square.
2. A sound: only where the metadata or model.toml says so; float rank 1 or 2 and a sample rate.
3. Everything else: tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from accelerators.base import DataType
from daemon.pipeline.pixels import PixelMap, map_pixels

if TYPE_CHECKING:
    from accelerators.base import TensorMetadata, TensorSpec
    from daemon.modelfile import Channels, InputTable

_MIN_GUESSED_SIDE = 16
"""Pixels; smaller grids without metadata are more often features than pictures."""

_MAX_AUDIO_CHANNELS = 8


class Resize(Enum):
    """How a picture of another shape becomes one of the model's."""

    STRETCH = "stretch"  # the whole picture, its aspect not kept
    LETTERBOX = "letterbox"  # the whole picture, its aspect kept, black bars around it
    CROP = "crop"  # the largest centred part that has the model's aspect


class Color(Enum):
    """The order of a picture's channels in the tensor."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"
    RGBA = "rgba"


_CHANNELS = {Color.RGB: 3, Color.BGR: 3, Color.GRAY: 1, Color.RGBA: 4}
_GUESSED_COLOR = {1: Color.GRAY, 3: Color.RGB, 4: Color.RGBA}


@dataclass(frozen=True, slots=True)
class ImageInput:
    """How a picture becomes one row of the input.

    Attributes:
        height, width: pixels.
        channels_first: True for (channels, height, width) per row.
        row_shape: of one row, leading 1 included: whatever the tensor's rank is.
        pixels: from 0..255 to the input's numbers.
    """

    height: int
    width: int
    color: Color
    resize: Resize
    channels_first: bool
    row_shape: tuple[int, ...]
    pixels: PixelMap


@dataclass(frozen=True, slots=True)
class AudioInput:
    """How a sound becomes one row of the input.

    Attributes:
        sample_rate_hz: the model's.
        channels: interleaved in the tensor when more than one.
        frames: samples per channel; None when the model takes any number.
        batched: the tensor's first dimension counts sounds.
    """

    spec: TensorSpec
    sample_rate_hz: int
    channels: int
    frames: int | None
    batched: bool


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where height, width and channels stand in a shape."""

    height: int
    width: int
    channels: int
    channels_first: bool = False


def describe_input(
    table: InputTable, spec: TensorSpec, metadata: TensorMetadata
) -> ImageInput | AudioInput | None:
    """What the single input of a model takes; None for tensors only.

    Args:
        table: model.toml's `[input]`.
        spec: the input.
        metadata: what the file says of it; empty when nothing.

    Raises:
        ValueError: the table contradicts the input; the message is for the operator.
    """
    match table.kind or _said_kind(table, spec, metadata):
        case "image":
            return _image(table, spec, metadata)
        case "audio":
            return _audio(table, spec, metadata)
        case "tensor":
            refuse_media_keys(table, "it takes tensors")
            return None
        case _:
            return _guess(table, spec, metadata)


def refuse_media_keys(table: InputTable, reason: str) -> None:
    """Refuse keys of `[input]` that speak of a picture or sound where there is none.

    Raises:
        ValueError: with the first such key.
    """
    if table.sample_rate_hz is not None:
        raise ValueError(f"input.sample_rate_hz is set but the model takes no sounds: {reason}")
    _refuse_picture_keys(table, reason)


def _refuse_picture_keys(table: InputTable, reason: str) -> None:
    for key in ("resize", "color", "mean", "std"):
        if getattr(table, key) is not None:
            raise ValueError(f"input.{key} is set but the model takes no pictures: {reason}")


def _said_kind(table: InputTable, spec: TensorSpec, metadata: TensorMetadata) -> str:
    """The kind the tables imply or the metadata names; "" where the tensor cannot be that."""
    if table.sample_rate_hz is not None:
        return "audio"
    if metadata.content == "image":
        return "image" if _grid(spec.shape) else ""
    if metadata.content == "audio" and metadata.sample_rate:
        return "audio" if _holds_sound(spec, metadata.channels or 1) else ""
    return ""


def _guess(table: InputTable, spec: TensorSpec, metadata: TensorMetadata) -> ImageInput | None:
    grid = _guess_grid(spec)
    if grid is None:
        refuse_media_keys(table, f"its input has shape {list(spec.shape)}; set input.kind")
        return None
    return _image(table, spec, metadata)


def _guess_grid(spec: TensorSpec) -> _Grid | None:
    grid = _grid(spec.shape)
    if grid is None or spec.datatype in (DataType.BOOL, DataType.BYTES):
        return None
    if min(grid.height, grid.width) < _MIN_GUESSED_SIDE:
        return None
    if grid.channels == 1 and grid.height != grid.width:
        return None
    if len(spec.shape) == 4:  # noqa: PLR2004 (batch, height, width, channels)
        return grid
    return grid if len(spec.shape) == 3 and spec.datatype is DataType.UINT8 else None  # noqa: PLR2004


def _grid(shape: tuple[int, ...]) -> _Grid | None:
    """Height, width and channels of a batch of one picture, where the shape can hold that."""
    if len(shape) < 2 or shape[0] not in (1, -1) or min(shape[1:]) < 1:  # noqa: PLR2004
        return None
    match shape[1:]:
        case (height, width, (1 | 3 | 4) as channels):
            return _Grid(height, width, channels)
        case ((1 | 3 | 4) as channels, height, width):
            return _Grid(height, width, channels, channels_first=True)
        case (height, width):
            return _Grid(height, width, 1)
        case (count,) if math.isqrt(count) ** 2 == count:
            return _Grid(math.isqrt(count), math.isqrt(count), 1)
        case _:
            return None


def _image(table: InputTable, spec: TensorSpec, metadata: TensorMetadata) -> ImageInput:
    if table.sample_rate_hz is not None:
        raise ValueError("input.sample_rate_hz is set but the model takes pictures")
    grid = _grid(spec.shape)
    if grid is None:
        raise ValueError(
            f"input.kind is image but input '{spec.name}' has shape {list(spec.shape)}; a picture "
            "needs one of a batch with a fixed height and width and 1, 3 or 4 channels"
        )
    color = Color(table.color) if table.color else _GUESSED_COLOR[grid.channels]
    if _CHANNELS[color] != grid.channels:
        raise ValueError(
            f"input.color is {color.value} but input '{spec.name}' has {grid.channels} channels"
        )
    stated = table.mean is not None or table.std is not None
    mean, std = (
        (_numbers(table.mean, (0.0,)), _numbers(table.std, (1.0,)))
        if stated
        else _packed_normalization(metadata, grid.channels)
    )
    return ImageInput(
        height=grid.height,
        width=grid.width,
        color=color,
        resize=Resize(table.resize) if table.resize else Resize.STRETCH,
        channels_first=grid.channels_first,
        row_shape=(1, *spec.shape[1:]),
        pixels=map_pixels(
            spec,
            channels=grid.channels,
            channel_axis=0 if grid.channels_first else 2,
            mean=mean,
            std=std,
            stated=stated,
        ),
    )


def _numbers(said: Channels | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if said is None:
        return default
    return said if isinstance(said, tuple) else (said,)


def _packed_normalization(
    metadata: TensorMetadata, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The metadata's mean and std; nothing where they cannot be this input's."""
    numbers = (*metadata.mean, *metadata.std)
    fits = {len(metadata.mean), len(metadata.std)} <= {1, channels}
    if not fits or not all(map(math.isfinite, numbers)) or 0.0 in metadata.std:
        return (), ()
    return metadata.mean, metadata.std


def _audio(table: InputTable, spec: TensorSpec, metadata: TensorMetadata) -> AudioInput:
    _refuse_picture_keys(table, "it takes sounds")
    rate = table.sample_rate_hz or metadata.sample_rate
    if not rate:
        raise ValueError("input.kind is audio: input.sample_rate_hz is needed, the file has none")
    channels = metadata.channels or 1
    if channels > _MAX_AUDIO_CHANNELS or not _holds_sound(spec, channels):
        raise ValueError(
            f"the input is said to be a sound but '{spec.name}' is {spec.datatype.value} of shape "
            f"{list(spec.shape)}; a sound of {channels} channels needs floats or signed integers "
            "of shape [samples] or [1, samples]"
        )
    return AudioInput(
        spec=spec,
        sample_rate_hz=rate,
        channels=channels,
        frames=_frames(_sample_shape(spec.shape), channels),
        batched=_is_batched(spec.shape),
    )


def _holds_sound(spec: TensorSpec, channels: int) -> bool:
    is_number = spec.datatype is not DataType.BYTES and spec.datatype.dtype.kind in "fi"
    return is_number and _frames(_sample_shape(spec.shape), channels) != 0


def _is_batched(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and shape[0] in (1, -1)


def _sample_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if _is_batched(shape) else shape


def _frames(shape: tuple[int, ...], channels: int) -> int | None:
    """Samples per channel that a row holds; None for any number, 0 when it cannot hold a sound."""
    samples = [size for size in shape if size != 1]
    if samples == [-1]:
        return None
    if -1 in samples or not samples:
        return 0
    total = math.prod(samples)
    if len(samples) > (1 if channels == 1 else 2) or total % channels:
        return 0
    return total // channels
