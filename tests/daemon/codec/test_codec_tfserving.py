"""TF Serving's predict bodies: each rule, each message."""

from __future__ import annotations

import base64
import gc
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from accelerators.base import DataType, SignatureSpec, TensorSpec
from daemon.codec.tfserving import (
    DecodedPredict,
    Layout,
    decode_predict,
    encode_predict,
    refuse_examples,
)
from daemon.codec.tfserving_tensors import encode_tensor
from daemon.errors import BadTensor, Malformed, RequestError, Unsupported
from daemon.tensors import MediaBatch


def make_signatures(*inputs: TensorSpec, name: str = "serving_default"):
    return {name: SignatureSpec(name, inputs, ())}


def one_input(datatype: DataType = DataType.FP32, shape: tuple[int, ...] = (-1, 2)):
    return make_signatures(TensorSpec("x", datatype, shape))


TWO_INPUTS = make_signatures(
    TensorSpec("b", DataType.FP32, (-1,)), TensorSpec("a", DataType.FP32, (-1,))
)
NO_INPUTS = make_signatures(name="get_weights")


def decode(document: object, signatures=None, **options: bool) -> DecodedPredict:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode_predict(body, signatures or one_input(), **options)


def refusal(document: object, signatures=None, **options: bool) -> str:
    with pytest.raises(RequestError) as caught:
        decode(document, signatures, **options)
    return str(caught.value)


def column(values: object, datatype: DataType) -> np.ndarray:
    return decode({"inputs": values}, one_input(datatype)).inputs["x"]


def column_refusal(values: object, datatype: DataType) -> str:
    return refusal({"inputs": values}, one_input(datatype))


# The document.


def test_empty_body_is_refused_in_tf_servings_words():
    assert refusal(b"") == "JSON Parse error: The document is empty"


def test_blank_body_counts_as_empty():
    assert refusal(b" \r\n\t") == "JSON Parse error: The document is empty"


@pytest.mark.parametrize("body", [b"[]", b"5", b'"text"', b"null", b"NaN"])
def test_top_level_must_be_an_object(body: bytes):
    assert refusal(body) == f"JSON Value: {body.decode()} Is not object"


def test_bytes_after_the_object_are_ignored():
    decoded = decode(b'{"instances": [[1, 2]]} and \xff whatever else')

    assert decoded.inputs["x"].tolist() == [[1, 2]]


def test_nan_and_infinities_are_numbers():
    decoded = decode(b'{"instances": [[NaN, 1], [Infinity, -Infinity]]}')

    np.testing.assert_array_equal(decoded.inputs["x"], [[np.nan, 1], [np.inf, -np.inf]])


def test_a_byte_order_mark_is_skipped():
    decoded = decode(b'\xef\xbb\xbf{"instances": [[1, 2]]}')

    assert decoded.inputs["x"].tolist() == [[1, 2]]


def test_unknown_keys_are_ignored():
    decoded = decode({"instances": [[1, 2]], "whatever": {"deep": [1]}})

    assert decoded.inputs["x"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
        (b'{"a": 1,}', "Missing a name for object member. at offset: 8"),
        (b'{"a": 1 "b"}', "Missing a comma or } after an object member. at offset: 8"),
        (b'{"a}": [1 2]}', "Missing a comma or ] after an array element. at offset: 10"),
        (
            b'{"a": [1], "b": {"c": [] 2',
            "Missing a comma or } after an object member. at offset: 25",
        ),
        (b'{"a": ', "Invalid value. at offset: 6"),
        (b'{"a": "x', "Missing a closing quotation mark in string. at offset: 6"),
        (b'{"a": "\xff"}', "Invalid encoding in string. at offset: 7"),
        (b'{"a": "\\q"}', "Invalid escape character in string. at offset: 7"),
        (b'{"a": "\\uzzzz"}', "Incorrect hex digit after \\u escape in string. at offset: 8"),
        (b'{"a": "\x01"}', "Invalid encoding in string. at offset: 7"),
        (b'{"\xc3\xa4": }', "Invalid value. at offset: 7"),
        (b"\xff\xfe{}", "Invalid encoding in string. at offset: 0"),
        (b'{"a": 1e999}', "Number too big to be stored in double. at offset: 0"),
        (b'{"a": ' + b"1" * 5000 + b"}", "Number too big to be stored in double. at offset: 0"),
        (b'{"a": ' + b"[" * 100_000, "The document is nested too deeply. at offset: 0"),
        (b'{"a": ' + b'{"a": ' * 100_000, "The document is nested too deeply. at offset: 0"),
    ],
)
def test_what_is_not_json_is_refused_with_its_byte_offset(body: bytes, message: str):
    assert refusal(body) == f"JSON Parse error: {message}"


