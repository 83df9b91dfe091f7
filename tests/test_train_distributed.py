"""examples/train_distributed.py: two workers train one network, and two bundles answer alike."""

from __future__ import annotations

import gzip
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.inferctl import ENVIRONMENT

from accelerators.metadata import read_metadata
from daemon.modelfile import parse_model_file
from updater.bundle import open_bundle

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "train_distributed.py"
CLASSES = 10
SIDE = 28
TIMEOUT_S = 280

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(TIMEOUT_S + 20),
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow") is None,
        reason="needs the extra 'build' (tensorflow)",
    ),
]


def write_idx(path: Path, values: np.ndarray) -> None:
    """An IDX file of bytes, as the data set's."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes()))


def write_set(folder: Path, name: str, count: int, seed: int) -> None:
    """Pictures of noise with a bright bar, whose place is their class."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, count, dtype=np.uint8)
    pictures = rng.integers(0, 90, (count, SIDE, SIDE), dtype=np.uint8)
    for picture, number in zip(pictures, classes, strict=True):
        picture[2 * number : 2 * number + 3] += 150
    write_idx(folder / f"{name}-images-idx3-ubyte.gz", pictures)
    write_idx(folder / f"{name}-labels-idx1-ubyte.gz", classes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """The folder that the script made, and what it printed."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("fashion")
    write_set(data, "train", 2560, seed=1)
    write_set(data, "t10k", 200, seed=2)
    options = ["--data", str(data), "--out", str(out), "--epochs", "4", "--optimize", "dynamic"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def losses(log: Path) -> list[str]:
    return re.findall(r"^epoch \d+ of \d+: loss ([\d.]+)$", log.read_text(), re.MULTILINE)


def test_both_workers_have_one_network(trained):
    out, _ = trained
    first, second = (losses(out / f"worker-{number}.log") for number in range(2))

    assert len(first) == 4
    assert first == second


def test_no_worker_is_taken_for_crashed(trained):
    out, _ = trained

    assert not any("crashed" in log.read_text() for log in out.glob("worker-*.log"))


def test_it_learned(trained):
    _, printed = trained
    share = re.search(r"^([\d.]+) of the test pictures are right$", printed, re.MULTILINE)

    assert float(share[1]) > 0.9


def test_bundles_of_both_files_answer_alike(trained):
    _, printed = trained

    assert "both bundles give the same answers to 200 pictures" in printed


@pytest.mark.parametrize("name", ["model", "saved_model"])
def test_a_bundle_says_what_it_is_and_has_samples(name, trained, tmp_path):
    bundle = trained[0] / f"fashion-{name}.bundle"
    open_bundle(bundle, tmp_path, limit_bytes=bundle.stat().st_size)

    model = (tmp_path / "model.tflite").read_bytes()
    with (tmp_path / "model.tflite").open("rb") as file:
        metadata, problem = read_metadata(memoryview(model), file)
    samples = parse_model_file((tmp_path / "model.toml").read_text()).health.samples
    assert problem == ""
    assert metadata.outputs[0].labels[-1] == "ankle boot"
    assert (metadata.inputs[0].mean, metadata.inputs[0].std) == ((0.0,), (255.0,))
    assert len({sample.label for sample in samples}) == CLASSES
