"""`inferctl serve FILE…` needs no other file: labels and kind come from the packed metadata."""

from __future__ import annotations

import pytest
from support.inferctl import inferctl, serving

pytestmark = pytest.mark.shared

FILES = (
    "mobilenet_v2_1.0_224_quant.tflite",
    "coco_ssd_mobilenet_v1_quant_meta.tflite",
    "yamnet_classifier_meta.tflite",
)


@pytest.fixture(scope="module")
def served(shared_models):
    with serving(*(shared_models / "models" / file for file in FILES)) as running:
        yield running


@pytest.mark.parametrize(
    ("model", "file", "label"),
    [
        ("mobilenet_v2_1.0_224_quant", "cat.bmp", "Egyptian cat"),
        ("coco_ssd_mobilenet_v1_quant_meta", "cat.bmp", "cat"),
        ("yamnet_classifier_meta", "speech.wav", "Speech"),
    ],
)
def test_a_lone_file_answers_by_name(served, shared_models, model, file, label):
    done = inferctl("predict", model, shared_models / "inputs" / file, "--url", served.url)

    assert done.returncode == 0, done.stderr
    best = next(line for line in done.stdout.splitlines() if not line.startswith("score"))
    assert best.split("  ")[1] == label


def test_a_sound_is_refused_by_a_model_of_pictures(served, shared_models):
    sound = shared_models / "inputs" / "speech.wav"

    done = inferctl("predict", "mobilenet_v2_1.0_224_quant", sound, "--url", served.url)

    assert done.returncode == 1
    assert "takes a picture" in done.stderr
