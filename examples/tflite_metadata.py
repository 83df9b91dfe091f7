"""Packs TFLite Model Metadata into a finished .tflite file: its name, its input, its output.

Only what a picture classifier needs: name, description, licence, the picture's normalisation and
the label file. Other readers of the standard (Android's Task Library, this daemon) understand it.

Source: TFLite metadata schema (identifier M001), fields by slot number as in metadata_schema.fbs.
Needs `flatbuffers` and `ai_edge_litert`, which the test environment has.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    _Field = Callable[[flatbuffers.Builder, int], None]
    """Writes one field of a table at a slot."""

LABEL_FILE = "labels.txt"
_METADATA_NAME = b"TFLITE_METADATA"
_METADATA_IDENTIFIER = b"M001"
_MODEL_IDENTIFIER = b"TFL3"
_OLDEST_PARSER = "1.0.0"
# Weights must start at a multiple of this, or kernels read them slowly or not at all.
_BUFFER_ALIGNMENT_BYTES = 16
# Members of unions and enums of the schema.
_IMAGE_PROPERTIES, _FEATURE_PROPERTIES = 2, 1
_NORMALIZATION_OPTIONS = 1
_TENSOR_AXIS_LABELS = 2
_GRAYSCALE = 2
# Time stamps in the appended zip would make every run's file differ.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ClassifierMetadata:
    """What is packed.

    Attributes:
        width, height: of the picture, in pixels.
        mean, std: real = (pixel - mean) / std, pixels 0..255.
        labels: class names by class index.
    """

    name: str
    description: str
    version: str
    author: str
    license: str
    width: int
    height: int
    mean: float
    std: float
    labels: tuple[str, ...]


def pack(model: bytes, metadata: ClassifierMetadata) -> bytes:
    """Return the model with its metadata inside and its label file appended as a zip."""
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    entry = schema.MetadataT()
    entry.name = _METADATA_NAME
    entry.buffer = len(tree.buffers)
    buffer = schema.BufferT()
    buffer.data = _metadata_buffer(metadata)
    tree.buffers = [_AlignedBuffer(each) for each in [*tree.buffers, buffer]]
    tree.metadata = [*(tree.metadata or []), entry]
    builder = flatbuffers.Builder(len(model))
    builder.Finish(tree.Pack(builder), file_identifier=_MODEL_IDENTIFIER)
    return bytes(builder.Output()) + _zipped_labels(metadata.labels)


class _AlignedBuffer(schema.BufferT):
    """A buffer whose bytes lie aligned in the file; the generated one forgets the attribute."""

    def __init__(self, buffer: schema.BufferT) -> None:
        super().__init__()
        self.data = buffer.data

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802 (the generated name)
        if self.data is None:
            return _table(builder, 3, {})
        data = bytes(self.data)
        builder.StartVector(1, len(data), _BUFFER_ALIGNMENT_BYTES)
        builder.head -= len(data)
        builder.Bytes[builder.Head() : builder.Head() + len(data)] = data
        vector = builder.EndVector()
        return _table(builder, 3, {0: _offset(vector)})


def _metadata_buffer(metadata: ClassifierMetadata) -> bytes:
    builder = flatbuffers.Builder(1024)
    image = _image_tensor(builder, metadata)
    scores = _scores_tensor(builder)
    inputs, outputs = _offsets(builder, [image]), _offsets(builder, [scores])
    subgraph = _table(builder, 10, {2: _offset(inputs), 3: _offset(outputs)})
    fields = {
        0: metadata.name,
        1: metadata.description,
        2: metadata.version,
        4: metadata.author,
        5: metadata.license,
        7: _OLDEST_PARSER,
    }
    strings = {slot: _offset(builder.CreateString(text)) for slot, text in fields.items()}
    subgraphs = _offsets(builder, [subgraph])
    root = _table(builder, 8, {**strings, 3: _offset(subgraphs)})
    builder.Finish(root, file_identifier=_METADATA_IDENTIFIER)
    return bytes(builder.Output())


def _image_tensor(builder: flatbuffers.Builder, metadata: ClassifierMetadata) -> int:
    size = _table(builder, 2, {0: _uint32(metadata.width), 1: _uint32(metadata.height)})
    properties = _table(builder, 2, {0: _int8(_GRAYSCALE), 1: _offset(size)})
    content = _table(builder, 3, {0: _uint8(_IMAGE_PROPERTIES), 1: _offset(properties)})
    mean, std = _floats(builder, [metadata.mean]), _floats(builder, [metadata.std])
    normalization = _table(builder, 2, {0: _offset(mean), 1: _offset(std)})
    unit = _table(builder, 2, {0: _uint8(_NORMALIZATION_OPTIONS), 1: _offset(normalization)})
    units = _offsets(builder, [unit])
    name = builder.CreateString("image")
    description = builder.CreateString("grey picture, the thing light on a black ground")
    fields = {0: name, 1: description, 3: content, 4: units}
    return _table(builder, 7, {slot: _offset(at) for slot, at in fields.items()})


def _scores_tensor(builder: flatbuffers.Builder) -> int:
    file_name = builder.CreateString(LABEL_FILE)
    label_file = _table(builder, 5, {0: _offset(file_name), 2: _int8(_TENSOR_AXIS_LABELS)})
    files = _offsets(builder, [label_file])
    properties = _table(builder, 0, {})
    content = _table(builder, 3, {0: _uint8(_FEATURE_PROPERTIES), 1: _offset(properties)})
    name = builder.CreateString("scores")
    description = builder.CreateString("probability of each class, 0..1")
    fields = {0: name, 1: description, 3: content, 6: files}
    return _table(builder, 7, {slot: _offset(at) for slot, at in fields.items()})


def _zipped_labels(labels: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo(LABEL_FILE, _ZIP_EPOCH)
        archive.writestr(entry, "".join(f"{label}\n" for label in labels))
    return buffer.getvalue()


def _table(builder: flatbuffers.Builder, slots: int, fields: dict[int, _Field]) -> int:
    builder.StartObject(slots)
    for slot, write in fields.items():
        write(builder, slot)
    return builder.EndObject()


def _offset(at: int) -> _Field:
    return lambda builder, slot: builder.PrependUOffsetTRelativeSlot(slot, at, 0)


def _uint8(value: int) -> _Field:
    return lambda builder, slot: builder.PrependUint8Slot(slot, value, 0)


def _int8(value: int) -> _Field:
    return lambda builder, slot: builder.PrependInt8Slot(slot, value, 0)


def _uint32(value: int) -> _Field:
    return lambda builder, slot: builder.PrependUint32Slot(slot, value, 0)


def _offsets(builder: flatbuffers.Builder, items: Sequence[int]) -> int:
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return builder.EndVector()


def _floats(builder: flatbuffers.Builder, items: Sequence[float]) -> int:
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependFloat32(item)
    return builder.EndVector()