def test_ten_thousand_bad_bodies_leave_no_memory_behind():
    bodies = [b"", b"{", b"[" * 2000, b'{"a": "\xff"}', b'{"instances": [[1], [NaN, "x"]]}']
    for body in bodies:
        assert refusal(body)

    tracemalloc.start()
    refused = sum(bool(refusal(body)) for body in bodies * 2000)
    gc.collect()
    grown_bytes, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert refused == 10_000
    assert grown_bytes < 50_000  # five bytes for each


def test_a_value_in_a_message_is_cut_to_256_characters():
    message = refusal({"instances": "x" * 10_000})

    assert len(message) < 256 + 100
    assert message.endswith("Expecting 'instances' to be an list/array")


# The signature.


def test_serving_default_answers_where_no_signature_is_named():
    signatures = {**make_signatures(name="first"), **one_input()}

    assert decode({"inputs": [[1, 2]]}, signatures).signature.name == "serving_default"


def test_an_empty_signature_name_is_the_default():
    assert decode({"signature_name": "", "inputs": [[1, 2]]}).signature.name == "serving_default"


def test_the_first_signature_answers_where_there_is_no_serving_default():
    signatures = {**make_signatures(TensorSpec("x", DataType.FP32, (2,)), name="add"), **NO_INPUTS}

    assert decode({"inputs": [1, 2]}, signatures).signature.name == "add"


def test_a_named_signature_is_taken():
    signatures = {**one_input(), **make_signatures(TensorSpec("y", DataType.FP32, (1,)), name="f")}

    decoded = decode({"signature_name": "f", "inputs": [3]}, signatures)

    assert decoded.inputs["y"].tolist() == [3]


def test_an_unknown_signature_is_refused_in_tf_servings_words():
    message = refusal({"signature_name": "nope", "inputs": [[1, 2]]})

    assert message == 'Serving signature name: "nope" not found in signature def'


def test_serving_default_is_unknown_where_it_is_asked_for_by_name_and_not_there():
    message = refusal({"signature_name": "serving_default", "inputs": {}}, NO_INPUTS)

    assert message == 'Serving signature name: "serving_default" not found in signature def'


@pytest.mark.parametrize("name", [5, None, ["x"], True])
def test_a_signature_name_must_be_a_string(name: object):
    message = refusal({"signature_name": name, "inputs": [[1, 2]]})

    assert message.endswith("not formatted correctly. 'signature_name' key must be a string value.")


# Instances or inputs.


def test_neither_instances_nor_inputs_is_refused():
    assert refusal({}) == "Missing 'inputs' or 'instances' key"


def test_instances_and_inputs_together_are_refused():
    message = refusal({"instances": [[1, 2]], "inputs": [[1, 2]]})

    assert message == (
        'JSON Value: {"instances": [[1, 2]], "inputs": [[1, 2]]} Not formatted correctly '
        "expecting only one of 'inputs' or 'instances' keys to exist"
    )


@pytest.mark.parametrize("value", [5, {"x": 1}, "x", None])
def test_instances_must_be_a_list(value: object):
    assert refusal({"instances": value}).endswith("Expecting 'instances' to be an list/array")


def test_instances_must_not_be_empty():
    assert refusal({"instances": []}).endswith("No values in 'instances' array")


# Rows.


def test_rows_of_values_become_one_tensor():
    decoded = decode({"instances": [[1, 2], [3, 4.5]]})

    assert decoded.layout is Layout.ROW
    assert decoded.inputs["x"].dtype == np.float32
    assert decoded.inputs["x"].tolist() == [[1, 2], [3, 4.5]]


def test_rows_of_lone_values_become_a_tensor_of_rank_1():
    assert decode({"instances": [1, 2, 3]}).inputs["x"].tolist() == [1, 2, 3]


def test_rows_of_objects_become_a_tensor_per_input():
    rows = [{"a": 1, "b": 2}, {"b": 4, "a": 3}]

    decoded = decode({"instances": rows}, TWO_INPUTS)

    assert {name: array.tolist() for name, array in decoded.inputs.items()} == {
        "a": [1, 3],
        "b": [2, 4],
    }


