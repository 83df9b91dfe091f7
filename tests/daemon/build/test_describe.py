"""What the daemon knows of a model is what its metadata will say."""

from __future__ import annotations

import pytest
from support import tflite_builder
from support.media_files import make_profile, make_report, picture_profile, picture_spec

from accelerators.base import DataType, TensorMetadata, TensorSpec
from accelerators.flatbuffer import DamagedFile
from daemon.build.describe import describe, is_default_first
from daemon.modelfile import parse_model_file

FLOATS = picture_spec((1, 32, 32, 3), DataType.FP32, None)


def described(spec, profile, *, is_first=True, labels=(), description="", **metadata):
    return describe(
        make_report([spec], **metadata),
        profile,
        name="m",
        version=3,
        description=description,
        labels=labels,
        is_first=is_first,
    )


def test_a_picture_gets_the_mean_and_std_that_the_daemon_uses():
    said = described(FLOATS, picture_profile(FLOATS, mean=127.5, std=[1.0, 2.0, 4.0]))

    assert said.inputs[0].content == "image"
    assert said.inputs[0].mean == (127.5,)
    assert said.inputs[0].std == (1.0, 2.0, 4.0)
    assert (said.name, said.version) == ("m", "3")


def test_also_where_they_are_the_default():
    said = described(FLOATS, picture_profile(FLOATS))

    assert (said.inputs[0].mean, said.inputs[0].std) == ((0.0,), (255.0,))


def test_raw_pixels_get_none():
    said = described(picture_spec(), picture_profile())

    assert said.inputs[0].content == "image"
    assert (said.inputs[0].mean, said.inputs[0].std) == ((), ())


def test_a_sound_gets_its_rate_and_channels():
    spec = TensorSpec("audio", DataType.FP32, (1, 1600))
    tables = parse_model_file("[input]\nsample_rate_hz = 16000")

    said = described(spec, make_profile(spec, tables=tables))

    assert said.inputs[0].content == "audio"
    assert (said.inputs[0].sample_rate, said.inputs[0].channels) == (16000, 1)


def test_labels_go_to_the_output_that_they_name():
    labels = tuple(f"label {n}" for n in range(10))

    said = described(FLOATS, make_profile(FLOATS, labels=labels), labels=labels)

    assert said.outputs[0].labels == labels


def test_what_the_file_says_already_stays():
    old = TensorMetadata(name="scores", description="per class", labels=("a",) * 10)

    said = described(FLOATS, make_profile(FLOATS, out=(old,)), outputs_metadata=(old,))

    assert said.outputs[0] == old


def test_nothing_is_said_of_tensors_that_are_another_signatures():
    said = described(FLOATS, picture_profile(FLOATS), is_first=False, description="text")

    assert (said.name, said.description) == ("m", "text")
    assert (said.inputs, said.outputs) == ((), ())


def test_the_default_signature_may_be_the_second_of_a_file():
    data = tflite_builder.two_signatures()

    assert is_default_first(data, "add")
    assert not is_default_first(data, "mul")


def test_a_file_without_signatures_has_one_that_comes_first():
    assert is_default_first(tflite_builder.scale(), "serving_default")


def test_a_damaged_file_is_told():
    with pytest.raises(DamagedFile):
        is_default_first(b"\xff\xff\xff\x7f", "x")
