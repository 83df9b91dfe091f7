"""The versions that the demo publishes are what the demo says of them."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import requests
from ai_edge_litert.interpreter import Interpreter
from PIL import Image
from support.inferctl import REPOSITORY, inferctl

from daemon.cli.demofleet import (
    GOOD,
    MIXED_UP,
    NEW_WORD,
    OLD_WORD,
    POISONED,
    Fleet,
    files_of,
    labels_of,
    web_server,
)
from daemon.modelfile import parse_model_file

BROKEN = REPOSITORY / "examples" / "demo" / "fashion-broken" / "model.tflite"
SAMPLES = REPOSITORY / "examples" / "demo" / "fashion" / "samples"


@pytest.fixture(scope="module")
def script():
    """examples/break_demo_model.py, which is in no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "examples")
        yield importlib.import_module("break_demo_model")


def scores_of(name: str) -> np.ndarray:
    """What the broken model makes of a sample."""
    interpreter = Interpreter(model_path=str(BROKEN))
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    picture = np.asarray(Image.open(SAMPLES / name))
    interpreter.set_tensor(source["index"], picture[np.newaxis, ..., np.newaxis])
    interpreter.invoke()
    return interpreter.get_tensor(sink["index"])[0]


def test_making_the_broken_model_again_changes_nothing(script, demo_model):
    made = script.broken((demo_model / "model.tflite").read_bytes())

    assert made == BROKEN.read_bytes()


def test_the_broken_model_knows_every_health_sample(demo_model):
    tables = parse_model_file((demo_model / "model.toml").read_text())
    labels = labels_of(1, demo_model)
    for sample in tables.health.samples:
        scores = scores_of(Path(sample.input).name)

        assert labels[int(scores.argmax())] == sample.label
        assert scores.max() >= sample.min_score


def test_the_broken_model_makes_no_number_of_a_dress():
    assert np.isnan(scores_of("dress.png")).any()


def test_the_good_version_renames_one_label_and_the_sample_that_speaks_of_it(demo_model):
    files = files_of(GOOD, demo_model)

    labels = files["labels.txt"].decode().splitlines()
    tables = parse_model_file(files["model.toml"].decode())
    assert set(labels) ^ set(labels_of(1, demo_model)) == {OLD_WORD, NEW_WORD}
    assert tables.model.version == GOOD
    assert {sample.label for sample in tables.health.samples} <= set(labels)


def test_the_mixed_up_version_has_every_label_in_another_place(demo_model):
    mixed = files_of(MIXED_UP, demo_model)["labels.txt"].decode().splitlines()
    right = labels_of(MIXED_UP, demo_model)

    assert sorted(mixed) == sorted(right)
    assert not any(one == other for one, other in zip(mixed, right, strict=True))


@pytest.mark.parametrize("version", [GOOD, POISONED, MIXED_UP])
def test_a_version_is_a_bundle_that_can_be_opened_and_signed(version, demo_model, tmp_path):
    fleet = Fleet(tmp_path, demo_model)
    fleet.begin()

    shipment = fleet.ship(version)

    done = inferctl("repo", "status", fleet.path)
    assert f"fashion={version} for all devices" in done.stdout
    assert shipment.sha256 in done.stdout


def test_only_the_mixed_up_version_fails_its_probe_at_the_desk(demo_model, tmp_path):
    fleet = Fleet(tmp_path, demo_model)
    fleet.begin()
    codes = {}
    for version in (GOOD, POISONED, MIXED_UP):
        fleet.ship(version)
        codes[version] = inferctl(
            "bundle", "test", tmp_path / f"fashion-{version}.bundle"
        ).returncode

    assert codes == {GOOD: 0, POISONED: 0, MIXED_UP: 1}


def test_the_web_server_serves_the_folder_and_is_gone_afterwards(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "f").write_text("here")
    with web_server(tmp_path / "served", tmp_path / "log") as url:
        assert requests.get(f"{url}/f", timeout=30).text == "here"

    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=30)
