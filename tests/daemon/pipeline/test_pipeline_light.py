"""Files that are decoded sooner than a thread could be asked to are told by how they begin."""

from __future__ import annotations

import struct

import pytest
from support.media_files import (
    LIMITS,
    encode,
    make_profile,
    make_wav,
    picture_profile,
    picture_spec,
    png_of_declared_size,
    random_picture,
    sound_profile,
    tone,
    wav_header,
)

from accelerators.base import DataType, TensorSpec
from daemon.errors import Malformed
from daemon.pipeline.light import is_light
from daemon.pipeline.media import prepare

DIGITS = picture_profile(picture_spec((1, 784)), kind="image")
SOUNDS = sound_profile()
DIGIT = encode(random_picture(28, 28, mode="L"))
WORD = make_wav(tone(16000, seconds=1.0), 16000)


def test_a_small_png_for_a_small_frame_is_light():
    assert is_light(DIGITS, [DIGIT])


def test_a_short_wav_of_the_models_rate_is_light():
    assert is_light(SOUNDS, [WORD])


def test_a_small_png_for_a_large_frame_is_not():
    assert not is_light(picture_profile(picture_spec((1, 224, 224, 3))), [DIGIT])


@pytest.mark.parametrize(
    "data",
    [
        encode(random_picture(65, 64, mode="L")),
        png_of_declared_size(60_000, 60_000),
        encode(random_picture(28, 28), "JPEG"),
        DIGIT + bytes(4096),
        DIGIT[:8] + struct.pack(">I", 13) + b"teSt" + DIGIT[16:],
        WORD,
    ],
    ids=["many pixels", "many pixels said", "JPEG", "many bytes", "no size", "sound"],
)
def test_other_pictures_are_not(data):
    assert not is_light(DIGITS, [data])


@pytest.mark.parametrize(
    "data",
    [
        make_wav(tone(8000), 8000),
        make_wav(tone(16000, seconds=3.0), 16000),
        WORD[:12] + b"LIST\4\0\0\0abcd" + WORD[12:],
        DIGIT,
    ],
    ids=["another rate", "long", "another part first", "picture"],
)
def test_other_sounds_are_not(data):
    assert not is_light(SOUNDS, [data])


@pytest.mark.parametrize("length", [0, 8, 12, 20])
def test_files_that_end_in_their_header_are_not(length):
    assert not is_light(DIGITS, [DIGIT[:length]])
    assert not is_light(SOUNDS, [WORD[:length]])


def test_several_files_are_not():
    assert not is_light(DIGITS, [DIGIT, DIGIT])


def test_nothing_is_light_for_a_model_of_tensors():
    tensors = make_profile(TensorSpec("x", DataType.FP32, (1, 4)))

    assert not is_light(tensors, [DIGIT])


def test_a_second_rate_that_would_need_resampling_is_refused():
    """What looked light by its first header cannot turn out to be heavy."""
    slow = wav_header(rate=1000)
    data = wav_header()[:36] + slow[12:36] + wav_header()[36:]

    assert is_light(SOUNDS, [data])
    with pytest.raises(Malformed):
        prepare(SOUNDS, [data], limits=LIMITS)
