"""Tensors and messages between the daemon and one worker.

Tensors lie in slots: shared memory that both map, one slot per call in flight. Messages are small,
struct-packed and go over a SOCK_SEQPACKET pair, which keeps their borders. Nothing is pickled.

A slot holds one mark byte, then tensors one after another, each on a 64-byte border. A string
tensor is its length in bytes (u64), then each element as length (u32) and bytes.
Requests and results overwrite each other in the slot: a result is written when the inputs are
inside the runtime.

The daemon does not trust the worker: sizes are checked against the limit and the file before
anything is mapped, and the memory cannot be made smaller under a mapping (F_SEAL_SHRINK).
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from accelerators.base import DataType
from accelerators.errors import LoadStage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerators.base import Array, ModelReport

    Shapes = tuple[tuple[int, ...], ...]

HEADER = struct.Struct("<BBHI")  # kind, slot, signature or stage, call number or length
TIMES = struct.Struct("<ddd")  # seconds in invoke; taken up at, done at (monotonic)

MESSAGE_MAX = 64 << 10  # bytes; every message is far below, SEQPACKET carries 200 KiB

STAGES = tuple(LoadStage)  # a stage's place here is its number on the wire

# Exit codes of a worker.
EXIT_OK = 0
EXIT_BUG = 70  # an exception nobody expected; its traceback is the worker's last output
EXIT_MEMORY = 71
EXIT_DEVICE = 72  # its device failed, and the model cannot be set up on it again

_DATA_AT = 64  # tensors begin here; before them is the mark
_BORDER = 64  # bytes: a cache line
_RANK_MAX = 16  # twice what any operator takes; 500 such shapes fit into a message
_CACHE_MAX = 128  # shapes remembered per lane and slot: batches of 1 to 64 with room to spare
_SIZE_LEAST = 4096
_LENGTH = struct.Struct("<Q")
_ELEMENT = struct.Struct("<I")

_UNTOUCHED, _TAKEN_UP = 0, 1


class Kind(IntEnum):
    """What a message says."""

    LOAD = 1  # daemon: load this; JSON follows
    CALL = 2  # daemon: run this; shapes of the inputs follow
    STAGE = 3  # worker: the load has reached this stage
    LOADED = 4  # worker: the report lies in slot 0, so many bytes
    REFUSED = 5  # worker: the load failed at this stage; text follows
    RESULT = 6  # worker: times and shapes of the outputs follow
    FAILED = 7  # worker: times and text follow
    LOOK = 8  # daemon: instead of LOAD, look at this device; JSON follows
    LOOKED = 9  # worker: the device as its driver tells of it; JSON follows
    HOST = 10  # daemon: instead of LOAD, be the process of a device


class BadMessage(ValueError):
    """A message or slot does not hold what it must."""


class TooBig(ValueError):
    """The tensors of a call do not fit into the memory that a slot may take."""


class Slot:
    """One piece of shared memory, mapped here; it grows when a call needs more.

    Attributes:
        fd: of the memory; `close` gives it back.
        size: bytes that are mapped here.

    Not thread-safe; the mark and the sockets' messages order the two sides.
    """

    def __init__(self, fd: int, limit_bytes: int) -> None:
        self.fd = fd
        self.views: dict[tuple[int, bytes], list[Array]] = {}
        self._limit_bytes = limit_bytes
        self.size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, self.size)

    @property
    def taken_up(self) -> bool:
        """Whether the worker has begun the call that lies here."""
        return self._map[0] != _UNTOUCHED

    def mark_untouched(self) -> None:
        """A new call lies here."""
        self._map[0] = _UNTOUCHED

    def mark_taken_up(self) -> None:
        """The worker begins."""
        self._map[0] = _TAKEN_UP

    def need(self, end: int, *, grow: bool) -> None:
        """Have at least `end` bytes mapped; make the file larger itself only when `grow`.

        Raises:
            TooBig: more than a slot may take.
            BadMessage: the other side should have made it larger.
            OSError: no memory or descriptor is to be had.
        """
        if end <= self.size:
            return
        if end > self._limit_bytes:
            raise TooBig(f"{end} bytes of tensors, a call may have {self._limit_bytes}")
        size = os.fstat(self.fd).st_size
        if end > size:
            if not grow:
                raise BadMessage("the tensors reach beyond the shared memory")
            size = min(self._limit_bytes, 1 << (end - 1).bit_length())
            os.ftruncate(self.fd, size)
        self.views.clear()
        self._map = mmap.mmap(self.fd, min(size, self._limit_bytes))
        self.size = len(self._map)

    def trim(self, keep_bytes: int) -> None:
        """Give the memory behind the first `keep_bytes`, whole pages, back to the system.

        Only while the other side does not use the slot. The file keeps its size, so that its
        mapping there stays valid: what was given back reads as zeros.

        Raises:
            OSError: it cannot be given back now.
        """
        self.need(min(os.fstat(self.fd).st_size, self._limit_bytes), grow=False)
        if self.size <= keep_bytes:
            return
        self._map.madvise(mmap.MADV_REMOVE, keep_bytes, self.size - keep_bytes)
        self.views.clear()
        self._map = mmap.mmap(self.fd, keep_bytes)
        self.size = keep_bytes

    def remember(self, key: tuple[int, bytes], views: list[Array]) -> None:
        """Keep views for the next call of the same shapes."""
        if len(self.views) >= _CACHE_MAX:
            self.views.clear()
        self.views[key] = views

    def view(self, datatype: DataType, shape: tuple[int, ...], offset: int) -> Array:
        """A tensor in the slot; `need` has been asked for its end."""
        return np.ndarray(shape, datatype.dtype, self._map, offset)

    def write(self, data: bytes, offset: int) -> None:
        """Copy bytes in; `need` has been asked for their end."""
        self._map[offset : offset + len(data)] = data

    def read(self, offset: int, length: int) -> bytes:
        """Copy bytes out; `need` has been asked for their end."""
        return self._map[offset : offset + length]

    def put_blob(self, data: bytes) -> None:
        """Fill the slot with one blob."""
        self.need(_DATA_AT + len(data), grow=True)
        self.write(data, _DATA_AT)

    def get_blob(self, length: int) -> bytes:
        """The blob the other side has put in."""
        self.need(_DATA_AT + length, grow=False)
        return self.read(_DATA_AT, length)

    def close(self) -> None:
        """Let memory and file go."""
        self.views.clear()
        self._map = mmap.mmap(-1, 1)
        os.close(self.fd)


def create_memory(name: str) -> int:
    """A new file in memory for a slot, which cannot shrink; the caller closes it.

    Raises:
        OSError: no memory or descriptor is to be had.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, _SIZE_LEAST)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:
        os.close(fd)
        raise
    return fd


