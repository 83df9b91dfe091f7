"""A large array is written in pieces, and reads as if it had been written at once."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from accelerators.base import DataType
from daemon.codec.jsontensors import array_to_json
from daemon.codec.pieces import (
    HEAVY_ANSWER_VALUES,
    MAX_JSON_ANSWER_VALUES,
    check_answer_size,
    is_heavy_answer,
    write_numbers,
)
from daemon.codec.tfserving_tensors import encode_tensor
from daemon.errors import TooLarge

LARGE = [(700_001,), (300_000, 2), (1, 600_001), (1, 2, 300_000), (2, 100_000, 3), (1, 1, 513, 513)]


@pytest.mark.parametrize("shape", [*LARGE, (0,), (0, 3), (2, 0), (3, 2), (1,)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.bool_])
def test_pieces_join_to_what_one_would_have_been(shape, dtype):
    array = (np.arange(np.prod(shape)) % 7).astype(dtype).reshape(shape)
    sizes: list[int] = []

    def note(text, numbers):
        sizes.append(numbers.size)
        return text

    text = write_numbers(array, note)

    assert text == orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    assert max(sizes) <= 300_000


@pytest.mark.parametrize("shape", LARGE)
def test_what_json_has_no_numbers_for_is_named_in_every_piece(shape):
    array = np.zeros(shape, np.float32)
    flat = array.reshape(-1)
    flat[0], flat[-1] = np.nan, -np.inf

    plain = orjson.loads(array_to_json(array, DataType.FP32))
    nested = encode_tensor("y", array)

    assert (plain[0], plain[-1], plain.count(0.0)) == ("NaN", "-Infinity", flat.size - 2)
    assert (nested.count(b"NaN"), nested.count(b"-Infinity")) == (1, 1)
    assert nested.count(b"0.0") == flat.size - 2


def test_an_answer_of_the_largest_size_is_written():
    check_answer_size([np.broadcast_to(np.float32(0), (MAX_JSON_ANSWER_VALUES,))])


def test_outputs_that_are_too_large_together_are_refused_with_the_way_out():
    half = np.broadcast_to(np.float32(0), (MAX_JSON_ANSWER_VALUES // 2 + 1,))

    with pytest.raises(TooLarge, match="binary_data_output") as caught:
        check_answer_size([half, half])

    assert (caught.value.limit, caught.value.unit) == (MAX_JSON_ANSWER_VALUES, "values")


def test_numbers_and_the_bytes_of_strings_make_an_answer_heavy():
    text = np.empty(1, dtype=object)
    text[0] = b"x" * (8 * HEAVY_ANSWER_VALUES + 8)

    assert not is_heavy_answer([np.zeros(HEAVY_ANSWER_VALUES)])
    assert is_heavy_answer([np.zeros(HEAVY_ANSWER_VALUES), np.zeros(1)])
    assert is_heavy_answer([text])
