"""What the metadata packed in a TFLite file says of the model's inputs and outputs. Pure.

The rules:
1. Metadata never stops a model: whatever is wrong with it is one sentence, and the model is served
   as if the part had not been there.
2. Every offset, count, size and depth is bounded before it is used. A packed file with more lines
   than LABELS_MAX is not used.
3. Associated files are read only when a tensor names them, by their exact name, never to disk.
4. Label lines are kept as they are, also empty ones: a line's number is the class number.
5. Only the first subgraph's metadata is read: it describes the default signature.

Source: the TFLite metadata schema 1.5 (identifier "M001") and its field numbers.
"""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, BinaryIO

from accelerators.base import (
    LABELS_MAX,
    ModelMetadata,
    ScoreCalibration,
    ScoreTransformation,
    TensorMetadata,
)
from accelerators.flatbuffer import Buffer, DamagedFile, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ENTRY = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_ENTRIES_MAX = 1000
_BUFFERS_MAX = 1_000_000
_TENSORS_MAX = 1000
_UNITS_MAX = 100
_FILES_MAX = 1000  # in the file's zip, and named by one tensor
_CHANNELS_MAX = 4096
_FILE_BYTES_MAX = 4 << 20  # per associated file, unpacked: a large vocabulary has 1 MiB
_FILES_BYTES_MAX = 16 << 20  # all associated files together
_LINES_MAX = 2 * LABELS_MAX  # of them all: the labels and the calibration of one output
_TEXT_MAX = 4000  # characters of a name or description

_FEATURE, _IMAGE, _BOUNDING_BOX, _AUDIO = 1, 2, 3, 4
_CONTENTS = {_FEATURE: "feature", _IMAGE: "image", _BOUNDING_BOX: "bounding_box", _AUDIO: "audio"}
_NORMALIZATION, _CALIBRATION, _THRESHOLDING = 1, 2, 3
_BOX_TYPE_UNKNOWN, _BOX_TYPE_BOUNDARIES = 0, 1
_AXIS_LABELS, _VALUE_LABELS, _AXIS_CALIBRATION = 2, 3, 4
_TRANSFORMATIONS = (
    ScoreTransformation.IDENTITY,
    ScoreTransformation.LOG,
    ScoreTransformation.INVERSE_LOGISTIC,
)

# What zipfile raises for archives that are damaged, encrypted, or packed in a way it lacks.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
)


def read_metadata(data: memoryview, file: BinaryIO) -> tuple[ModelMetadata, str]:
    """The metadata of a model file, and why (a part of) it could not be read.

    Args:
        data: the whole file.
        file: the same file, for the zip behind the flatbuffer.

    Returns:
        Empty metadata where the file has none, and "" where nothing is wrong.
    """
    try:
        packed = _packed(data)
        if packed is None:
            return ModelMetadata(), ""
        archive = _Archive(file)
        return _model(Buffer(packed).root(), archive), archive.problem
    except DamagedFile as exc:
        return ModelMetadata(), f"its metadata is damaged and not used: {exc}"


def parse_calibration(
    text: str,
) -> tuple[tuple[float, float, float, float | None] | None, ...]:
    """The lines of a score calibration file: scale, slope, offset and, optionally, least score.

    Raises:
        DamagedFile: a line is something else.
    """
    return tuple(_calibration_line(line) for line in _lines(text))


def _calibration_line(line: str) -> tuple[float, float, float, float | None] | None:
    if not line.strip():
        return None
    try:
        numbers = [float(part) for part in line.split(",")]
    except ValueError as exc:
        raise DamagedFile("a line of the score calibration is not made of numbers") from exc
    if len(numbers) not in (3, 4) or not all(math.isfinite(number) for number in numbers):
        raise DamagedFile("a line of the score calibration has not 3 or 4 finite numbers")
    return numbers[0], numbers[1], numbers[2], numbers[3] if len(numbers) == 4 else None  # noqa: PLR2004 (as said)


class _Archive:
    """The zip appended to the file, opened at the first question."""

    def __init__(self, file: BinaryIO) -> None:
        self.problem = ""
        self._file = file
        self._zip: zipfile.ZipFile | None = None
        self._budget_bytes = _FILES_BYTES_MAX
        self._budget_lines = _LINES_MAX

    def text(self, name: str) -> str:
        """A packed file's text, "" (and a problem noted) when it cannot be had."""
        try:
            return self._read(name)
        except _ZIP_ERRORS as exc:
            shown = "".join(c if c.isprintable() else "?" for c in name[:100])
            self.problem = f"the packed file '{shown}' cannot be read: {str(exc)[:200]}"
            return ""

    def _read(self, name: str) -> str:
        if self._zip is None:
            self._zip = zipfile.ZipFile(self._file)
            if len(self._zip.filelist) > _FILES_MAX:
                raise DamagedFile(f"more than {_FILES_MAX} files are packed")
        info = self._zip.getinfo(name)
        limit = min(_FILE_BYTES_MAX, self._budget_bytes)
        with self._zip.open(info) as packed:
            data = packed.read(limit + 1)
        if len(data) > limit:
            raise DamagedFile(f"it has more than {limit} bytes")
        self._budget_bytes -= len(data)
        lines = data.count(b"\n") + (not data.endswith(b"\n"))
        limit = min(LABELS_MAX, self._budget_lines)
        if lines > limit:
            raise DamagedFile(f"it has {lines} lines, more than {limit}")
        self._budget_lines -= lines
        return data.decode("utf-8-sig", "replace")


