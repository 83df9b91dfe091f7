"""Real models give their known answers through the pipeline alone."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from conftest import SHARED_MODELS
from PIL import Image
from support.boxes import overlap
from support.tables import read_tables

from accelerators import engine
from accelerators.base import LoadSpec
from daemon.modelfile import ModelTables
from daemon.pipeline.meaning import interpret
from daemon.pipeline.media import MediaLimits, prepare
from daemon.pipeline.profiles import InputKind, OutputKind, build_profile

pytestmark = pytest.mark.shared
LIMITS = MediaLimits(max_pixels=50_000_000, max_audio_s=60.0)
EXPECTED = SHARED_MODELS / "expected.json"
FACTS = json.loads(EXPECTED.read_text()) if EXPECTED.is_file() else {"cases": [], "models": {}}
LABELS = {
    "cifar_int8": "cifar10",
    "micro_speech": "micro_speech",
    "deeplab_dm05": "pascal_voc",
    "movie": "movie_review_labels",
}


class LoadedModel:
    """A model in this process, with its profile."""

    def __init__(self, name):
        spec = LoadSpec(SHARED_MODELS / FACTS["models"][name]["file"])
        self.engine, self.report = engine.load(spec, proven_batch=1, on_stage=lambda _: None)
        labels = SHARED_MODELS / "labels" / f"{LABELS.get(name)}.txt"
        lines = tuple(labels.read_text().splitlines()) if labels.is_file() else ()
        self.profile = build_profile(ModelTables(), self.report, lines)

    def run(self, row):
        outputs, _ = self.engine.run(0, [row])
        names = [spec.name for spec in self.report.signatures[0].outputs]
        return {
            name: np.array(array, copy=True) for name, array in zip(names, outputs, strict=True)
        }

    def answer(self, case, **options):
        data = (SHARED_MODELS / case["input"]["file"]).read_bytes()
        media = prepare(self.profile, [data], limits=LIMITS)
        (meaning,) = interpret(
            self.profile, self.run(media.rows), rows=1, placements=media.placements, **options
        )
        return meaning


@pytest.fixture(scope="module")
def load():
    loaded = {}

    def get(name):
        if name not in loaded:
            loaded[name] = LoadedModel(name)
        return loaded[name]

    yield get
    for model in loaded.values():
        model.engine.close()


def cases(*kinds, models=None):
    return [
        pytest.param(case, id=case["id"])
        for case in FACTS["cases"]
        if case["kind"] in kinds and (models is None or case["model"] in models)
    ]


@pytest.mark.parametrize("case", cases("classification", "detection"))
def test_the_input_tensor_is_the_known_one(load, case):
    data = (SHARED_MODELS / case["input"]["file"]).read_bytes()

    rows = prepare(load(case["model"]).profile, [data], limits=LIMITS).rows

    assert hashlib.sha256(rows.tobytes()).hexdigest() == case["preprocessing"]["tensor_sha256"]


@pytest.mark.parametrize("case", cases("classification", "detection"))
def test_labels_of_a_real_model_fit_it(load, case):
    assert load(case["model"]).profile.notes == ()


@pytest.mark.parametrize("case", cases("classification"))
def test_a_picture_has_its_known_classes(load, case):
    expected = case["expected"]

    meaning = load(case["model"]).answer(case)

    best = meaning.categories[0]
    assert (best.label, best.index) == (expected["top1"]["label"], expected["top1"]["index"])
    assert [category.score for category in meaning.categories] == pytest.approx(
        [entry["score"] for entry in expected["top5"]], abs=expected["score_tolerance_same_input"]
    )


@pytest.mark.parametrize("case", cases("detection"))
def test_a_picture_has_its_known_boxes(load, case):
    expected = case["expected"]
    known = expected["detections"]

    boxes = load(case["model"]).answer(case, threshold=expected["threshold"]).boxes

    assert [(box.label, box.index) for box in boxes] == [
        (entry["label"], entry["class_index"]) for entry in known
    ]
    tolerance = expected["score_tolerance_same_input"]
    assert [box.score for box in boxes] == pytest.approx(
        [entry["score"] for entry in known], abs=tolerance
    )
    overlaps = [
        overlap(box.box, entry["box_ymin_xmin_ymax_xmax"])
        for box, entry in zip(boxes, known, strict=True)
    ]
    assert min(overlaps) >= expected["min_iou_same_input"]


@pytest.mark.parametrize("case", cases("audio classification", models=("yamnet",)))
def test_a_sound_has_its_known_classes(load, case):
    expected = case["expected"]

    categories = load("yamnet").answer(case).categories

    assert categories[0].label == expected["top3"][0]["label"]
    scores = {category.label: category.score for category in categories}
    assert [scores[entry["label"]] for entry in expected["top3"]] == pytest.approx(
        [entry["score"] for entry in expected["top3"]], abs=expected["score_tolerance"]
    )


@pytest.mark.parametrize("case", cases("audio classification", models=("micro_speech",)))
def test_features_of_a_sound_have_their_known_label(load, case):
    model = load("micro_speech")
    row = np.load(SHARED_MODELS / case["input"]["npy"])

    (meaning,) = interpret(model.profile, model.run(row), rows=1)

    assert model.profile.input_kind is InputKind.TENSOR
    assert meaning.categories[0].label == case["expected"]["label"]
    scores = {category.label: category.score for category in meaning.categories}
    assert scores == pytest.approx(
        case["expected"]["scores"], abs=case["expected"]["score_tolerance"]
    )


@pytest.mark.parametrize("case", cases("batch classification"))
def test_a_batch_of_pictures_is_the_known_tensor(load, case):
    files = [(SHARED_MODELS / name).read_bytes() for name in case["input"]["files"]]
    model = load(case["model"])

    rows = prepare(model.profile, files, limits=LIMITS).rows

    assert np.array_equal(rows, np.load(SHARED_MODELS / case["input"]["npy"]))
    meanings = interpret(model.profile, model.run(rows), rows=len(rows), top_k=1)
    assert [meaning.categories[0].index for meaning in meanings] == case["expected"]["argmax"]


@pytest.mark.parametrize("case", cases("segmentation"))
def test_a_picture_has_its_known_mask(load, case):
    expected = case["expected"]

    meaning = load(case["model"]).answer(case)

    shares = {share.label: share.share for share in meaning.shares}
    assert shares == pytest.approx(expected["class_fractions"], abs=0.001)
    with Image.open(io.BytesIO(meaning.mask_png)) as picture:
        mask = np.asarray(picture)
    known = np.load(SHARED_MODELS / expected["output_npy"])
    assert (mask == known.reshape(mask.shape)).mean() >= expected["pixel_agreement_min"]


@pytest.mark.parametrize(
    ("model", "input_kind", "output_kind"),
    [
        ("movie", InputKind.TENSOR, OutputKind.CLASSIFICATION),
        ("sine_float", InputKind.TENSOR, OutputKind.TENSOR),
        ("multi_sig", InputKind.TENSOR, OutputKind.TENSOR),
        ("reverse_sig", InputKind.TENSOR, OutputKind.TENSOR),
        ("dyn", InputKind.TENSOR, OutputKind.TENSOR),
        ("string", InputKind.TENSOR, OutputKind.TENSOR),
        ("training", InputKind.TENSOR, OutputKind.TENSOR),
    ],
)
def test_models_of_tensors_are_not_taken_for_more(load, model, input_kind, output_kind):
    profile = load(model).profile

    assert (profile.input_kind, profile.output_kind) == (input_kind, output_kind)


@pytest.mark.parametrize("resize", ["letterbox", "crop"])
def test_boxes_of_a_fitted_picture_lie_where_the_stretched_ones_do(load, resize):
    """The cat's box, found in a letterboxed or cropped frame, is of the picture that was sent."""
    (case,) = (c for c in FACTS["cases"] if c["id"] == "ssd-cat")
    model = load("ssd")
    tables = read_tables(ModelTables, {"input": {"resize": resize}})
    profile = build_profile(tables, model.report, ())
    data = (SHARED_MODELS / case["input"]["file"]).read_bytes()
    media = prepare(profile, [data], limits=LIMITS)

    (meaning,) = interpret(
        profile, model.run(media.rows), rows=1, placements=media.placements, top_k=1
    )

    known = case["expected"]["detections"][0]["box_ymin_xmin_ymax_xmax"]
    assert meaning.boxes[0].label == "cat"
    assert overlap(meaning.boxes[0].box, known) > 0.75


