"""`inferctl bundle`, as a publisher and a build machine use it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import tflite_builder
from support.inferctl import inferctl

from daemon.modelfile import parse_model_file
from updater.bundle import open_bundle, read_manifest
from updater.manifest import Probation

if TYPE_CHECKING:
    from pathlib import Path

TWICE = tflite_builder.scale(2.0, batch=1)
TABLES = """
[model]
name = "twice"
version = 2

[[health.samples]]
input = "samples/one.npy"
outputs = { y = "samples/two.npy" }
tolerance = 0.001
"""


def npy(*values: float) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([values], np.float32))
    return out.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model that doubles, with a health sample that says so."""
    folder = tmp_path / "model"
    (folder / "samples").mkdir(parents=True)
    (folder / "model.tflite").write_bytes(TWICE)
    (folder / "samples" / "one.npy").write_bytes(npy(1, 2, 3, 4))
    (folder / "samples" / "two.npy").write_bytes(npy(2, 4, 6, 8))
    (folder / "model.toml").write_text(TABLES)
    return folder


def built(source: Path, *options: str, out: str = "out.bundle") -> Path:
    """Build, and expect that it works."""
    bundle = source.parent / out
    done = inferctl("bundle", "build", source, "-o", bundle, *options)
    assert done.returncode == 0, done.stderr
    return bundle


def unpacked(bundle: Path) -> Path:
    into = bundle.with_name("unpacked")
    into.mkdir()
    open_bundle(bundle, into, limit_bytes=1 << 20)
    return into