def _packed(data: memoryview) -> memoryview | None:
    """The metadata's own flatbuffer inside the model's, None when there is none."""
    model = Buffer(data).root()
    for entry in model.tables(6, limit=_ENTRIES_MAX):
        if entry.text(0) == _ENTRY:
            break
    else:
        return None
    index = entry.integer(1, "I")
    buffers = model.tables(4, limit=_BUFFERS_MAX)
    if index >= len(buffers):
        raise DamagedFile("it names a buffer that is not there")
    packed = buffers[index].blob(0)
    if not packed:  # files above 2 GB keep their buffers behind the flatbuffer
        offset, size = buffers[index].integer(1, "Q"), buffers[index].integer(2, "Q")
        packed = model.buffer.span(offset, size)
    if packed[4:8] != _IDENTIFIER:
        raise DamagedFile("it is of an unknown version")
    return packed


def _model(model: Table, archive: _Archive) -> ModelMetadata:
    subgraphs = model.tables(3, limit=_ENTRIES_MAX)
    inputs = subgraphs[0].tables(2, limit=_TENSORS_MAX) if subgraphs else ()
    outputs = subgraphs[0].tables(3, limit=_TENSORS_MAX) if subgraphs else ()
    return ModelMetadata(
        name=_short(model.text(0)),
        description=_short(model.text(1)),
        version=_short(model.text(2)),
        author=_short(model.text(4)),
        license=_short(model.text(5)),
        inputs=tuple(_tensor(tensor, archive) for tensor in inputs),
        outputs=tuple(_tensor(tensor, archive) for tensor in outputs),
    )


def _tensor(tensor: Table, archive: _Archive) -> TensorMetadata:
    content = tensor.table(3)
    kind = content.integer(0, "B") if content else 0
    properties = content.table(1) if content else None
    mean, std = _normalization(tensor)
    return TensorMetadata(
        name=_short(tensor.text(0)),
        description=_short(tensor.text(1)),
        content=_CONTENTS.get(kind, ""),
        mean=mean,
        std=std,
        sample_rate=properties.integer(0, "I") if properties and kind == _AUDIO else 0,
        channels=properties.integer(1, "I") if properties and kind == _AUDIO else 0,
        labels=_labels(tensor, archive),
        calibration=_calibration(tensor, archive),
        score_threshold=_threshold(tensor),
        box_order=_box_order(properties) if properties and kind == _BOUNDING_BOX else (),
    )


def _unit(tensor: Table, kind: int) -> Table | None:
    """The options of the tensor's process unit of that kind."""
    for unit in tensor.tables(4, limit=_UNITS_MAX):
        if unit.integer(0, "B") == kind:
            return unit.table(1)
    return None


def _normalization(tensor: Table) -> tuple[tuple[float, ...], tuple[float, ...]]:
    options = _unit(tensor, _NORMALIZATION)
    if options is None:
        return (), ()
    mean = tuple(float(x) for x in options.numbers(0, "f", limit=_CHANNELS_MAX))
    std = tuple(float(x) for x in options.numbers(1, "f", limit=_CHANNELS_MAX))
    if not all(math.isfinite(x) for x in mean + std) or 0.0 in std:
        raise DamagedFile("its normalization has a std of 0 or a number that is not finite")
    return mean, std


def _threshold(tensor: Table) -> float | None:
    options = _unit(tensor, _THRESHOLDING)
    if options is None:
        return None
    threshold = float(options.number(0, "f"))
    return threshold if math.isfinite(threshold) else None


def _calibration(tensor: Table, archive: _Archive) -> ScoreCalibration | None:
    options = _unit(tensor, _CALIBRATION)
    name = _file_name(tensor, lambda kind: kind == _AXIS_CALIBRATION)
    if options is None or not name:
        return None
    text = archive.text(name)
    if not text:
        return None
    transformation = options.integer(0, "b")
    if not 0 <= transformation < len(_TRANSFORMATIONS):
        raise DamagedFile(f"its score transformation {transformation} is unknown")
    default = float(options.number(1, "f"))
    if not math.isfinite(default):
        raise DamagedFile("its default score is not finite")
    return ScoreCalibration(_TRANSFORMATIONS[transformation], default, parse_calibration(text))


def _labels(tensor: Table, archive: _Archive) -> tuple[str, ...]:
    name = _file_name(tensor, lambda kind: kind in (_AXIS_LABELS, _VALUE_LABELS))
    return tuple(_lines(archive.text(name))) if name else ()


def _file_name(tensor: Table, wanted: Callable[[int], bool]) -> str:
    """The tensor's associated file of a type; the one without a locale, or in English, first."""
    found = [
        (file.text(3), file.text(0))
        for file in tensor.tables(6, limit=_FILES_MAX)
        if wanted(file.integer(2, "b"))
    ]
    found.sort(key=lambda pair: (pair[0] != "", not pair[0].startswith("en")))
    return found[0][1] if found else ""


def _box_order(properties: Table) -> tuple[int, ...]:
    if properties.integer(1, "b") not in (_BOX_TYPE_UNKNOWN, _BOX_TYPE_BOUNDARIES):
        return ()
    order = tuple(int(place) for place in properties.numbers(0, "I", limit=_CHANNELS_MAX))
    return order if sorted(order) == [0, 1, 2, 3] else ()


def _lines(text: str) -> Sequence[str]:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _short(text: str) -> str:
    return text[:_TEXT_MAX]