@pytest.mark.parametrize("case", cases("classification", models=("mnv2_quant", "mnv1_float")))
def test_a_photo_enlarged_beyond_a_megapixel_has_the_class_it_is_known_for(load, case):
    """Such a JPEG is decoded at a fraction of its size."""
    with Image.open(SHARED_MODELS / case["input"]["file"]) as photo:
        large = photo.convert("RGB").resize((1920, 1440), Image.Resampling.BICUBIC)
    target = io.BytesIO()
    large.save(target, "JPEG", quality=85)
    model = load(case["model"])
    media = prepare(model.profile, [target.getvalue()], limits=LIMITS)

    (meaning,) = interpret(model.profile, model.run(media.rows), rows=1)

    assert meaning.categories[0].label == case["expected"]["top1"]["label"]


def test_a_rotated_photo_is_seen_upright(load):
    """EXIF honoured: "military uniform", where ignoring it gives "jigsaw puzzle"."""
    with Image.open(SHARED_MODELS / "inputs" / "grace_hopper.bmp") as upright:
        stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    target = io.BytesIO()
    stored.save(target, "JPEG", quality=95, exif=exif)
    model = load("mnv2_quant")
    media = prepare(model.profile, [target.getvalue()], limits=LIMITS)

    (meaning,) = interpret(model.profile, model.run(media.rows), rows=1)

    assert meaning.categories[0].label == "military uniform"
