"""Tensors that the model cannot take are refused by name, datatype and shape."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.kserve_views import tensor

from accelerators.base import DataType, SignatureSpec
from daemon.codec.validate import batched_shape, check_inputs
from daemon.errors import BadTensor


def signature(*inputs):
    return SignatureSpec("serving_default", tuple(inputs), ())


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


TWO = signature(tensor("a", shape=(1, 3)), tensor("b", DataType.INT8, (-1, 2)))


def test_the_inputs_of_the_signature_are_taken():
    check_inputs(TWO, 1, {"b": zeros(7, 2, dtype=np.int8), "a": zeros(1, 3)})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "expected 2 inputs but got 1 inputs; missing 'b'"),
        ([], "missing 'a', 'b'"),
        (["a", "b", "c"], "unexpected inference input 'c'; expected 'a', 'b'"),
        (["a", "x\n"], r"unexpected inference input 'x\n'"),
    ],
)
def test_missing_and_extra_inputs_are_named(names, message):
    with pytest.raises(BadTensor, match=re.escape(message)):
        check_inputs(TWO, 1, {name: zeros(1, 3) for name in names})


def test_another_datatype_is_not_converted():
    with pytest.raises(BadTensor, match="'a' data-type is 'float64', but the model expects 'FP32'"):
        check_inputs(signature(tensor("a")), 1, {"a": zeros(1, 3, dtype=np.float64)})


@pytest.mark.parametrize(
    ("spec_shape", "shape"),
    [
        ((1, 3), (3,)),
        ((1, 3), (1, 4)),
        ((1, 3), (2, 3)),
        ((1, 3), (1, 3, 1)),
        ((-1, 3), (0, 3)),
        ((), (1,)),
        ((3,), ()),
    ],
)
def test_a_wrong_rank_or_dimension_is_refused_with_the_expected_shape(spec_shape, shape):
    with pytest.raises(BadTensor, match=r"unexpected shape for input 'a': expected \[.*\], got"):
        check_inputs(signature(tensor("a", shape=spec_shape)), 1, {"a": zeros(*shape)})


@pytest.mark.parametrize(
    ("spec_shape", "shape"), [((-1, 3), (1, 3)), ((-1, 3), (500, 3)), ((2, -1), (2, 9)), ((), ())]
)
def test_a_free_dimension_takes_any_size_from_one_on(spec_shape, shape):
    check_inputs(signature(tensor("a", shape=spec_shape)), 1, {"a": zeros(*shape)})


@pytest.mark.parametrize("rows", [1, 4])
def test_a_model_proven_to_batch_takes_rows_up_to_the_proof(rows):
    check_inputs(signature(tensor("a")), 4, {"a": zeros(rows, 3)})


def test_more_rows_than_proven_are_refused_with_the_bound():
    with pytest.raises(BadTensor, match="5 rows are more than the 4 it takes"):
        check_inputs(signature(tensor("a")), 4, {"a": zeros(5, 3)})


def test_inputs_of_a_batching_model_have_the_same_number_of_rows():
    both = signature(tensor("a"), tensor("b"))

    with pytest.raises(BadTensor, match=r"same number of rows, got \[1, 2\] in 'a', 'b'"):
        check_inputs(both, 4, {"a": zeros(1, 3), "b": zeros(2, 3)})


def test_strings_of_rank_0_are_refused():
    array = np.empty((), dtype=object)

    with pytest.raises(BadTensor, match=r"BYTES of rank 0 are not taken; send shape \[1\]"):
        check_inputs(signature(tensor("a", DataType.BYTES, ())), 1, {"a": array})


def test_the_shape_clients_may_send_frees_only_a_proven_first_dimension():
    assert batched_shape(tensor("a", shape=(1, 3)), 1) == (1, 3)
    assert batched_shape(tensor("a", shape=(1, 3)), 8) == (-1, 3)
    assert batched_shape(tensor("a", shape=(2, 3)), 8) == (2, 3)
