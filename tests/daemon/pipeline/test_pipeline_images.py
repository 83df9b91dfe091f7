"""A picture of any format, depth, size and orientation becomes the model's frame."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from support.media_files import (
    LIMITS,
    encode,
    exif_bytes,
    picture_profile,
    picture_spec,
    random_picture,
)

from accelerators.base import DataType
from daemon.pipeline import images
from daemon.pipeline.images import Placement
from daemon.pipeline.media import MediaLimits, prepare

GRAY = picture_spec((1, 32, 32, 1))
STORED_FROM_UPRIGHT = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def rows_of(data, profile=None, *, limits=LIMITS):
    return prepare(profile or picture_profile(), [data], limits=limits).rows


def resized(picture, size=(32, 32), mode="RGB"):
    return np.asarray(picture.convert(mode).resize(size, Image.Resampling.BILINEAR))


def largest_difference(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP"])
def test_lossless_formats_give_the_antialiased_bilinear_resize(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = random_picture()
    if kind == "GIF":
        picture = picture.quantize(200)

    rows = rows_of(encode(picture, kind, **options))

    assert rows.shape == (1, 32, 32, 3)
    assert rows.dtype == np.uint8
    assert rows.flags.c_contiguous
    assert np.array_equal(rows[0], resized(picture))


def test_a_jpeg_is_decoded():
    picture = random_picture(200, 160)

    rows = rows_of(encode(picture, "JPEG", quality=95))

    assert largest_difference(rows[0], resized(picture)) < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_png_mode_becomes_rgb_with_its_transparency_dropped(mode):
    picture = random_picture(32, 32).convert(mode)

    rows = rows_of(encode(picture))

    expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(rows[0], expected)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_palette_with_transparency_keeps_the_colours_under_it(transparency):
    picture = random_picture(32, 32).quantize(256)

    rows = rows_of(encode(picture, transparency=transparency))

    assert np.array_equal(rows[0], np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("spec", [picture_spec(), GRAY])
def test_16_bit_grey_keeps_its_high_byte(spec):
    deep = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64

    rows = rows_of(encode(Image.fromarray(deep)), picture_profile(spec))

    assert np.array_equal(rows[0, :, :, 0], (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize("spec", [picture_spec(), GRAY])
def test_a_cmyk_jpeg_is_taken(spec):
    picture = random_picture(64, 64)

    rows = rows_of(encode(picture.convert("CMYK"), "JPEG", quality=95), picture_profile(spec))

    expected = resized(picture, mode="RGB" if spec is not GRAY else "L")
    assert largest_difference(rows[0], expected.reshape(rows[0].shape)) < 40


def test_a_grey_model_gets_the_luma():
    picture = random_picture()

    rows = rows_of(encode(picture), picture_profile(GRAY))

    assert np.array_equal(rows[0, :, :, 0], resized(picture, mode="L"))


def test_a_bgr_model_gets_blue_first():
    picture = random_picture()

    rows = rows_of(encode(picture), picture_profile(color="bgr"))

    assert np.array_equal(rows[0], resized(picture)[:, :, ::-1])
    assert rows.flags.c_contiguous


def test_a_channels_first_model_gets_planes():
    picture = random_picture()
    spec = picture_spec((1, 3, 32, 32), DataType.FP32, None)

    rows = rows_of(encode(picture), picture_profile(spec, mean=(0, 10, 20), std=(1, 2, 4)))

    planes = resized(picture).astype(np.float32).transpose(2, 0, 1)
    mean, std = np.float32([[[0]], [[10]], [[20]]]), np.float32([[[1]], [[2]], [[4]]])
    assert rows.shape == (1, 3, 32, 32)
    assert rows.flags.c_contiguous
    assert np.array_equal(rows[0], (planes - mean) / std)


def test_a_model_of_four_channels_gets_the_transparency():
    picture = Image.new("RGBA", (32, 32), (10, 20, 30, 40))

    rows = rows_of(encode(picture), picture_profile(picture_spec((1, 32, 32, 4))))

    assert rows[0, 5, 5].tolist() == [10, 20, 30, 40]


def test_a_flat_model_gets_one_row_of_pixels():
    picture = random_picture(28, 28, mode="L")
    spec = picture_spec((1, 784))

    rows = rows_of(encode(picture), picture_profile(spec, kind="image"))

    assert np.array_equal(rows, np.asarray(picture).reshape(1, 784))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_a_moving_picture_gives_its_first_frame(kind):
    first, second = (Image.new("RGB", (32, 32), color) for color in ("red", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}

    data = encode(first, kind, save_all=True, append_images=[second], **options)

    assert rows_of(data)[0, 16, 16].tolist() == [255, 0, 0]


def test_the_content_decides_not_the_name():
    transparent_png = encode(random_picture(32, 32).convert("RGBA"))

    assert rows_of(transparent_png).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_orientation_is_honoured(kind, orientation, resize):
    upright = random_picture(60, 40)
    turn = STORED_FROM_UPRIGHT[orientation]
    stored = upright.transpose(turn) if turn is not None else upright
    options = {"lossless": True} if kind == "WEBP" else {}
    options |= {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    profile = picture_profile(resize=resize)

    turned = prepare(
        profile, [encode(stored, kind, exif=exif_bytes(orientation), **options)], limits=LIMITS
    )

    straight = prepare(profile, [encode(upright)], limits=LIMITS)
    allowed = 12 if kind == "JPEG" else 1
    assert largest_difference(turned.rows, straight.rows) <= allowed
    assert turned.placements == straight.placements


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x04\0\x01\0\0\0\x06\0\0\0",
        exif_bytes(1)[:-3],
    ],
)
def test_exif_that_says_nothing_is_passed_over(exif):
    picture = random_picture()

    rows = rows_of(encode(picture, "JPEG", exif=exif, quality=95))

    assert np.array_equal(rows, rows_of(encode(picture, "JPEG", quality=95)))


def test_damaged_exif_fields_of_a_jpeg_warn_nobody():
    """Pillow's own search would warn with text from the file; warnings are errors here."""
    field = b"\x1a\x01\x05\x00\xff\xff\xff\x7f\xff\xff\xff\x7f"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + field + bytes(4)

    assert rows_of(encode(random_picture(), "JPEG", exif=exif)).shape == (1, 32, 32, 3)


