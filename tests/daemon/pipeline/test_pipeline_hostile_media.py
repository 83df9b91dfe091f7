"""No picture or sound, however made, gets more than a clear refusal out of the pipeline."""

from __future__ import annotations

import random
import struct

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.media_files import (
    LIMITS,
    SCORES,
    encode,
    exif_bytes,
    gif_with_frame,
    make_profile,
    make_wav,
    picture_profile,
    png_of_declared_size,
    random_picture,
    sound_profile,
    tone,
    webp_of_declared_size,
)

from accelerators.base import DataType, TensorSpec
from daemon.errors import Malformed, RequestError, TooLarge, UnsupportedMedia
from daemon.pipeline.media import prepare

PICTURES = picture_profile()
SOUNDS = sound_profile()
TENSORS = make_profile(TensorSpec("x", DataType.FP32, (1, 4)), outputs=(SCORES,))
PARTS = 70_000
"""More than the pipeline lets a decoder look at."""


def whole_files():
    picture = random_picture()
    return {
        "JPEG": encode(picture, "JPEG", exif=exif_bytes(6)),
        "progressive JPEG": encode(picture, "JPEG", progressive=True),
        "CMYK JPEG": encode(picture.convert("CMYK"), "JPEG"),
        "PNG": encode(picture, exif=exif_bytes(6)),
        "palette PNG": encode(picture.quantize(64), transparency=bytes(range(64))),
        "WebP": encode(picture, "WEBP", exif=exif_bytes(6)),
        "lossless WebP": encode(picture, "WEBP", lossless=True),
        "BMP": encode(picture, "BMP"),
        "GIF": encode(picture, "GIF", save_all=True, append_images=[random_picture(seed=1)]),
    }


FILES = whole_files()
SOUND_FILES = {
    "PCM_16": make_wav(tone(16000), 16000),
    "FLOAT": make_wav(tone(44100, channels=2), 44100, subtype="FLOAT"),
    "PCM_24": make_wav(tone(8000), 8000, subtype="PCM_24", kind="WAVEX"),
}


def take(profile, data):
    return prepare(profile, [data], limits=LIMITS)


def refused_or_taken(profile, data):
    """True when the pipeline says why it refuses, or gives one row."""
    try:
        return take(profile, data).rows.shape[0] == 1
    except RequestError as refusal:
        return bool(str(refusal))


@pytest.mark.parametrize(
    "data",
    [
        png_of_declared_size(60_000, 60_000),
        png_of_declared_size(1001, 1000),
        webp_of_declared_size(16_383, 16_383),
        gif_with_frame((65_535, 65_535), (1, 1)),
        gif_with_frame((1, 1), (65_535, 65_535)),
        gif_with_frame((1, 1), (10_000, 10_000)),
    ],
)
def test_a_picture_bomb_is_refused_by_its_header(data):
    before = psutil.Process().memory_info().rss

    with pytest.raises(TooLarge, match="the limit is 1000000 pixels") as refusal:
        take(PICTURES, data)

    assert (refusal.value.limit, refusal.value.unit) == (1_000_000, "pixels")
    assert psutil.Process().memory_info().rss - before < 50_000_000


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "PNG"])
def test_a_real_picture_over_the_limit_is_refused(kind):
    data = encode(Image.new("L", (1100, 1000)), kind)

    with pytest.raises(TooLarge, match="1100 x 1000 pixels"):
        take(PICTURES, data)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", FILES)
def test_a_picture_that_ends_early_is_refused(name, part):
    data = FILES[name]
    if name == "GIF":
        data = encode(random_picture(), "GIF")

    with pytest.raises(Malformed, match="damaged or ends early"):
        take(PICTURES, data[: int(len(data) * part)])


@pytest.mark.parametrize(
    "data",
    [
        png_of_declared_size(0, 10),
        png_of_declared_size(10, 0),
        gif_with_frame((0, 0), (0, 0)),
        b"BM" + bytes(60),
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\x04\0\0\0WEBP",
    ],
)
def test_a_picture_of_nothing_is_refused(data):
    with pytest.raises(Malformed, match="damaged or ends early"):
        take(PICTURES, data)


