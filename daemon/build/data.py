"""Representative and evaluation data: pictures, WAV sounds or arrays, as rows of a model's inputs.

1. A folder holds pictures or WAV sounds, told by their content; other files and names that begin
   with "." are passed over. Where each lies in a sub-folder, that is named after its class.
2. An `.npz` holds an array for each input, by its name, whose first dimension counts the items; for
   a model with one input any name will do. `labels` or `y`, where no input is called that, holds
   class numbers.
3. More items than are asked for are thinned evenly, in the order of their names.
4. Pictures and sounds become rows by the daemon's own pipeline, as they will when it serves.
5. Everything is bounded: files looked at, bytes of one, bytes of all arrays.
"""

from __future__ import annotations

import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from daemon.build.errors import BadData
from daemon.build.rows import as_called, writing_rows
from daemon.build.sources import digest_of, digest_of_files
from daemon.errors import RequestError
from daemon.pipeline.kinds import PICTURE_KINDS, SOUND_KINDS, is_wav, picture_kind
from daemon.pipeline.media import prepare
from daemon.pipeline.profiles import InputKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from accelerators.base import Array, SignatureSpec, TensorSpec
    from daemon.build.rows import Row
    from daemon.pipeline.media import MediaLimits
    from daemon.pipeline.profiles import ModelProfile

MAX_REPRESENTATIVE = 500
"""Items that ranges are taken from: more move them by little and take long."""
MAX_EVALUATED = 10_000
"""Items that variants are compared by: a figure of 0.01 is then 100 answers."""

_MAX_FILES = 500_000  # looked at in a folder
_MAX_MEDIA_BYTES = 64 << 20  # as large as a body may be by default
_MAX_ARRAY_BYTES = 4 << 30  # of all arrays of an .npz, unpacked: they are held in memory
_MAX_ENTRIES = 1000  # arrays in an .npz
_HEAD_BYTES = 12
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_LABEL_KEYS = ("labels", "y")

# What numpy and zipfile raise for files that are damaged, or claim more than there is.
_NPZ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    ValueError,
    EOFError,
    OverflowError,
    RuntimeError,
    MemoryError,
)

_Item = TypeVar("_Item")


class DataKind(Enum):
    """What the items are."""

    PICTURES = "pictures"
    SOUNDS = "sounds"
    ARRAYS = "arrays"


@dataclass(frozen=True, slots=True)
class Data:
    """Items to calibrate or evaluate with.

    Attributes:
        names: of the items, in order: a path below the folder, or "row 7".
        files: of pictures and sounds, in the same order; () for arrays.
        arrays: by name; empty for pictures and sounds. Class numbers are among them until
            `split_classes` has been called.
        folders: for each item the folder that names its class; () where there are none.
        class_numbers: for each item, from an `.npz`; () where there are none.
        digest: sha256 of the `.npz`; else of a listing of the files (`sources.digest_of`).
    """

    path: Path
    kind: DataKind
    names: tuple[str, ...]
    digest: str
    files: tuple[Path, ...] = ()
    arrays: Mapping[str, Array] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    class_numbers: tuple[int, ...] = ()

    @property
    def has_classes(self) -> bool:
        """Whether it says which answer is right."""
        return bool(self.folders or self.class_numbers)

    def encoded(self, number: int) -> bytes | None:
        """An item's file; None for arrays.

        Raises:
            BadData: it cannot be read, or is too large.
        """
        return _read(self.files[number]) if self.files else None


def open_data(path: Path, *, most: int) -> Data:
    """Look at a folder or an `.npz`; pictures and sounds are not decoded yet.

    Args:
        most: items that are kept.

    Raises:
        BadData: there is nothing that can be used; says what was expected.
    """
    try:
        if path.is_dir():
            return _open_folder(path, most)
        if path.suffix == ".npz":
            return _open_arrays(path, most)
    except OSError as exc:
        raise BadData(f"{exc.filename or path}: {exc.strerror or exc}") from exc
    raise BadData(
        f"{path}: expected a folder of pictures ({PICTURE_KINDS}) or of sounds ({SOUND_KINDS}), "
        "or an .npz file"
    )


def split_classes(data: Data, inputs: Sequence[str]) -> Data:
    """Take the class numbers of an `.npz` out of its arrays.

    Args:
        inputs: the model's: one that is called `y` is not taken for class numbers.

    Raises:
        BadData: they are no class numbers.
    """
    key = next((key for key in _LABEL_KEYS if key in data.arrays and key not in inputs), None)
    if key is None:
        return data
    arrays = {name: array for name, array in data.arrays.items() if name != key}
    return replace(
        data, arrays=arrays, class_numbers=_class_numbers(data.path, key, data.arrays[key])
    )


