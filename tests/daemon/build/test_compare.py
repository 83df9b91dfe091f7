"""How a loss is told: by right answers, by the best class, by numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accelerators.base import DataType, SignatureSpec, TensorSpec
from daemon.build.choose import Measure
from daemon.build.compare import (
    Comparison,
    best_class,
    count_classes,
    find_scores,
    is_binary,
    is_guess,
)
from daemon.build.errors import BadData
from daemon.pipeline.outputs import ClassificationOutput
from daemon.pipeline.profiles import InputKind, ModelProfile, OutputKind

TENSORS = ModelProfile(InputKind.TENSOR, OutputKind.TENSOR)


def signature(**shapes: tuple[int, ...]) -> SignatureSpec:
    specs = tuple(TensorSpec(name, DataType.FP32, shape) for name, shape in shapes.items())
    return SignatureSpec("serving_default", (TensorSpec("x", DataType.FP32, (1, 2)),), specs)


def row(*values: float, name: str = "y") -> dict[str, np.ndarray]:
    return {name: np.array([values], np.float32)}


class TestFindScores:
    def test_the_profiles_classes_come_first(self):
        output = ClassificationOutput("b", None, (), None, 5, None)
        profile = ModelProfile(InputKind.TENSOR, OutputKind.CLASSIFICATION, output=output)

        found = find_scores(signature(a=(1, 3), b=(1, 3)), profile, has_classes=False)

        assert found == "b"

    def test_without_classes_in_the_data_a_tensor_is_a_tensor(self):
        assert find_scores(signature(y=(1, 3)), TENSORS, has_classes=False) == ""

    def test_the_only_output_that_can_is_taken(self):
        shapes = {"map": (1, 4, 4, 2), "y": (-1, 3)}

        assert find_scores(signature(**shapes), TENSORS, has_classes=True) == "y"

    def test_one_number_tells_two_classes_apart(self):
        found = signature(y=(-1, 1))

        assert find_scores(found, TENSORS, has_classes=True) == "y"
        assert is_binary(found, "y")
        assert count_classes(found, "y") == 2

    @pytest.mark.parametrize(
        ("shapes", "told"),
        [
            ({"y": (1, 3), "z": (1, 5)}, "several outputs of the model could"),
            ({"y": (1, 4, 4, 2)}, "no output of the model could"),
        ],
    )
    def test_classes_that_no_or_two_outputs_could_tell_are_refused(self, shapes, told):
        with pytest.raises(BadData, match=told):
            find_scores(signature(**shapes), TENSORS, has_classes=True)


class TestAccuracy:
    def test_the_loss_is_the_difference_in_right_answers(self):
        comparison = Comparison("y")

        comparison.add(row(0.9, 0.1), row(0.8, 0.2), 0)
        comparison.add(row(0.9, 0.1), row(0.2, 0.8), 1)
        comparison.add(row(0.1, 0.9), row(0.2, 0.8), 1)
        comparison.add(row(0.1, 0.9), row(0.2, 0.8), 0)

        assert comparison.measure is Measure.ACCURACY
        assert (comparison.original_quality, comparison.quality) == (0.75, 0.5)
        assert comparison.loss == 0.25

    def test_being_better_than_the_original_is_no_loss(self):
        comparison = Comparison("y")

        comparison.add(row(0.9, 0.1), row(0.2, 0.8), 0)

        assert comparison.loss == 0.0

    def test_a_share_is_a_share_and_not_what_floats_make_of_it(self):
        comparison = Comparison("y")

        for number in range(100):
            comparison.add(row(1, 3 * (number < 97)), row(1, 3 * (number < 98)), 1)

        assert comparison.loss == 0.01

    def test_without_an_original_nothing_is_lost_that_anybody_knows_of(self):
        comparison = Comparison("y")

        comparison.add(row(0.9, 0.1), None, 1)

        assert (comparison.quality, comparison.loss) == (0.0, None)


class TestOneNumber:
    """It tells two classes apart."""

    def test_a_probability_does_by_whether_it_is_above_a_half(self):
        comparison = Comparison("y")

        comparison.add(row(0.4), row(0.3), 0)
        comparison.add(row(0.6), row(1.0), 1)

        assert (comparison.original_quality, comparison.quality) == (1.0, 1.0)

    def test_a_logit_does_by_whether_it_is_above_zero(self):
        comparison = Comparison("y")

        comparison.add(row(0.3), row(0.4), 1)
        comparison.add(row(-0.1), row(0.2), 1)
        comparison.add(row(-3.0), row(-4.0), 0)

        assert (comparison.original_quality, comparison.quality) == (1.0, 0.666666667)
        assert comparison.loss == 0.333333333

    def test_what_it_is_the_original_says(self):
        comparison = Comparison("y")

        comparison.add(row(1.01), row(1.0), 1)
        comparison.add(row(0.3), row(0.3), 0)

        assert comparison.quality == 1.0

    def test_without_an_original_the_model_itself(self):
        comparison = Comparison("y")

        comparison.add(row(0.3), None, 1)
        comparison.add(row(-3.0), None, 0)

        assert comparison.quality == 1.0


@pytest.mark.parametrize(
    ("accuracy", "classes", "guessed"),
    [(0.15, 10, True), (0.16, 10, False), (0.5, 2, True), (0.7, 2, False)],
)
def test_answers_that_may_be_guesses(accuracy, classes, guessed):
    assert is_guess(accuracy, classes) is guessed


def test_agreement_is_by_the_best_class():
    comparison = Comparison("y")

    comparison.add(row(0.9, 0.1), row(0.6, 0.4), None)
    comparison.add(row(0.9, 0.1), row(0.4, 0.6), None)

    assert comparison.measure is Measure.AGREEMENT
    assert (comparison.quality, comparison.loss) == (0.5, 0.5)


class TestDifference:
    def test_it_is_a_part_of_each_outputs_own_range(self):
        comparison = Comparison("")

        comparison.add(
            {**row(1.0, 2.0), **row(100.0, name="z")},
            {**row(1.0, 2.1), **row(110.0, name="z")},
            None,
        )
        comparison.add(
            {**row(3.0, 5.0), **row(300.0, name="z")},
            {**row(3.0, 5.0), **row(300.0, name="z")},
            None,
        )

        assert comparison.measure is Measure.DIFFERENCE
        assert comparison.loss == pytest.approx(10 / 190)
        assert comparison.quality == comparison.loss

    def test_of_an_output_that_never_changes_it_is_itself(self):
        comparison = Comparison("")

        comparison.add(row(2.0), row(2.5), None)

        assert comparison.loss == 0.5

    def test_text_differs_or_not(self):
        comparison = Comparison("")

        comparison.add({"y": np.array([b"a"], object)}, {"y": np.array([b"b"], object)}, None)

        assert comparison.loss == 1.0

    def test_a_shape_that_differs_is_a_whole_difference(self):
        comparison = Comparison("")

        comparison.add(row(1.0, 2.0), row(1.0), None)

        assert comparison.loss == 1.0

    def test_nan_in_the_variant_alone_is_a_problem(self):
        comparison = Comparison("")
        comparison.add(row(math.nan), row(math.nan), None)
        assert comparison.problem == ""

        comparison.add(row(math.nan), row(1.0), None)

        assert "NaN" in comparison.problem


def test_nothing_to_compare_with_is_no_measure():
    comparison = Comparison("")

    comparison.add(row(1.0), None, None)

    assert (comparison.measure, comparison.quality, comparison.loss) == (None, None, None)


def test_a_sound_that_is_scored_frame_by_frame_counts_by_its_mean():
    frames = np.array([[0.9, 0.1], [0.0, 0.3], [0.0, 0.3]], np.float32)

    assert best_class(frames) == 0
    assert best_class(frames[1:]) == 1
