"""What lies at a path is told by its content."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile

import pytest
from support import tflite_builder

from daemon.build.errors import BadSource
from daemon.build.sources import SourceKind, check_operators, digest_of, recognise

HDF5 = b"\x89HDF\r\n\x1a\n and more"


def zipped(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "{}")
    return path


def written(path, content):
    path.write_bytes(content)
    return path


def test_files_are_what_they_begin_with(tmp_path):
    assert recognise(written(tmp_path / "a.h5", HDF5)) is SourceKind.KERAS_H5
    assert recognise(written(tmp_path / "a.hdf5", HDF5)) is SourceKind.KERAS_H5
    assert recognise(zipped(tmp_path / "a.keras", "config.json")) is SourceKind.KERAS
    assert recognise(written(tmp_path / "a.tflite", tflite_builder.scale())) is SourceKind.TFLITE


def test_a_folder_with_a_graph_is_a_saved_model_and_any_other_a_models_folder(tmp_path):
    assert recognise(tmp_path) is SourceKind.FOLDER

    (tmp_path / "saved_model.pb").write_bytes(b"")

    assert recognise(tmp_path) is SourceKind.SAVED_MODEL


def test_a_folder_that_could_be_either_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    (tmp_path / "model.tflite").write_bytes(tflite_builder.scale())

    with pytest.raises(BadSource, match="which one is meant"):
        recognise(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.h5", b"", "an empty file"),
        ("model.h5", b"PK\x03\x04 no", r"not a \.h5 file"),
        ("model.keras", b"PK\x03\x04 torn", r"not a \.keras file"),
        ("model.tflite", b"no model at all", r"not a \.tflite file"),
        ("model.keras", HDF5, "by its content a keras-h5 file"),
        ("model.bin", tflite_builder.scale(), "by its content a tflite file"),
        ("frozen.pb", b"graph", "of a SavedModel the folder is needed"),
        ("model.onnx", b"\x08\x07", r"expected a Keras \.h5 or \.keras file, a SavedModel folder"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected(tmp_path, name, content, told):
    with pytest.raises(BadSource, match=told):
        recognise(written(tmp_path / name, content))


def test_a_zip_of_something_else_is_no_keras_file(tmp_path):
    with pytest.raises(BadSource, match=r"not a \.keras file"):
        recognise(zipped(tmp_path / "a.keras", "README"))


def test_tensorflow_is_needed_by_three_of_them():
    needing = {kind for kind in SourceKind if kind.needs_tensorflow}

    assert needing == {SourceKind.KERAS_H5, SourceKind.KERAS, SourceKind.SAVED_MODEL}


def test_a_files_digest_is_its_sha256(tmp_path):
    assert digest_of(written(tmp_path / "a", b"abc")) == hashlib.sha256(b"abc").hexdigest()


def test_a_folders_digest_is_what_the_shell_makes_of_it(tmp_path):
    (tmp_path / "variables").mkdir()
    for name in ("b", ".hidden", "variables/a b", "Z"):
        written(tmp_path / name, name.encode())
    line = r"find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum"

    said = subprocess.run(
        ["bash", "-euc", line], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout

    assert digest_of(tmp_path) == said.split()[0]


def test_a_folders_digest_does_not_know_where_it_lies(tmp_path):
    (tmp_path / "one").mkdir()
    written(tmp_path / "one" / "a", b"1")
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    assert digest_of(tmp_path / "one") == digest_of(tmp_path / "two")


def test_tensorflows_own_operators_are_named_and_refused(tmp_path):
    file = written(tmp_path / "a.tflite", tflite_builder.custom("FlexMatrixInverse"))

    with pytest.raises(BadSource, match=r"Select TF ops\): MatrixInverse;"):
        check_operators(file)


def test_other_operators_may_be_on_the_devices(tmp_path):
    check_operators(written(tmp_path / "a.tflite", tflite_builder.custom("edgetpu-custom-op")))


def test_a_damaged_file_is_refused(tmp_path):
    with pytest.raises(BadSource, match="damaged"):
        check_operators(written(tmp_path / "a.tflite", b"\xff\xff\xff\x7fTFL3 torn"))
