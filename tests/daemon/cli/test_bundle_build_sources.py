"""Models as TensorFlow saves them become bundles by one command."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import requests
from ai_edge_litert.interpreter import Interpreter
from support import tflite_builder
from support.fleet import PASSPHRASE
from support.inferctl import inferctl
from support.media_files import make_wav, tone
from support.servicebox import running_services
from support.trained import CLASSES, HELD_OUT

from accelerators.metadata import read_metadata
from daemon.cli.main import main
from daemon.modelfile import parse_model_file
from updater.bundle import open_bundle, read_manifest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(
    400
)  # TensorFlow alone takes 5 s to start, and some machines are busy

AUTO = ("--optimize", "auto")
RELEASE = (
    *("--name", "digits", "--model-version", "2"),
    *("--min-requests", "0", "--min-seconds", "0", "--max-seconds", "60"),
)
"""Kept at once by a device that has version 1."""


def build(source: Path, out: Path, *options: str | Path):
    return inferctl("bundle", "build", source, "-o", out, *options)


def built(source: Path, tmp_path: Path, *options: str | Path) -> tuple[Path, str]:
    """Build, and expect that it works: the bundle's files in a folder, and what was printed."""
    done = build(source, tmp_path / "out.bundle", *options)
    assert done.returncode == 0, done.stderr
    into = tmp_path / "unpacked"
    into.mkdir()
    open_bundle(tmp_path / "out.bundle", into, limit_bytes=1 << 24)
    return into, done.stdout


def told(folder: Path) -> dict:
    return json.loads((folder / "provenance.json").read_text())


def passes(bundle: Path) -> bool:
    """Whether a device like this one would take it."""
    return inferctl("bundle", "test", bundle).returncode == 0


@pytest.fixture(scope="module")
def classic(trained, tmp_path_factory):
    """model.h5 with everything: the bundle's files, what was printed, and the bundle."""
    folder = tmp_path_factory.mktemp("classic")
    options = ("--eval", trained / "held-out", "--representative", trained / "representative")
    return *built(trained / "model.h5", folder, *AUTO, *options, *RELEASE), folder / "out.bundle"


class TestClassic:
    def test_every_variant_is_in_the_table_and_one_is_taken(self, classic):
        _, printed, _ = classic

        lines = {line.split()[0]: line for line in printed.splitlines() if line}
        assert {"original", "none", "float16", "dynamic", "int8"} <= set(lines)
        assert sum(line.endswith("taken") for line in lines.values()) == 1
        assert f"of {HELD_OUT} items; a loss of 0.01 is allowed" in printed

    def test_provenance_has_the_same_figures(self, classic, trained):
        folder, printed, _ = classic

        provenance = told(folder)

        sizes = {each["variant"]: each["size_bytes"] for each in provenance["variants"]}
        assert all(f"{name} " in printed and str(size) in printed for name, size in sizes.items())
        assert sizes["none"] > 3 * sizes[provenance["chosen"]]
        assert provenance["measure"] == "accuracy"
        assert provenance["evaluation"]["items"] == HELD_OUT
        assert set(provenance["versions"]) == {"inferd", "keras", "runtime", "tensorflow"}
        predicted = np.load(trained / "predicted.npy").argmax(axis=1)
        right = sum(
            (trained / "held-out" / f"class-{kind}" / f"{number:04}.png").is_file()
            for number, kind in enumerate(predicted)
        )
        assert provenance["original"] == right / HELD_OUT

    def test_the_smallest_that_is_good_enough_was_taken(self, classic):
        provenance = told(classic[0])

        good = [each for each in provenance["variants"] if each["loss"] <= 0.01]
        smallest = min(good, key=lambda each: each["size_bytes"])
        assert provenance["chosen"] == smallest["variant"]

    def test_other_readers_find_labels_and_normalization_in_the_file(self, classic):
        file = classic[0] / "model.tflite"

        with file.open("rb") as opened:
            metadata, problem = read_metadata(memoryview(file.read_bytes()), opened)

        assert problem == ""
        assert metadata.inputs[0].content == "image"
        assert (metadata.inputs[0].mean, metadata.inputs[0].std) == ((0.0,), (255.0,))
        assert metadata.outputs[0].labels == tuple(f"class-{n}" for n in range(CLASSES))

    def test_there_is_a_health_sample_of_each_class_and_a_device_passes_them(self, classic):
        folder, _, bundle = classic

        samples = parse_model_file((folder / "model.toml").read_text()).health.samples

        assert {sample.label for sample in samples} == {f"class-{n}" for n in range(CLASSES)}
        assert passes(bundle)

    def test_the_same_source_and_data_make_the_same_bytes_elsewhere(
        self, classic, trained, tmp_path
    ):
        for name in ("model.h5", "held-out", "representative"):
            copy = shutil.copytree if (trained / name).is_dir() else shutil.copyfile
            copy(trained / name, tmp_path / name)
        options = ("--eval", tmp_path / "held-out", "--representative", tmp_path / "representative")

        done = build(tmp_path / "model.h5", tmp_path / "again.bundle", *AUTO, *options, *RELEASE)

        assert done.returncode == 0, done.stderr
        assert (tmp_path / "again.bundle").read_bytes() == classic[2].read_bytes()

    def test_a_device_swaps_to_it_and_predicts_as_keras_does(self, classic, trained, tmp_path):
        folder, _, bundle = classic
        (tmp_path / "first.tflite").write_bytes(tflite_builder.mlp((784, 10)))
        first = tmp_path / "digits-1.bundle"
        done = build(tmp_path / "first.tflite", first, *RELEASE[:2], *RELEASE[4:])
        assert done.returncode == 0, done.stderr

        with running_services(tmp_path) as box:
            publish(box, first, 1)
            assert box.ctl("update", "--now").stdout.endswith("digits version 1\n")
            publish(box, bundle, 2)
            swapped = box.ctl("update", "--now")
            assert swapped.stdout.endswith("up to date: digits version 2\n"), box.log
            answers = [ask(box, path) for path in held_out(trained)]

        assert {answer["version"] for answer in answers} == {"2"}
        found = np.array([answer["classification"][0]["label"] for answer in answers])
        predicted = np.load(trained / "predicted.npy").argmax(axis=1)
        right = np.array([path.parent.name for path in held_out(trained)])
        keras_right = np.mean(np.array([f"class-{n}" for n in predicted]) == right)
        provenance = told(folder)
        reported = {each["variant"]: each for each in provenance["variants"]}
        figures = reported[provenance["chosen"]]
        assert len(answers) == HELD_OUT
        assert np.mean(found == right) == figures["quality"]
        assert keras_right - np.mean(found == right) <= figures["loss"] + 1e-9
        assert np.mean(found == np.array([f"class-{n}" for n in predicted])) >= 0.98


