"""model.toml wins over the packed metadata, which wins over what shapes suggest."""

from __future__ import annotations

import pytest
from support.media_files import (
    SCORES,
    make_profile,
    make_report,
    make_tables,
    picture_profile,
    picture_spec,
)

from accelerators.base import DataType, Quantization, TensorMetadata, TensorSpec
from daemon.modelfile import ModelTables
from daemon.pipeline.inputs import Color, Resize
from daemon.pipeline.profiles import InputKind, OutputKind, build_profile

POSTPROCESS = tuple(
    TensorSpec(f"TFLite_Detection_PostProcess{suffix}", DataType.FP32, ())
    for suffix in ("", ":1", ":2", ":3")
)
PIXEL_CLASSES = TensorSpec("mask", DataType.INT64, (1, 33, 33))


def spec_of(shape, datatype=DataType.FP32):
    return TensorSpec("x", datatype, shape)


@pytest.mark.parametrize(
    ("shape", "datatype", "kind"),
    [
        ((1, 224, 224, 3), DataType.FP32, InputKind.IMAGE),
        ((-1, 32, 32, 3), DataType.INT8, InputKind.IMAGE),
        ((1, 3, 96, 96), DataType.FP32, InputKind.IMAGE),
        ((1, 28, 28, 1), DataType.FP32, InputKind.IMAGE),
        ((1, 64, 48, 4), DataType.UINT8, InputKind.IMAGE),
        ((-1, 28, 28), DataType.UINT8, InputKind.IMAGE),
        ((-1, 28, 28), DataType.FP32, InputKind.TENSOR),
        ((1, 49, 40, 1), DataType.INT8, InputKind.TENSOR),
        ((1, 8, 8, 3), DataType.FP32, InputKind.TENSOR),
        ((1, -1, -1, 3), DataType.FP32, InputKind.TENSOR),
        ((1, 32, 32, 3), DataType.BOOL, InputKind.TENSOR),
        ((8, 32, 32, 3), DataType.FP32, InputKind.TENSOR),
        ((1, 15600), DataType.FP32, InputKind.TENSOR),
        ((15600,), DataType.FP32, InputKind.TENSOR),
        ((), DataType.FP32, InputKind.TENSOR),
    ],
)
def test_the_shape_tells_pictures_from_tensors(shape, datatype, kind):
    assert make_profile(spec_of(shape, datatype)).input_kind is kind


def test_the_packed_metadata_makes_a_sound_of_a_row_of_floats():
    metadata = TensorMetadata(content="audio", sample_rate=16000, channels=1)

    profile = make_profile(spec_of((15600,)), metadata=(metadata,))

    assert profile.input_kind is InputKind.AUDIO
    assert (profile.audio.sample_rate_hz, profile.audio.frames) == (16000, 15600)
    assert profile.input.name == "x"


def test_packed_metadata_that_cannot_be_this_input_is_not_believed():
    image = TensorMetadata(content="image")
    audio = TensorMetadata(content="audio", sample_rate=16000)

    assert make_profile(spec_of((1, 7)), metadata=(image,)).input_kind is InputKind.TENSOR
    unfit = spec_of((1, 7, 7), DataType.UINT8)
    assert make_profile(unfit, metadata=(audio,)).input_kind is InputKind.TENSOR


def test_a_sample_rate_in_model_toml_makes_a_sound():
    tables = make_tables(input={"sample_rate_hz": 8000})

    profile = make_profile(spec_of((1, 8000)), tables=tables)

    assert profile.audio.sample_rate_hz == 8000


def test_model_toml_wins_over_the_metadata():
    metadata = TensorMetadata(content="image")
    tables = make_tables(input={"kind": "tensor"})

    profile = make_profile(picture_spec(), metadata=(metadata,), tables=tables)

    assert profile.input_kind is InputKind.TENSOR
    assert profile.input is None


def test_a_flat_row_is_a_square_grey_picture_where_model_toml_says_so():
    tables = make_tables(input={"kind": "image"})

    profile = make_profile(spec_of((1, 784)), tables=tables)

    assert (profile.image.height, profile.image.width) == (28, 28)
    assert profile.image.color is Color.GRAY
    assert profile.image.row_shape == (1, 784)