class Lane:
    """The tensors of one side of one signature: how they lie in a slot."""

    def __init__(self, key: int, datatypes: Sequence[DataType]) -> None:
        self._key = key
        self._datatypes = tuple(datatypes)
        self._has_strings = DataType.BYTES in self._datatypes
        self._bodies: dict[Shapes, bytes] = {}

    def put(self, slot: Slot, columns: Sequence[Sequence[Array]]) -> bytes:
        """Copy tensors into the slot, each given as the arrays it is put together of.

        Several arrays are joined along their first dimension; the others agree. A single one may
        have any shape.

        Returns:
            The message's body: their shapes.

        Raises:
            TooBig: they do not fit.
            TypeError: an array has another dtype than the signature says.
        """
        shapes = tuple(
            [
                column[0].shape
                if len(column) == 1
                else (sum([array.shape[0] for array in column]), *column[0].shape[1:])
                for column in columns
            ]
        )
        body = self._bodies.get(shapes)
        if body is None:
            body = self._remember(shapes)
        if self._has_strings:
            self._put_strings(slot, columns)
            return body
        views = slot.views.get((self._key, body))
        if views is None:
            views = self._views(slot, body, shapes, grow=True)
        for view, column in zip(views, columns, strict=True):
            if len(column) == 1:
                np.copyto(view, column[0], casting="equiv")
            else:
                np.concatenate(column, out=view, casting="equiv")
        return body

    def get(self, slot: Slot, body: bytes) -> list[Array]:
        """The arrays in the slot, as views; strings as arrays of their own.

        Raises:
            BadMessage: the body or the slot is not what it must be.
            TooBig: the tensors are larger than a slot may be.
        """
        views = slot.views.get((self._key, body))
        if views is not None:
            return views
        shapes = unpack_shapes(body, len(self._datatypes))
        if self._has_strings:
            return self._get_strings(slot, shapes)
        return self._views(slot, body, shapes, grow=False)

    def _remember(self, shapes: Shapes) -> bytes:
        if len(self._bodies) >= _CACHE_MAX:
            self._bodies.clear()
        body = self._bodies[shapes] = pack_shapes(shapes)
        return body

    def _views(self, slot: Slot, body: bytes, shapes: Shapes, *, grow: bool) -> list[Array]:
        offsets: list[int] = []
        end = _DATA_AT
        for datatype, shape in zip(self._datatypes, shapes, strict=True):
            offset = _next_border(end)
            offsets.append(offset)
            end = offset + math.prod(shape) * datatype.itemsize
        slot.need(end, grow=grow)
        views = [
            slot.view(datatype, shape, offset)
            for datatype, shape, offset in zip(self._datatypes, shapes, offsets, strict=True)
        ]
        slot.remember((self._key, body), views)
        return views

    def _put_strings(self, slot: Slot, columns: Sequence[Sequence[Array]]) -> None:
        end = _DATA_AT
        for datatype, column in zip(self._datatypes, columns, strict=True):
            data = _packed(datatype, column[0] if len(column) == 1 else np.concatenate(column))
            offset = _next_border(end)
            end = offset + len(data)
            slot.need(end, grow=True)
            slot.write(data, offset)

    def _get_strings(self, slot: Slot, shapes: Shapes) -> list[Array]:
        arrays: list[Array] = []
        end = _DATA_AT
        for datatype, shape in zip(self._datatypes, shapes, strict=True):
            offset = _next_border(end)
            if datatype is DataType.BYTES:
                slot.need(offset + _LENGTH.size, grow=False)
                (length,) = _LENGTH.unpack(slot.read(offset, _LENGTH.size))
                start = offset + _LENGTH.size
                end = start + length
                slot.need(end, grow=False)
                arrays.append(unpack_strings(slot.read(start, length), shape))
            else:
                end = offset + math.prod(shape) * datatype.itemsize
                slot.need(end, grow=False)
                arrays.append(slot.view(datatype, shape, offset))
        return arrays