def publish(box, bundle: Path, version: int) -> None:
    """Sign a bundle and assign it to every device, as a publisher does."""
    keys = ("--keys", box.fleet.folder / "keys")
    words = {"INFERD_KEY_PASSPHRASE": PASSPHRASE.decode()}
    added = inferctl("repo", "add", box.fleet.path, bundle, *keys, **words)
    assert added.returncode == 0, added.stderr
    assigned = inferctl("repo", "assign", box.fleet.path, f"digits={version}", *keys, **words)
    assert assigned.returncode == 0, assigned.stderr


def held_out(trained: Path) -> list[Path]:
    """The pictures in the order in which they were predicted."""
    return sorted((trained / "held-out").rglob("*.png"), key=lambda path: path.name)


def ask(box, picture: Path) -> dict:
    """What the device answers."""
    url = f"{box.daemon.url}/api/models/digits/predict"
    answer = requests.post(url, data=picture.read_bytes(), timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_keras_file_and_its_h5_make_the_same_model(classic, trained, tmp_path):
    options = ("--eval", trained / "held-out", "--representative", trained / "representative")
    shutil.copyfile(trained / "model.keras", tmp_path / "model.keras")

    folder, _ = built(tmp_path / "model.keras", tmp_path, *AUTO, *options, *RELEASE)

    assert (folder / "model.tflite").read_bytes() == (classic[0] / "model.tflite").read_bytes()


def test_nothing_is_written_where_all_variants_lose_too_much(trained, tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.load(trained / "eights.npz")["x"])
    options = ("--eval", tmp_path / "rows.npz", "--representative", tmp_path / "rows.npz")

    done = build(
        trained / "two-signatures",
        tmp_path / "out.bundle",
        *("--optimize", "int8", "--max-accuracy-drop", "0.000001", *options),
    )

    assert done.returncode == 1
    assert "allowed is 1e-06" in done.stdout
    assert "no variant may be taken; nothing was written" in done.stderr
    assert not (tmp_path / "out.bundle").exists()


def test_a_saved_model_keeps_all_of_its_signatures(trained, tmp_path):
    """Its labels are not in the file: the standard describes the first signature of it alone."""
    rows = trained / "eights.npz"
    (tmp_path / "labels").write_text("a\nb\nc\nd\n")

    folder, printed = built(
        trained / "two-signatures",
        tmp_path,
        *(*AUTO, "--eval", rows, "--representative", rows, "--max-accuracy-drop", "0.1"),
        *("--labels", tmp_path / "labels", "--name", "two"),
    )

    file = folder / "model.tflite"
    runner = Interpreter(model_path=str(file)).get_signature_runner
    assert "AGREEMENT" in printed
    for name, output in (("serving_default", "scores"), ("features", "features")):
        wanted = np.load(trained / f"{output}.npy")
        assert runner(name)(x=np.load(rows)["x"])[output] == pytest.approx(wanted, abs=0.05)
    with file.open("rb") as opened:
        metadata, _ = read_metadata(memoryview(file.read_bytes()), opened)
    assert metadata.name == "two"
    assert not any(each.labels for each in metadata.outputs)
    assert (folder / "labels.txt").read_text() == "a\nb\nc\nd\n"
    assert passes(tmp_path / "out.bundle")


def test_two_inputs_and_three_outputs_keep_their_names_and_answers(trained, tmp_path):
    rows = trained / "two-in.npz"

    folder, _ = built(
        trained / "two-in-three-out.keras",
        tmp_path,
        *AUTO,
        "--eval",
        rows,
        "--representative",
        rows,
    )

    runner = Interpreter(model_path=str(folder / "model.tflite")).get_signature_runner()
    found, wanted = runner(**np.load(rows)), np.load(trained / "three-out.npz")
    assert set(found) == set("pqr")
    for name in "pqr":
        span = np.ptp(wanted[name])
        assert np.abs(found[name] - wanted[name]).max() <= 0.011 * span
    assert passes(tmp_path / "out.bundle")


def test_a_model_of_words_is_compared_word_by_word(trained, tmp_path):
    folder, printed = built(trained / "words", tmp_path, *AUTO, "--eval", trained / "words.npz")

    assert "needs --representative PATH" in printed
    assert told(folder)["chosen"] == "none"
    assert parse_model_file((folder / "model.toml").read_text()).health.samples
    assert passes(tmp_path / "out.bundle")


def test_operators_of_tensorflows_own_are_refused_by_name_before_anything_is_written(
    trained, tmp_path
):
    done = build(trained / "select", tmp_path / "out.bundle")

    assert done.returncode == 1
    assert "(Select TF ops): MatrixInverse;" in done.stderr
    assert "that no device's runtime has: Digamma" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_variant_that_takes_tensorflow_down_is_passed_over(trained, tmp_path):
    """TensorFlow 2.21 dies when it quantizes a loop; a later one may do it."""
    rows = trained / "sequences.npz"

    folder, printed = built(
        trained / "lstm.keras", tmp_path, *AUTO, "--eval", rows, "--representative", rows
    )

    refused = {each["variant"]: each["refused"] for each in told(folder)["variants"]}
    assert "int8" in printed
    assert refused["none"] == ""
    assert refused["int8"] == "" or "TensorFlow" in refused["int8"] or "loses" in refused["int8"]


def test_one_number_tells_two_classes_apart(trained, tmp_path):
    _, printed = built(trained / "binary.keras", tmp_path, "--eval", trained / "binary.npz")

    assert "original  -      1.0000" in printed


def test_ranges_are_not_taken_from_what_is_no_number(trained, tmp_path):
    rows = np.load(trained / "eights.npz")["x"]
    rows[0, 3] = np.nan
    np.savez(tmp_path / "rows.npz", x=rows)
    options = ("--optimize", "int8", "--representative", tmp_path / "rows.npz")

    done = build(trained / "two-signatures", tmp_path / "out.bundle", *options)

    assert done.returncode == 1
    assert "row 0 of 'x' is not finite" in done.stderr
    assert not (tmp_path / "out.bundle").exists()


def test_a_model_of_sounds_is_measured_by_sounds(trained, tmp_path):
    for hertz in (200, 400, 800):
        path = tmp_path / "sounds" / f"{hertz}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make_wav(tone(16000, hertz=hertz), 16000))
    (tmp_path / "some.toml").write_text("[input]\nsample_rate_hz = 16000\n")
    sounds = tmp_path / "sounds"

    folder, printed = built(
        trained / "sound.keras",
        tmp_path,
        *("--model-toml", tmp_path / "some.toml", "--optimize", "int8"),
        *("--eval", sounds, "--representative", sounds, "--max-accuracy-drop", "1"),
    )

    file = folder / "model.tflite"
    with file.open("rb") as opened:
        metadata, _ = read_metadata(memoryview(file.read_bytes()), opened)
    assert "AGREEMENT" in printed
    assert metadata.inputs[0].sample_rate == 16000
    assert any(path.suffix == ".wav" for path in (folder / "samples").iterdir())


@pytest.mark.parametrize(
    ("words", "told_of"),
    [
        ("--optimize auto", "auto compares variants: it needs --eval PATH"),
        ("--optimize int8", "int8 takes its ranges from data: it needs --representative PATH"),
        ("--representative .", "only int8 and auto take ranges from data"),
        ("--max-accuracy-drop 0", "argument --max-accuracy-drop: it needs --eval PATH"),
        ("--name /", "give it one in its model.toml, or with --name"),
    ],
)
def test_options_that_need_others_are_refused_before_tensorflow_starts(
    trained, tmp_path, words, told_of, capsys
):
    source, out = str(trained / "model.h5"), str(tmp_path / "out.bundle")
    try:
        code = main(["bundle", "build", source, "-o", out, *words.split()])
    except SystemExit as end:
        code = end.code

    said = capsys.readouterr().err
    assert code == (1 if "--name" in words else 2)
    assert told_of in said
    assert "starting TensorFlow" not in said


def test_a_plain_conversion_has_the_name_and_version_it_was_given(trained, tmp_path):
    folder, printed = built(
        trained / "model.h5",
        tmp_path,
        *("--optimize", "dynamic", "--name", "digits", "--model-version", "3"),
    )

    manifest = read_manifest(tmp_path / "out.bundle")
    assert (manifest.name, manifest.version) == ("digits", 3)
    assert "digits version 3" in printed
    assert told(folder)["chosen"] == "dynamic"
    assert told(folder)["measure"] is None