def test_model_toml_sets_resize_and_color():
    profile = picture_profile(resize="letterbox", color="bgr")

    assert profile.image.resize is Resize.LETTERBOX
    assert profile.image.color is Color.BGR


@pytest.mark.parametrize(
    ("spec", "table", "message"),
    [
        (spec_of((1, 7)), {"kind": "image"}, "needs one of a batch"),
        (spec_of((1, -1, -1, 3)), {"kind": "image"}, "fixed height and width"),
        (picture_spec(), {"kind": "audio"}, "sample_rate_hz is needed"),
        (picture_spec(), {"kind": "audio", "sample_rate_hz": 8000}, "said to be a sound"),
        (picture_spec(), {"kind": "image", "sample_rate_hz": 8000}, "takes pictures"),
        (picture_spec(), {"color": "gray"}, "has 3 channels"),
        (spec_of((1, 28, 28, 1)), {"color": "rgb"}, "has 1 channels"),
        (spec_of((1, 7)), {"mean": 1.0}, "takes no pictures"),
        (picture_spec(), {"kind": "tensor", "resize": "crop"}, "takes no pictures"),
        (picture_spec(), {"kind": "tensor", "sample_rate_hz": 8000}, "takes no sounds"),
        (spec_of((1, -1, 3)), {"kind": "audio", "sample_rate_hz": 8000}, "said to be a sound"),
        (spec_of((1, 80, 90)), {"kind": "audio", "sample_rate_hz": 8000}, "said to be a sound"),
        (spec_of((1, 80)), {"kind": "audio", "sample_rate_hz": 8000, "std": 2.0}, "no pictures"),
    ],
)
def test_an_input_table_that_contradicts_the_model_is_refused(spec, table, message):
    with pytest.raises(ValueError, match=message):
        make_profile(spec, tables=make_tables(input=table))


def test_media_keys_for_a_model_of_two_inputs_are_refused():
    report = make_report([spec_of((1, 8)), spec_of((1, 9))])

    with pytest.raises(ValueError, match="takes 2 inputs"):
        build_profile(make_tables(input={"kind": "image"}), report, ())
    with pytest.raises(ValueError, match="takes 2 inputs"):
        build_profile(make_tables(input={"color": "rgb"}), report, ())
    assert build_profile(ModelTables(), report, ()).input_kind is InputKind.TENSOR


def test_a_model_without_inputs_takes_tensors():
    profile = build_profile(ModelTables(), make_report([]), ())

    assert profile.input_kind is InputKind.TENSOR


@pytest.mark.parametrize(
    ("spec", "outputs", "labels", "kind"),
    [
        (picture_spec(), (SCORES,), (), OutputKind.CLASSIFICATION),
        (spec_of((1, 1960), DataType.INT8), (SCORES,), ("a", "b"), OutputKind.CLASSIFICATION),
        (spec_of((1, 1960), DataType.INT8), (SCORES,), (), OutputKind.TENSOR),
        (picture_spec(), (spec_of((1, 1)),), (), OutputKind.TENSOR),
        (picture_spec(), (spec_of((1, 1, 1, 5)),), (), OutputKind.CLASSIFICATION),
        (picture_spec(), (SCORES, SCORES), (), OutputKind.TENSOR),
        (picture_spec(), POSTPROCESS, (), OutputKind.DETECTION),
        (spec_of((1, 5)), POSTPROCESS, (), OutputKind.TENSOR),
        (picture_spec(), (PIXEL_CLASSES,), (), OutputKind.SEGMENTATION),
        (picture_spec(), (spec_of((1, 33, 33, 21)),), (), OutputKind.SEGMENTATION),
        (picture_spec(), (spec_of((1, 33, 33, 3)),), (), OutputKind.TENSOR),
        (picture_spec(), (spec_of((1, 33, 33, 3)),), ("a", "b", "c"), OutputKind.SEGMENTATION),
        (picture_spec(), (spec_of((1, 33, 33)),), (), OutputKind.TENSOR),
        (spec_of((1, 5)), (PIXEL_CLASSES,), (), OutputKind.TENSOR),
        (picture_spec(), (spec_of((1, 3), DataType.BYTES),), (), OutputKind.TENSOR),
    ],
)
def test_outputs_are_told_apart_by_shape_name_and_labels(spec, outputs, labels, kind):
    assert make_profile(spec, outputs=outputs, labels=labels).output_kind is kind


