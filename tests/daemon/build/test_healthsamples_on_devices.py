"""Chosen health samples as a device asks them: of the same model in other numbers, and of others.

Every verdict is that of `inferctl bundle test`, which runs the model in a worker.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from support import tflite_builder as models
from support.inferctl import inferctl

from accelerators.base import DataType, TensorSpec
from daemon.build.healthsamples import Evaluated, choose_samples, samples_toml, write_samples
from daemon.tensors import Category, Classification

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = 4
WRONG = re.compile(r"health sample .*: (expected '|output .* differs by)")
OUTPUT = TensorSpec("probabilities", DataType.FP32, (1, CLASSES))
MODEL = models.mlp((8, 32, CLASSES), batch=1, seed=5)


def predict(model: bytes, row: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def with_weights(change) -> bytes:
    """The model with all its numbers changed."""
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(MODEL, 0))
    for buffer in tree.buffers:
        if buffer.data is not None:
            numbers = np.frombuffer(bytes(buffer.data), np.float32)
            buffer.data = np.frombuffer(change(numbers).astype(np.float32).tobytes(), np.uint8)
    builder = flatbuffers.Builder(1024)
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def as_int8(numbers: np.ndarray) -> np.ndarray:
    scale = np.abs(numbers).max() / 127
    return np.round(numbers / scale) * scale


def meaning_of(scores: np.ndarray) -> Classification:
    order = np.argsort(-scores[0])
    return Classification(tuple(Category(str(n), int(n), float(scores[0, n])) for n in order))


def folder_of(path: Path, kind: str) -> Path:
    """A model's folder with health samples of twenty random rows."""
    rng = np.random.default_rng(1)
    items = []
    for number in range(20):
        row = rng.normal(size=(1, 8)).astype(np.float32) * 2
        scores = predict(MODEL, row)
        meaning = meaning_of(scores) if kind == "classification" else None
        items.append(Evaluated(f"row {number}", {"x": row}, {OUTPUT.name: scores}, meaning))
    entries = write_samples(path, choose_samples(items, [OUTPUT], limit=4))
    assert len(entries) > 1
    tables = f'[model]\nname = "net"\nversion = 1\n\n[output]\nkind = "{kind}"\n\n'
    (path / "model.toml").write_text(tables + samples_toml(entries))
    return path


@pytest.fixture(scope="module", params=["tensor", "classification"])
def folder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / request.param
    path.mkdir()
    return folder_of(path, request.param)


def verdict_of(folder: Path, model: bytes, tmp_path: Path) -> str:
    """What is wrong with each health sample, one in a line; the first line sums up."""
    (folder / "model.tflite").write_bytes(model)
    bundle = tmp_path / "net.bundle"
    assert inferctl("bundle", "build", folder, "-o", bundle).returncode == 0
    return inferctl("bundle", "test", bundle).stdout


@pytest.mark.parametrize(
    "change",
    [lambda numbers: numbers, lambda numbers: numbers.astype(np.float16), as_int8],
    ids=["as it is", "float16", "int8"],
)
def test_the_same_model_in_other_numbers_passes(change, folder, tmp_path):
    assert "it would serve well here" in verdict_of(folder, with_weights(change), tmp_path)


@pytest.mark.parametrize(
    "change",
    [np.zeros_like, lambda numbers: -numbers, lambda numbers: numbers[::-1]],
    ids=["zeros", "signs turned", "weights mixed up"],
)
def test_a_broken_model_fails(change, folder, tmp_path):
    assert WRONG.search(verdict_of(folder, with_weights(change), tmp_path))


def test_another_model_of_the_same_shape_fails(folder, tmp_path):
    other = models.mlp((8, 32, CLASSES), batch=1, seed=6)

    assert WRONG.search(verdict_of(folder, other, tmp_path))
