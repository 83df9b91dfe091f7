"""WAV files: what their header says, and their samples as floats. Pure.

Rules:
1. Integers of 8, 16, 24 or 32 bits and floats of 32 or 64, in RIFF or RF64; nothing else.
2. A file that is shorter than it says itself is refused. Programs that write to a pipe cannot know
   the length and say 0 or more than fits: then the samples go on to the end.

Source: Multimedia Programming Interface and Data Specifications 1.0, WAVEFORMATEXTENSIBLE;
EBU Tech 3306 for RF64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daemon.errors import Malformed, UnsupportedMedia

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PART = struct.Struct("<4sI")  # a part's name, and its length in bytes without this head
_FIRST_PART = 12
_MAX_PARTS = 1000  # before the samples; recorders write fewer than ten

_FORMAT = struct.Struct("<HHI4xHH")  # coding, channels, rate, bytes per frame, bits per sample
_EXTENSION = struct.Struct("<24xH14s")  # of an extensible format: the true coding, a common tail
_EXTENSION_TAIL = bytes.fromhex("000000001000800000aa00389b71")
_EXTENSIBLE = 0xFFFE
_INTEGER, _FLOAT = 1, 3

_RF64_LENGTHS = struct.Struct("<QQ")  # of the file less 8 bytes, and of the samples
_IN_RF64_LENGTHS = 0xFFFFFFFF
_UNKNOWN_LENGTH = 0x7FFFFFFF - 8
"""Bytes; programs that write to a pipe leave so many or more."""

_STORED: dict[tuple[int, int], np.dtype[np.generic]] = {
    (_INTEGER, 1): np.dtype("u1"),
    (_INTEGER, 2): np.dtype("<i2"),
    (_INTEGER, 3): np.dtype("V3"),
    (_INTEGER, 4): np.dtype("<i4"),
    (_FLOAT, 4): np.dtype("<f4"),
    (_FLOAT, 8): np.dtype("<f8"),
}
"""By coding and bytes per sample."""


@dataclass(frozen=True, slots=True)
class Wav:
    """A WAV file whose header was read.

    Attributes:
        rate_hz: samples per second and channel, as the header says.
        channels: 1 or more.
        frames: samples per channel, 0 or more.
        stored: of one sample.
        start: of the samples in the file.
    """

    data: bytes
    rate_hz: int
    channels: int
    frames: int
    stored: np.dtype[np.generic]
    start: int

    def read(self, frames: int) -> NDArray[np.float32]:
        """The first frames.

        Returns:
            float32 (frames, channels), -1..1 where integers are stored; fewer frames where the file
            has fewer.
        """
        count = min(frames, self.frames) * self.channels
        samples = np.frombuffer(self.data, self.stored, count, self.start)
        return _floats(samples).reshape(-1, self.channels)


def open_wav(data: bytes) -> Wav:
    """Read the header of a file that `daemon.pipeline.kinds.is_wav`.

    Raises:
        Malformed: it is damaged or ends early.
        UnsupportedMedia: its samples are neither integers nor floats.
    """
    try:
        return _read_parts(data)
    except struct.error as exc:
        raise _damaged() from exc


def _damaged() -> Malformed:
    return Malformed("the WAV sound is damaged or ends early")


def _read_parts(data: bytes) -> Wav:
    said_bytes = int.from_bytes(data[4:8], "little")
    form: tuple[int, int, np.dtype[np.generic]] | None = None
    rf64_bytes = 0
    at = _FIRST_PART
    for _ in range(_MAX_PARTS):
        name, length = _PART.unpack_from(data, at)
        at += _PART.size
        if name == b"data":
            break
        if name == b"fmt ":
            if form is not None:
                raise _damaged()
            form = _read_format(data, at, length)
        elif name == b"ds64":
            said_bytes, rf64_bytes = _RF64_LENGTHS.unpack_from(data, at)
        at += length + length % 2
    else:
        raise _damaged()
    if form is None:
        raise _damaged()
    if said_bytes < _UNKNOWN_LENGTH and said_bytes + 8 > len(data):
        raise Malformed(f"the WAV sound ends early: {len(data)} bytes of {said_bytes + 8}")
    rate, channels, stored = form
    held = len(data) - at
    wanted = rf64_bytes if length == _IN_RF64_LENGTHS and rf64_bytes else length
    samples_bytes = min(wanted, held) if wanted else held
    frames = samples_bytes // (channels * stored.itemsize)
    return Wav(data, rate, channels, frames, stored, at)


def _read_format(data: bytes, at: int, length: int) -> tuple[int, int, np.dtype[np.generic]]:
    """Rate, channels, and how a sample is stored.

    A sample of fewer bits than its bytes could hold fills them from the top, so that its bytes
    alone say how large it is.
    """
    if length < _FORMAT.size:
        raise _damaged()
    coding, channels, rate, frame_bytes, bits = _FORMAT.unpack_from(data, at)
    if coding == _EXTENSIBLE:
        coding, tail = _EXTENSION.unpack_from(data, at)
        if tail != _EXTENSION_TAIL or length < _EXTENSION.size:
            raise _damaged()
    if coding not in (_INTEGER, _FLOAT):
        raise UnsupportedMedia(
            f"WAV of coding {coding} is not taken; send integer (PCM) or float WAV"
        )
    if channels < 1 or frame_bytes % channels:
        raise _damaged()
    stored = _STORED.get((coding, frame_bytes // channels))
    if stored is None or not 0 < bits <= 8 * stored.itemsize:
        raise _damaged()
    return rate, channels, stored


def _floats(samples: NDArray[np.generic]) -> NDArray[np.float32]:
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
            return samples.astype(np.float32)
    if samples.dtype.itemsize == 3:  # noqa: PLR2004 (24 bits: NumPy has no such integer)
        samples = _widened(samples)
    values = samples.astype(np.float32)
    if samples.dtype.kind == "u":
        values -= 128
    values *= np.float32(2.0 ** (1 - 8 * samples.dtype.itemsize))
    return values


def _widened(samples: NDArray[np.generic]) -> NDArray[np.int32]:
    """24 bits as the upper bytes of 32."""
    wide = np.zeros((len(samples), 4), np.uint8)
    wide[:, 1:] = samples.view(np.uint8).reshape(-1, 3)
    return wide.view("<i4")[:, 0]