def test_rows_of_objects_work_for_one_input():
    assert decode({"instances": [{"x": [1, 2]}]}).inputs["x"].tolist() == [[1, 2]]


def test_rows_of_values_are_refused_for_several_inputs():
    assert refusal({"instances": [[1, 2]]}, TWO_INPUTS) == (
        "instances is a plain list, but expecting list of objects as multiple input tensors "
        "required as per tensorinfo_map"
    )


def test_a_row_that_lacks_an_input_is_refused():
    rows = [{"a": 1, "b": 2}, {"a": 1}]

    assert refusal({"instances": rows}, TWO_INPUTS) == (
        "Failed to process element: 1 of 'instances' list. "
        'JSON object: {"a": 1} keys must be equal to: a,b'
    )


def test_a_row_with_an_unknown_input_is_refused():
    rows = [{"a": 1, "b": 2, "c": 3}]

    assert refusal({"instances": rows}, TWO_INPUTS) == (
        "Failed to process element: 0 key: c of 'instances' list. "
        "Error: INVALID_ARGUMENT: JSON object: does not have named input: c"
    )


@pytest.mark.parametrize("other", [[1], 1, None, {"b64": "AA=="}])
def test_objects_and_other_rows_are_not_mixed(other: object):
    message = refusal({"instances": [{"x": [1, 2]}, other]})

    assert message == "Expecting object but got list at item 1 of input list"


def test_values_and_object_rows_are_not_mixed():
    message = refusal({"instances": [[1, 2], {"x": [1, 2]}]})

    assert message == "Expecting value/list but got object at item 1 of input list"


def test_rows_of_different_sizes_are_refused():
    assert refusal({"instances": [[1, 2], [3, 4], [5]]}) == (
        "Failed to process element: 2 of 'instances' list. "
        "Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1"
    )


def test_rows_of_different_shapes_are_refused():
    assert refusal({"instances": [[[1, 2]], [[3], [4]]]}) == (
        "Failed to process element: 1 of 'instances' list. "
        "Error: INVALID_ARGUMENT: Expecting shape [1,2] but got: [2,1]"
    )


def test_a_ragged_row_is_refused_by_its_own_levels():
    assert refusal({"instances": [[[1, 2], [3, 4]], [[5, 6], [7]]]}) == (
        "Failed to process element: 1 of 'instances' list. "
        "Error: INVALID_ARGUMENT: Encountered list at unexpected size: 1 at level: 1 "
        "expected size: 2"
    )


def test_a_bad_value_in_a_named_row_is_refused_with_element_and_key():
    rows = [{"a": 1, "b": 2}, {"a": 1, "b": "x"}]

    assert refusal({"instances": rows}, TWO_INPUTS) == (
        "Failed to process element: 1 key: b of 'instances' list. "
        'Error: INVALID_ARGUMENT: JSON Value: "x" Type: String is not of expected type: float'
    )


# Columns.


def test_a_column_for_one_input_is_the_tensor():
    decoded = decode({"inputs": [[1, 2], [3, 4]]})

    assert decoded.layout is Layout.COLUMN
    assert decoded.inputs["x"].tolist() == [[1, 2], [3, 4]]


def test_a_lone_value_is_a_tensor_of_rank_0():
    assert decode({"inputs": 5}).inputs["x"].shape == ()


def test_columns_by_name_may_differ_in_their_first_dimension():
    decoded = decode({"inputs": {"a": [1, 2, 3], "b": [4]}}, TWO_INPUTS)

    assert [array.shape for array in decoded.inputs.values()] == [(1,), (3,)]


def test_extra_columns_are_ignored():
    decoded = decode({"inputs": {"x": [[1, 2]], "y": "?"}})

    assert list(decoded.inputs) == ["x"]


def test_a_missing_column_is_refused():
    message = refusal({"inputs": {"b": [1]}}, TWO_INPUTS)

    assert message == "Missing named input: a in 'inputs' object."


def test_a_plain_column_is_refused_for_several_inputs():
    assert refusal({"inputs": [1]}, TWO_INPUTS) == (
        "inputs is a plain value/list, but expecting an object as multiple input tensors "
        "required as per tensorinfo_map"
    )


