"""Outputs become labels, boxes and masks of what was sent."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image
from support.media_files import make_profile, make_tables, picture_spec

from accelerators.base import (
    DataType,
    Quantization,
    ScoreCalibration,
    ScoreTransformation,
    TensorMetadata,
    TensorSpec,
)
from daemon.errors import PredictionFailed
from daemon.pipeline.images import Placement
from daemon.pipeline.meaning import interpret
from daemon.tensors import Category, Classification, ClassShare

ANIMALS = ("cat", "dog", "bird")


def classifier(datatype=DataType.FP32, quantization=None, *, classes=3, labels=ANIMALS, **output):
    spec = TensorSpec("scores", datatype, (1, classes), quantization)
    tables = make_tables(output=output)
    return make_profile(picture_spec(), outputs=(spec,), labels=labels, tables=tables)


def classify(profile, scores, *, rows=1, **options):
    return interpret(profile, {"scores": scores}, rows=rows, **options)


def listed(meaning):
    return [(category.label, category.score) for category in meaning.categories]


def test_classes_are_listed_best_first():
    (meaning,) = classify(classifier(), np.float32([[0.25, 0.5, 0.125]]))

    assert meaning == Classification(
        (Category("dog", 1, 0.5), Category("cat", 0, 0.25), Category("bird", 2, 0.125))
    )


def test_quantized_scores_are_real_ones():
    profile = classifier(DataType.UINT8, Quantization(1 / 256, 0))

    (meaning,) = classify(profile, np.uint8([[64, 128, 0]]))

    assert listed(meaning) == [("dog", 0.5), ("cat", 0.25), ("bird", 0.0)]


def test_each_row_has_its_own_answer():
    profile = classifier(top_k=1)

    meanings = classify(profile, np.eye(3, dtype=np.float32), rows=3)

    assert [listed(meaning) for meaning in meanings] == [[(name, 1.0)] for name in ANIMALS]


def test_frames_of_one_sound_are_averaged():
    (meaning,) = classify(classifier(), np.float32([[1, 0, 0], [0, 0.5, 0]]))

    assert listed(meaning) == [("cat", 0.5), ("dog", 0.25), ("bird", 0.0)]


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, ["dog", "cat"]),
        ({"top_k": 1}, ["dog"]),
        ({"top_k": 9}, ["dog", "cat", "bird"]),
        ({"threshold": 0.3}, ["dog"]),
        ({"top_k": 3, "threshold": 0.25}, ["dog", "cat"]),
        ({"threshold": 2.0}, []),
    ],
)
def test_the_request_bounds_the_list_before_the_model_does(options, labels):
    profile = classifier(top_k=2)

    (meaning,) = classify(profile, np.float32([[0.25, 0.5, 0.125]]), **options)

    assert [category.label for category in meaning.categories] == labels


def test_nan_is_last_and_under_every_threshold():
    scores = np.float32([[math.nan, -math.inf, 0.5]])

    (plain,) = classify(classifier(), scores)
    (bounded,) = classify(classifier(), scores, threshold=-math.inf)

    assert [category.label for category in plain.categories] == ["bird", "dog", "cat"]
    assert [category.label for category in bounded.categories] == ["bird", "dog"]


def test_classes_without_a_label_are_named_by_their_index():
    profile = classifier(classes=4, labels=("cat", "???"))

    (meaning,) = classify(profile, np.float32([[4, 3, 2, 1]]))

    assert [category.label for category in meaning.categories] == ["cat", "1", "2", "3"]


def test_calibrated_scores_decide_the_order():
    lines = ((1.0, 1.0, -9.0, None), (1.0, 1.0, 9.0, None))
    calibration = ScoreCalibration(ScoreTransformation.IDENTITY, 0.0, lines)
    metadata = (TensorMetadata(calibration=calibration),)
    spec = TensorSpec("scores", DataType.FP32, (1, 2))
    profile = make_profile(picture_spec(), outputs=(spec,), out=metadata, labels=ANIMALS)

    (meaning,) = classify(profile, np.float32([[0.9, 0.1]]))

    assert [category.label for category in meaning.categories] == ["dog", "cat"]
    assert meaning.categories[0].score == pytest.approx(1 / (1 + math.exp(-9.1)))


def test_scores_that_do_not_fit_the_rows_are_the_models_failure():
    with pytest.raises(PredictionFailed, match="'scores' has shape"):
        classify(classifier(), np.zeros((1, 3), np.float32), rows=2)
    with pytest.raises(PredictionFailed, match="'scores' has shape"):
        classify(classifier(), np.zeros((0, 3), np.float32))


def test_a_model_of_tensors_has_no_meaning():
    profile = make_profile(TensorSpec("x", DataType.FP32, (1, 4)))

    assert interpret(profile, {"scores": np.zeros((1, 10), np.float32)}, rows=1) == ()


def detector(*, count=True, calibration=None, **output):
    names = ("boxes", "classes", "scores", *(("count",) if count else ()))
    outputs = tuple(TensorSpec(name, DataType.FP32, ()) for name in names)
    metadata = tuple(
        TensorMetadata(name=name, calibration=calibration if name == "scores" else None)
        for name in names
    )
    tables = make_tables(output=output)
    return make_profile(
        picture_spec(), outputs=outputs, out=metadata, labels=ANIMALS, tables=tables
    )


def detect(profile, found, *, count=None, rows=1, **options):
    """Interpret (class, score, box) triples of one row, repeated for every row."""
    classes, scores, boxes = zip(*found, strict=True)
    outputs = {
        "boxes": np.float32([boxes] * rows),
        "classes": np.float32([classes] * rows),
        "scores": np.float32([scores] * rows),
        "count": np.float32([len(found) if count is None else count] * rows),
    }
    return interpret(profile, outputs, rows=rows, **options)


BOX = (0.25, 0.25, 0.5, 0.75)


def found_in(meanings):
    return [(box.label, box.index, box.score) for box in meanings[0].boxes]


def test_boxes_are_listed_best_first_with_their_labels():
    meanings = detect(detector(), [(0, 0.25, BOX), (2, 0.75, BOX), (7, 0.5, BOX)])

    assert found_in(meanings) == [("bird", 2, 0.75), ("7", 7, 0.5), ("cat", 0, 0.25)]
    assert meanings[0].boxes[0].box == BOX


@pytest.mark.parametrize(("count", "kept"), [(0, 0), (1, 1), (2, 2), (9, 2), (-3, 0)])
def test_the_models_count_is_honoured(count, kept):
    meanings = detect(detector(), [(0, 0.9, BOX), (1, 0.8, BOX)], count=count)

    assert len(meanings[0].boxes) == kept


def test_a_count_that_is_no_number_or_missing_means_all():
    found = [(0, 0.9, BOX), (1, 0.8, BOX)]

    assert len(detect(detector(), found, count=math.nan)[0].boxes) == 2
    assert len(detect(detector(count=False), found)[0].boxes) == 2


def test_all_boxes_are_given_unless_somebody_bounds_them():
    found = [(0, score / 20, BOX) for score in range(20)]

    assert len(detect(detector(), found)[0].boxes) == 20
    assert len(detect(detector(threshold=0.5), found)[0].boxes) == 10
    assert len(detect(detector(threshold=0.5), found, threshold=0.87)[0].boxes) == 2
    assert len(detect(detector(top_k=3), found)[0].boxes) == 3
    assert len(detect(detector(top_k=3), found, top_k=4)[0].boxes) == 4


def test_boxes_end_at_the_edges_of_the_picture():
    meanings = detect(detector(), [(0, 0.9, (-0.5, 0.25, 1.5, 2.0))])

    assert meanings[0].boxes[0].box == (0.0, 0.25, 1.0, 1.0)


def test_boxes_that_are_no_numbers_are_left_out():
    bad = [(0, 0.9, (math.nan, 0, 1, 1)), (0, 0.9, (0, 0, math.inf, 1)), (math.nan, 0.9, BOX)]

    meanings = detect(detector(), [*bad, (1, math.nan, BOX), (2, 0.1, BOX)])

    assert [box.label for box in meanings[0].boxes] == ["bird", "dog"]


def test_box_edges_are_taken_in_the_models_order():
    profile = detector(box_order="xmin_ymin_xmax_ymax")

    meanings = detect(profile, [(0, 0.9, (0.1, 0.2, 0.3, 0.4))])

    assert meanings[0].boxes[0].box == pytest.approx((0.2, 0.1, 0.4, 0.3))


def test_boxes_of_a_fitted_picture_are_placed_on_the_picture_that_was_sent():
    placement = Placement(shift_y=-0.5, scale_y=2.0, shift_x=0.25, scale_x=0.5)

    meanings = detect(detector(), [(0, 0.9, (0.25, 0.0, 0.5, 1.0))], placements=(placement,))

    assert meanings[0].boxes[0].box == (0.0, 0.25, 0.5, 0.75)


def test_each_picture_of_a_batch_has_its_own_boxes():
    meanings = detect(detector(), [(0, 0.9, BOX)], rows=2, placements=(None, None))

    assert [len(meaning.boxes) for meaning in meanings] == [1, 1]


def test_detections_are_calibrated_by_their_class():
    lines = ((1.0, 0.0, 2.0, None), (1.0, 0.0, -2.0, None))
    calibration = ScoreCalibration(ScoreTransformation.IDENTITY, 0.0, lines)

    meanings = detect(detector(calibration=calibration), [(1, 0.9, BOX), (0, 0.1, BOX)])

    assert [box.label for box in meanings[0].boxes] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("boxes", np.zeros((1, 3), np.float32)),
        ("boxes", np.zeros((0, 4), np.float32)),
        ("classes", np.zeros((1, 3), np.float32)),
        ("scores", np.zeros((1, 1), np.float32)),
        ("count", np.zeros((2,), np.float32)),
    ],
)
def test_detections_that_do_not_fit_each_other_are_the_models_failure(name, values):
    outputs = {
        "boxes": np.zeros((1, 2, 4), np.float32),
        "classes": np.zeros((1, 2), np.float32),
        "scores": np.zeros((1, 2), np.float32),
        "count": np.zeros((1,), np.float32),
    } | {name: values}

    with pytest.raises(PredictionFailed, match=f"'{name}' has shape"):
        interpret(detector(), outputs, rows=1)


def segmenter(shape, datatype=DataType.INT64, quantization=None, **output):
    spec = TensorSpec("mask", datatype, shape, quantization)
    tables = make_tables(output={"kind": "segmentation", **output})
    return make_profile(picture_spec(), outputs=(spec,), labels=ANIMALS, tables=tables)


def segment(profile, values, *, rows=1, **options):
    return interpret(profile, {"mask": values}, rows=rows, **options)


def pixels_of(meaning):
    with Image.open(io.BytesIO(meaning.mask_png)) as picture:
        return picture.mode, np.asarray(picture)


def test_a_map_of_class_numbers_is_the_mask():
    classes = np.int64([[[0, 2, 2], [2, 1, 9]]])

    (meaning,) = segment(segmenter((1, 2, 3)), classes)

    mode, pixels = pixels_of(meaning)
    assert (mode, meaning.width, meaning.height) == ("L", 3, 2)
    assert np.array_equal(pixels, classes[0])
    assert meaning.shares == (
        ClassShare("bird", 2, 0.5),
        ClassShare("cat", 0, 1 / 6),
        ClassShare("dog", 1, 1 / 6),
        ClassShare("9", 9, 1 / 6),
    )


def test_a_map_with_a_last_dimension_of_one_is_a_mask_too():
    classes = np.int32([[[[0], [1]], [[1], [1]]]])

    (meaning,) = segment(segmenter((1, 2, 2, 1), DataType.INT32), classes)

    assert np.array_equal(pixels_of(meaning)[1], classes[0, :, :, 0])


def test_the_best_of_several_scores_is_the_class():
    scores = np.zeros((2, 4, 5, 3), np.float32)
    scores[0, ..., 1] = 1.0
    scores[1, ..., 2] = 1.0

    meanings = segment(segmenter((-1, 4, 5, 3), DataType.FP32), scores, rows=2)

    assert [meaning.shares for meaning in meanings] == [
        (ClassShare("dog", 1, 1.0),),
        (ClassShare("bird", 2, 1.0),),
    ]


def test_scores_that_are_no_numbers_do_not_matter():
    scores = np.full((1, 2, 2, 3), np.nan, np.float32)

    (meaning,) = segment(segmenter((1, 2, 2, 3), DataType.FP32), scores)

    assert sum(share.share for share in meaning.shares) == 1.0


@pytest.mark.parametrize(("options", "share"), [({}, 0.5), ({"threshold": 0.2}, 0.75)])
def test_one_score_per_pixel_is_compared_with_the_threshold(options, share):
    scores = np.float32([0.1, 0.3, 0.5, 0.9]).reshape(1, 2, 2, 1)

    (meaning,) = segment(segmenter((1, 2, 2, 1), DataType.FP32), scores, **options)

    assert {part.index: part.share for part in meaning.shares} == {0: 1 - share, 1: share}


def test_many_classes_need_16_bits():
    classes = np.int64([[[0, 300], [300, 300]]])

    (meaning,) = segment(segmenter((1, 2, 2)), classes)

    mode, pixels = pixels_of(meaning)
    assert mode == "I;16"
    assert np.array_equal(pixels, classes[0])


def test_class_numbers_beyond_16_bits_are_counted_and_marked():
    classes = np.int64([[[-1, 2**40], [5, 5]]])

    (meaning,) = segment(segmenter((1, 2, 2)), classes)

    assert {part.index: part.share for part in meaning.shares} == {5: 0.5, -1: 0.25, 2**40: 0.25}
    assert pixels_of(meaning)[1].tolist() == [[65535, 65535], [5, 5]]


def test_a_mask_of_another_shape_is_the_models_failure():
    with pytest.raises(PredictionFailed, match="'mask' has shape"):
        segment(segmenter((1, 2, 2)), np.zeros((2, 2), np.int64))
