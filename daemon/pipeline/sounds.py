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
from typing import TYPE_CHECKING

import numpy as np
import soxr

from daemon.errors import Malformed, TooLarge
from daemon.pipeline.wav import open_wav

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accelerators.base import Array
    from daemon.pipeline.inputs import AudioInput
    from daemon.pipeline.wav import Wav

_MIN_RATE_HZ = 1000
_MAX_RATE_HZ = 768_000
"""The widest range that converters on the market have."""

_MAX_CHANNELS = 64  # more than any recorder writes; mixing them costs memory
_RESAMPLER_TAIL_S = 0.1
"""Read beyond the model's frame, so that its last samples are resampled with their successors."""


def read_sound(data: bytes, audio: AudioInput, *, max_seconds: float) -> Array:
    """Decode a WAV sound into one row of the model's input.

    Returns:
        The input's datatype and shape, C-contiguous; a free number of samples becomes the sound's.

    Raises:
        Malformed: the data is damaged or ends early.
        UnsupportedMedia: a WAV file whose samples are neither integers nor floats.
        TooLarge: it is longer than allowed; nothing was decoded.
    """
    sound = open_wav(data)
    _check(sound, max_seconds)
    rate = sound.rate_hz
    samples = sound.read(_frames_needed(sound, audio))
    mixed = _mixed(samples, audio.channels)
    if rate != audio.sample_rate_hz:
        mixed = soxr.resample(mixed, rate, audio.sample_rate_hz, quality="HQ")
    return _row(_framed(mixed, audio.frames), audio)


def _check(sound: Wav, max_seconds: float) -> None:
    if not _MIN_RATE_HZ <= sound.rate_hz <= _MAX_RATE_HZ:
        raise Malformed(
            f"the WAV sound's rate is {sound.rate_hz} Hz; "
            f"{_MIN_RATE_HZ} to {_MAX_RATE_HZ} Hz are taken"
        )
    if sound.channels > _MAX_CHANNELS:
        raise Malformed(f"the WAV sound has {sound.channels} channels; 1 to {_MAX_CHANNELS} do")
    if sound.frames < 1:
        raise Malformed("the WAV sound has no samples")
    if sound.frames > max_seconds * sound.rate_hz:
        seconds = sound.frames / sound.rate_hz
        raise TooLarge(
            f"the sound is {seconds:.1f} s long; the limit is {max_seconds:g} s",
            limit=math.floor(max_seconds),
            unit="seconds",
        )


def _frames_needed(sound: Wav, audio: AudioInput) -> int:
    if audio.frames is None:
        return sound.frames
    if sound.rate_hz == audio.sample_rate_hz:
        return audio.frames
    seconds = audio.frames / audio.sample_rate_hz + _RESAMPLER_TAIL_S
    return math.ceil(seconds * sound.rate_hz)


def _mixed(samples: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Float32 (frames, channels) with the model's number of channels."""
    if samples.shape[1] == channels:
        return samples
    mono = samples[:, 0].copy()
    for other in samples.T[1:]:  # NumPy's mean along so short an axis takes ten times as long
        mono += other
    mono /= samples.shape[1]
    return np.repeat(mono[:, None], channels, axis=1)


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
