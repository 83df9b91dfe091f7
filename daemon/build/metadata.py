"""Writes standard TFLite metadata into a finished model file. Pure.

What accelerators/metadata.py reads, this writes: one type, `ModelMetadata`, says it in both.

1. Metadata that a file has already is replaced: writing twice gives the bytes of writing once.
2. The same model and the same metadata give the same bytes, on any machine.
3. What our reader would not take, or would read as something else, is refused.
4. Label files are packed behind the model in a zip, not compressed: some readers know no others.
5. What shapes say is not asked for again: a picture's size and colours, whether labels name the
   places of a tensor or its values.

Source: the TFLite metadata schema 1.5 (identifier "M001"), fields by slot number.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import flatbuffers

from accelerators.base import (
    LABELS_MAX,
    ModelMetadata,
    ScoreCalibration,
    ScoreTransformation,
    TensorMetadata,
)
from accelerators.flatbuffer import Buffer, DamagedFile
from accelerators.outline import read_outline
from daemon.build.archive import packed_behind
from daemon.build.carrier import METADATA_IDENTIFIER, attach, detach
from daemon.build.errors import BadMetadata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerators.flatbuffer import Table

    _Field = Callable[[int], None]
    """Writes one field of a table at a slot."""

_FLOAT32 = struct.Struct("<f")
_TEXT_MAX = 4000  # characters: the reader cuts longer ones
_FILE_BYTES_MAX = 4 << 20  # of one label file, and
_FILES_BYTES_MAX = 16 << 20  # of all together, as the reader's
_CHANNELS_MAX = 4096
_SUBGRAPHS_MAX = 10_000
_TENSORS_MAX = 500_000
_PORTS_MAX = 1000
_DIMENSIONS_MAX = 100

# Members of unions and enums of the schema.
_CONTENTS = {"feature": 1, "image": 2, "bounding_box": 3, "audio": 4}
_NORMALIZATION, _CALIBRATION, _THRESHOLDING = 1, 2, 3
_BOUNDARIES = 1
_AXIS_LABELS, _VALUE_LABELS, _AXIS_CALIBRATION = 2, 3, 4
_COLOR_SPACES = {3: 1, 1: 2}  # by channels: RGB, greyscale
_TRANSFORMATIONS = (
    ScoreTransformation.IDENTITY,
    ScoreTransformation.LOG,
    ScoreTransformation.INVERSE_LOGISTIC,
)
# The oldest parser that understands all. Source: the schema's history: audio came with 1.3.0,
# everything else that is written here was in 1.0.0.
_PARSER, _AUDIO_PARSER = "1.0.0", "1.3.0"
# Of the TFLite schema's TensorType, those that hold class numbers where they are not quantised.
_WHOLE_NUMBERS = frozenset({2, 3, 4, 7, 9, 12, 15, 16})


def write_metadata(model: bytes, metadata: ModelMetadata) -> bytes:
    """The model with this metadata, and no other, in it.

    Args:
        model: a .tflite file.
        metadata: inputs and outputs in the order of the first subgraph, which is the one that the
            standard describes. Those that are missing at the end, and those without a name, get
            their tensor's. Numbers are kept as float32.

    Raises:
        BadMetadata: the file is no model or a damaged one, or the metadata does not fit it.
    """
    try:
        bare = detach(model)
        packed, files = _Packer(_ports(bare)).pack(metadata)
        written = packed_behind(attach(bare, packed), files)
        is_whole = read_outline(memoryview(written)) == read_outline(memoryview(model))
    except DamagedFile as exc:
        raise BadMetadata(f"metadata cannot be written into the model: {exc}") from exc
    if not is_whole:
        raise BadMetadata("metadata cannot be written into the model: its parts overlap")
    return written


@dataclass(frozen=True, slots=True)
class _Port:
    """An input or output of the first subgraph.

    Attributes:
        shape: () where the file does not say.
        holds_numbers: whole numbers that stand for themselves, as class numbers do.
    """

    name: str
    shape: tuple[int, ...]
    holds_numbers: bool


def _ports(model: bytes) -> tuple[tuple[_Port, ...], tuple[_Port, ...]]:
    subgraphs = Buffer(memoryview(model)).root().tables(2, limit=_SUBGRAPHS_MAX)
    if not subgraphs:
        raise DamagedFile("it has no subgraph")
    tensors = subgraphs[0].tables(0, limit=_TENSORS_MAX)
    indexes = (subgraphs[0].numbers(slot, "i", limit=_PORTS_MAX) for slot in (1, 2))
    inputs, outputs = (tuple(_port(tensors, int(index)) for index in each) for each in indexes)
    return inputs, outputs


def _port(tensors: Sequence[Table], index: int) -> _Port:
    if not 0 <= index < len(tensors):
        raise DamagedFile("an input or output is no tensor")
    tensor = tensors[index]
    quantization = tensor.table(4)
    is_quantized = quantization is not None and quantization.target(2) != 0
    return _Port(
        tensor.text(3)[:_TEXT_MAX],
        tuple(int(size) for size in tensor.numbers(0, "i", limit=_DIMENSIONS_MAX)),
        tensor.integer(1, "b") in _WHOLE_NUMBERS and not is_quantized,
    )


@dataclass(slots=True)
class _Packer:
    """Makes the metadata's own flatbuffer, children before parents."""

    ports: tuple[tuple[_Port, ...], tuple[_Port, ...]]
    builder: flatbuffers.Builder = field(default_factory=lambda: flatbuffers.Builder(1024))
    files: dict[str, bytes] = field(default_factory=dict)

    def pack(self, metadata: ModelMetadata) -> tuple[bytes, dict[str, bytes]]:
        """The flatbuffer, and the files it names."""
        has_boxes = any(each.content == "bounding_box" for each in metadata.outputs)
        inputs = self._tensors("input", metadata.inputs, self.ports[0], has_boxes=False)
        outputs = self._tensors("output", metadata.outputs, self.ports[1], has_boxes=has_boxes)
        subgraph = self._table(10, {2: self._offset(inputs), 3: self._offset(outputs)})
        is_audio = any(each.content == "audio" for each in metadata.inputs)
        texts = {
            0: metadata.name,
            1: metadata.description,
            2: metadata.version,
            4: metadata.author,
            5: metadata.license,
            7: _AUDIO_PARSER if is_audio else _PARSER,
        }
        subgraphs = self._offset(self._list([subgraph]))
        root = self._table(8, {**self._texts(texts), 3: subgraphs})
        self.builder.Finish(root, file_identifier=METADATA_IDENTIFIER)
        if sum(map(len, self.files.values())) > _FILES_BYTES_MAX:
            raise BadMetadata(f"the labels have more than {_FILES_BYTES_MAX} bytes together")
        return bytes(self.builder.Output()), self.files

    def _tensors(
        self,
        kind: str,
        entries: Sequence[TensorMetadata],
        ports: Sequence[_Port],
        *,
        has_boxes: bool,
    ) -> int:
        if len(entries) > len(ports):
            told = f"metadata speaks of {len(entries)} {kind}s"
            raise BadMetadata(f"{told}, the model's first subgraph has {len(ports)}")
        filled = (*entries, *(TensorMetadata(),) * (len(ports) - len(entries)))
        pairs = zip(filled, ports, strict=True)
        return self._list([self._tensor(entry, port, has_boxes) for entry, port in pairs])

    def _tensor(self, entry: TensorMetadata, port: _Port, has_boxes: bool) -> int:  # noqa: FBT001
        files = self._list(self._files(entry, port, has_boxes))
        units = self._list(self._units(entry))
        content = self._content(entry, port)
        texts = self._texts({0: entry.name or port.name, 1: entry.description})
        fields = {3: content, 4: units, 6: files}
        offsets = {slot: self._offset(place) for slot, place in fields.items() if place}
        return self._table(7, {**texts, **offsets})

    def _content(self, entry: TensorMetadata, port: _Port) -> int:
        if not entry.content:
            return 0
        if entry.content not in _CONTENTS:
            raise BadMetadata(f"'{entry.content}': expected one of {', '.join(_CONTENTS)}")
        properties = self._properties(entry, port)
        kind = _CONTENTS[entry.content]
        return self._table(3, {0: self._number("Uint8", kind), 1: self._offset(properties)})

    def _properties(self, entry: TensorMetadata, port: _Port) -> int:
        match entry.content:
            case "image":
                return self._image(port.shape)
            case "audio":
                fields = {0: entry.sample_rate, 1: entry.channels}
                return self._table(2, {k: self._number("Uint32", v) for k, v in fields.items()})
            case "bounding_box" if entry.box_order:
                if sorted(entry.box_order) != [0, 1, 2, 3]:
                    raise BadMetadata(f"box order {entry.box_order}: expected 0 to 3 in an order")
                order = self._vector("Uint32", entry.box_order)
                kind = self._number("Int8", _BOUNDARIES)
                return self._table(3, {0: self._offset(order), 1: kind})
            case _:
                return self._table(0, {})

    def _image(self, shape: tuple[int, ...]) -> int:
        """Size and colours of a picture of shape (N, H, W) or (N, H, W, C)."""
        sides, channels = shape[1:3], shape[3] if len(shape) == 4 else 1  # noqa: PLR2004 (as said)
        colors = self._number("Int8", _COLOR_SPACES.get(channels, 0))
        if len(shape) not in (3, 4) or min(sides) < 1:
            return self._table(2, {0: colors})
        height, width = (self._number("Uint32", side) for side in sides)
        size = self._table(2, {0: width, 1: height})
        return self._table(2, {0: colors, 1: self._offset(size)})

    def _units(self, entry: TensorMetadata) -> list[int]:
        units: list[int] = []
        if entry.mean or entry.std:
            self._check_normalization(entry)
            mean, std = (self._vector("Float32", each) for each in (entry.mean, entry.std))
            options = self._table(2, {0: self._offset(mean), 1: self._offset(std)})
            units.append(self._unit(_NORMALIZATION, options))
        if entry.calibration is not None:
            kind = _TRANSFORMATIONS.index(entry.calibration.transformation)
            score = self._number("Float32", _finite(entry.calibration.default_score))
            options = self._table(2, {0: self._number("Int8", kind), 1: score})
            units.append(self._unit(_CALIBRATION, options))
        if entry.score_threshold is not None:
            threshold = self._number("Float32", _finite(entry.score_threshold))
            units.append(self._unit(_THRESHOLDING, self._table(1, {0: threshold})))
        return units

    def _check_normalization(self, entry: TensorMetadata) -> None:
        counts = {len(entry.mean), len(entry.std)}
        if not counts <= set(range(1, _CHANNELS_MAX + 1)):
            raise BadMetadata("normalisation: expected a mean and a std, for all channels or each")
        for number in entry.mean + entry.std:
            _finite(number)
        if not all(map(_as_float32, entry.std)):
            raise BadMetadata("normalisation: expected a std other than 0")

    def _files(self, entry: TensorMetadata, port: _Port, has_boxes: bool) -> list[int]:  # noqa: FBT001
        files: list[int] = []
        if entry.labels:
            name = self._packed("labels", _label_text(entry.labels))
            is_value = port.holds_numbers or has_boxes
            files.append(self._file(name, _VALUE_LABELS if is_value else _AXIS_LABELS))
        if entry.calibration is not None:
            name = self._packed("calibration", _calibration_text(entry.calibration))
            files.append(self._file(name, _AXIS_CALIBRATION))
        return files

    def _packed(self, stem: str, content: bytes) -> str:
        """The name that a file has in the zip; one for the same content."""
        if len(content) > _FILE_BYTES_MAX:
            raise BadMetadata(f"the {stem} have {len(content)} bytes, at most {_FILE_BYTES_MAX}")
        number = 1
        name = f"{stem}.txt"
        while self.files.get(name, content) != content:
            number += 1
            name = f"{stem}-{number}.txt"
        self.files[name] = content
        return name

    def _file(self, name: str, kind: int) -> int:
        return self._table(5, {**self._texts({0: name}), 2: self._number("Int8", kind)})

    def _unit(self, kind: int, options: int) -> int:
        return self._table(2, {0: self._number("Uint8", kind), 1: self._offset(options)})

    def _texts(self, texts: dict[int, str]) -> dict[int, _Field]:
        """Strings by slot; empty ones are left out."""
        written = {slot: self._text(text) for slot, text in texts.items() if text}
        return {slot: self._offset(place) for slot, place in written.items()}

    def _text(self, text: str) -> int:
        if len(text) > _TEXT_MAX:
            raise BadMetadata(f"'{text[:40]}…': expected at most {_TEXT_MAX} characters")
        return int(self.builder.CreateString(_encoded(text)))

    def _table(self, slots: int, fields: dict[int, _Field]) -> int:
        self.builder.StartObject(slots)
        for slot, write in fields.items():
            write(slot)
        return int(self.builder.EndObject())

    def _offset(self, place: int) -> _Field:
        return lambda slot: self.builder.PrependUOffsetTRelativeSlot(slot, place, 0)

    def _number(self, kind: str, value: float) -> _Field:
        write = getattr(self.builder, f"Prepend{kind}Slot")
        return lambda slot: write(slot, value, 0)

    def _list(self, items: Sequence[int]) -> int:
        """A vector of tables; 0 for an empty one."""
        if not items:
            return 0
        self.builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            self.builder.PrependUOffsetTRelative(item)
        return int(self.builder.EndVector())

    def _vector(self, kind: str, items: Sequence[float]) -> int:
        self.builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            getattr(self.builder, f"Prepend{kind}")(item)
        return int(self.builder.EndVector())