class TestBuild:
    def test_a_folder_becomes_a_bundle_of_its_files(self, folder):
        (folder / ".cache").write_bytes(b"hidden")

        into = unpacked(built(folder))

        for name in ("model.tflite", "model.toml", "samples/one.npy", "samples/two.npy"):
            assert (into / name).read_bytes() == (folder / name).read_bytes()
        assert len(list(into.rglob("*.*"))) == 5

    def test_it_says_what_was_made(self, folder):
        done = inferctl("bundle", "build", folder, "-o", folder.parent / "out.bundle")

        digest = hashlib.sha256((folder.parent / "out.bundle").read_bytes()).hexdigest()
        assert f"sha256 {digest}\n" in done.stdout
        assert "twice version 2, 4 files, " in done.stdout

    def test_the_same_folder_makes_the_same_bytes(self, folder, tmp_path):
        again = tmp_path / "elsewhere" / "copy"
        shutil.copytree(folder, again)

        assert built(folder).read_bytes() == built(again).read_bytes()

    def test_model_toml_speaks_for_the_manifest(self, folder):
        (folder / "model.toml").write_text(
            '[model]\nname = "twice"\nversion = 7\n'
            "[limits]\nmemory_mib = 500\n[health]\nmax_latency_ms = 2.5\n"
        )

        manifest = read_manifest(built(folder))

        assert (manifest.name, manifest.version, manifest.release_counter) == ("twice", 7, 7)
        assert (manifest.memory_mib, manifest.max_latency_ms) == (500, 2.5)
        assert manifest.probation == Probation()

    def test_options_speak_for_the_manifest(self, folder):
        options = {
            "--release-counter": "9",
            "--runtime": "litert>=2.1",
            "--arch": "arm64,amd64,arm64",
            "--accelerators": "edgetpu",
            "--memory-mib": "64",
            "--max-latency-ms": "1.5",
            "--min-requests": "5",
            "--min-seconds": "1",
            "--max-seconds": "9",
            "--max-error-ratio": "0.5",
            "--max-latency-ratio": "4",
        }

        manifest = read_manifest(
            built(folder, *(word for pair in options.items() for word in pair))
        )

        assert manifest.release_counter == 9
        assert manifest.runtime == "litert>=2.1"
        assert manifest.architectures == ("amd64", "arm64")
        assert manifest.accelerators == ("edgetpu",)
        assert (manifest.memory_mib, manifest.max_latency_ms) == (64, 1.5)
        assert manifest.probation == Probation(5, 1.0, 9.0, 0.5, 4.0)

    def test_a_lone_file_becomes_a_model_with_its_name_and_version(self, tmp_path):
        (tmp_path / "twice.tflite").write_bytes(TWICE)

        bundle = built(tmp_path / "twice.tflite", "--model-version", "3")
        into = unpacked(bundle)

        said = parse_model_file((into / "model.toml").read_text()).model
        assert (said.name, said.version) == ("twice", 3)
        assert (into / "model.tflite").read_bytes() == TWICE
        assert (read_manifest(bundle).name, read_manifest(bundle).version) == ("twice", 3)

    def test_what_model_toml_does_not_say_is_added_and_the_rest_stays(self, folder):
        (folder / "model.toml").write_text("# Keep me.\n[limits]\nqueue = 3 # and me\n")

        into = unpacked(built(folder, "--name", "double"))

        text = (into / "model.toml").read_text()
        tables = parse_model_file(text)
        assert (tables.model.name, tables.model.version, tables.limits.queue) == ("double", 1, 3)
        assert "# Keep me." in text
        assert "# and me" in text
        assert (folder / "model.toml").read_text().startswith("# Keep me.")

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--model-version", "3"], "argument --model-version: '3': model.toml says '2'"),
            (["--name", "other"], "argument --name: 'other': model.toml says 'twice'"),
            (["--release-counter", "-1"], "argument --release-counter: '-1': expected a whole"),
            (["--max-error-ratio", "nan"], "argument --max-error-ratio: 'nan': expected a number"),
        ],
    )
    def test_an_option_that_cannot_be_followed_is_a_usage_error(self, folder, options, told):
        done = inferctl("bundle", "build", folder, "-o", folder.parent / "out.bundle", *options)

        assert done.returncode == 2
        assert told in done.stderr
        assert not (folder.parent / "out.bundle").exists()

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--runtime", "litert>=x"], "'>=x' is no bound such as >=2.3"),
            (["--arch", "AMD64"], "architectures"),
            (["--max-error-ratio", "1.5"], "max_error_ratio"),
            (["--min-seconds", "9000"], "min_s: expected at most probation.max_s"),
            (["--max-latency-ms", "0"], "max_latency_ms"),
        ],
    )
    def test_what_no_manifest_may_say_is_refused(self, folder, options, told):
        done = inferctl("bundle", "build", folder, "-o", folder.parent / "out.bundle", *options)

        assert done.returncode == 1
        assert told in done.stderr
        assert not (folder.parent / "out.bundle").exists()

    @pytest.mark.parametrize("out", ["model/out.bundle", "missing/out.bundle", "model"])
    def test_the_bundle_has_its_place_outside_of_the_folder(self, folder, out):
        done = inferctl("bundle", "build", folder, "-o", folder.parent / out)

        assert done.returncode == 2
        assert "argument -o: " in done.stderr

    def test_a_missing_folder_is_a_usage_error(self, tmp_path):
        done = inferctl("bundle", "build", tmp_path / "none", "-o", tmp_path / "out.bundle")

        assert done.returncode == 2
        assert "argument SOURCE: no such file or folder" in done.stderr

    def test_a_folder_of_versions_is_told_which_to_name(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "tree" / "2")

        done = inferctl("bundle", "build", tmp_path / "tree", "-o", tmp_path / "out.bundle")

        assert done.returncode == 1
        assert f"expected the folder of one version, as {tmp_path / 'tree' / '2'}" in done.stderr

    @pytest.mark.parametrize(
        ("break_it", "told"),
        [
            (lambda folder: (folder / "model.tflite").unlink(), "no .tflite file"),
            (lambda folder: (folder / "model.toml").write_text("[modle]"), "did you mean 'model'"),
            (lambda folder: (folder / "a b").touch(), "path 'a b': expected names of"),
            (lambda folder: (folder / "x").symlink_to("y"), "expected a file or a folder, no link"),
            (lambda folder: (folder / "samples" / "one.npy").unlink(), "health sample samples/one"),
            (
                lambda folder: (folder / "model.toml").write_text('[model]\nname = "größe"'),
                "is no model name: expected 1 to 100 of",
            ),
        ],
    )
    def test_a_folder_that_makes_no_good_bundle_is_refused(self, folder, break_it, told):
        break_it(folder)

        done = inferctl("bundle", "build", folder, "-o", folder.parent / "out.bundle")

        assert done.returncode == 1
        assert told in done.stderr
        assert not (folder.parent / "out.bundle").exists()


