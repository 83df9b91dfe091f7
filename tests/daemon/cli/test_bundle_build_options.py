"""What can be asked of `bundle build`, and what of it needs no TensorFlow."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from support import tflite_builder
from support.inferctl import inferctl

from accelerators.metadata import read_metadata
from daemon.cli.arguments import parse
from daemon.cli.bundlebuild import _identity
from daemon.cli.main import main
from daemon.modelfile import ModelTable, parse_model_file
from daemon.models.store import look_at_release
from updater.bundle import open_bundle

if TYPE_CHECKING:
    from pathlib import Path

MODEL = tflite_builder.mlp((16, 8, 3))
"""Float32 (-1, 16) to probabilities (-1, 3)."""


@pytest.fixture
def model(tmp_path) -> Path:
    file = tmp_path / "shapes.tflite"
    file.write_bytes(MODEL)
    return file


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Twelve grey pictures of 4 x 4 pixels, four for each of three classes."""
    rng = np.random.default_rng(3)
    for number in range(12):
        path = tmp_path / "pictures" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def refused(capsys):
    """What is said of a command line that must be refused, and its exit code: in this process."""

    def run(source: Path, *options: str | Path) -> tuple[str, int]:
        out = source.parent / "out.bundle"
        words = ("bundle", "build", source, "-o", out, *options)
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        assert not out.exists()
        return capsys.readouterr().err, code

    return run


def build(source: Path, *options: str | Path):
    return inferctl("bundle", "build", source, "-o", source.parent / "out.bundle", *options)


def unpacked(source: Path) -> Path:
    into = source.parent / "unpacked"
    into.mkdir()
    open_bundle(source.parent / "out.bundle", into, limit_bytes=1 << 24)
    return into


class TestRefusals:
    """The command line says what was expected, the exit code is 2, and nothing is written."""

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ("--optimize int4", "invalid choice: 'int4'"),
            ("--optimize int8", "a .tflite file is optimized already or never"),
            ("--optimize auto --eval PICTURES", "a .tflite file is optimized already or never"),
            ("--representative PICTURES", "only for what is converted by TensorFlow"),
            ("--max-accuracy-drop 0.1 --eval PICTURES", "only for what is converted by TensorFlow"),
            ("--max-accuracy-drop 1.5", "'1.5': expected a number from 0 to 1"),
            ("--max-accuracy-drop nan", "expected a number from 0 on"),
            ("--convert-seconds 0", "expected a whole number from 1 on"),
            ("--samples 3", "argument --samples: it needs --eval PATH"),
            ("--samples 65 --eval PICTURES", "a probe runs 64 at most"),
            ("--record-latency", "argument --record-latency: it needs --eval PATH"),
            ("--eval nowhere", "argument --eval: no such file or folder: nowhere"),
            ("--labels nowhere", "argument --labels: no such file or folder: nowhere"),
            ("--mean 1,2,3,4,5", "expected 1 to 4 numbers with commas between"),
            ("--std x", "expected 1 to 4 numbers with commas between"),
            ("--std 0", "expected numbers other than 0"),
            ("--name a/b --description x", "give it one in its model.toml, or with --name"),
        ],
    )
    def test_of_options(self, refused, model, pictures, words, told):
        said, code = refused(
            model, *(str(pictures) if w == "PICTURES" else w for w in words.split())
        )

        assert told in said
        assert code == (1 if "--name" in words else 2)

    @pytest.mark.parametrize("option", ["--labels", "--eval", "--model-toml"])
    def test_a_models_folder_is_bundled_as_it_is(self, refused, model, option):
        folder = model.parent / "folder"
        folder.mkdir()
        model.rename(folder / "model.tflite")

        said, code = refused(folder, option, folder)

        assert code == 2
        assert f"argument {option}: a model's folder is bundled as it is" in said

    def test_a_bundle_inside_of_a_saved_model_would_be_a_part_of_the_next(self, tmp_path):
        (tmp_path / "saved_model.pb").write_bytes(b"")

        done = inferctl("bundle", "build", tmp_path, "-o", tmp_path / "out.bundle")

        assert done.returncode == 2
        assert "would be a part of the next bundle" in done.stderr