def _label_text(labels: Sequence[str]) -> bytes:
    if len(labels) > LABELS_MAX:
        raise BadMetadata(f"{len(labels)} labels, at most {LABELS_MAX} are read")
    for label in labels:
        if "\n" in label or "\r" in label or "\ufeff" in label:
            raise BadMetadata(f"label {label[:80]!r}: expected a text of one line")
    return b"".join(_encoded(label) + b"\n" for label in labels)


def _calibration_text(calibration: ScoreCalibration) -> bytes:
    lines = calibration.lines
    if len(lines) > LABELS_MAX:
        raise BadMetadata(f"{len(lines)} lines of calibration, at most {LABELS_MAX} are read")
    return b"".join(
        b",".join(repr(_finite(number)).encode() for number in line or () if number is not None)
        + b"\n"
        for line in lines
    )


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise BadMetadata(f"{text[:80]!r}: expected text that UTF-8 can hold") from exc


def _finite(number: float) -> float:
    if not math.isfinite(_as_float32(number)):
        raise BadMetadata(f"{number}: expected a finite number")
    return float(number)


def _as_float32(number: float) -> float:
    """What of a number is left in the file."""
    try:
        return float(_FLOAT32.unpack(_FLOAT32.pack(number))[0])
    except OverflowError:
        return math.inf
