"""What kind of model lies at a path, told by what is in it. Reads beginnings and names only.

1. A file is what its first bytes say: HDF5 (a Keras `.h5`), a zip with Keras' own `config.json`
   (`.keras`), or a TFLite file. A suffix that says something else is refused.
2. A folder with `saved_model.pb` is a SavedModel; one with both that and a `.tflite` is refused,
   since either could be meant.
3. Any other folder is a model's folder; whether there is a model in it is found out later.

What is not checked: whether the model inside can be read or converted.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from accelerators.flatbuffer import DamagedFile
from accelerators.outline import read_outline
from daemon.build.errors import BadSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_TFLITE, _TFLITE_AT = b"TFL3", 4
_HEAD_BYTES = 8
_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
_KERAS_CONFIG = "config.json"
_MAX_FILES = 10_000
"""Of a SavedModel: variables are in a few shards, assets are few."""

EXPECTED = (
    "expected a Keras .h5 or .keras file, a SavedModel folder, a .tflite file, or a folder with "
    "model.tflite"
)


class SourceKind(Enum):
    """What a bundle can be made of."""

    KERAS_H5 = "keras-h5"
    KERAS = "keras"
    SAVED_MODEL = "saved-model"
    TFLITE = "tflite"
    FOLDER = "folder"

    @property
    def needs_tensorflow(self) -> bool:
        """Whether it is converted first."""
        return self in {SourceKind.KERAS_H5, SourceKind.KERAS, SourceKind.SAVED_MODEL}


_SUFFIXES = {
    ".h5": SourceKind.KERAS_H5,
    ".hdf5": SourceKind.KERAS_H5,
    ".keras": SourceKind.KERAS,
    ".tflite": SourceKind.TFLITE,
}


def recognise(path: Path) -> SourceKind:
    """Say what lies there.

    Raises:
        BadSource: none of these; says what was expected.
        OSError: it cannot be read.
    """
    return _folder(path) if path.is_dir() else _file(path)


def check_operators(path: Path) -> None:
    """Let a TFLite file pass that does without TensorFlow's own operators.

    Others, as accelerators bring them, may be on the devices that it is for.

    Raises:
        BadSource: it needs them, or it is damaged.
        OSError: it cannot be read.
    """
    try:
        flex = read_outline(memoryview(path.read_bytes())).flex
    except DamagedFile as exc:
        raise BadSource(f"{path}: a damaged TFLite file: {exc}") from exc
    if flex:
        raise BadSource(
            f"{path}: it needs operators of TensorFlow's own (Select TF ops): {', '.join(flex)}; "
            "convert it with TFLite's own operators only"
        )


def digest_of(path: Path) -> str:
    """The sha256 of a file; of a folder, that of its listing.

    The listing has a line for each file, `SHA256  PATH`, as sha256sum writes it, sorted by path.

    Raises:
        BadSource: more files than a model has.
        OSError: it cannot be read.
    """
    if not path.is_dir():
        return _sha256(path)
    files = list(islice(_files(path), _MAX_FILES + 1))
    if len(files) > _MAX_FILES:
        raise BadSource(f"{path}: more than {_MAX_FILES} files in it")
    return digest_of_files((file.relative_to(path).as_posix(), file) for file in files)


def digest_of_files(files: Iterable[tuple[str, Path]]) -> str:
    """The sha256 of a listing of files, each with the name it has there.

    Raises:
        OSError: one cannot be read.
    """
    by_name = sorted(files, key=lambda pair: os.fsencode(pair[0]))
    listing = b"".join(
        b"%s  %s\n" % (_sha256(file).encode(), os.fsencode(name)) for name, file in by_name
    )
    return hashlib.sha256(listing).hexdigest()


def _folder(path: Path) -> SourceKind:
    has_saved_model = any((path / name).is_file() for name in _SAVED_MODEL)
    has_tflite = any(entry.suffix == ".tflite" for entry in path.iterdir())
    if has_saved_model and has_tflite:
        raise BadSource(
            f"{path}: holds a SavedModel and a .tflite file; which one is meant? Move one of them"
        )
    if has_saved_model:
        return SourceKind.SAVED_MODEL
    return SourceKind.FOLDER


def _file(path: Path) -> SourceKind:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    found = _kind_of(path, head)
    if found is None:
        raise BadSource(f"{path}: {_what_else(path, head)}; {EXPECTED}")
    said = _SUFFIXES.get(path.suffix.lower())
    if said is not found:
        raise BadSource(f"{path}: by its content a {found.value} file: give it that suffix")
    return found


def _kind_of(path: Path, head: bytes) -> SourceKind | None:
    if head == _HDF5:
        return SourceKind.KERAS_H5
    if head[_TFLITE_AT:] == _TFLITE:
        return SourceKind.TFLITE
    if head.startswith(_ZIP) and _is_keras(path):
        return SourceKind.KERAS
    return None


def _is_keras(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return _KERAS_CONFIG in archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def _what_else(path: Path, head: bytes) -> str:
    if not head:
        return "an empty file"
    if path.suffix == ".pb":
        return "a lone .pb file; of a SavedModel the folder is needed"
    if path.suffix.lower() in _SUFFIXES:
        return f"not a {path.suffix} file: it begins with {head!r}"
    return "no model that is known here"


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):  # which follows no links
        yield from (Path(parent) / name for name in names)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
