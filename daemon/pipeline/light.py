"""Which files are decoded sooner here than a thread could be asked to. Pure.

Handing a file to a thread and its rows back takes 60 to 130 us and two turns of the interpreter's
lock. Decoding what is light takes less, and at worst, when the file is made to take long, a few
milliseconds. What is light:
1. A WAV sound of at most 64 KiB that has the model's rate: nothing is resampled.
2. A PNG of at most 4 KiB and 64 x 64 pixels, for a frame of at most 128 x 128.
Several files in one request are never light.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from daemon.pipeline.kinds import is_wav, picture_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.pipeline.inputs import AudioInput, ImageInput
    from daemon.pipeline.profiles import ModelProfile

_WAV_BYTES = 64 << 10  # two seconds at 16 kHz, 16 bits: 10 us
_PNG_BYTES = 4 << 10
_PNG_PIXELS = 64 * 64
_FRAME_PIXELS = 128 * 128

_WAV_FORMAT = struct.Struct("<4s8xI")  # "fmt ", its length, coding, channels; the rate
_WAV_FORMAT_AT = 12
_PNG_SIZE = struct.Struct(">4sII")
_PNG_SIZE_AT = 12


def is_light(profile: ModelProfile, items: Sequence[bytes]) -> bool:
    """Whether `daemon.pipeline.media.prepare` may be called on the event loop with these files."""
    if len(items) != 1:
        return False
    if profile.image is not None:
        return _is_light_picture(profile.image, items[0])
    return profile.audio is not None and _is_light_sound(profile.audio, items[0])


def _is_light_picture(image: ImageInput, data: bytes) -> bool:
    if len(data) > _PNG_BYTES or image.width * image.height > _FRAME_PIXELS:
        return False
    if picture_kind(data) != "PNG" or len(data) < _PNG_SIZE_AT + _PNG_SIZE.size:
        return False
    name, width, height = _PNG_SIZE.unpack_from(data, _PNG_SIZE_AT)
    return bool(name == b"IHDR" and width * height <= _PNG_PIXELS)


def _is_light_sound(audio: AudioInput, data: bytes) -> bool:
    if len(data) > _WAV_BYTES or not is_wav(data):
        return False
    if len(data) < _WAV_FORMAT_AT + _WAV_FORMAT.size:
        return False
    name, rate = _WAV_FORMAT.unpack_from(data, _WAV_FORMAT_AT)
    return bool(name == b"fmt " and rate == audio.sample_rate_hz)
