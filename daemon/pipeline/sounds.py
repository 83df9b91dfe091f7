"""WAV sounds to the samples a model takes. Pure.

Rules:
1. WAV (RIFF or RF64) with integer or float samples; nothing else.
2. The length is checked against the limit by the header, before any sample is read; a file that
   is shorter than its header says is refused.
3. Channels are mixed to the model's number by their mean; the rate becomes the model's (soxr, high
   quality); samples are -1..1.
4. The model hears the first frame of its length; a shorter sound is followed by silence.
"""

from __future__ import annotations

import math
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from daemon.errors import Malformed, TooLarge, UnsupportedMedia, shorten

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accelerators.base import Array
    from daemon.pipeline.inputs import AudioInput

SOUND_KINDS = "WAV"

_MIN_RATE_HZ = 1000
_MAX_RATE_HZ = 768_000
"""The widest range that converters on the market have."""

_MAX_CHANNELS = 64  # more than any recorder writes; mixing them costs memory
_RESAMPLER_TAIL_S = 0.1
"""Read beyond the model's frame, so that its last samples are resampled with their successors."""

_SUBTYPES = frozenset({"PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"})
_RIFF_UNKNOWN_SIZE = 0x7FFFFFFF - 8
"""Programs that write to a pipe leave a size of this or more, or 0."""


def is_wav(data: bytes) -> bool:
    """Whether the bytes start like a WAV file."""
    return data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE"


def read_sound(data: bytes, audio: AudioInput, *, max_seconds: float) -> Array:
    """Decode a WAV sound into one row of the model's input.

    Returns:
        The input's datatype and shape, C-contiguous; a free number of samples becomes the sound's.

    Raises:
        Malformed: the data is damaged or ends early.
        UnsupportedMedia: a WAV file whose samples are neither integers nor floats.
        TooLarge: it is longer than allowed; nothing was decoded.
    """
    _check_whole(data)
    try:
        with soundfile.SoundFile(BytesIO(data)) as sound:
            _check(sound, max_seconds)
            samples = sound.read(_frames_needed(sound, audio), dtype="float32", always_2d=True)
            rate = sound.samplerate
    except (soundfile.SoundFileError, OSError, ValueError) as exc:
        raise Malformed("the WAV sound is damaged or ends early") from exc
    mixed = _mixed(samples, audio.channels)
    if rate != audio.sample_rate_hz:
        mixed = soxr.resample(mixed, rate, audio.sample_rate_hz, quality="HQ")
    return _row(_framed(mixed, audio.frames), audio)


def _check_whole(data: bytes) -> None:
    if data[:4] == b"RF64":
        return  # its size stands elsewhere; the decoder compares it
    size = int.from_bytes(data[4:8], "little")
    if size < _RIFF_UNKNOWN_SIZE and size + 8 > len(data):
        raise Malformed(f"the WAV sound ends early: {len(data)} bytes of {size + 8}")


def _check(sound: soundfile.SoundFile, max_seconds: float) -> None:
    if sound.subtype not in _SUBTYPES:
        raise UnsupportedMedia(
            f"WAV of {shorten(sound.subtype_info)} is not taken; send integer (PCM) or float WAV"
        )
    if not _MIN_RATE_HZ <= sound.samplerate <= _MAX_RATE_HZ:
        raise Malformed(
            f"the WAV sound's rate is {sound.samplerate} Hz; "
            f"{_MIN_RATE_HZ} to {_MAX_RATE_HZ} Hz are taken"
        )
    if not 1 <= sound.channels <= _MAX_CHANNELS:
        raise Malformed(f"the WAV sound has {sound.channels} channels; 1 to {_MAX_CHANNELS} do")
    if sound.frames < 1:
        raise Malformed("the WAV sound has no samples")
    if sound.frames > max_seconds * sound.samplerate:
        seconds = sound.frames / sound.samplerate
        raise TooLarge(
            f"the sound is {seconds:.1f} s long; the limit is {max_seconds:g} s",
            limit=math.floor(max_seconds),
            unit="seconds",
        )


def _frames_needed(sound: soundfile.SoundFile, audio: AudioInput) -> int:
    frames, rate = int(sound.frames), int(sound.samplerate)
    if audio.frames is None:
        return frames
    seconds = audio.frames / audio.sample_rate_hz + _RESAMPLER_TAIL_S
    return min(frames, math.ceil(seconds * rate))


def _mixed(samples: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Float32 (frames, channels) with the model's number of channels."""
    if samples.shape[1] == channels:
        return samples
    mono = samples.mean(axis=1, dtype=np.float32, keepdims=True)
    return np.repeat(mono, channels, axis=1)


def _framed(samples: NDArray[np.float32], frames: int | None) -> NDArray[np.float32]:
    if frames is None or len(samples) == frames:
        return samples
    if len(samples) > frames:
        return samples[:frames]
    return np.pad(samples, ((0, frames - len(samples)), (0, 0)))


def _row(samples: NDArray[np.float32], audio: AudioInput) -> Array:
    spec = audio.spec
    tail = spec.shape[1:] if audio.batched else spec.shape
    shape = tuple(-1 if size == -1 else size for size in tail)
    values = _as_stored(samples, audio).reshape(shape)
    return np.ascontiguousarray(values[None] if audio.batched else values)


def _as_stored(samples: NDArray[np.float32], audio: AudioInput) -> Array:
    """Samples as the input stores them: floats as they are, integers scaled to their range."""
    dtype = audio.spec.datatype.dtype
    if dtype.kind == "f":
        return samples.astype(dtype, copy=False)
    limits = np.iinfo(dtype.name)
    quantization = audio.spec.quantization
    if quantization is None:
        scaled = samples.astype(np.float64) * (limits.max + 1)
    else:
        scaled = samples.astype(np.float64) / quantization.scale + quantization.zero_point
    return np.clip(np.rint(scaled), limits.min, limits.max).astype(dtype)
