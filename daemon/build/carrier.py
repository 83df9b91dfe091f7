"""Puts a metadata entry into a model file without decoding the model. Pure.

A flatbuffer's offsets point forward and are relative, so a file can be carried whole inside of a
larger one: `attach` writes a new root before it, whose fields point into the old bytes.

    new root, lists of buffers and entries, the packed metadata │ length │ the file as it was

1. No number of the graph is decoded or written anew: none can be lost, whatever made the file.
2. `detach` finds the file as it was: attaching twice gives the bytes of attaching once.
3. Metadata that some other program has put in is wiped out with zeros, at its place.

Source: the TFLite schema, table Model; https://flatbuffers.dev/internals/ ("Encoding").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import flatbuffers

from accelerators.flatbuffer import Buffer, DamagedFile, Table
from accelerators.outline import IDENTIFIER
from daemon.build.archive import without_archive

if TYPE_CHECKING:
    from collections.abc import Sequence

ENTRY = "TFLITE_METADATA"
METADATA_IDENTIFIER = b"M001"
_ENTRIES_MAX = 1000
_BUFFERS_MAX = 100_000  # far above real models' thousands
_MODEL_ALIGNMENT_BYTES = 64  # keeps what its writer aligned, up to a cache line
_BUFFER_ALIGNMENT_BYTES = 16  # as the schema says of a buffer
_FILE_BYTES_MAX = (1 << 31) - (1 << 24)
"""What a flatbuffer can hold, less what is put before the model."""

_LENGTH = struct.Struct("<I")
# Slots of the schema's table Model. All but the version are offsets.
_VERSION, _OPERATOR_CODES, _SUBGRAPHS, _DESCRIPTION, _BUFFERS = 0, 1, 2, 3, 4
_OLD_METADATA, _METADATA, _SIGNATURES = 5, 6, 7
_SLOTS = 8
_CARRIED = (_OPERATOR_CODES, _SUBGRAPHS, _DESCRIPTION, _OLD_METADATA, _SIGNATURES)


def detach(model: bytes) -> bytes:
    """The model file as it was before `attach`, without zip; other programs' metadata is wiped out.

    Raises:
        DamagedFile: it is no model file, a damaged one, or one that cannot be carried.
    """
    root = _root(model)
    if not any(entry.text(0) == ENTRY for entry in root.entries):
        return model
    bare = without_archive(model)
    return _wiped(_carried(bare))


def attach(model: bytes, packed: bytes) -> bytes:
    """The model with packed metadata.

    Args:
        model: as `detach` gives it.
        packed: the metadata's own flatbuffer.

    Raises:
        DamagedFile: it is no model file, a damaged one, or one that cannot be carried.
    """
    root = _root(model)
    builder = flatbuffers.Builder(len(model) + len(packed) + 8 * len(root.buffers) + 4096)
    # Places are told by their distance from the end: the model's first byte has this one.
    start = _put(builder, model, _MODEL_ALIGNMENT_BYTES) - _LENGTH.size
    buffer, entry = _metadata(builder, packed, len(root.buffers))
    kept = [start - each.offset for each in root.entries if each.text(0) != ENTRY]
    entries = _offsets(builder, [*kept, entry])
    buffers = _offsets(builder, [*(start - each.offset for each in root.buffers), buffer])
    builder.StartObject(_SLOTS)
    builder.PrependUint32Slot(_VERSION, root.version, 0)
    for slot, place in root.carried.items():
        builder.PrependUOffsetTRelativeSlot(slot, start - place, 0)
    builder.PrependUOffsetTRelativeSlot(_BUFFERS, buffers, 0)
    builder.PrependUOffsetTRelativeSlot(_METADATA, entries, 0)
    builder.Finish(builder.EndObject(), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _metadata(builder: flatbuffers.Builder, packed: bytes, number: int) -> tuple[int, int]:
    """Write the buffer with that number and the entry that names it."""
    data = _put(builder, packed, _BUFFER_ALIGNMENT_BYTES)
    builder.StartObject(3)
    builder.PrependUOffsetTRelativeSlot(0, data, 0)
    buffer = builder.EndObject()
    name = builder.CreateString(ENTRY)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependUint32Slot(1, number, 0)
    return buffer, builder.EndObject()


@dataclass(frozen=True, slots=True)
class _Root:
    """The table a model file begins with.

    Attributes:
        carried: where the fields lie that are carried over as they are, by slot.
    """

    version: int
    carried: dict[int, int]
    buffers: tuple[Table, ...]
    entries: tuple[Table, ...]


def _root(model: bytes | memoryview) -> _Root:
    if model[4:8] != IDENTIFIER:
        raise DamagedFile("it does not begin as a TFLite file does")
    if len(model) > _FILE_BYTES_MAX:
        raise DamagedFile(f"it has {len(model)} bytes, at most {_FILE_BYTES_MAX} can be described")
    table = Buffer(memoryview(model)).root()
    if table.vtable_size > 4 + 2 * _SLOTS:
        raise DamagedFile("its schema is newer than what this program knows")
    targets = {slot: table.target(slot) for slot in _CARRIED}
    buffers = table.tables(_BUFFERS, limit=_BUFFERS_MAX)
    if any(buffer.integer(1, "Q") for buffer in buffers):
        raise DamagedFile("its weights lie behind the flatbuffer, as in files above 2 GB")
    return _Root(
        table.integer(_VERSION, "I"),
        {slot: place for slot, place in targets.items() if place},
        buffers,
        table.tables(_METADATA, limit=_ENTRIES_MAX),
    )


def _carried(model: bytes) -> bytes:
    """The file that `attach` has put behind its root; the file itself where that is not so."""
    root = _root(model)
    first = min(root.carried.values(), default=0)
    at = model.find(IDENTIFIER, 8, first)
    while at >= 0:
        start = at - 4
        length = _LENGTH.unpack_from(model, start - _LENGTH.size)[0]
        padding = len(model) - start - length
        if start % _MODEL_ALIGNMENT_BYTES == 0 and 0 <= padding < _MODEL_ALIGNMENT_BYTES:
            inner = model[start : start + length]
            if _is_same_graph(root, inner, start):
                return inner
        at = model.find(IDENTIFIER, at + 1, first)
    return model


def _is_same_graph(outer: _Root, inner: bytes, start: int) -> bool:
    """Whether the roots of both have the same fields at the same places."""
    try:
        root = _root(inner)
    except DamagedFile:
        return False
    places = {slot: place + start for slot, place in root.carried.items()}
    buffers = [buffer.offset + start for buffer in root.buffers]
    entries = [entry.offset + start for entry in root.entries if entry.text(0) != ENTRY]
    return (
        (root.version, places) == (outer.version, outer.carried)
        and buffers == [buffer.offset for buffer in outer.buffers[: len(buffers)]]
        and entries == [entry.offset for entry in outer.entries[: len(entries)]]
    )


def _wiped(model: bytes) -> bytes:
    copy = bytearray(model)
    root = _root(memoryview(copy))
    for entry in root.entries:
        index = entry.integer(1, "I")
        if entry.text(0) == ENTRY and index < len(root.buffers):
            data = root.buffers[index].blob(0)
            if data[4:8] == METADATA_IDENTIFIER:
                data[:] = bytes(len(data))
    return bytes(copy)


def _put(builder: flatbuffers.Builder, data: bytes, alignment: int) -> int:
    """Write a vector of bytes whose first lies at a multiple of `alignment`."""
    builder.StartVector(1, len(data), alignment)
    builder.head -= len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    return int(builder.EndVector())


def _offsets(builder: flatbuffers.Builder, items: Sequence[int]) -> int:
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return int(builder.EndVector())