def test_a_signature_without_inputs_takes_an_empty_object():
    assert decode({"inputs": {}}, NO_INPUTS).inputs == {}


# Nesting.


def test_ragged_lists_are_refused_with_level_and_sizes():
    assert column_refusal([[1, 2], [3]], DataType.FP32) == (
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2"
    )


def test_a_value_beside_lists_is_refused():
    assert column_refusal([[1], 2], DataType.FP32) == (
        "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"
    )


def test_a_list_beside_values_is_refused():
    assert column_refusal([[1, [2]]], DataType.FP32) == (
        "Encountered list at unexpected level: 2 expected < 2"
    )


def test_text_is_not_taken_for_a_list_of_letters():
    assert "found at incorrect level: 2" in column_refusal([["a", "b"], "cd"], DataType.BYTES)


def test_deep_nesting_is_refused():
    body = b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}"

    assert refusal(body) == "Encountered list at unexpected level: 32 expected < 32"


@pytest.mark.parametrize(("values", "shape"), [([], (0,)), ([[], []], (2, 0)), ([[[]]], (1, 1, 0))])
def test_empty_lists_have_a_shape(values: object, shape: tuple[int, ...]):
    assert column(values, DataType.FP32).shape == shape


# Values by type.

INTEGERS = [
    (DataType.INT8, -(2**7), 2**7 - 1, "int8"),
    (DataType.INT16, -(2**15), 2**15 - 1, "int16"),
    (DataType.INT32, -(2**31), 2**31 - 1, "int32"),
    (DataType.INT64, -(2**63), 2**63 - 1, "int64"),
    (DataType.UINT8, 0, 2**8 - 1, "uint8"),
    (DataType.UINT32, 0, 2**32 - 1, "uint32"),
    (DataType.UINT64, 0, 2**64 - 1, "uint64"),
]


@pytest.mark.parametrize(("datatype", "lowest", "highest", "_name"), INTEGERS)
def test_integers_keep_their_whole_range(datatype: DataType, lowest: int, highest: int, _name: str):
    array = column([[lowest, highest]], datatype)

    assert array.dtype == datatype.dtype
    assert array.tolist() == [[lowest, highest]]


@pytest.mark.parametrize(("datatype", "lowest", "highest", "name"), INTEGERS)
@pytest.mark.parametrize("beyond", [-1, 1])
def test_integers_out_of_range_are_refused(
    datatype: DataType, lowest: int, highest: int, name: str, beyond: int
):
    value = highest + 1 if beyond > 0 else lowest - 1

    message = column_refusal([[0, value]], datatype)

    assert message.endswith(f"Type: Number is not of expected type: {name}")


@pytest.mark.parametrize("value", ["1.5", "1.0", "1e2", "NaN", "true", '"1"', "null", "{}"])
@pytest.mark.parametrize("datatype", [DataType.INT8, DataType.UINT8, DataType.INT64])
def test_integer_tensors_take_json_integers_only(datatype: DataType, value: str):
    message = refusal(b'{"inputs": [[1, %s]]}' % value.encode(), one_input(datatype))

    assert f"is not of expected type: {datatype.value.lower()}" in message


@pytest.mark.parametrize("datatype", [DataType.FP32, DataType.FP64])
def test_float_tensors_take_any_number(datatype: DataType):
    array = column([[1, -2.5], [16777217, 1e20]], datatype)

    assert array.dtype == datatype.dtype
    np.testing.assert_array_equal(array, np.array([[1, -2.5], [16777217, 1e20]], datatype.dtype))


def test_numbers_beyond_a_float_are_refused_and_not_made_infinite():
    message = column_refusal([[1, -1e39]], DataType.FP32)

    assert message == "Cannot convert JSON value: -1e+39 to float without loss of precision."


@pytest.mark.parametrize("number", ["1e999", "1E+400", "-1.5e0400", "9" * 350])
def test_a_number_beyond_a_double_is_refused_also_beside_a_bare_nan(number):
    message = refusal(f'{{"inputs": [[NaN, {number}]]}}'.encode(), one_input(DataType.FP64))

    assert "Number too big to be stored in double." in message


def test_numbers_of_many_digits_are_read_beside_a_bare_nan():
    number = "1" * 299 + ".5"

    decoded = decode(f'{{"inputs": [[NaN, {number}, 1e-400]]}}'.encode(), one_input(DataType.FP64))

    assert decoded.inputs["x"][0, 1:].tolist() == [float(number), 0.0]