def test_of_several_outputs_the_one_with_packed_labels_is_the_classification():
    embedding = spec_of((1, 1024))
    metadata = (TensorMetadata(), TensorMetadata(labels=("a", "b")))

    profile = make_profile(picture_spec(), outputs=(embedding, SCORES), out=metadata)

    assert profile.output.name == "scores"
    assert profile.labels == ("a", "b")


def test_of_several_outputs_model_toml_means_the_one_as_long_as_the_labels():
    embedding = spec_of((1, 1024))
    tables = make_tables(output={"kind": "classification"})
    labels = tuple("abcdefghij")

    profile = make_profile(
        picture_spec(), outputs=(embedding, SCORES), labels=labels, tables=tables
    )

    assert profile.output.name == "scores"


@pytest.mark.parametrize(
    ("outputs", "table", "message"),
    [
        ((SCORES, SCORES), {"kind": "classification"}, "several outputs fit"),
        ((PIXEL_CLASSES,), {"kind": "classification"}, "no output fits"),
        ((SCORES,), {"kind": "segmentation"}, "no output fits"),
        ((SCORES,), {"kind": "detection"}, "boxes, classes and scores were not found"),
        ((SCORES,), {"box_order": "ymin_xmin_ymax_xmax"}, "not detections"),
        ((SCORES, SCORES), {"top_k": 3}, "no meaning"),
        ((SCORES,), {"kind": "tensor", "labels": ["a"]}, "no meaning"),
    ],
)
def test_an_output_table_that_contradicts_the_model_is_refused(outputs, table, message):
    with pytest.raises(ValueError, match=message):
        make_profile(picture_spec(), outputs=outputs, tables=make_tables(output=table))


def test_a_mask_without_a_picture_is_refused():
    with pytest.raises(ValueError, match="takes no pictures"):
        make_profile(
            spec_of((1, 5)),
            outputs=(PIXEL_CLASSES,),
            tables=make_tables(output={"kind": "segmentation"}),
        )


def test_the_operators_labels_win_over_the_packed_ones():
    metadata = (TensorMetadata(labels=("packed",)),)

    profile = make_profile(picture_spec(), labels=("mine",), out=metadata)

    assert profile.labels == ("mine",)


@pytest.mark.parametrize(
    ("labels", "table", "packed", "note"),
    [
        (("a", "b"), {}, (), "labels.txt has 2 lines"),
        (("a",) * 11, {"labels": "mine.txt"}, (), "mine.txt has 11 lines"),
        ((), {"labels": ["a", "b"]}, (), "model.toml lists 2 labels"),
        ((), {}, ("a", "b"), "the list of labels packed in the file has 2 lines"),
    ],
)
def test_labels_that_do_not_fit_the_classes_are_noted_and_used(labels, table, packed, note):
    metadata = (TensorMetadata(labels=packed),)
    tables = make_tables(output=table)

    profile = make_profile(picture_spec(), labels=labels, tables=tables, out=metadata)

    assert profile.notes == (f"{note}, the model 10 classes",)
    assert profile.labels[0] == "a"


def test_labels_that_do_not_fit_a_masks_classes_are_noted():
    mask = TensorSpec("mask", DataType.FP32, (1, 33, 33, 21))

    profile = make_profile(picture_spec(), outputs=(mask,), labels=("a", "b"))

    assert profile.notes == ("labels.txt has 2 lines, the model 21 classes",)


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        ((SCORES,), ("a",) * 10),
        ((SCORES,), ()),
        ((TensorSpec("scores", DataType.FP32, (1, -1)),), ("a", "b")),
        ((PIXEL_CLASSES,), ("a", "b")),
        ((TensorSpec("mask", DataType.FP32, (1, 33, 33, 1)),), ("background", "road")),
        (POSTPROCESS, ("???", "a", "b")),
    ],
)
def test_labels_that_fit_or_cannot_be_compared_are_not_noted(outputs, labels):
    assert make_profile(picture_spec(), outputs=outputs, labels=labels).notes == ()


def test_labels_listed_in_model_toml_are_used():
    tables = make_tables(output={"labels": ["cat", "dog"]})

    assert make_profile(picture_spec(), tables=tables).labels == ("cat", "dog")


def test_lines_that_name_nothing_become_the_class_number():
    labels = ("\ufeffcat \r", "???", "", "dog")

    assert make_profile(picture_spec(), labels=labels).labels == ("cat", "1", "2", "dog")