def test_letterbox_keeps_the_aspect_and_fills_with_black():
    white = Image.new("RGB", (64, 32), "white")

    media = prepare(picture_profile(resize="letterbox"), [encode(white)], limits=LIMITS)

    frame = media.rows[0, :, :, 0]
    assert not frame[:8].any()
    assert (frame[8:24] == 255).all()
    assert not frame[24:].any()
    assert media.placements == (Placement(shift_y=-0.5, scale_y=2.0, shift_x=0.0, scale_x=1.0),)


def test_crop_takes_the_largest_centred_part():
    picture = Image.new("RGB", (64, 32), "black")
    picture.paste("white", (16, 0, 48, 32))

    media = prepare(picture_profile(resize="crop"), [encode(picture)], limits=LIMITS)

    assert (media.rows == 255).all()
    assert media.placements == (Placement(shift_y=0.0, scale_y=1.0, shift_x=0.25, scale_x=0.5),)


def test_stretch_uses_the_whole_picture():
    media = prepare(picture_profile(), [encode(random_picture())], limits=LIMITS)

    assert media.placements == (None,)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_extreme_shapes_are_fitted(resize, size):
    data = encode(Image.new("RGB", size, "white"))

    assert rows_of(data, picture_profile(resize=resize)).max() == 255


LARGE = MediaLimits(max_pixels=12_000_000, max_audio_s=1.0)


def sharp_jpeg(width, height):
    """A JPEG whose neighbouring pixels differ: what a smaller decoding could lose."""
    smooth = np.asarray(random_picture(width, height), np.int16)
    grain = np.random.default_rng(1).integers(-30, 31, (height, width, 1), dtype=np.int16)
    picture = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
    return encode(picture, "JPEG", quality=90)


def frame_of(side, **table):
    return picture_profile(picture_spec((1, side, side, 3)), **table)


@pytest.mark.parametrize(
    ("size", "side"), [((1280, 720), 224), ((1280, 720), 32), ((1200, 1000), 300)]
)
def test_a_jpeg_of_a_megapixel_or_near_the_frame_gives_the_pixels_of_the_whole(size, side):
    data = sharp_jpeg(*size)

    rows = rows_of(data, frame_of(side), limits=LARGE)

    with Image.open(io.BytesIO(data)) as whole:
        assert np.array_equal(rows[0], resized(whole, (side, side)))


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize(
    ("size", "side"), [((1920, 1080), 224), ((1080, 1920), 128), ((4000, 3000), 224)]
)
def test_a_large_jpeg_is_decoded_small_without_a_difference_that_matters(
    size, side, resize, monkeypatch
):
    """On average less than the 2/3 that pixels move which are off by -1, 0 or 1 at random."""
    data = sharp_jpeg(*size)
    profile = frame_of(side, resize=resize)

    fast = rows_of(data, profile, limits=LARGE).astype(int)

    monkeypatch.setattr(images, "_DRAFT_MIN_PIXELS", LARGE.max_pixels + 1)
    differences = np.abs(fast - rows_of(data, profile, limits=LARGE))
    assert 0 < differences.mean() < 0.67
    assert differences.max() <= 12


def test_several_pictures_become_rows_in_their_order():
    pictures = [random_picture(seed=seed) for seed in range(3)]

    media = prepare(picture_profile(), [encode(picture) for picture in pictures], limits=LIMITS)

    assert media.rows.shape == (3, 32, 32, 3)
    assert media.placements == (None, None, None)
    assert [np.array_equal(a, resized(b)) for a, b in zip(media.rows, pictures, strict=True)] == [
        True,
        True,
        True,
    ]