@pytest.mark.parametrize("digits", [310, 400, 4000])
def test_integers_with_more_digits_than_a_double_has_are_refused(digits):
    body = b'{"inputs": [[1, -' + b"9" * digits + b"]]} "

    message = refusal(body, one_input(DataType.FP64))

    assert "Number too big to be stored in double." in message


def test_integers_beyond_a_double_are_refused():
    body = b'{"inputs": [[1, ' + b"9" * 309 + b"]]} "

    message = refusal(body, one_input(DataType.FP64))

    assert message.endswith("to double without loss of precision.")


@pytest.mark.parametrize(
    ("value", "json_type"),
    [(True, "True"), (False, "False"), ("1", "String"), (None, "Null"), ({}, "Object")],
)
def test_float_tensors_take_nothing_but_numbers(value: object, json_type: str):
    assert column_refusal([[1, value]], DataType.FP32) == (
        f"JSON Value: {json.dumps(value)} Type: {json_type} is not of expected type: float"
    )


def test_bool_tensors_take_true_and_false():
    array = column([[True, False]], DataType.BOOL)

    assert array.dtype == np.bool_
    assert array.tolist() == [[True, False]]


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_bool_tensors_take_nothing_else(value: object):
    assert "is not of expected type: bool" in column_refusal([[True, value]], DataType.BOOL)


def test_string_tensors_take_text_as_utf_8():
    assert column([["grün", ""]], DataType.BYTES).tolist() == [["grün".encode(), b""]]


@pytest.mark.parametrize("text", ["AP8=", "AP8", "A P\n8=", " AP8"])
def test_string_tensors_take_base64(text: str):
    assert column([["a", {"b64": text}]], DataType.BYTES).tolist() == [[b"a", b"\x00\xff"]]


@pytest.mark.parametrize("text", ["?", "A", "AP8=AP8=", "\u00e4"])
def test_bad_base64_is_refused(text: str):
    assert column_refusal([[{"b64": text}]], DataType.BYTES) == "Unable to base64 decode"


def test_rows_of_base64_are_values():
    decoded = decode({"instances": [{"b64": "YQ=="}, "b"]}, one_input(DataType.BYTES))

    assert decoded.inputs["x"].tolist() == [b"a", b"b"]


def test_a_column_of_one_base64_is_a_value_of_rank_0():
    assert column({"b64": "YQ=="}, DataType.BYTES).item() == b"a"


@pytest.mark.parametrize("value", [{"b64": 5}, {"b64": "YQ==", "x": 1}, {}])
def test_other_objects_are_no_strings(value: object):
    assert "not formatted correctly for base64 data" in column_refusal([value], DataType.BYTES)


def test_half_surrogates_are_refused():
    body = b'{"inputs": [["\\ud800"]]}'

    message = refusal(body, one_input(DataType.BYTES))

    assert message == "The surrogate pair in string is invalid."


@pytest.mark.parametrize("value", [5, None, True])
def test_string_tensors_take_no_other_values(value: object):
    assert "is not of expected type: string" in column_refusal([value], DataType.BYTES)


def test_base64_for_a_number_is_refused():
    message = column_refusal([[{"b64": "AAAA"}]], DataType.FP32)

    assert message.endswith("Type: Object is not of expected type: float")


@pytest.mark.parametrize("datatype", [DataType.FP16, DataType.UINT16])
def test_types_without_json_form_are_unsupported(datatype: DataType):
    with pytest.raises(Unsupported, match=r"Conversion of JSON Value: .* to type: (half|uint16)"):
        decode({"inputs": [[1]]}, one_input(datatype))


# Pictures and sounds.

PICTURE = {"b64": base64.b64encode(b"JPEG").decode()}


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [PICTURE, PICTURE]},
        {"instances": [{"x": PICTURE}, {"x": PICTURE}]},
        {"inputs": [PICTURE, PICTURE]},
        {"inputs": {"x": [PICTURE, PICTURE]}},
    ],
)
def test_base64_for_a_model_that_takes_pictures_is_a_picture_per_row(document: object):
    decoded = decode(document, one_input(DataType.UINT8), takes_media=True)

    assert decoded.inputs == MediaBatch((b"JPEG", b"JPEG"))


