"""Encoded pictures and sounds to rows of a model's input; the content decides what they are. Pure.

Blocking: decoding takes milliseconds to seconds. Call it off the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daemon.errors import Malformed, UnsupportedMedia
from daemon.pipeline.kinds import PICTURE_KINDS, SOUND_KINDS, is_wav, picture_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerators.base import Array
    from daemon.pipeline.images import Placement
    from daemon.pipeline.inputs import AudioInput, ImageInput
    from daemon.pipeline.profiles import ModelProfile


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What is still decoded.

    Attributes:
        max_pixels: width times height of one picture.
        max_audio_s: seconds of one sound.
    """

    max_pixels: int
    max_audio_s: float


@dataclass(frozen=True, slots=True)
class PreparedMedia:
    """Rows for the model, and where each lies on what was sent.

    Attributes:
        rows: in the input's datatype, C-contiguous. The first dimension counts the items, unless
            the input has no dimension for that.
        placements: one per item; None where the model sees the whole picture, and for sounds.
    """

    rows: Array
    placements: tuple[Placement | None, ...]


def prepare(profile: ModelProfile, items: Sequence[bytes], *, limits: MediaLimits) -> PreparedMedia:
    """Turn encoded pictures or sounds into rows of the model's media input.

    Args:
        profile: of the model.
        items: one whole file each; at least one.
        limits: what is still decoded.

    Raises:
        UnsupportedMedia: an item is of a kind this model cannot take, or there are several and
            the model takes one.
        Malformed: an item is damaged or ends early.
        TooLarge: an item has too many pixels or seconds.
    """
    if profile.image is not None:
        return _pictures(profile.image, items, limits)
    if profile.audio is not None:
        return _sounds(profile.audio, items, limits)
    raise UnsupportedMedia("this model takes tensors, not pictures or sounds")


def _pictures(image: ImageInput, items: Sequence[bytes], limits: MediaLimits) -> PreparedMedia:
    from daemon.pipeline.images import read_picture  # noqa: PLC0415 (see daemon.pipeline.libraries)

    rows, placements = [], []
    for data in items:
        kind = picture_kind(data)
        if kind is None:
            raise _wrong_kind(data, f"a picture ({PICTURE_KINDS})")
        pixels, placement = read_picture(kind, data, image, max_pixels=limits.max_pixels)
        rows.append(image.pixels.apply(pixels).reshape(image.row_shape))
        placements.append(placement)
    return PreparedMedia(_stacked(rows), tuple(placements))


def _sounds(audio: AudioInput, items: Sequence[bytes], limits: MediaLimits) -> PreparedMedia:
    if len(items) > 1 and not (audio.batched and audio.frames):
        raise UnsupportedMedia(f"this model takes one sound at a time, not {len(items)}")
    from daemon.pipeline.sounds import read_sound  # noqa: PLC0415 (see daemon.pipeline.libraries)

    rows = []
    for data in items:
        if not is_wav(data):
            raise _wrong_kind(data, f"a sound ({SOUND_KINDS})")
        rows.append(read_sound(data, audio, max_seconds=limits.max_audio_s))
    return PreparedMedia(_stacked(rows), (None,) * len(rows))


def _stacked(rows: list[Array]) -> Array:
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _wrong_kind(data: bytes, wanted: str) -> Malformed | UnsupportedMedia:
    if not data:
        return Malformed(f"the body is empty; this model takes {wanted}")
    picture = picture_kind(data)
    found = (
        f"a {picture} picture" if picture else "a WAV sound" if is_wav(data) else "none of these"
    )
    return UnsupportedMedia(f"this model takes {wanted}; what was sent is {found}")
