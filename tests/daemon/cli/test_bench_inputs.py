"""What a measured model is asked."""

from __future__ import annotations

import numpy as np
import pytest
from support.media_files import LIMITS, make_profile, make_wav, picture_profile, sound_profile, tone

from accelerators.base import DataType, SignatureSpec, TensorSpec
from daemon.cli.benchinputs import describe_inputs, random_rows, read_samples
from daemon.codec.validate import check_inputs


def signature(datatype, shape):
    return SignatureSpec("s", (TensorSpec("x", datatype, shape),), ())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "samples").mkdir()
    return tmp_path


def test_the_pictures_of_a_folder_are_asked_in_the_order_of_their_names(folder, demo_model):
    for name in ("trouser.png", "bag.png"):
        (folder / "samples" / name).write_bytes((demo_model / "samples" / name).read_bytes())
    profile = picture_profile()

    inputs = read_samples(folder, profile, LIMITS)

    (bag,) = read_samples(_only(folder, "trouser.png"), profile, LIMITS)
    assert [each["image"].shape for each in inputs] == [(1, 32, 32, 3)] * 2
    assert np.array_equal(inputs[0]["image"], bag["image"])


def _only(folder, other):
    (folder / "samples" / other).unlink()
    return folder


def test_the_sounds_of_a_folder_are_asked(folder):
    (folder / "samples" / "a.wav").write_bytes(make_wav(tone(16000), 16000))

    (inputs,) = read_samples(folder, sound_profile(), LIMITS)

    assert inputs["audio"].shape == (1, 1600)


def test_files_that_the_model_does_not_take_are_passed_over(folder):
    (folder / "samples" / "readme.txt").write_text("pictures")
    (folder / "samples" / "more").mkdir()

    assert read_samples(folder, picture_profile(), LIMITS) == []


def test_a_folder_without_samples_has_none(tmp_path):
    assert read_samples(tmp_path, picture_profile(), LIMITS) == []


def test_a_model_of_tensors_has_no_samples(folder):
    profile = make_profile(TensorSpec("x", DataType.FP32, (1, 3)))

    assert read_samples(folder, profile, LIMITS) == []


@pytest.mark.parametrize("datatype", DataType)
@pytest.mark.parametrize("shape", [(1,), (1, 4, 4), (-1, 3), (5,)])
def test_random_numbers_are_what_the_model_takes(datatype, shape):
    wanted = signature(datatype, shape)

    for inputs in random_rows(wanted, 1):
        check_inputs(wanted, 8, inputs)


def test_a_single_number_is_one_that_no_known_model_hangs_on():
    wanted = signature(DataType.FP32, ())

    for inputs in random_rows(wanted, 1):
        check_inputs(wanted, 1, inputs)
        assert 0 < inputs["x"] <= 1


def test_random_numbers_are_the_same_in_every_run():
    wanted = signature(DataType.FP32, (1, 50))

    first, second = random_rows(wanted, 1), random_rows(wanted, 1)

    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0]["x"], first[1]["x"])


def test_dimensions_that_callers_choose_get_the_size_asked_for_and_one_row():
    (first, *_) = random_rows(signature(DataType.UINT8, (-1, -1, -1, 3)), 64)

    assert first["x"].shape == (1, 64, 64, 3)


def test_numbers_that_may_be_indexes_are_small():
    (first, *_) = random_rows(signature(DataType.INT64, (1, 100)), 1)

    assert set(first["x"].flat) == {0, 1}


def test_inputs_are_told_by_datatype_and_shape():
    (first, *_) = random_rows(signature(DataType.UINT8, (1, 28, 28, 1)), 1)

    assert describe_inputs(first) == "uint8 [1, 28, 28, 1]"