class TestPlace:
    """What may be replaced by the bundle is known before anything is done."""

    @pytest.fixture
    def said(self, model, capsys):
        def run(out: str, name: str = "shapes") -> tuple[int, str]:
            words = ["bundle", "build", str(model), "-o", out, "--description", "x"]
            try:
                code = main([*words, "--name", name])
            except SystemExit as end:
                code = end.code
            return code, capsys.readouterr().err

        return run

    @pytest.mark.parametrize("kind", ["pipe", "link", "dangling"])
    def test_what_is_no_regular_file_stays(self, said, tmp_path, kind):
        out, other = tmp_path / "out.bundle", tmp_path / "other"
        if kind == "pipe":
            os.mkfifo(out)
        else:
            out.symlink_to(other)
        if kind == "link":
            other.write_text("other")
        before = out.lstat()

        code, told = said(str(out))

        assert code == 2
        assert "argument -o: expected a regular file or a new one, no link" in told
        assert out.lstat().st_ino == before.st_ino
        assert other.exists() is (kind == "link")

    def test_nothing_is_put_beside_devices(self, said, tmp_path):
        (tmp_path / "devices").symlink_to("/dev")

        # With a name that is refused in the next step: nothing gets there, come what may.
        code, told = said(str(tmp_path / "devices" / "out.bundle"), "a/b")

        assert code == 2
        assert "argument -o: expected a regular file" in told

    def test_a_folder_that_takes_no_file_is_told_before_anything_is_done(self, said):
        code, told = said("/proc/out.bundle")  # where not even root can make one

        assert code == 1
        assert "/proc/out.bundle: cannot be written" in told

    def test_a_bundle_that_is_there_stays_until_the_new_one_is_whole(self, said, model, tmp_path):
        out = tmp_path / "out.bundle"
        out.write_text("the last one")
        model.write_bytes(b"TFL3" * 9)

        code, _ = said(str(out))

        assert code == 1
        assert out.read_text() == "the last one"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.bundle", "shapes.tflite"]


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[model", "not TOML"),
        ('[output]\nlabels = "labels.txt"', "give it with --labels"),
        ('[[health.samples]]\ninput = "a.png"\nlabel = "a"', "--eval PATH chooses samples"),
        ("[input]\nmaen = 1", "maen"),
    ],
)
def test_a_model_toml_that_cannot_be_used_is_refused(refused, model, toml, told):
    tables = model.parent / "some.toml"
    tables.write_text(toml)

    said, code = refused(model, "--model-toml", tables)

    assert code == 1
    assert told in said


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("a\nb\nb\n", "'b' stands on two lines"),
        ("\n\n", "expected a class name on each line"),
        ("a\nb\n\ud83d", "not UTF-8"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(refused, model, labels, told):
    file = model.parent / "some.txt"
    file.write_bytes(labels.encode("utf-8", "surrogatepass"))

    said, code = refused(model, "--labels", file)

    assert code == 1
    assert told in said


@pytest.mark.parametrize("kind", ["a", "a\nb\nc\nd"])
def test_labels_that_do_not_fit_the_model_are_refused(model, kind):
    (model.parent / "some.txt").write_text(kind)

    done = build(model, "--labels", model.parent / "some.txt")

    assert done.returncode == 1
    lines = len(kind.split())
    assert f"{model.parent / 'some.txt'} has {lines} lines, the model 3 classes" in done.stderr
    assert not (model.parent / "out.bundle").exists()


def test_folders_that_are_more_or_fewer_than_the_classes_are_told(model, pictures):
    shutil.rmtree(pictures / "c")

    done = build(model, "--eval", pictures)

    assert done.returncode == 1
    assert "the list of --eval's folders has 2 lines, the model 3 classes" in done.stderr
    assert "labels.txt" not in done.stderr


def test_empty_lines_at_the_end_of_labels_are_none(model):
    (model.parent / "some.txt").write_text("a\n\nc\n\n \n")

    done = build(model, "--labels", model.parent / "some.txt")

    assert done.returncode == 0, done.stderr
    assert (unpacked(model) / "labels.txt").read_text() == "a\n\nc\n"


@pytest.mark.parametrize("shift", [0, 1])
def test_a_model_that_is_no_better_than_guessing_is_told(model, shift):
    model.write_bytes(tflite_builder.scale(1.0))
    rows = np.eye(4, dtype=np.float32)[np.arange(12) % 4]
    np.savez(model.parent / "rows.npz", x=rows, y=(np.arange(12) + shift) % 4)

    done = build(model, "--eval", model.parent / "rows.npz")

    assert done.returncode == 0, done.stderr
    advice = "check --mean, --std and the order of the labels"
    assert (advice in done.stderr) is (shift == 1)


def test_labels_of_a_model_without_classes_are_refused(model):
    model.write_bytes(tflite_builder.free_picture())
    (model.parent / "some.txt").write_text("a\nb\n")

    done = build(model, "--labels", model.parent / "some.txt")

    assert done.returncode == 1
    assert "no output of the model has a number for each label" in done.stderr


def test_a_tflite_that_needs_tensorflow_on_the_device_is_refused(refused, model):
    model.write_bytes(tflite_builder.custom("FlexErf"))

    said, code = refused(model)

    assert code == 1
    assert "(Select TF ops): Erf;" in said


def test_a_tflite_gets_labels_normalization_and_description_into_its_file(model, pictures):
    (model.parent / "some.txt").write_text("a\nb\nc\n")

    done = build(
        model,
        *("--eval", pictures, "--labels", model.parent / "some.txt", "--model-version", "4"),
        *("--mean", "127.5", "--std", "127.5", "--description", "three shapes"),
    )

    assert done.returncode == 0, done.stderr
    folder = unpacked(model)
    data = (folder / "model.tflite").read_bytes()
    with (folder / "model.tflite").open("rb") as file:
        metadata, problem = read_metadata(memoryview(data), file)
    assert problem == ""
    assert (metadata.name, metadata.version) == ("shapes", "4")
    assert metadata.description == "three shapes"
    assert metadata.inputs[0].content == "image"
    assert (metadata.inputs[0].mean, metadata.inputs[0].std) == ((127.5,), (127.5,))
    assert metadata.outputs[0].labels == ("a", "b", "c")
    assert (folder / "labels.txt").read_text() == "a\nb\nc\n"


def test_evaluation_gives_a_tflite_health_samples_that_a_device_passes(model, pictures):
    done = build(model, "--eval", pictures, "--samples", "2")

    assert done.returncode == 0, done.stderr
    assert "ACCURACY" in done.stdout
    folder = unpacked(model)
    tables = parse_model_file((folder / "model.toml").read_text())
    assert 1 <= len(tables.health.samples) <= 2
    assert {sample.label for sample in tables.health.samples} <= {"a", "b", "c"}
    assert inferctl("bundle", "test", model.parent / "out.bundle").returncode == 0


def test_provenance_says_what_went_in_and_no_time_unless_asked(model, pictures):
    build(model, "--eval", pictures)
    told = json.loads((unpacked(model) / "provenance.json").read_text())

    assert told["source"]["kind"] == "tflite"
    assert told["evaluation"]["items"] == 12
    assert told["measure"] == "accuracy"
    assert [each["variant"] for each in told["variants"]] == ["none"]
    assert "latency_ms" not in told["variants"][0]
    assert "tensorflow" not in told["versions"]


def test_latencies_are_recorded_on_wish(model, pictures):
    build(model, "--eval", pictures, "--record-latency")
    told = json.loads((unpacked(model) / "provenance.json").read_text())

    assert told["variants"][0]["latency_ms"] > 0


def test_the_same_file_and_data_make_the_same_bytes(model, pictures):
    build(model, "--eval", pictures)
    first = (model.parent / "out.bundle").read_bytes()

    build(model, "--eval", pictures)

    assert (model.parent / "out.bundle").read_bytes() == first


def test_a_tflite_of_which_nothing_is_asked_stays_as_it_is(model):
    for options in ((), ("--optimize", "none")):
        assert build(model, *options).returncode == 0
        assert (unpacked(model) / "model.tflite").read_bytes() == MODEL
        shutil.rmtree(model.parent / "unpacked")


def test_data_of_tensors_needs_no_labels(model):
    np.savez(model.parent / "rows.npz", x=np.random.default_rng(1).normal(size=(9, 16)))

    done = build(model, "--eval", model.parent / "rows.npz")

    assert done.returncode == 0, done.stderr
    _, found = look_at_release(unpacked(model))
    assert found is not None
    assert all(sample.outputs for sample in found.tables.health.samples)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (tflite_builder.kills_above(5.0), "the model does not answer item 0: "),
        (tflite_builder.hangs_above(5.0), "the model does not answer item 0: "),
        (tflite_builder.falls_without_end(), "the daemon cannot serve it: "),
    ],
    ids=["kills", "hangs", "dies as it loads"],
)
def test_a_model_that_is_fatal_ends_its_worker_and_not_the_build(model, content, told):
    model.write_bytes(content)
    np.savez(model.parent / "rows.npz", x=np.full((2, 4), 9, np.float32))
    (model.parent / "some.toml").write_text("[limits]\ntimeout_ms = 1000\n")

    done = build(
        model, "--eval", model.parent / "rows.npz", "--model-toml", model.parent / "some.toml"
    )

    assert done.returncode == 1
    assert told in done.stderr
    assert not (model.parent / "out.bundle").exists()


def test_a_device_that_would_not_take_it_is_asked_first(model, pictures):
    (model.parent / "some.toml").write_text("[health]\nmax_latency_ms = 0.000001\n")

    done = build(model, "--eval", pictures, "--model-toml", model.parent / "some.toml")

    assert done.returncode == 1
    assert "a device would not take it: takes " in done.stderr
    assert not (model.parent / "out.bundle").exists()


def test_a_saved_model_in_a_servers_tree_is_called_as_the_server_calls_it(tmp_path):
    source = tmp_path / "digits" / "7"
    source.mkdir(parents=True)
    arguments = parse(["bundle", "build", str(source), "-o", str(tmp_path / "out.bundle")])

    assert _identity(arguments, ModelTable()) == ("digits", 7)


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "saved"])
def test_without_tensorflow_it_says_what_installs_it(refused, tmp_path, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as where it is not installed
    source = tmp_path / name
    if name == "saved":
        source.mkdir()
        (source / "saved_model.pb").write_bytes(b"")
    elif name == "model.h5":
        source.write_bytes(b"\x89HDF\r\n\x1a\n")
    else:
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("config.json", "{}")

    said, code = refused(source)

    assert code == 1
    assert f"{sys.executable} -m pip install 'inferd[build]'" in said