@pytest.mark.parametrize("document", [{"inputs": PICTURE}, {"inputs": {"x": PICTURE}}])
def test_a_column_may_be_a_lone_picture(document: object):
    decoded = decode(document, one_input(DataType.UINT8), takes_media=True)

    assert decoded.inputs == MediaBatch((b"JPEG",))


def test_tensors_are_still_taken_where_pictures_are():
    decoded = decode({"instances": [[1, 2]]}, takes_media=True)

    assert decoded.inputs["x"].tolist() == [[1, 2]]


def test_pictures_and_numbers_are_not_mixed():
    message = refusal({"instances": [PICTURE, [1, 2]]}, takes_media=True)

    assert "Type: Object is not of expected type: float" in message


def test_bad_base64_of_a_picture_is_refused():
    assert refusal({"inputs": {"b64": "?"}}, takes_media=True) == "Unable to base64 decode"


def test_base64_for_a_string_input_is_never_a_picture():
    decoded = decode({"inputs": [PICTURE]}, one_input(DataType.BYTES), takes_media=True)

    assert decoded.inputs["x"].tolist() == [b"JPEG"]


# Classify and regress.


@pytest.mark.parametrize(
    ("method", "kind"), [("classify", "classification"), ("regress", "regression")]
)
def test_a_predict_signature_is_not_for_classify_or_regress(method: str, kind: str):
    body = b'{"examples": [{"x": 1.0}]}'

    with pytest.raises(Malformed) as caught:
        refuse_examples(method, body, one_input())

    assert str(caught.value) == (
        f"Expected {kind} signature method_name to be tensorflow/serving/{method}. "
        "Was: tensorflow/serving/predict"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "key 'examples' is expected and was not found"),
        (b'{"examples": 5}', "Expecting 'examples' value to be an list/array"),
        (b'{"examples": []}', "'examples' value is an empty array"),
        (b'{"examples": [5]}', "Example must be JSON object but got JSON Number"),
        (b'{"examples": [{}], "signature_name": "no"}', "not found in signature def"),
        (b"{", "JSON Parse error: Missing a name for object member. at offset: 1"),
    ],
)
def test_malformed_examples_are_refused_for_what_they_are(body: bytes, message: str):
    with pytest.raises(Malformed) as caught:
        refuse_examples("classify", body, one_input())

    assert message in str(caught.value)


# Answers.


def encode(layout: Layout, **outputs: np.ndarray) -> object:
    return json.loads(encode_predict(layout, outputs))


def strings(*values: bytes) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_one_output_in_rows_is_a_list_of_values():
    assert encode(Layout.ROW, y=np.float32([[1, 2.5]])) == {"predictions": [[1.0, 2.5]]}


def test_several_outputs_in_rows_are_a_list_of_objects():
    outputs = {"y": np.float32([[1], [2]]), "z": np.int64([3, 4])}

    assert encode(Layout.ROW, **outputs) == {
        "predictions": [{"y": [1.0], "z": 3}, {"y": [2.0], "z": 4}]
    }


def test_one_output_in_columns_is_the_value():
    assert encode(Layout.COLUMN, y=np.int8([1, -2])) == {"outputs": [1, -2]}


def test_several_outputs_in_columns_are_an_object():
    outputs = {"y": np.float32([1, 2]), "z": np.array(True)}

    assert encode(Layout.COLUMN, **outputs) == {"outputs": {"y": [1.0, 2.0], "z": True}}


def test_rows_need_a_first_dimension():
    with pytest.raises(BadTensor, match="Tensor name: y has no shape information"):
        encode_predict(Layout.ROW, {"y": np.array(1, np.float32)})


def test_rows_need_one_batch_size():
    outputs = {"y": np.zeros(2), "z": np.zeros(3)}

    with pytest.raises(BadTensor, match="z has inconsistent batch size: 3 expecting: 2"):
        encode_predict(Layout.ROW, outputs)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), b"0.1"),
        (np.float32(2), b"2.0"),
        (np.float32(-0.0), b"-0.0"),
        (np.float32(1) / np.float32(3), b"0.33333334"),
        (np.float64(1) / 3, b"0.3333333333333333"),
        (np.float32("nan"), b"NaN"),
        (np.float32("inf"), b"Infinity"),
        (np.float64("-inf"), b"-Infinity"),
        (np.int64(-(2**63)), b"-9223372036854775808"),
        (np.uint64(2**64 - 1), b"18446744073709551615"),
        (np.bool_(True), b"true"),
    ],
)
def test_a_lone_number_is_written_exactly(value: np.generic, text: bytes):
    assert encode_tensor("y", np.asarray(value)) == text