class TestLooking:
    def test_inspect_shows_facts_and_files(self, folder):
        told = inferctl("bundle", "inspect", built(folder)).stdout

        assert "model            twice\n" in told
        assert "runtime          litert>=2.3,<3\n" in told
        assert f"{hashlib.sha256(TWICE).hexdigest()}\n" in told

    def test_inspect_has_json(self, folder):
        bundle = built(folder)

        document = json.loads(inferctl("bundle", "inspect", bundle, "--json").stdout)

        assert document["name"] == "twice"
        assert document["schema"] == 1
        assert document["sha256"] == hashlib.sha256(bundle.read_bytes()).hexdigest()
        assert [file["path"] for file in document["files"]] == [
            "model.tflite",
            "model.toml",
            "samples/one.npy",
            "samples/two.npy",
        ]

    def test_verify_says_that_it_is_whole(self, folder):
        bundle = built(folder)

        done = inferctl("bundle", "verify", bundle)

        assert done.returncode == 0
        assert done.stdout.startswith(f"{bundle} is whole: twice version 2, 4 files, ")

    def test_verify_has_json(self, folder):
        bundle = built(folder)

        assert json.loads(inferctl("bundle", "verify", bundle, "--json").stdout) == {
            "name": "twice",
            "version": 2,
            "sha256": hashlib.sha256(bundle.read_bytes()).hexdigest(),
        }

    def test_verify_finds_a_byte_that_is_another(self, folder):
        bundle = built(folder)
        raw = bytearray(bundle.read_bytes())
        raw[raw.index(TWICE) + 50] ^= 1
        bundle.write_bytes(raw)

        done = inferctl("bundle", "verify", bundle)

        assert done.returncode == 1
        assert "model.tflite: its sha256 is " in done.stderr

    @pytest.mark.parametrize("action", ["inspect", "verify", "test"])
    def test_anything_else_is_refused(self, tmp_path, action):
        (tmp_path / "x.tar").write_bytes(b"x" * 2000)

        done = inferctl("bundle", action, tmp_path / "x.tar")

        assert done.returncode == 1
        assert "it does not begin with manifest.json as a bundle does" in done.stderr

    @pytest.mark.parametrize("action", ["inspect", "verify", "test"])
    def test_a_missing_file_is_a_usage_error(self, tmp_path, action):
        done = inferctl("bundle", action, tmp_path / "none")

        assert done.returncode == 2
        assert "argument FILE: no such file" in done.stderr

    def test_a_verb_without_an_action_is_a_usage_error(self):
        assert inferctl("bundle").returncode == 2


class TestTest:
    def test_a_good_bundle_would_be_taken(self, folder):
        done = inferctl("bundle", "test", built(folder))

        assert done.returncode == 0, done.stdout
        assert "twice version 2, 4 files, " in done.stdout
        assert "it would serve well here\n  1 health sample on cpu, " in done.stdout

    def test_the_demo_model_would_be_taken(self, demo_model, tmp_path):
        bundle = tmp_path / "fashion-1.bundle"
        inferctl("bundle", "build", demo_model, "-o", bundle)

        document = json.loads(inferctl("bundle", "test", bundle, "--json").stdout)

        assert document["ok"] is True
        assert document["reasons"] == []
        assert (document["model"], document["version"]) == ("fashion", 1)
        assert document["samples"] == 3

    def test_wrong_answers_would_not_be_taken(self, folder):
        (folder / "samples" / "two.npy").write_bytes(npy(2, 4, 6, 9))

        done = inferctl("bundle", "test", built(folder))

        assert done.returncode == 1
        assert "it would not be taken\n  health sample samples/one.npy: " in done.stdout
        assert "differs by 1, allowed are 0.001" in done.stdout

    def test_a_model_that_cannot_be_loaded_would_not_be_taken(self, folder):
        (folder / "model.tflite").write_bytes(tflite_builder.custom("NoSuchOperator"))

        done = inferctl("bundle", "test", built(folder), "--json")

        assert done.returncode == 1
        assert json.loads(done.stdout)["ok"] is False

    def test_a_model_that_hangs_would_not_be_taken(self, folder):
        (folder / "model.tflite").write_bytes(tflite_builder.hangs_while_at_most(0.0))
        (folder / "model.toml").write_text('[model]\nname = "stuck"\n[limits]\ntimeout_ms = 200\n')

        done = inferctl("bundle", "test", built(folder))

        assert done.returncode == 1
        assert "stuck version 1, 4 files, " in done.stdout
        assert "it would not be taken\n  " in done.stdout

    def test_a_bundle_that_speaks_of_another_model_would_not_be_taken(self, folder):
        """As a writer of bundles could make it who has not read all of docs/bundles.md."""
        into = unpacked(built(folder))
        manifest = json.loads((into / "manifest.json").read_bytes()) | {"version": 3}
        (into / "manifest.json").write_text(json.dumps(manifest))
        names = ["manifest.json", *(file["path"] for file in manifest["files"])]
        command = "tar --format=ustar --owner=0 --group=0 --numeric-owner --mode=0644 --mtime=@0"
        bundle = into.with_name("other.bundle")
        subprocess.run([*command.split(), "-b1", "-cf", bundle, *names], cwd=into, check=True)

        done = inferctl("bundle", "test", bundle)

        assert done.returncode == 1
        assert "speaks of twice version 2, its manifest of twice version 3" in done.stdout

    def test_a_model_without_samples_is_tried_and_the_publisher_told(self, tmp_path):
        (tmp_path / "twice.tflite").write_bytes(TWICE)

        done = inferctl("bundle", "test", built(tmp_path / "twice.tflite"))

        assert done.returncode == 0
        assert "It has no health samples" in done.stdout

    def test_nothing_is_left_behind(self, folder, tmp_path):
        scratch = tmp_path / "scratch"
        scratch.mkdir()

        inferctl("bundle", "test", built(folder), TMPDIR=str(scratch))

        assert list(scratch.iterdir()) == []
