"""Tensors cross the shared memory unchanged, and nonsense from the other side is refused."""

from __future__ import annotations

import math
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerators.base import DataType
from accelerators.channel import (
    BadMessage,
    Lane,
    Slot,
    TooBig,
    create_memory,
    pack_shapes,
    pack_strings,
    unpack_shapes,
    unpack_strings,
)

LIMIT_BYTES = 1 << 20


@pytest.fixture
def pair():
    """Both ends of one slot."""
    fd = create_memory("test")
    ours, theirs = Slot(fd, LIMIT_BYTES), Slot(os.dup(fd), LIMIT_BYTES)
    yield ours, theirs
    ours.close()
    theirs.close()


def crossed(pair, datatypes, arrays) -> list[np.ndarray]:
    ours, theirs = pair
    body = Lane(0, datatypes).put(ours, [[array] for array in arrays])
    return [array.copy() for array in Lane(0, datatypes).get(theirs, body)]


@pytest.mark.parametrize("datatype", [d for d in DataType if d is not DataType.BYTES])
def test_every_datatype_crosses(pair, datatype):
    array = np.arange(24).reshape(2, 3, 4).astype(datatype.dtype)

    (out,) = crossed(pair, [datatype], [array])

    assert out.dtype == datatype.dtype
    np.testing.assert_array_equal(out, array)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (7, 1, 5)], ids=str)
def test_every_shape_crosses(pair, shape):
    array = np.full(shape, 3, np.int16)

    (out,) = crossed(pair, [DataType.INT16], [array])

    assert out.shape == shape
    np.testing.assert_array_equal(out, array)


def test_several_tensors_do_not_touch(pair):
    arrays = [np.full(n, n, np.uint8) for n in (1, 63, 64, 65, 100)]

    out = crossed(pair, [DataType.UINT8] * 5, arrays)

    for before, after in zip(arrays, out, strict=True):
        np.testing.assert_array_equal(before, after)


def test_strings_and_numbers_cross_together(pair):
    words = np.array([[b"a", b""], [b"\0\xff", b"long" * 1000]], object)
    numbers = np.arange(5.0, dtype=np.float32)

    strings, floats = crossed(pair, [DataType.BYTES, DataType.FP32], [words, numbers])

    assert strings.tolist() == words.tolist()
    np.testing.assert_array_equal(floats, numbers)


def test_slot_grows_for_both_ends_and_keeps_working_for_small_calls(pair):
    for count in (10, 100_000, 10, 200_000, 1):
        array = np.arange(count, dtype=np.int32)

        (out,) = crossed(pair, [DataType.INT32], [array])

        np.testing.assert_array_equal(out, array)


def blocks_bytes(slot) -> int:
    """Memory that the file takes."""
    return os.fstat(slot.fd).st_blocks * 512


def test_trimmed_slot_gives_its_memory_back_and_takes_every_call_as_before(pair):
    for count in (10, 200_000):
        array = np.arange(count, dtype=np.int32)
        crossed(pair, [DataType.INT32], [array])
        full = blocks_bytes(pair[0])

        pair[0].trim(8192)

        assert blocks_bytes(pair[0]) <= min(full, 8192)
        for again in (10, 100_000, 3):
            array = np.arange(again, dtype=np.int32)
            (out,) = crossed(pair, [DataType.INT32], [array])
            np.testing.assert_array_equal(out, array)


def test_trim_keeps_what_lies_at_the_front(pair):
    ours, theirs = pair
    front = np.arange(1000, dtype=np.int32)
    lane = Lane(0, [DataType.INT32])
    lane.put(theirs, [[np.zeros(200_000, np.int32)]])
    body = lane.put(theirs, [[front]])

    ours.trim(8192)

    np.testing.assert_array_equal(Lane(0, [DataType.INT32]).get(ours, body)[0], front)


def test_trim_reaches_what_only_the_other_side_has_mapped(pair):
    ours, theirs = pair
    Lane(0, [DataType.INT32]).put(theirs, [[np.ones(200_000, np.int32)]])
    full = blocks_bytes(ours)

    ours.trim(8192)

    assert full > 200_000 * 4
    assert blocks_bytes(ours) <= 8192


def test_array_that_is_not_contiguous_crosses(pair):
    array = np.arange(100, dtype=np.int64).reshape(10, 10)[::2, ::3]

    (out,) = crossed(pair, [DataType.INT64], [array])

    np.testing.assert_array_equal(out, array)


def test_more_than_the_limit_is_refused(pair):
    with pytest.raises(TooBig):
        Lane(0, [DataType.UINT8]).put(pair[0], [[np.zeros(LIMIT_BYTES, np.uint8)]])


def test_other_dtype_is_refused(pair):
    with pytest.raises(TypeError):
        Lane(0, [DataType.FP32]).put(pair[0], [[np.zeros(3, np.float64)]])


def test_memory_cannot_be_made_smaller_by_the_other_side(pair):
    with pytest.raises(PermissionError):
        os.ftruncate(pair[1].fd, 0)


def test_shapes_larger_than_the_memory_are_refused(pair):
    body = pack_shapes(((100_000,),))

    with pytest.raises(BadMessage):
        Lane(0, [DataType.UINT8]).get(pair[1], body)


def test_shapes_larger_than_the_limit_are_refused(pair):
    body = pack_shapes(((0xFFFFFFFF, 0xFFFFFFFF),))

    with pytest.raises(TooBig):
        Lane(0, [DataType.FP64]).get(pair[1], body)


def test_string_length_that_points_outside_is_refused(pair):
    ours, theirs = pair
    lane = Lane(0, [DataType.BYTES])
    body = lane.put(ours, [[np.array([b"word"], object)]])
    ours.write(struct.pack("<Q", 5000), 64)

    with pytest.raises(BadMessage):
        lane.get(theirs, body)


def test_mark_is_seen_by_both_ends(pair):
    ours, theirs = pair
    ours.mark_untouched()
    before = ours.taken_up

    theirs.mark_taken_up()

    assert (before, ours.taken_up) == (False, True)


SHAPES = st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=6).map(tuple), max_size=5)


@given(SHAPES)
def test_shapes_come_back(shapes):
    assert unpack_shapes(pack_shapes(tuple(shapes)), len(shapes)) == tuple(shapes)


@given(st.binary(max_size=200), st.integers(0, 8))
def test_random_shapes_are_read_or_refused(body, count):
    try:
        shapes = unpack_shapes(body, count)
    except BadMessage:
        return
    assert pack_shapes(shapes) == body


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_strings_come_back(words):
    array = np.empty(len(words), object)
    array[:] = words

    assert unpack_strings(pack_strings(array), array.shape).tolist() == words


@given(st.binary(max_size=200), st.lists(st.integers(0, 50), max_size=3).map(tuple))
def test_random_strings_are_read_or_refused(data, shape):
    try:
        array = unpack_strings(data, shape)
    except BadMessage:
        return
    assert array.size == math.prod(shape)
    assert pack_strings(array) == data
