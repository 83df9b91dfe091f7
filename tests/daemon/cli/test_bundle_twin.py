"""A bundle with a file that is compiled for a device, and with the one that the CPU runs."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from support.inferctl import inferctl

from updater.bundle import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

WISHES = 'accelerators = ["edgetpu"]\n'
TWIN = 'cpu_model = "for-cpu.tflite"\n'


@pytest.fixture
def folder(tmp_path, shared_models) -> Path:
    """The shared set's Edge TPU file and its CPU model."""
    folder = tmp_path / "birds"
    folder.mkdir()
    models = shared_models / "models"
    shutil.copy(models / "mobilenet_v1_0.25_128_quant_edgetpu.tflite", folder / "model.tflite")
    shutil.copy(models / "mobilenet_v1_0.25_128_quant.tflite", folder / "for-cpu.tflite")
    (folder / "model.toml").write_text(f"[placement]\n{WISHES}{TWIN}")
    return folder


def build(folder: Path, *options: str) -> Path:
    bundle = folder.parent / "birds-1.bundle"
    done = inferctl("bundle", "build", folder, "-o", bundle, *options)
    assert done.returncode == 0, done.stderr
    return bundle


def test_both_files_are_in_it(folder):
    manifest = read_manifest(build(folder))

    assert [entry.path for entry in manifest.files] == [
        "for-cpu.tflite",
        "model.tflite",
        "model.toml",
    ]
    assert manifest.accelerators == ()


def test_it_would_serve_without_the_device(folder):
    done = inferctl("bundle", "test", build(folder), "--json")

    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["device"]) == (True, "cpu")


def test_without_the_named_file_there_is_no_bundle(folder):
    (folder / "for-cpu.tflite").unlink()

    done = inferctl("bundle", "build", folder, "-o", folder.parent / "out.bundle")

    assert done.returncode == 1
    assert "placement.cpu_model: " in done.stderr
    assert "for-cpu.tflite cannot be read: No such file" in done.stderr
    assert not (folder.parent / "out.bundle").exists()


def test_a_compiled_file_alone_would_not_be_taken(folder):
    (folder / "model.toml").write_text(f"[placement]\n{WISHES}")

    done = inferctl("bundle", "test", build(folder))

    assert done.returncode == 1
    assert "placement.cpu_model" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("placement", "options", "needed"),
    [
        (f"{WISHES}{TWIN}required = true\n", (), ("edgetpu",)),
        (f"{WISHES}{TWIN}required = true\n", ("--accelerators", "npu"), ("npu",)),
        (f'accelerators = ["edgetpu", "cpu"]\n{TWIN}required = true\n', (), ()),
        (f'accelerators = ["external:dsp"]\n{TWIN}required = true\n', (), ("external",)),
        (f'accelerators = ["edgetpu", "gpu"]\n{TWIN}required = true\n', (), ()),
        (f"{WISHES}{TWIN}", (), ()),
    ],
    ids=["required", "said otherwise", "or the CPU", "external", "one of two", "wished"],
)
def test_a_device_that_is_required_is_needed_by_the_bundle(folder, placement, options, needed):
    (folder / "model.toml").write_text(f"[placement]\n{placement}")

    assert read_manifest(build(folder, *options)).accelerators == needed
