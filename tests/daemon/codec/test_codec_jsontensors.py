"""JSON values become exactly the tensor they say, or are refused with what was expected."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from accelerators.base import DataType
from daemon.codec.jsontensors import (
    MAX_JSON_BYTES,
    MAX_JSON_CONTAINERS,
    MAX_JSON_VALUES,
    array_from_json,
    array_to_json,
    decode_base64,
    parse_json,
)
from daemon.errors import BadTensor, Malformed, TooLarge

INTEGERS = [d for d in DataType if "INT" in d.value]
NUMBERS = [*INTEGERS, DataType.FP32, DataType.FP64, DataType.BOOL]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b"  \n", "the body is empty"),
        (b"{", "JSON Parse error: .* at offset: 1"),
        (b'{"a": 1} x', "unexpected content after document.* at offset: 9"),
        (b"[1,]", "trailing comma"),
        (b'"\xff"', "not UTF-8 at offset: 1"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'"\\ud800"', "surrogate"),
        (b"[" * 100_000, "depth limit"),
        (b'{"a":' * 5000, "depth limit"),
        (b"1e999", "infinity"),
    ],
)
def test_what_is_not_json_is_refused_in_clear_words(body, message):
    with pytest.raises(Malformed, match=message):
        parse_json(body)


@pytest.mark.parametrize("token", [b"NaN", b"Infinity", b"-Infinity", b"-NaN"])
def test_a_nan_token_is_refused_with_the_strings_that_are_taken_instead(token):
    with pytest.raises(Malformed, match='send the strings "NaN"'):
        parse_json(b'{"data": [1.0, ' + token + b"]}")


def test_a_memoryview_is_parsed_like_bytes():
    assert parse_json(memoryview(b'{"a": [1]}rest')[:10]) == {"a": [1]}


@given(
    st.sampled_from(NUMBERS).flatmap(
        lambda datatype: st.tuples(
            st.just(datatype),
            hnp.arrays(
                datatype.dtype,
                hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4),
                elements=hnp.from_dtype(datatype.dtype, allow_nan=True, allow_infinity=True),
            ),
            st.booleans(),
        )
    )
)
def test_every_number_survives_the_way_to_json_and_back(case):
    datatype, array, is_nested = case
    text = array_to_json(array, datatype)
    data = json.loads(text)
    if is_nested:
        data = np.array(data, dtype=object).reshape(array.shape).tolist()

    back = array_from_json(data, datatype, array.shape)

    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array, strict=True)


@given(
    st.lists(st.text(), max_size=6).map(lambda texts: [text.encode() for text in texts]),
)
def test_every_text_survives_the_way_to_json_and_back(elements):
    array = np.empty(len(elements), dtype=object)
    array[:] = elements

    back = array_from_json(
        orjson.loads(array_to_json(array, DataType.BYTES)), DataType.BYTES, array.shape
    )

    assert back.tolist() == elements


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_is_written_with_digits_that_give_it_back(value):
    array = np.array([value], dtype=np.float32)

    (read,) = json.loads(array_to_json(array, DataType.FP32))

    assert np.float32(read) == array[0]


def test_a_float32_is_written_without_the_digits_of_its_float64():
    assert array_to_json(np.array([0.1, 1.0], np.float32), DataType.FP32) == b"[0.1,1.0]"


def test_special_floats_are_written_as_strings_in_their_places():
    array = np.array([[np.nan, 1.5], [np.inf, -np.inf]], dtype=np.float32)

    text = array_to_json(array, DataType.FP32)

    assert json.loads(text) == ["NaN", 1.5, "Infinity", "-Infinity"]


def test_special_float_strings_are_read():
    array = array_from_json(["NaN", "Infinity", "-Infinity", 2], DataType.FP32, [4])

    assert math.isnan(array[0])
    assert array[1:].tolist() == [math.inf, -math.inf, 2.0]


def test_an_integer_beyond_2_to_the_53_keeps_all_its_digits():
    value = 2**63 - 1

    assert array_from_json([value], DataType.INT64, [1])[0] == value
    assert array_to_json(np.array([value]), DataType.INT64) == str([value]).encode()


@pytest.mark.parametrize("datatype", INTEGERS)
def test_an_integer_one_past_either_end_is_refused_with_the_range(datatype):
    limits = np.iinfo(datatype.dtype)
    for value in (int(limits.min) - 1, int(limits.max) + 1):
        text = orjson.loads(str(value))  # what a body with this number gives: maybe a float
        with pytest.raises(BadTensor, match=r"outside the range|takes integers"):
            array_from_json([text], datatype, [1], name="input 'x'")


@pytest.mark.parametrize("datatype", INTEGERS)
def test_the_ends_of_an_integer_range_are_taken(datatype):
    limits = np.iinfo(datatype.dtype)
    values = [int(limits.min), int(limits.max)]

    assert array_from_json(values, datatype, [2]).tolist() == values


@pytest.mark.parametrize(
    ("data", "datatype", "message"),
    [
        ([1.0], DataType.INT32, "INT32 takes integers, got a fraction at element 0"),
        ([1, True], DataType.INT32, "takes integers, got a boolean at element 1"),
        ([None], DataType.FP32, "FP32 takes numbers, got null"),
        ([True], DataType.FP32, "takes numbers, got a boolean"),
        (["1.5"], DataType.FP32, r"'1\.5' is not a number"),
        (["nan"], DataType.FP64, "'nan' is not a number"),
        ([{}], DataType.FP32, "takes numbers, got an object"),
        ([[1.0]], DataType.FP32, "takes numbers, got a list"),
        ([1e39], DataType.FP32, r"1e\+39 is outside the range of FP32"),
        ([2], DataType.BOOL, "takes true, false, 1 or 0"),
        ([-1], DataType.BOOL, "takes true, false, 1 or 0"),
        ([0.5], DataType.BOOL, "takes true or false, got a fraction"),
        ([1], DataType.BYTES, "BYTES takes strings, got an integer"),
        ([{"b64": "!"}], DataType.BYTES, "unable to base64 decode"),
        ([{"b64": 7}], DataType.BYTES, "must be a string of base64"),
        ([{"x": "AA=="}], DataType.BYTES, "an object must be"),
        ([1.0], DataType.FP16, "FP16 has no JSON form"),
    ],
)
def test_a_value_that_does_not_fit_the_datatype_is_refused(data, datatype, message):
    with pytest.raises(BadTensor, match=message):
        array_from_json(data, datatype, [len(data)], name="input 'x'")


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        ([1, 2], [3], r"shape \[3\] needs 3 values, got 2"),
        ([1, 2, 3, 4], [3], "needs 3 values, got 4"),
        ([], [1], "needs 1 values, got 0"),
        (5, [1], "expected a list of 1 values, got an integer"),
        ("abc", [1], "expected a list of 1 values, got a string"),
        ([[1, 2], [3]], [2, 2], "a list at level 1 has 1 elements, expected 2"),
        ([[1, 2], 3], [2, 2], "expected only lists at level 1"),
        ([[1, 2], [3, 4], [5, 6]], [2, 3], "a list at level 0 has 3 elements, expected 2"),
        ([[[1], [2]]], [1, 2], "takes numbers, got a list"),
        ([1, [2]], [2, 1], "takes numbers, got a list"),
    ],
)
def test_ragged_and_wrong_counts_are_refused_with_what_was_expected(data, shape, message):
    with pytest.raises(BadTensor, match=message):
        array_from_json(data, DataType.FP32, shape, name="input 'x'")


@pytest.mark.parametrize("data", [7, [7]])
def test_a_scalar_may_come_bare_or_in_a_list(data):
    assert array_from_json(data, DataType.INT8, []).tolist() == 7


def test_bytes_elements_are_text_or_base64():
    array = array_from_json(["ä", {"b64": "AP8="}], DataType.BYTES, [2])

    assert array.tolist() == ["ä".encode(), b"\x00\xff"]


def test_bytes_that_are_no_text_are_not_written_as_json():
    array = np.empty(1, dtype=object)
    array[0] = b"\xff"

    with pytest.raises(BadTensor, match="ask for binary data"):
        array_to_json(array, DataType.BYTES)


def test_half_floats_are_not_written_as_json():
    with pytest.raises(BadTensor, match="ask for binary data"):
        array_to_json(np.zeros(1, np.float16), DataType.FP16)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_scalars_and_empty_arrays_are_written_as_flat_lists(shape):
    values = json.loads(array_to_json(np.zeros(shape, np.float32), DataType.FP32))

    assert values == [0.0] * math.prod(shape)


def test_a_transposed_array_is_written_in_row_major_order():
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T

    assert json.loads(array_to_json(array, DataType.INT32)) == [0, 3, 1, 4, 2, 5]


@given(st.binary(max_size=50))
def test_base64_is_read_whatever_its_line_breaks(data):
    text = "\n".join(base64.b64encode(data).decode())

    assert decode_base64(text, "x") == data


def test_text_outside_ascii_is_not_base64():
    with pytest.raises(BadTensor, match="base64"):
        decode_base64("ä", "x")


COSTLY = {
    "bytes": b" " * (MAX_JSON_BYTES + 1),
    "values": b"[" + b"1," * MAX_JSON_VALUES + b"1]",
    "lists": b"[" + b"[]," * MAX_JSON_CONTAINERS + b"1]",
    "objects": b"[" + b"{}," * MAX_JSON_CONTAINERS + b"1]",
    "members": b"{" + b'"a":1,' * MAX_JSON_CONTAINERS + b'"a":1}',
    "deep lists": b"[" * (MAX_JSON_CONTAINERS + 1),
}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in COSTLY.items()])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_a_document_that_would_hold_everybody_up_is_refused(body, kind):
    with pytest.raises(TooLarge, match="binary form"):
        parse_json(kind(body))


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"1".rjust(MAX_JSON_BYTES - 2), 1),
        (b"1," * (MAX_JSON_VALUES - 1) + b"1", MAX_JSON_VALUES),
        (b"[]," * (MAX_JSON_CONTAINERS - 2) + b"[]", MAX_JSON_CONTAINERS - 1),
    ],
    ids=["bytes", "values", "lists"],
)
def test_a_document_of_the_largest_size_is_read(body, length):
    assert len(parse_json(b"[" + body + b"]")) == length


def test_a_picture_with_a_list_for_each_pixel_is_read():
    pixels = np.zeros((513, 513, 3), np.uint8)
    document = parse_json(orjson.dumps({"data": pixels}, option=orjson.OPT_SERIALIZE_NUMPY))

    array = array_from_json(document["data"], DataType.UINT8, pixels.shape)

    np.testing.assert_array_equal(array, pixels, strict=True)
