"""WAV files are read as libsndfile reads them; those that cannot be true are refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
from support.media_files import make_wav, wav_header

from daemon.errors import Malformed, UnsupportedMedia
from daemon.pipeline.wav import open_wav

NOISE = np.random.default_rng(4).uniform(-1, 1, (101, 3))


def part(name, body):
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def wav_of(*parts, kind=b"RIFF"):
    body = b"WAVE" + b"".join(parts)
    return kind + struct.pack("<I", len(body)) + body


def layout(*, coding=1, channels=1, frame_bytes=2, bits=16, extension=b""):
    head = (coding, channels, 16000, 16000 * frame_bytes, frame_bytes, bits)
    return part(b"fmt ", struct.pack("<HHIIHH", *head) + extension)


def extension(coding, tail="000000001000800000aa00389b71"):
    return struct.pack("<HHIH", 22, 16, 0, coding) + bytes.fromhex(tail)


SAMPLES = part(b"data", struct.pack("<4h", 0, 8192, -16384, -32768))
FOUR = [[0.0], [0.25], [-0.5], [-1.0]]


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64"])
def test_every_format_gives_what_libsndfile_gives(kind, subtype, channels):
    data = make_wav(NOISE[:, :channels], 22050, subtype=subtype, kind=kind)

    sound = open_wav(data)

    with soundfile.SoundFile(io.BytesIO(data)) as known:
        facts = (known.samplerate, known.channels, known.frames)
        samples = known.read(dtype="float32", always_2d=True)
    assert (sound.rate_hz, sound.channels, sound.frames) == facts
    read = sound.read(sound.frames)
    assert read.dtype == np.float32
    assert np.array_equal(read, samples)


def test_the_first_frames_are_read():
    sound = open_wav(make_wav(NOISE, 16000, subtype="DOUBLE"))

    assert np.array_equal(sound.read(7), NOISE[:7].astype(np.float32))


def test_more_frames_than_there_are_gives_those_that_are_there():
    assert open_wav(wav_of(layout(), SAMPLES)).read(1000).tolist() == FOUR


def test_other_parts_of_any_length_are_passed_over():
    data = wav_of(part(b"LIST", b"odd"), layout(), part(b"fact", b"abcd"), SAMPLES)

    assert open_wav(data).read(4).tolist() == FOUR


@pytest.mark.parametrize("said", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_file_from_a_pipe_that_could_not_tell_its_length_is_read_to_its_end(said):
    lengths = struct.pack("<I", said)
    whole = wav_of(layout(), SAMPLES)

    data = whole[:4] + lengths + whole[8:-12] + lengths + whole[-8:]

    assert open_wav(data).read(4).tolist() == FOUR


def test_fewer_bits_fill_their_bytes_from_the_top():
    sound = open_wav(wav_of(layout(frame_bytes=2, bits=12), SAMPLES))

    assert sound.read(4).tolist() == FOUR


def test_an_extensible_format_names_its_coding_further_down():
    data = wav_of(layout(coding=0xFFFE, extension=extension(1)), SAMPLES)

    assert open_wav(data).read(4).tolist() == FOUR


def test_what_a_float_cannot_hold_becomes_infinite():
    samples = part(b"data", struct.pack("<2d", 1e300, 0.5))

    sound = open_wav(wav_of(layout(coding=3, frame_bytes=8, bits=64), samples))

    assert sound.read(2).tolist() == [[np.inf], [0.5]]


def test_a_last_frame_that_is_not_whole_is_left_out():
    sound = open_wav(wav_of(layout(channels=3, frame_bytes=6), SAMPLES))

    assert sound.frames == 1


@pytest.mark.parametrize("coding", [0, 2, 6, 7, 0x11, 0x31, 0x55])
@pytest.mark.parametrize("is_extensible", [True, False])
def test_samples_that_are_neither_integers_nor_floats_are_refused(coding, is_extensible):
    plain = layout(coding=coding)
    extended = layout(coding=0xFFFE, extension=extension(coding))

    with pytest.raises(UnsupportedMedia, match=rf"coding {coding} is not taken; send integer"):
        open_wav(wav_of(extended if is_extensible else plain, SAMPLES))


@pytest.mark.parametrize(
    "data",
    [
        wav_of(layout()),
        wav_of(SAMPLES),
        wav_of(SAMPLES, layout()),
        wav_of(layout(), layout(), SAMPLES),
        wav_of(layout(channels=0), SAMPLES),
        wav_of(layout(frame_bytes=0), SAMPLES),
        wav_of(layout(frame_bytes=3, channels=2), SAMPLES),
        wav_of(layout(frame_bytes=5), SAMPLES),
        wav_of(layout(bits=0), SAMPLES),
        wav_of(layout(bits=17), SAMPLES),
        wav_of(layout(coding=3), SAMPLES),
        wav_of(part(b"fmt ", bytes(4)), SAMPLES),
        wav_of(layout(coding=0xFFFE), SAMPLES),
        wav_of(layout(coding=0xFFFE, extension=extension(1, "00" * 14)), SAMPLES),
        wav_of(part(b"junk", b"") * 1000, layout(), SAMPLES),
        wav_of(part(b"ds64", b"short"), kind=b"RF64"),
        wav_header()[:40],
    ],
)
def test_a_header_that_cannot_be_true_is_refused(data):
    with pytest.raises(Malformed, match="damaged or ends early"):
        open_wav(data)


@pytest.mark.parametrize("kind", ["WAV", "RF64"])
def test_a_file_that_is_shorter_than_it_says_is_refused(kind):
    data = make_wav(NOISE, 16000, kind=kind)

    with pytest.raises(Malformed, match=f"ends early: {len(data) - 10} bytes of {len(data)}"):
        open_wav(data[:-10])