def check_finite(data: Data) -> None:
    """Let pass what ranges can be taken from: NaN or infinity spoils them without a word.

    Raises:
        BadData: a number is not finite, or too large for float32; says in which row.
    """
    for name, array in data.arrays.items():
        if array.dtype.kind != "f":
            continue
        for row, values in zip(data.names, array, strict=True):
            if not (np.abs(values.astype(np.float64)) <= _FLOAT32_MAX).all():  # nor is NaN
                raise BadData(f"{data.path}: {row} of '{name}' is not finite")


def write_rows(
    data: Data, out: Path, signature: SignatureSpec, profile: ModelProfile, limits: MediaLimits
) -> None:
    """Write every item as a row of the model's inputs.

    Args:
        signature: the model's default one.
        profile: says how a picture or sound becomes the input.

    Raises:
        BadData: an item is damaged or does not fit the model; the message names it.
        OSError: the disk refused.
    """
    rows = (
        _array_rows(data, signature)
        if data.kind is DataKind.ARRAYS
        else _media_rows(data, profile, limits)
    )
    with writing_rows(out, [spec.name for spec in signature.inputs]) as writer:
        for row in rows:
            writer.add(row)


def labels_from_folders(data: Data) -> tuple[str, ...]:
    """The names of the class folders in the order that Keras' own readers give them.

    Raises:
        BadData: they are numbers, and that order is another one than theirs.
    """
    names = sorted(set(data.folders))
    if all(name.isdecimal() for name in names) and names != sorted(names, key=int):
        raise BadData(
            f"{data.path}: its folders are numbers, and in alphabetical order, as Keras reads "
            "them, 10 comes before 2: say which class is which with --labels"
        )
    return tuple(names)


def number_classes(data: Data, labels: Sequence[str], classes: int) -> tuple[int, ...]:
    """For each item its class number; () where the data does not say.

    Args:
        labels: of the model; they say which folder is which class.
        classes: that the model tells apart.

    Raises:
        BadData: a folder or a number is no class of the model.
    """
    places = {label: number for number, label in enumerate(labels)}
    if unknown := sorted(set(data.folders) - set(places)):
        shown, known = ", ".join(unknown[:5]), ", ".join(labels[:5])
        raise BadData(f"{data.path}: no label is called {shown}; the labels are {known}, …")
    numbers = data.class_numbers or tuple(places[folder] for folder in data.folders)
    if numbers and not 0 <= min(numbers) <= max(numbers) < classes:
        raise BadData(
            f"{data.path}: class numbers go from {min(numbers)} to {max(numbers)}; the model's are "
            f"0 to {classes - 1}"
        )
    return numbers


def _open_folder(path: Path, most: int) -> Data:
    found = list(islice(_walk(path), _MAX_FILES + 1))
    if len(found) > _MAX_FILES:
        raise BadData(f"{path}: more than {_MAX_FILES} files in it")
    media = [(file, kind) for file in found if (kind := _kind_of(file)) is not None]
    kinds = sorted({kind.value for _, kind in media})
    if not media:
        raise BadData(f"{path}: no pictures ({PICTURE_KINDS}) or sounds ({SOUND_KINDS}) in it")
    if len(kinds) > 1:
        raise BadData(f"{path}: expected pictures or sounds, not both")
    named = sorted((file.relative_to(path).as_posix(), file) for file, _ in media)
    chosen = _thinned(named, most)
    return Data(
        path=path,
        kind=media[0][1],
        names=tuple(name for name, _ in chosen),
        digest=digest_of_files(chosen),
        files=tuple(file for _, file in chosen),
        folders=_folders(path, [name for name, _ in named], [name for name, _ in chosen]),
    )