def test_non_finite_numbers_are_bare_tokens_in_their_places():
    values = np.float32([[np.nan, 1], [np.inf, -np.inf]])

    assert encode_tensor("y", values) == b"[[NaN,1.0],[Infinity,-Infinity]]"


def test_arrays_that_are_not_contiguous_are_written_in_order():
    values = np.arange(6, dtype=np.int32).reshape(2, 3).T

    assert encode_tensor("y", values) == b"[[0,3],[1,4],[2,5]]"


def test_strings_are_text_where_they_are_utf_8():
    assert encode(Layout.COLUMN, y=strings("grün".encode(), b"\xff")) == {
        "outputs": ["grün", {"b64": "/w=="}]
    }


def test_string_outputs_named_bytes_are_base64():
    assert encode(Layout.COLUMN, y_bytes=strings(b"a")) == {"outputs": [{"b64": "YQ=="}]}


def test_number_outputs_named_bytes_are_numbers():
    assert encode(Layout.COLUMN, y_bytes=np.uint8([1])) == {"outputs": [1]}


def test_strings_in_rows_of_several_outputs_are_values():
    outputs = {"y": strings(b"a", b"b"), "z": np.int32([1, 2])}

    assert encode(Layout.ROW, **outputs) == {
        "predictions": [{"y": "a", "z": 1}, {"y": "b", "z": 2}]
    }


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "half"), (np.complex64, "complex64")])
def test_half_and_complex_numbers_have_no_json_form(dtype: type, name: str):
    with pytest.raises(BadTensor, match=f"Failed to write JSON value for tensor type: {name}"):
        encode_predict(Layout.COLUMN, {"y": np.zeros(1, dtype)})


# There and back.

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)


@pytest.mark.parametrize(
    "datatype", [d for d in DataType if d.dtype.kind in "iub" and d is not DataType.UINT16]
)
@given(data=st.data())
def test_integers_and_booleans_survive_the_way_there_and_back(datatype: DataType, data):
    array = data.draw(npst.arrays(datatype.dtype, SHAPES))

    text = encode_tensor("x", array)
    back = decode(b'{"inputs": %s}' % text, one_input(datatype)).inputs["x"]

    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("datatype", [DataType.FP32, DataType.FP64])
@given(data=st.data())
def test_floats_survive_the_way_there_and_back(datatype: DataType, data):
    array = data.draw(npst.arrays(datatype.dtype, SHAPES))

    text = encode_tensor("x", array)
    back = decode(b'{"inputs": %s}' % text, one_input(datatype)).inputs["x"]

    np.testing.assert_array_equal(back, array)


@given(values=st.lists(st.binary(max_size=20), min_size=1), name=st.sampled_from(["x", "x_bytes"]))
def test_strings_survive_the_way_there_and_back(values: list[bytes], name: str):
    text = encode_tensor(name, strings(*values))

    back = decode(b'{"inputs": %s}' % text, one_input(DataType.BYTES)).inputs["x"]

    assert back.tolist() == values


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "b64", "instances"]), inner, max_size=3)
    ),
    max_leaves=20,
)


def is_answered(body: bytes, datatype: DataType, **options: bool) -> bool:
    """Whether a body is decoded to the type, or refused with words; anything else raises."""
    try:
        decoded = decode_predict(body, one_input(datatype), **options)
    except RequestError as error:
        return bool(str(error))
    inputs = decoded.inputs
    return isinstance(inputs, MediaBatch) or inputs["x"].dtype == datatype.dtype


@given(
    value=JSON_VALUES,
    key=st.sampled_from(["inputs", "instances"]),
    datatype=st.sampled_from(sorted(DataType, key=lambda d: d.value)),
    options=st.fixed_dictionaries({"takes_media": st.booleans()}),
)
def test_any_json_is_decoded_or_refused(value, key: str, datatype: DataType, options):
    body = json.dumps({key: value}).encode()

    assert is_answered(body, datatype, **options)


@given(
    body=st.binary(max_size=60)
    | st.text(alphabet='{}[]",:0\\u NaInfty', max_size=60).map(str.encode)
)
def test_any_bytes_are_decoded_or_refused(body: bytes):
    assert is_answered(body, DataType.FP32)
