"""A WAV sound of any width, rate and number of channels becomes the model's samples."""

from __future__ import annotations

import numpy as np
import pytest
from support.media_files import (
    LIMITS,
    make_profile,
    make_tables,
    make_wav,
    picture_profile,
    sound_profile,
    tone,
    wav_header,
)

from accelerators.base import DataType, Quantization, TensorMetadata, TensorSpec
from daemon.errors import Malformed, TooLarge, UnsupportedMedia
from daemon.pipeline.media import MediaLimits, prepare

WIDTHS = {
    "PCM_U8": 1 / 100,
    "PCM_16": 1 / 30000,
    "PCM_24": 1e-6,
    "PCM_32": 1e-6,
    "FLOAT": 1e-6,
    "DOUBLE": 1e-6,
}
"""The samples of WAV files, and how far from the true ones they may be."""


def rows_of(data, profile=None):
    return prepare(profile or sound_profile(), [data], limits=LIMITS).rows


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("subtype", WIDTHS)
def test_every_width_gives_samples_of_minus_1_to_1(subtype, kind):
    sound = tone(16000)

    rows = rows_of(make_wav(sound, 16000, subtype=subtype, kind=kind))

    assert rows.shape == (1, 1600)
    assert rows.dtype == np.float32
    assert np.abs(rows[0] - sound[:1600, 0]).max() < WIDTHS[subtype]


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_every_rate_becomes_the_models(rate):
    rows = rows_of(make_wav(tone(rate), rate, subtype="FLOAT"))

    middle = slice(100, 1500)  # the resampler's filter rings where the sound begins
    assert np.abs(rows[0] - tone(16000)[:1600, 0])[middle].max() < 0.01


def test_the_end_of_the_frame_is_resampled_with_what_follows_it():
    long = make_wav(tone(48000, seconds=2.0), 48000, subtype="FLOAT")

    rows = rows_of(long)

    assert np.abs(rows[0] - tone(16000)[:1600, 0])[-100:].max() < 0.001


def test_channels_are_mixed_by_their_mean():
    sound = tone(16000, channels=2)
    sound[:, 1] = 0.0

    rows = rows_of(make_wav(sound, 16000, subtype="FLOAT"))

    assert rows[0] == pytest.approx(tone(16000)[:1600, 0] / 2)


def test_a_stereo_model_gets_interleaved_channels():
    sound = tone(16000, channels=2)
    sound[:, 1] *= -1

    rows = rows_of(make_wav(sound, 16000, subtype="FLOAT"), sound_profile((1, 3200), channels=2))

    assert rows.shape == (1, 3200)
    assert rows[0, 0::2] == pytest.approx(sound[:1600, 0])
    assert rows[0, 1::2] == pytest.approx(sound[:1600, 1])


def test_a_stereo_model_gets_a_mono_sound_twice():
    rows = rows_of(make_wav(tone(16000), 16000), sound_profile((1, 1600, 2), channels=2))

    assert rows.shape == (1, 1600, 2)
    assert np.array_equal(rows[..., 0], rows[..., 1])


def test_a_short_sound_is_followed_by_silence():
    sound = tone(16000, seconds=0.05)

    rows = rows_of(make_wav(sound, 16000, subtype="FLOAT"))

    assert rows[0, :800] == pytest.approx(sound[:, 0])
    assert not rows[0, 800:].any()


def test_a_model_without_a_row_dimension_gets_none():
    assert rows_of(make_wav(tone(16000), 16000), sound_profile((1600,))).shape == (1600,)


def test_a_model_of_any_length_gets_the_whole_sound():
    data = make_wav(tone(16000, seconds=0.3), 16000)

    assert rows_of(data, sound_profile((-1,))).shape == (4800,)
    assert rows_of(data, sound_profile((1, -1))).shape == (1, 4800)


