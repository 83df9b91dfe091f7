"""The demo model in examples/demo/fashion says what it is and knows its samples."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from accelerators.metadata import read_metadata
from daemon.modelfile import parse_model_file

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "examples" / "demo" / "fashion"
LABELS = tuple((FOLDER / "labels.txt").read_text().splitlines())
LARGEST_FOLDER_BYTES = 150_000


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


def test_the_file_says_what_it_is_without_help():
    model = (FOLDER / "model.tflite").read_bytes()

    metadata, problem = read_metadata(memoryview(model), io.BytesIO(model))

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
