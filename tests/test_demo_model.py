"""The demo model in examples/demo/fashion says what it is and knows its samples."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from PIL import Image
from support import selftest_model

from accelerators.metadata import read_metadata
from daemon.modelfile import parse_model_file

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "examples" / "demo" / "fashion"
LABELS = tuple((FOLDER / "labels.txt").read_text().splitlines())
LARGEST_FOLDER_BYTES = 150_000


@pytest.fixture(scope="module")
def packer():
    """examples/tflite_metadata.py, which is a script's neighbour and in no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "examples")
        yield importlib.import_module("tflite_metadata")


def make_metadata(packer, **changes):
    facts = {
        "name": "tiny",
        "description": "doubles",
        "version": "7",
        "author": "us",
        "license": "none",
        "width": 4,
        "height": 1,
        "mean": 127.5,
        "std": 63.75,
        "labels": ("a", "b c"),
    }
    return packer.ClassifierMetadata(**{**facts, **changes})


def read_packed(model: bytes, tmp_path: Path):
    """Metadata as the daemon's workers read it."""
    file = tmp_path / "model.tflite"
    file.write_bytes(model)
    with file.open("rb") as stream:
        return read_metadata(memoryview(model), stream)


def run_demo_model(pictures: np.ndarray) -> np.ndarray:
    """Class numbers for uint8 (N, 28, 28) pictures."""
    interpreter = Interpreter(model_path=str(FOLDER / "model.tflite"))
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(source["index"], (len(pictures), 28, 28, 1))
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], pictures[..., np.newaxis])
    interpreter.invoke()
    return interpreter.get_tensor(sink["index"]).argmax(axis=1)


def test_every_sample_is_known_in_one_batch():
    names = [f"{label.replace(' ', '-')}.png" for label in LABELS]
    pictures = np.stack([np.asarray(Image.open(FOLDER / "samples" / name)) for name in names])

    assert list(run_demo_model(pictures)) == list(range(len(LABELS)))


def test_the_file_says_what_it_is_without_help(tmp_path):
    metadata, problem = read_packed((FOLDER / "model.tflite").read_bytes(), tmp_path)

    assert problem == ""
    assert metadata.name == "fashion"
    assert metadata.outputs[0].labels == LABELS
    assert (metadata.inputs[0].mean, metadata.inputs[0].std) == ((0.0,), (255.0,))


def test_its_model_toml_can_be_used():
    tables = parse_model_file((FOLDER / "model.toml").read_text())

    assert tables.model.name == "fashion"
    assert all((FOLDER / sample.input).is_file() for sample in tables.health.samples)


def test_the_folder_stays_small():
    size_bytes = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())

    assert size_bytes < LARGEST_FOLDER_BYTES


def test_packed_metadata_is_read_back_as_it_was_given(packer, tmp_path):
    given = make_metadata(packer)

    metadata, problem = read_packed(packer.pack(selftest_model.build(), given), tmp_path)

    assert problem == ""
    assert (metadata.name, metadata.description, metadata.version) == ("tiny", "doubles", "7")
    assert metadata.inputs[0].content == "image"
    assert (metadata.inputs[0].mean, metadata.inputs[0].std) == ((127.5,), (63.75,))
    assert metadata.outputs[0].labels == ("a", "b c")


def test_packing_twice_gives_the_same_bytes(packer):
    given = make_metadata(packer)

    first = packer.pack(selftest_model.build(), given)

    assert packer.pack(selftest_model.build(), given) == first


def test_packed_weights_stay_aligned(packer):
    """Buffers that do not start at a multiple of 16 bytes are slow, or refused."""
    packed = packer.pack((FOLDER / "model.tflite").read_bytes(), make_metadata(packer))

    model = schema.Model.GetRootAs(packed, 0)
    start = np.frombuffer(packed, np.uint8).ctypes.data
    buffers = [model.Buffers(number).DataAsNumpy() for number in range(model.BuffersLength())]
    filled = [buffer for buffer in buffers if isinstance(buffer, np.ndarray)]

    assert len(filled) > 5
    assert {(buffer.ctypes.data - start) % 16 for buffer in filled} == {0}