def _walk(path: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(path):  # which follows no links to folders
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(parent) / name
            if not name.startswith(".") and file.is_file():
                yield file


def _kind_of(file: Path) -> DataKind | None:
    with file.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
    if picture_kind(head):
        return DataKind.PICTURES
    return DataKind.SOUNDS if is_wav(head) else None


def _folders(path: Path, every: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    nested = {"/" in name for name in every}
    if nested == {True, False}:
        raise BadData(
            f"{path}: expected every file in the folder of its class, or all of them beside "
            "each other; here are both"
        )
    return tuple(name.partition("/")[0] for name in chosen) if True in nested else ()


def _thinned(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most so many, evenly spread; all where there are no more."""
    if len(items) <= most:
        return list(items)
    return [items[number * len(items) // most] for number in range(most)]


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_MEDIA_BYTES + 1)
    except OSError as exc:
        raise BadData(f"{file}: cannot be read: {exc.strerror}") from exc
    if len(data) > _MAX_MEDIA_BYTES:
        raise BadData(f"{file}: larger than {_MAX_MEDIA_BYTES} bytes")
    return data


def _media_rows(data: Data, profile: ModelProfile, limits: MediaLimits) -> Iterator[Row]:
    wanted = {InputKind.IMAGE: DataKind.PICTURES, InputKind.AUDIO: DataKind.SOUNDS}
    if profile.input is None or wanted.get(profile.input_kind) is not data.kind:
        raise BadData(
            f"{data.path}: holds {data.kind.value}, and the model takes {_taken(profile)}"
        )
    for file in data.files:
        try:
            media = prepare(profile, (_read(file),), limits=limits)
        except RequestError as exc:
            raise BadData(f"{file}: {exc}") from exc
        yield {profile.input.name: media.rows}


def _taken(profile: ModelProfile) -> str:
    if profile.input_kind is InputKind.TENSOR:
        return "tensors: give an .npz file, or say [input] kind in a --model-toml"
    return "pictures" if profile.input_kind is InputKind.IMAGE else "sounds"


def _open_arrays(path: Path, most: int) -> Data:
    arrays = _load(path)
    counts = {name: _count(path, name, array) for name, array in arrays.items()}
    if not arrays or len(set(counts.values())) > 1 or not min(counts.values()):
        shown = ", ".join(f"{count} in '{name}'" for name, count in counts.items()) or "none"
        raise BadData(f"{path}: expected as many items in each array, from 1 on, not {shown}")
    places = _thinned(range(min(counts.values())), most)
    return Data(
        path=path,
        kind=DataKind.ARRAYS,
        names=tuple(f"row {place}" for place in places),
        digest=digest_of(path),
        arrays={name: array[places] for name, array in arrays.items()},
    )


def _load(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_ENTRIES or sum(e.file_size for e in entries) > _MAX_ARRAY_BYTES:
                raise BadData(
                    f"{path}: more than {_MAX_ENTRIES} arrays or {_MAX_ARRAY_BYTES} bytes in it"
                )
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except _NPZ_ERRORS as exc:
        raise BadData(f"{path}: not an .npz file of plain arrays: {exc}") from exc
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands out other files as bytes
            raise BadData(f"{path}: '{name}' in it is no array")
    return arrays


def _count(path: Path, name: str, array: Array) -> int:
    if not array.ndim:
        raise BadData(f"{path}: '{name}' is one number; its first dimension must count the items")
    return len(array)


def _class_numbers(path: Path, key: str, array: Array) -> tuple[int, ...]:
    if (
        array.dtype.kind not in "iu"
        or array.ndim not in (1, 2)
        or array.shape[1:] not in ((), (1,))
    ):
        raise BadData(
            f"{path}: '{key}' is {array.dtype} of shape {list(array.shape)}; expected a whole "
            "number for each item: its class"
        )
    return tuple(int(number) for number in array.ravel())


def _array_rows(data: Data, signature: SignatureSpec) -> Iterator[Row]:
    arrays = _by_input(data, signature)
    for number, name in enumerate(data.names):
        yield {
            spec.name: _row(f"{data.path}: {name} of", spec, arrays[spec.name][number])
            for spec in signature.inputs
        }


def _by_input(data: Data, signature: SignatureSpec) -> Mapping[str, Array]:
    names = [spec.name for spec in signature.inputs]
    if len(names) == 1 and len(data.arrays) == 1:
        return {names[0]: next(iter(data.arrays.values()))}
    if set(names) != set(data.arrays):
        raise BadData(
            f"{data.path}: holds {', '.join(sorted(data.arrays))}; the model's inputs are "
            f"{', '.join(names)}"
        )
    return data.arrays


def _row(place: str, spec: TensorSpec, item: Array) -> Array:
    """An item as the input takes it, its batch of one included."""
    value = as_called(np.asarray(item))
    dtype = spec.datatype.dtype
    is_text, wants_text = value.dtype.kind == "O", dtype.kind == "O"
    if is_text is not wants_text or not np.can_cast(value.dtype, dtype, "same_kind"):
        raise BadData(f"{place} '{spec.name}': {item.dtype}, the model takes {dtype}")
    for shaped in (value[None], value):
        if _fits(shaped.shape, spec.shape):
            return np.ascontiguousarray(shaped, dtype)
    raise BadData(
        f"{place} '{spec.name}': shape {list(value.shape)}, the model takes {list(spec.shape)}"
    )


def _fits(shape: tuple[int, ...], spec: tuple[int, ...]) -> bool:
    return len(shape) == len(spec) and all(
        wanted in (-1, size) for size, wanted in zip(shape, spec, strict=True)
    )