def jpeg_of_parts(part):
    data = FILES["progressive JPEG"]
    return data[:2] + part * PARTS + data[2:]


def jpeg_of_scans():
    data = FILES["progressive JPEG"]
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * 300 + data[-2:]


def gif_of_extensions():
    data = encode(random_picture(), "GIF")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + b"!\xfe\0" * PARTS + data[start:]


def png_of_chunks():
    data = FILES["PNG"]
    return data[:33] + b"\0\0\0\0teSt\x9c\x51\x36\x55" * PARTS + data[33:]


@pytest.mark.parametrize(
    "data",
    [
        jpeg_of_parts(b"\xff\xfe\0\2"),
        jpeg_of_parts(b"\xff\xff"),
        jpeg_of_scans(),
        gif_of_extensions(),
        png_of_chunks(),
    ],
    ids=["JPEG segments", "JPEG fill", "JPEG scans", "GIF extensions", "PNG chunks"],
)
def test_a_picture_made_to_keep_the_decoder_busy_is_refused(data):
    with pytest.raises(Malformed, match="has more than"):
        take(PICTURES, data)


def test_run_length_bmp_is_refused():
    data = bytearray(encode(random_picture(mode="L"), "BMP"))
    data[30] = 1

    with pytest.raises(UnsupportedMedia, match="without compression"):
        take(PICTURES, bytes(data))


def test_a_false_animation_header_does_not_warn():
    data = FILES["PNG"]
    control = struct.pack(">I", 8) + b"acTL" + bytes(8)

    with pytest.raises(RequestError):
        take(PICTURES, data[:33] + control + struct.pack(">I", 0) + data[33:])


@pytest.mark.parametrize(
    ("profile", "data", "message"),
    [
        (PICTURES, SOUND_FILES["PCM_16"], "takes a picture .* what was sent is a WAV sound"),
        (PICTURES, b"plain text", "takes a picture .* what was sent is none of these"),
        (SOUNDS, FILES["PNG"], "takes a sound .* what was sent is a PNG picture"),
        (SOUNDS, b"fLaC" + bytes(100), "takes a sound .* none of these"),
        (TENSORS, FILES["PNG"], "takes tensors"),
    ],
)
def test_the_wrong_kind_is_refused_with_the_right_one(profile, data, message):
    with pytest.raises(UnsupportedMedia, match=message):
        take(profile, data)


@pytest.mark.parametrize("profile", [PICTURES, SOUNDS])
def test_an_empty_body_is_refused(profile):
    with pytest.raises(Malformed, match="the body is empty"):
        take(profile, b"")


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    start=st.sampled_from([data[:20] for data in (*FILES.values(), *SOUND_FILES.values())]),
    rest=st.binary(max_size=2000),
)
def test_random_bytes_behind_a_true_beginning_are_refused_or_taken(start, rest):
    assert refused_or_taken(PICTURES, start + rest)
    assert refused_or_taken(SOUNDS, start + rest)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    name=st.sampled_from([*FILES, *SOUND_FILES]),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    ),
)
def test_changed_bytes_are_refused_or_taken(name, changes):
    data = bytearray(FILES.get(name) or SOUND_FILES[name])
    for where, value in changes:
        data[int(where * min(len(data), 400))] = value

    assert refused_or_taken(PICTURES, bytes(data))
    assert refused_or_taken(SOUNDS, bytes(data))


def damaged(source, rounds):
    """Refuse or take `rounds` damaged files; how many were refused."""
    files = [*FILES.values(), *SOUND_FILES.values()]
    refused = 0
    for _ in range(rounds):
        data = bytearray(source.choice(files))
        data[source.randrange(8, min(len(data), 300))] ^= 1 << source.randrange(8)
        cut = data[: source.randrange(20, len(data))]
        for profile in (PICTURES, SOUNDS):
            try:
                take(profile, bytes(cut))
            except RequestError:
                refused += 1
    return refused


def test_memory_does_not_grow_over_refusals():
    source = random.Random(5)
    damaged(source, 1000)
    before = psutil.Process().memory_info().rss

    refused = damaged(source, 5000)

    assert refused > 5000
    assert psutil.Process().memory_info().rss - before < 8_000_000
