"""Large lists of numbers are read as orjson reads them, or left to it."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.kserve_views import make_view, tensor

from accelerators.base import DataType, SignatureSpec, TensorSpec
from daemon.codec import kserve, tfserving
from daemon.codec.numberlists import (
    BLOCK_BYTES,
    LEAST_LIST_BYTES,
    Numbers,
    count_bytes,
    join_numbers,
    read_document,
)
from daemon.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

COMPACT, SPACED = (",", ":"), (", ", ": ")


def read_small(body: bytes):
    """Every list is large, and few numbers are read together."""
    return read_document(body, least_bytes=1, block_bytes=32)


def agree(quick: object, slow: object) -> bool:
    """Whether they are the same to the last bit and type; integers among fractions are floats."""
    if isinstance(quick, Numbers):
        given = map_values(float, slow) if quick.values.dtype.kind == "f" else slow
        return repr(quick.to_lists()) == repr(given)
    if isinstance(quick, dict) and isinstance(slow, dict):
        return list(quick) == list(slow) and all(agree(quick[key], slow[key]) for key in quick)
    if isinstance(quick, list) and isinstance(slow, list):
        return len(quick) == len(slow) and all(map(agree, quick, slow))
    return repr(quick) == repr(slow)


def map_values(change: Callable, value: object):
    return (
        [map_values(change, each) for each in value] if isinstance(value, list) else change(value)
    )


# Small documents, every one of which is read so: what is read is what orjson reads.

SCALARS = st.one_of(
    st.integers(0, 300),
    st.integers(-(10**18), 10**18),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([True, False, None, "NaN", "[1,2]", "a list of numbers, 0", ""]),
)


def regular(values: st.SearchStrategy, depth: int) -> st.SearchStrategy:
    """Lists nested to a depth, not ragged."""
    sizes = st.lists(st.integers(1, 5), min_size=depth, max_size=depth)

    def nest(each_size: list[int]) -> st.SearchStrategy:
        nested = values
        for size in each_size:
            nested = st.lists(nested, min_size=size, max_size=size)
        return nested

    return sizes.flatmap(nest)


LISTS = st.one_of(
    *(regular(st.integers(-200, 300), depth) for depth in (1, 2, 3, 4)),
    regular(st.floats(-1000, 1000, width=32), 2),
    regular(st.integers(-(10**18), 10**18), 1),
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=6), max_leaves=20),
)
DOCUMENTS = st.one_of(
    LISTS,
    st.dictionaries(st.sampled_from(["data", "shape", "x", "\\", '"', "["]), LISTS, max_size=3),
)
TEXTS = st.builds(
    lambda document, separators: json.dumps(document, separators=separators).encode(),
    DOCUMENTS,
    st.sampled_from([COMPACT, SPACED, (" ,", ":"), (",\n", ": ")]),
)
ALPHABET = [*b'0123456789-+.eE,[]{}":\\ \n\tntfa\x00\xff']
EDITS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 2), st.sampled_from(ALPHABET)), max_size=3
)


def edit(body: bytes, edits: list[tuple[int, int, int]]) -> bytes:
    """With some bytes put in or in place of others, or taken out."""
    edited = bytearray(body)
    for place, taken_out, byte in edits:
        at = place % (len(edited) + 1)
        edited[at : at + taken_out] = bytes([byte])
    return bytes(edited)


@given(TEXTS, EDITS)
@example(b"[1,2,]", [])
@example(b"[1, 2, ]", [])
@example(b"[1,, 2]", [])
@example(b"[1, 2,-3]", [])
@example(b"[[1,2],-3,4]]", [])
@example(b"[[1,2],[3,4-]]", [])
@example(b"[007,1]", [])
@example(b"[[1,]2,[3,4]]", [])
@example(b"[[1,2]3,[4]]", [])
@example(b"[[1,2],[3,4]]]", [])
@example(b"[[1,2,3],[4,5],[6]]", [])
@example(b"[[[1],[2]],[[3]],[[4]]]", [])
@example(b"[1.5,[2],3]", [])
@example(b"[[1.5],[[2]]]", [])
@example(b"[[1.5,2][,3,4]]", [])
@example(b"[-0,-0.0,--1,-]", [])
@example(b"[-0,1,2]", [])
@example(b"[-0,-0.0,1]", [])
@example(b"[" * 20 + b"1" + b"]" * 20, [])
@example(b'{"a":"[1,2]","b":[1,2]}', [])
@example(b'{"a":"x\\"[1,2]","b":[1,2]}', [])
@example(b'{"a":"a list of numbers, 0","b":[1,2]}', [])
@example(b'{"data":[1,2],"data":[3]}', [])
def test_what_is_read_is_what_orjson_reads(body, edits):
    edited = edit(body, edits)

    quick = read_small(edited)

    assert quick is None or agree(quick, orjson.loads(edited))


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
@pytest.mark.parametrize(
    "value",
    [
        list(range(300)),
        [9999, -9999],
        [32768, 99999],
        [999_999_999, -999_999_999],
        [2**31, 2**32, 9_999_999_999],
        [-1, 0, 1, -128, 127],
        [10**18 - 1, -(10**18) + 1, 0],
        np.arange(120).reshape(2, 3, 4, 5).tolist(),
        np.arange(64).reshape(1, 64).tolist(),
        np.arange(64).reshape(64, 1, 1).tolist(),
        [0.5, 1, -2.25, 1e-9, 3.0],
        np.linspace(-1, 1, 60).reshape(5, 4, 3).tolist(),
    ],
)
def test_lists_as_most_programs_write_them_are_read(value, separators):
    body = json.dumps({"a": {"data": value}, "b": ["x", value]}, separators=separators).encode()

    quick = read_small(body)

    assert isinstance(quick["a"]["data"], Numbers)
    assert isinstance(quick["b"][1], Numbers)
    assert agree(quick, orjson.loads(body))


@pytest.mark.parametrize(
    "body",
    [
        b"[1,2,]",
        b"[1 ,2]",
        b"[1,2, 3]",
        b"[01,2]",
        b"[+1,2]",
        b"[1,-]",
        b"[1,2",
        b"[1,2]]",
        b"[1,true]",
        b"[1.5,null]",
        b'[1.5,"NaN"]',
        b"[1.5,1e999]",
        b"[[1,2],[3]]",
        b"[[1.5,2],[3]]",
        b"[1234567890123456789]",
        b'{"a":"[1,2]"}',
        b'{"a":"\\u0041","b":[1,2]}',
        b'{"a":"a list of numbers, 7","b":[1,2]}',
        b'{"a":[1],"b":' + b"[" * 200 + b"]" * 200 + b"}",
        b"[" * 200_000,
        b"[" * 200 + b"1" + b"]" * 200,
        b'{"a":' * 129 + b"[1]" + b"}" * 129,
        b"[[]," * 129 + b"[1]" + b"]" * 129,
        b"[1,2]" + b" " * 20_000,
        b'"text"',
        b"",
    ],
)
def test_what_is_not_plain_is_left_to_orjson(body):
    assert read_small(body) is None


@pytest.mark.parametrize("count", range(4, 40))
def test_a_comma_at_the_end_of_a_list_is_never_overlooked(count):
    assert read_small(b"[" + b"1, " * count + b"]") is None


@pytest.mark.parametrize("place", range(39))
def test_a_space_that_is_missing_is_never_overlooked(place):
    numbers = [b" -5"] * 40
    numbers[place + 1] = b"-5"

    assert read_small(b"[-5" + b",".join(numbers)[3:] + b"]") is None


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        ([0, 256], DataType.UINT8),
        ([-1, 0], DataType.UINT8),
        ([0, 128], DataType.INT8),
        ([-129, 0], DataType.INT8),
        ([-1], DataType.UINT64),
        ([2**31], DataType.INT32),
        ([0.0, 1.0], DataType.INT64),
        ([0.0, 1e39], DataType.FP32),
        ([0, 1], DataType.BOOL),
        ([1], DataType.BYTES),
        ([1], DataType.FP16),
    ],
)
def test_numbers_that_a_type_does_not_hold_make_no_array(values, datatype):
    assert Numbers(np.array(values)).to_array(datatype) is None


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        ([0, 255], DataType.UINT8),
        ([-128, 127], DataType.INT8),
        ([10**18 - 1], DataType.UINT64),
        ([2**31 - 1, -(2**31)], DataType.INT32),
        ([1e39, 5e-324], DataType.FP64),
        ([1, -2], DataType.FP32),
    ],
)
def test_numbers_that_a_type_holds_make_an_array_of_it(values, datatype):
    array = Numbers(np.array(values)).to_array(datatype)

    assert array.dtype == datatype.dtype
    assert array.tolist() == values


def test_a_list_longer_than_a_part_is_read_whole():
    numbers = [*range(1000), *range(-1000, 0), 10**17] * 40
    body = json.dumps(numbers).encode()

    quick = read_document(body)

    assert len(body) > 4 * BLOCK_BYTES
    assert quick.to_lists() == numbers


def test_closing_brackets_are_found_where_two_parts_meet():
    row = b"[11," + b"1," * 125 + b"1]"
    body = b"[" + b",".join([row] * 256) + b"]"

    quick = read_document(body)

    assert body.rindex(b"]]") - body.index(b"]") == BLOCK_BYTES - 1
    assert quick.values.shape == (256, 127)


def test_a_short_list_is_left_to_orjson():
    short = orjson.dumps([1] * (LEAST_LIST_BYTES // 2 - 1))

    assert read_document(short + b" " * 100) is None


@given(st.binary(max_size=300), st.binary(max_size=4))
def test_bytes_are_counted(text, wanted):
    assert count_bytes(text, bytes(set(wanted))) == sum(map(text.count, set(wanted)))


def test_bytes_of_a_long_text_are_counted():
    text = random.Random(0).randbytes(3 * BLOCK_BYTES + 1)

    assert count_bytes(memoryview(text), b"[{") == text.count(b"[") + text.count(b"{")


def test_lists_of_one_shape_are_joined():
    rows = [Numbers(np.arange(4)), Numbers(np.arange(4))]

    assert join_numbers(rows).values.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    "value", [[], [1], [Numbers(np.arange(2)), 1], [Numbers(np.arange(2)), Numbers(np.arange(3))]]
)
def test_other_lists_are_not_joined(value):
    assert join_numbers(value) is None


# Requests of real sizes, by way of the codecs: the short cut changes neither answer nor refusal.

SHAPE = (1, 60, 70, 2)
FLAT_SHAPE = (8400,)
SHAPES = [SHAPE, FLAT_SHAPE, (60, 140)]
FITTING = {
    DataType.UINT8: lambda dice: dice.integers(0, 256, 8400),
    DataType.INT8: lambda dice: dice.integers(-128, 128, 8400),
    DataType.INT32: lambda dice: dice.integers(-(2**31), 2**31, 8400),
    DataType.UINT64: lambda dice: dice.integers(0, 2**59, 8400),
    DataType.FP32: lambda dice: dice.random(8400, np.float32).astype(np.float64),
    DataType.FP64: lambda dice: dice.normal(0, 1e-4, 8400),
    DataType.BOOL: lambda dice: dice.integers(0, 2, 8400),
}
DATATYPES = [*FITTING, DataType.BYTES]
TOKENS = [
    b"255", b"256", b"-1", b"-129", b"1.0", b"1.5", b"1e2", b"1e39", b"1e999", b"-0", b"00", b"2-",
    b"true", b"null", b'"NaN"', b'"1"', b"[1]", b"{}", b"", b" 1", b"1 ", b"9" * 17, b"9" * 19,
    b"18446744073709551615", b"9" * 400, b"1]", b"[1", b"1,2", b"\xff", b"NaN",
]  # fmt: skip
NOTE = {"note": "AAAAAA"}
KSERVE = [
    {"inputs": [{"name": "x", "shape": "SHAPE", "datatype": "TYPE", "data": "LIST"}]} | NOTE,
]
ODD_KSERVE = [
    {"inputs": [{"name": "x", "shape": "LIST", "datatype": "TYPE", "data": [1]}]} | NOTE,
    {"inputs": [1], "parameters": {"a": "LIST"}, "outputs": "LIST", "id": "LIST"} | NOTE,
    {"inputs": "LIST"} | NOTE,
]
TFSERVING = [
    {"instances": "LIST"} | NOTE,
    {"inputs": "LIST"} | NOTE,
    {"instances": [{"x": "LIST"}]} | NOTE,
    {"instances": [{"x": "LIST"}, {"x": "LIST"}]} | NOTE,
    {"inputs": {"x": "LIST", "y": [1]}} | NOTE,
]
ODD_TFSERVING = [
    {"instances": ["LIST", "LIST"]} | NOTE,
    {"instances": [1, "LIST"]} | NOTE,
    {"signature_name": "LIST", "inputs": [1]} | NOTE,
    {"instances": "LIST", "inputs": "LIST"} | NOTE,
]


def make_body(
    template: object, values: np.ndarray, datatype: DataType, separators: tuple[str, str]
) -> bytes:
    """The template with the values, as their own shape nests them and told as `SHAPE`."""
    shape = SHAPE if values.ndim == len(SHAPE) else FLAT_SHAPE
    text = json.dumps(template, separators=separators)
    for word, value in ("LIST", values.tolist()), ("SHAPE", shape), ("TYPE", datatype.value):
        text = text.replace(f'"{word}"', json.dumps(value, separators=separators))
    return text.encode()


@st.composite
def requests(draw: st.DrawFn, usual: list, odd: list) -> tuple[DataType, bytes]:
    """A datatype, and a body with large lists that may be of it, or are a little wrong."""
    mostly = st.sampled_from([True, True, True, False])
    datatype = draw(st.sampled_from(DATATYPES))
    given = datatype if draw(mostly) and datatype in FITTING else draw(st.sampled_from([*FITTING]))
    values = FITTING[given](np.random.default_rng(draw(st.integers(0, 99))))
    values = values.reshape(draw(st.sampled_from(SHAPES)))
    template = draw(st.sampled_from(usual if draw(mostly) else odd))
    body = make_body(template, values, datatype, draw(st.sampled_from([COMPACT, SPACED])))
    parts = body.split(b",")
    places = st.integers(0, len(parts) - 1)
    for place, token in draw(st.lists(st.tuples(places, st.sampled_from(TOKENS)), max_size=2)):
        # Brackets stay where they are.
        parts[place] = re.sub(rb"-?[0-9.e-]+", lambda _, t=token: t, parts[place], count=1)
    return datatype, edit(b",".join(parts), [] if draw(mostly) else draw(EDITS))


def outcome(decode: Callable, body: bytes) -> object:
    """The tensors or the refusal, so that they can be compared."""
    try:
        inputs = decode(body).inputs
    except DaemonError as exc:
        return type(exc), str(exc)
    return {name: (a.dtype, a.shape, a.tobytes(), a.flags.writeable) for name, a in inputs.items()}


def by_orjson(body: bytes) -> bytes:
    """The same document, as long as before, which is not plain."""
    return body.replace(b"AAAAAA", b"\\u0041")


def decode_kserve(datatype: DataType) -> Callable:
    views = [make_view([tensor("x", datatype, shape)]) for shape in (SHAPE, FLAT_SHAPE)]
    return lambda body: kserve.decode_infer(body, None, views[b"8400" in body[:200]])


def decode_tfserving(datatype: DataType) -> Callable:
    spec = TensorSpec("x", datatype, (-1, 60, 70, 2))
    signatures = {"serving_default": SignatureSpec("serving_default", (spec,), ())}
    return lambda body: tfserving.decode_predict(body, signatures, takes_media=True)


@given(requests(KSERVE, ODD_KSERVE))
def test_the_short_cut_changes_nothing_of_kserve(request):
    datatype, body = request
    decode = decode_kserve(datatype)

    assert outcome(decode, body) == outcome(decode, by_orjson(body))


@given(requests(TFSERVING, ODD_TFSERVING))
def test_the_short_cut_changes_nothing_of_tf_serving(request):
    datatype, body = request
    decode = decode_tfserving(datatype)

    assert outcome(decode, body) == outcome(decode, by_orjson(body))


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("datatype", FITTING)
@pytest.mark.parametrize("template", KSERVE + TFSERVING)
def test_requests_as_clients_write_them_take_the_short_cut(template, datatype, shape, separators):
    values = FITTING[datatype](np.random.default_rng(0)).reshape(shape)
    body = make_body(template, values, datatype, separators)

    assert read_document(body) is not None
    assert read_document(by_orjson(body)) is None
