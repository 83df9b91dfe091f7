"""TensorFlow's process: what it makes, what it refuses, and that it cannot outlive its limits."""

from __future__ import annotations

import math
import shutil

import numpy as np
import psutil
import pytest
from ai_edge_litert.interpreter import Interpreter

from daemon.build.choose import Variant
from daemon.build.converter import Limits, converting, default_memory_mib
from daemon.build.errors import ConversionFailed
from daemon.build.rows import read_rows, writing_rows
from daemon.build.sources import SourceKind

pytestmark = pytest.mark.timeout(
    400
)  # TensorFlow alone takes 5 s to start, and some machines are busy

LIMITS = Limits(seconds=300, memory_mib=default_memory_mib())
DEFAULT = "serving_default"


@pytest.fixture(scope="module")
def converter(tmp_path_factory, trained):
    """One for all tests: it opens one source after the other."""
    with converting(tmp_path_factory.mktemp("converter"), LIMITS) as child:
        yield child


def run(model: bytes, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    return Interpreter(model_content=model).get_signature_runner(signature)(**inputs)


def test_every_signature_of_a_saved_model_answers_as_before(converter, trained, tmp_path):
    opened = converter.open(SourceKind.SAVED_MODEL, trained / "two-signatures")
    converter.convert(Variant.NONE, tmp_path / "out", signature=DEFAULT, rows=None)

    model = (tmp_path / "out").read_bytes()
    rows = np.load(trained / "eights.npz")["x"]
    assert set(opened.signatures) == {DEFAULT, "features"}
    for name, output in ((DEFAULT, "scores"), ("features", "features")):
        found = run(model, name, x=rows)[output]
        assert found == pytest.approx(np.load(trained / f"{output}.npy"), abs=1e-5)


def test_the_original_answers_row_by_row(converter, trained, tmp_path):
    converter.open(SourceKind.KERAS, trained / "two-in-three-out.keras")
    rows = np.load(trained / "two-in.npz")
    with writing_rows(tmp_path / "rows", ["a", "b"]) as writer:
        for a, b in zip(rows["a"], rows["b"], strict=True):
            writer.add({"a": a[None], "b": b[None]})

    count = converter.predict(tmp_path / "rows", tmp_path / "answers", signature=DEFAULT)

    answers = list(read_rows(tmp_path / "answers"))
    wanted = np.load(trained / "three-out.npz")
    assert count == len(answers) == len(rows["a"])
    for name in "pqr":
        found = np.concatenate([answer[name] for answer in answers])
        assert found == pytest.approx(wanted[name], abs=1e-5)


def test_recurrent_layers_are_converted_for_one_item_at_a_time(converter, trained, tmp_path):
    converter.open(SourceKind.KERAS, trained / "lstm.keras")

    note = converter.convert(Variant.NONE, tmp_path / "out", signature=DEFAULT, rows=None)

    interpreter = Interpreter(model_path=str(tmp_path / "out"))
    assert "one item at a time" in note
    assert interpreter.get_input_details()[0]["shape_signature"].tolist() == [1, 6, 8]


def test_operators_that_a_device_lacks_are_named(converter, trained, tmp_path):
    converter.open(SourceKind.SAVED_MODEL, trained / "select")

    with pytest.raises(ConversionFailed, match="Select TF ops") as refusal:
        converter.convert(Variant.NONE, tmp_path / "out", signature=DEFAULT, rows=None)

    assert refusal.value.operators == ("MatrixInverse", "Digamma")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("bare", SourceKind.SAVED_MODEL, "no signature to call: save it with signatures="),
        ("only.weights.h5", SourceKind.KERAS_H5, "weights and no model: save it with model.save"),
        ("code.keras", SourceKind.KERAS, "Python code .* which is not run here"),
        ("code.h5", SourceKind.KERAS_H5, "Python code .* which is not run here"),
        ("eights.npz", SourceKind.KERAS_H5, "cannot read"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(converter, trained, name, kind, told):
    with pytest.raises(ConversionFailed, match=told):
        converter.open(kind, trained / name)


def test_a_process_that_takes_too_long_is_killed(trained, tmp_path):
    with converting(tmp_path, Limits(seconds=0.2, memory_mib=LIMITS.memory_mib)) as converter:
        with pytest.raises(ConversionFailed, match=r"more than 0\.2 s \(--convert-seconds\)"):
            converter.open(SourceKind.KERAS_H5, trained / "model.h5")
        with pytest.raises(ConversionFailed, match=r"more than 0\.2 s \(--convert-seconds\)"):
            converter.open(SourceKind.KERAS_H5, trained / "model.h5")


def test_a_variant_that_kills_the_process_does_not_end_the_next(trained, tmp_path):
    out = tmp_path / "out"
    with converting(tmp_path, LIMITS) as converter:
        converter.open(SourceKind.KERAS, trained / "lstm.keras")
        psutil.Process(converter._process.pid).kill()
        converter._process.wait()
        converter.convert(Variant.FLOAT16, out, signature=DEFAULT, rows=None)

    interpreter = Interpreter(model_path=str(out))
    assert interpreter.get_input_details()[0]["shape_signature"].tolist() == [1, 6, 8]


def test_weights_that_are_another_file_are_refused(converter, trained, tmp_path):
    h5py = pytest.importorskip("h5py", reason="comes with TensorFlow")
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret of this machine" * 20_000)
    source = tmp_path / "model.h5"
    shutil.copyfile(trained / "model.h5", source)
    with h5py.File(source, "r+") as file:
        kernels: list[str] = []
        file.visit(lambda name: kernels.append(name) if name.endswith("kernel") else None)
        shape = file[kernels[0]].shape
        del file[kernels[0]]
        external = [(str(secret), 0, 4 * math.prod(shape))]
        file.create_dataset(kernels[0], shape, "float32", external=external)

    with pytest.raises(ConversionFailed, match="cannot read"):
        converter.open(SourceKind.KERAS_H5, source)


def test_a_process_that_takes_too_much_memory_is_told_of(trained, tmp_path):
    with (
        converting(tmp_path, Limits(seconds=300, memory_mib=150)) as converter,
        pytest.raises(ConversionFailed) as failure,
    ):
        converter.open(SourceKind.KERAS_H5, trained / "model.h5")

    told = f"{failure.value} {failure.value.details}"
    assert "150 MiB (--convert-memory-mib)" in told or "memory" in told


def test_no_process_is_left_behind(trained, tmp_path):
    before = set(psutil.Process().children(recursive=True))

    with converting(tmp_path, LIMITS) as converter:
        converter.open(SourceKind.KERAS_H5, trained / "model.h5")
        children = set(psutil.Process().children(recursive=True)) - before
        assert children

    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