def test_integer_models_get_pcm():
    data = make_wav(tone(16000), 16000)

    rows = rows_of(data, sound_profile(datatype=DataType.INT16))

    assert rows.dtype == np.int16
    assert np.abs(rows[0] - np.rint(tone(16000)[:1600, 0] * 32768)).max() <= 1


def test_quantized_models_get_quantized_samples():
    spec = TensorSpec("audio", DataType.INT8, (1, 1600), Quantization(1 / 64, 3))
    profile = make_profile(spec, tables=make_tables(input={"sample_rate_hz": 16000}))

    rows = rows_of(make_wav(tone(16000), 16000, subtype="FLOAT"), profile)

    assert np.array_equal(rows[0], np.rint(tone(16000)[:1600, 0] * 64 + 3).astype(np.int8))


def test_several_sounds_become_rows():
    data = make_wav(tone(16000), 16000)

    assert prepare(sound_profile(), [data, data], limits=LIMITS).rows.shape == (2, 1600)


@pytest.mark.parametrize("shape", [(1600,), (1, -1)])
def test_several_sounds_for_a_model_of_one_are_refused(shape):
    data = make_wav(tone(16000), 16000)

    with pytest.raises(UnsupportedMedia, match="one sound at a time"):
        prepare(sound_profile(shape), [data, data], limits=LIMITS)


def test_a_sound_over_the_limit_is_refused_by_its_header():
    data = make_wav(tone(8000, seconds=2.0), 8000)

    with pytest.raises(TooLarge, match=r"2.0 s long; the limit is 1.5 s") as refusal:
        prepare(sound_profile(), [data], limits=MediaLimits(max_pixels=1, max_audio_s=1.5))

    assert refusal.value.unit == "seconds"


@pytest.mark.parametrize(
    "data",
    [
        wav_header(channels=0),
        wav_header(rate=0),
        wav_header(rate=3),
        wav_header(rate=0xFFFFFFFF),
        wav_header(channels=1000, data_bytes=64000),
        wav_header(bits=0),
        wav_header(data_bytes=0),
        wav_header()[:30],
        b"RIFF\x04\0\0\0WAVE",
        b"RIFF\xff\xff\xff\xffWAVE",
    ],
)
def test_a_header_that_cannot_be_true_is_refused(data):
    with pytest.raises(Malformed):
        rows_of(data)


def test_a_data_size_beyond_the_file_reads_what_is_there():
    rows = rows_of(wav_header(said_bytes=0xFFFFFFF0, data_bytes=1600))

    assert rows.shape == (1, 1600)


def test_a_file_cut_in_its_data_is_refused():
    data = make_wav(tone(16000), 16000)

    with pytest.raises(Malformed, match="ends early"):
        rows_of(data[:-1000])


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW", "GSM610", "IMA_ADPCM"])
def test_compressed_samples_are_refused(subtype):
    data = make_wav(tone(8000), 8000, subtype=subtype)

    with pytest.raises(UnsupportedMedia, match=r"send integer \(PCM\) or float WAV"):
        rows_of(data)


def test_an_unknown_sample_format_is_refused():
    with pytest.raises(UnsupportedMedia, match="coding 4660 is not taken"):
        rows_of(wav_header(tag=0x1234))


def test_a_float_file_with_numbers_that_are_none_is_passed_on():
    sound = np.full((1600, 1), np.nan, np.float32)

    assert np.isnan(rows_of(make_wav(sound, 16000, subtype="FLOAT"))).all()


def test_a_picture_model_takes_no_sound():
    with pytest.raises(UnsupportedMedia, match="takes a picture"):
        rows_of(make_wav(tone(16000), 16000), picture_profile())


def test_metadata_of_two_channels_is_followed():
    metadata = TensorMetadata(content="audio", sample_rate=16000, channels=2)
    spec = TensorSpec("audio", DataType.FP32, (1, 3200))

    profile = make_profile(spec, metadata=(metadata,))

    assert (profile.audio.channels, profile.audio.frames) == (2, 1600)
