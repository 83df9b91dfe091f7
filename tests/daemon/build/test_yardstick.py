"""Variants are asked the same items in the daemon's own workers."""

from __future__ import annotations

import os

import numpy as np
import pytest
from support import tflite_builder

from daemon.build.choose import Measure, Variant
from daemon.build.data import open_data
from daemon.build.errors import NotServable
from daemon.build.evaluate import evaluating
from daemon.build.rows import writing_rows
from daemon.build.yardstick import Yardstick
from daemon.config import parse_config


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    root = {"paths": {"root": str(tmp_path_factory.mktemp("root"))}}
    with evaluating(parse_config((), os.environ, arguments=root)) as workers:
        yield workers


def test_an_error_of_the_work_is_told_as_it_is(tmp_path):
    root = {"paths": {"root": str(tmp_path)}}
    config = parse_config((), os.environ, arguments=root)

    with pytest.raises(OSError, match="the disk is full"), evaluating(config):
        raise OSError("the disk is full")


def folder(tmp_path, model: bytes):
    place = tmp_path / "model"
    place.mkdir()
    (place / "model.tflite").write_bytes(model)
    return place


def yardstick(tmp_path, count: int, *, factor: float | None = None, scores: str = "", classes=()):
    """So many rows 1, 2, 3…; the original multiplies by `factor`, if there is one."""
    values = np.repeat(np.arange(1, count + 1, dtype=np.float32)[:, None], 4, axis=1)
    np.savez(tmp_path / "rows.npz", x=values)
    with writing_rows(tmp_path / "rows", ["x"]) as writer:
        for value in values:
            writer.add({"x": value[None]})
    originals = None
    if factor is not None:
        originals = tmp_path / "originals"
        with writing_rows(originals, ["y"]) as writer:
            for value in values:
                writer.add({"y": value[None] * np.float32(factor)})
    data = open_data(tmp_path / "rows.npz", most=10_000)
    return Yardstick(data, tmp_path / "rows", originals, tuple(classes), scores)


def test_the_same_answers_are_no_loss(evaluator, tmp_path):
    place = folder(tmp_path, tflite_builder.scale(2.0))

    figures, comparison = yardstick(tmp_path, 3, factor=2.0).measure(evaluator, Variant.NONE, place)

    assert comparison.measure is Measure.DIFFERENCE
    assert comparison.items == 3
    assert (figures.loss, figures.problem) == (0.0, "")
    assert figures.size_bytes == (place / "model.tflite").stat().st_size
    assert figures.latency_ms > 0


def test_a_difference_is_told_over_the_range_of_the_original(evaluator, tmp_path):
    place = folder(tmp_path, tflite_builder.scale(2.1))

    figures, _ = yardstick(tmp_path, 11, factor=2.0).measure(evaluator, Variant.INT8, place)

    assert figures.loss == pytest.approx(1.1 / 20, rel=1e-3)


def test_numbers_that_are_none_are_a_problem(evaluator, tmp_path):
    place = folder(tmp_path, tflite_builder.not_a_number_above(2.5))

    figures, _ = yardstick(tmp_path, 3, factor=2.0).measure(evaluator, Variant.INT8, place)

    assert "NaN" in figures.problem


def test_candidates_have_what_was_asked_and_what_came_of_it(evaluator, tmp_path):
    place = folder(tmp_path, tflite_builder.scale(3.0))
    look = evaluator.look(place)

    found = yardstick(tmp_path, 4).candidates(evaluator, place, look.profile)

    assert [item.name for item in found] == ["row 0", "row 1", "row 2", "row 3"]
    for item in found:
        assert np.array_equal(item.outputs["y"], item.inputs["x"] * 3)
    assert {item.expected for item in found} == {None}


def test_of_many_items_some_are_candidates_spread_over_all(evaluator, tmp_path):
    place = folder(tmp_path, tflite_builder.scale(3.0))
    look = evaluator.look(place)

    found = yardstick(tmp_path, 1200, factor=3.0).candidates(evaluator, place, look.profile)

    assert [item.name for item in found[:3]] == ["row 0", "row 3", "row 6"]
    assert len(found) == 400
    assert found[1].inputs["x"].tolist() == [[4.0, 4.0, 4.0, 4.0]]


def test_the_right_class_is_expected_else_the_originals(evaluator, tmp_path):
    place = folder(tmp_path, tflite_builder.scale(1.0))
    profile = evaluator.look(place).profile
    known = yardstick(tmp_path, 2, factor=1.0, scores="y", classes=(3, 1))
    unknown = yardstick(tmp_path, 2, factor=1.0, scores="y")

    assert [c.expected for c in known.candidates(evaluator, place, profile)] == ["3", "1"]
    assert [c.expected for c in unknown.candidates(evaluator, place, profile)] == ["0", "0"]


def test_a_model_that_cannot_be_served_is_told(evaluator, tmp_path):
    with pytest.raises(NotServable, match="the daemon cannot serve it"):
        evaluator.look(folder(tmp_path, b"no model"))


def test_a_folder_without_a_model_is_told(evaluator, tmp_path):
    with pytest.raises(NotServable, match="no model in"):
        evaluator.look(tmp_path)
