"""Pixels become the numbers a model was trained on, whatever its input's type."""

from __future__ import annotations

import numpy as np
import pytest
from support.media_files import make_profile, make_tables, picture_spec

from accelerators.base import DataType, Quantization, TensorMetadata, TensorSpec
from daemon.pipeline.pixels import map_pixels

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


def mapped(datatype, quantization=None, *, mean=(), std=(), stated=False, pixels=RAMP):
    spec = TensorSpec("image", datatype, (1, *pixels.shape), quantization)
    channels = pixels.shape[2]
    how = map_pixels(spec, channels=channels, channel_axis=2, mean=mean, std=std, stated=stated)
    return how.apply(pixels)


def test_uint8_inputs_take_pixels_as_they_are_without_a_copy():
    spec = picture_spec()

    how = map_pixels(spec, channels=3, channel_axis=2, mean=(), std=(), stated=False)

    pixels = np.zeros((32, 32, 3), np.uint8)
    assert how.keeps_pixels
    assert how.apply(pixels) is pixels


def test_int8_inputs_take_pixels_less_128():
    values = mapped(DataType.INT8, Quantization(1.0, -128))

    assert values.dtype == np.int8
    assert values.ravel().tolist() == list(range(-128, 128))


def test_int8_inputs_of_mirrored_channels_are_contiguous():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)[:, :, ::-1]

    values = mapped(DataType.INT8, Quantization(1.0, -128), pixels=pixels)

    assert values.flags.c_contiguous
    assert np.array_equal(values, pixels.astype(int) - 128)


@pytest.mark.parametrize("datatype", [DataType.UINT8, DataType.INT32, DataType.UINT16])
def test_integers_without_quantization_take_pixels_as_they_are(datatype):
    values = mapped(datatype)

    assert values.dtype == datatype.dtype
    assert values.ravel().tolist() == list(range(256))


def test_floats_without_normalization_are_0_to_1():
    values = mapped(DataType.FP32)

    assert values.dtype == np.float32
    assert values.ravel() == pytest.approx(np.arange(256) / 255)


def test_floats_are_normalized_by_the_packed_mean_and_std():
    values = mapped(DataType.FP32, mean=(127.5,), std=(127.5,))

    assert np.array_equal(values, (RAMP.astype(np.float32) - 127.5) / np.float32(127.5))


def test_half_floats_are_normalized():
    values = mapped(DataType.FP16, mean=(128.0,), std=(128.0,))

    assert values.dtype == np.float16
    assert values.ravel() == pytest.approx((np.arange(256) - 128) / 128)


def test_each_channel_has_its_own_mean_and_std():
    pixels = np.full((2, 2, 3), 100, np.uint8)

    values = mapped(DataType.FP32, mean=(0.0, 50.0, 100.0), std=(1.0, 2.0, 4.0), pixels=pixels)

    assert values[0, 0].tolist() == [100.0, 25.0, 0.0]


def test_each_pixel_of_each_channel_is_normalized_to_the_last_bit():
    pixels = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

    values = mapped(DataType.FP32, mean=mean, std=std, pixels=pixels)

    assert values.flags.c_contiguous
    assert np.array_equal(values, (pixels - np.float32(mean)) / np.float32(std))


def test_each_channel_of_a_quantized_input_has_its_own_table():
    pixels = np.full((2, 2, 3), 100, np.uint8)

    values = mapped(
        DataType.INT8,
        Quantization(0.5, 0),
        mean=(0.0, 90.0, 100.0),
        std=(2.0, 2.0, 2.0),
        stated=True,
        pixels=pixels,
    )

    assert values[0, 0].tolist() == [100, 10, 0]


@pytest.mark.parametrize(("mean", "std"), [(127.5, 127.5), (128.0, 128.0), (0.0, 1.0)])
def test_a_quantized_twin_of_a_float_model_takes_raw_pixels(mean, std):
    values = mapped(DataType.UINT8, Quantization(1 / 128, 128), mean=(mean,), std=(std,))

    assert values.ravel().tolist() == list(range(256))


def test_a_quantization_unlike_the_pixels_is_computed():
    quantization = Quantization(0.02, 100)

    values = mapped(DataType.UINT8, quantization, mean=(123.0,), std=(58.0,))

    expected = np.clip(np.rint((np.arange(256) - 123.0) / 58.0 / 0.02) + 100, 0, 255)
    assert values.ravel().tolist() == expected.tolist()


def test_what_the_operator_states_is_obeyed_though_it_saturates():
    values = mapped(
        DataType.UINT8, Quantization(1 / 128, 128), mean=(0.0,), std=(1.0,), stated=True
    )

    assert values.ravel()[:3].tolist() == [128, 255, 255]


def test_16_bit_quantized_inputs_hold_0_to_1():
    values = mapped(DataType.INT16, Quantization(1 / 32768, 0))

    assert values.ravel()[[0, 128, 255]].tolist() == [0, round(128 / 255 * 32768), 32767]


def test_mean_and_std_of_an_integer_without_quantization_are_refused():
    with pytest.raises(ValueError, match="without quantization"):
        mapped(DataType.UINT8, mean=(1.0,), std=(1.0,), stated=True)


def test_a_mean_for_other_channels_is_refused():
    with pytest.raises(ValueError, match="2 numbers; the input has 3 channels"):
        make_profile(picture_spec(), tables=make_tables(input={"mean": [1.0, 2.0]}))


def test_packed_normalization_of_other_channels_is_not_used():
    spec = picture_spec(datatype=DataType.FP32, quantization=None)
    metadata = TensorMetadata(content="image", mean=(1.0, 2.0), std=(1.0, 2.0))

    profile = make_profile(spec, metadata=(metadata,))

    white = np.full((32, 32, 3), 255, np.uint8)
    assert profile.image.pixels.apply(white).max() == 1.0


def test_strings_hold_no_pixels():
    with pytest.raises(ValueError, match="holds BYTES"):
        make_profile(
            TensorSpec("text", DataType.BYTES, (1, 32, 32, 3)),
            tables=make_tables(input={"kind": "image"}),
        )