def make_lanes(report: ModelReport) -> list[tuple[Lane, Lane]]:
    """How the tensors of each signature lie in a slot: (inputs, outputs)."""
    return [
        (
            Lane(2 * place, [spec.datatype for spec in signature.inputs]),
            Lane(2 * place + 1, [spec.datatype for spec in signature.outputs]),
        )
        for place, signature in enumerate(report.signatures)
    ]


def _packed(datatype: DataType, array: Array) -> bytes:
    if datatype is DataType.BYTES:
        data = pack_strings(array)
        return _LENGTH.pack(len(data)) + data
    if array.dtype != datatype.dtype:
        raise TypeError(f"an array of {array.dtype} where the signature has {datatype.value}")
    return array.tobytes()


def _next_border(offset: int) -> int:
    return (offset + _BORDER - 1) & -_BORDER


def pack_shapes(shapes: Shapes) -> bytes:
    """Shapes as bytes: for each its rank (u8) and its sizes (u32)."""
    return b"".join(struct.pack(f"<B{len(shape)}I", len(shape), *shape) for shape in shapes)


def unpack_shapes(body: bytes, count: int) -> Shapes:
    """The shapes of `count` tensors.

    Raises:
        BadMessage: the bytes are something else.
    """
    shapes: list[tuple[int, ...]] = []
    offset = 0
    for _ in range(count):
        rank = body[offset] if offset < len(body) else _RANK_MAX + 1
        end = offset + 1 + 4 * rank
        if rank > _RANK_MAX or end > len(body):
            raise BadMessage("the shapes are cut off")
        shapes.append(struct.unpack_from(f"<{rank}I", body, offset + 1))
        offset = end
    if offset != len(body):
        raise BadMessage("the shapes have a tail")
    return tuple(shapes)


def pack_strings(array: Array) -> bytes:
    """The elements of a string tensor, rows first: length (u32) and bytes of each."""
    pieces: list[bytes] = []
    for element in array.ravel().tolist():
        pieces.append(_ELEMENT.pack(len(element)))
        pieces.append(element)
    return b"".join(pieces)


def unpack_strings(data: bytes, shape: tuple[int, ...]) -> Array:
    """The string tensor of that shape.

    Raises:
        BadMessage: the bytes hold fewer or more elements.
    """
    count = math.prod(shape)
    if count * _ELEMENT.size > len(data):
        raise BadMessage("strings are missing")
    strings = np.empty(count, object)
    offset = 0
    for place in range(count):
        start = offset + _ELEMENT.size
        if start > len(data):
            raise BadMessage("strings are cut off")
        offset = start + _ELEMENT.unpack_from(data, offset)[0]
        strings[place] = data[start:offset]
    if offset != len(data):
        raise BadMessage("strings have a wrong length")
    return strings.reshape(shape)