def test_a_background_line_of_a_detector_is_not_a_class():
    profile = make_profile(picture_spec(), outputs=POSTPROCESS, labels=("???", "person", "bicycle"))

    assert profile.labels == ("person", "bicycle")


def test_top_k_and_threshold_come_from_model_toml_then_metadata_then_defaults():
    metadata = (TensorMetadata(score_threshold=0.3),)
    stated = make_tables(output={"top_k": 2, "threshold": 0.6})

    packed = make_profile(picture_spec(), out=metadata).output
    said = make_profile(picture_spec(), out=metadata, tables=stated).output
    plain = build_profile(ModelTables(), make_report([picture_spec()]), (), default_top_k=7).output

    assert (packed.top_k, packed.threshold) == (5, 0.3)
    assert (said.top_k, said.threshold) == (2, 0.6)
    assert (plain.top_k, plain.threshold) == (7, None)


def roles(profile):
    found = profile.output
    return tuple(
        spec and spec.name for spec in (found.boxes, found.classes, found.scores, found.count)
    )


def detector(*outputs, out=(), tables=None):
    specs = tuple(TensorSpec(name, DataType.FP32, shape) for name, shape in outputs)
    return make_profile(picture_spec(), outputs=specs, out=out, tables=tables)


def test_the_roles_of_a_detector_come_from_the_metadata_first():
    names = ("score", "location", "number of detections", "category")
    outputs = (("a", (1, 10)), ("b", (1, 10, 4)), ("c", (1,)), ("d", (1, 10)))

    profile = detector(*outputs, out=tuple(TensorMetadata(name=name) for name in names))

    assert roles(profile) == ("b", "d", "a", "c")


def test_the_roles_of_a_detector_come_from_the_signatures_names():
    names = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")

    profile = detector(*((name, ()) for name in names))

    assert roles(profile) == (
        "detection_boxes",
        "detection_classes",
        "detection_scores",
        "num_detections",
    )


def test_the_roles_of_a_detector_come_from_the_operators_names():
    profile = make_profile(picture_spec(), outputs=POSTPROCESS)

    assert roles(profile) == tuple(spec.name for spec in POSTPROCESS)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (((1, 25, 4), (1, 25), (1, 25), (1,)), ("0", "1", "2", "3")),
        (((1, 25), (1, 25, 4), (1,), (1, 25)), ("1", "3", "0", "2")),
    ],
)
def test_the_roles_of_a_detector_come_from_the_shapes_last(shapes, expected):
    profile = detector(*((str(index), shape) for index, shape in enumerate(shapes)))

    assert roles(profile) == expected


def test_a_detector_without_a_count_is_one():
    profile = detector(("boxes", (1, 9, 4)), ("classes", (1, 9)), ("scores", (1, 9)))

    assert roles(profile) == ("boxes", "classes", "scores", None)


def test_an_output_named_boxes_of_another_shape_is_none():
    profile = detector(("boxes", (1, 9, 5)), ("classes", (1, 9)), ("scores", (1, 9)))

    assert profile.output_kind is OutputKind.TENSOR


def test_the_order_of_box_edges_comes_from_model_toml_then_metadata():
    xy_first = (TensorMetadata(box_order=(0, 1, 2, 3)),)
    stated = make_tables(output={"box_order": "ymin_xmin_ymax_xmax"})
    outputs = (("boxes", (1, 9, 4)), ("classes", (1, 9)), ("scores", (1, 9)))

    assert detector(*outputs).output.columns == (0, 1, 2, 3)
    assert detector(*outputs, out=xy_first).output.columns == (1, 0, 3, 2)
    assert detector(*outputs, out=xy_first, tables=stated).output.columns == (0, 1, 2, 3)


def test_metadata_of_more_outputs_than_there_are_is_not_believed():
    metadata = (TensorMetadata(labels=("a",)), TensorMetadata(labels=("b",)))

    assert make_profile(picture_spec(), out=metadata).labels == ()


def test_profiles_can_be_compared():
    quantization = Quantization(1.0, -128)
    spec = picture_spec(datatype=DataType.INT8, quantization=quantization)

    assert make_profile(spec) == make_profile(spec)
    assert make_profile(spec) != make_profile(picture_spec())
