"""Inference requests of KServe v2 are read to the letter, and hostile ones are refused."""

from __future__ import annotations

import base64
import struct

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.kserve_views import make_picture_view, make_view, tensor

from accelerators.base import DataType, SignatureSpec
from daemon.codec.binarytensors import MAX_STRINGS
from daemon.codec.kserve import decode_infer, parse_header_length
from daemon.codec.kserve_answers import encode_infer
from daemon.codec.pieces import MAX_JSON_ANSWER_VALUES
from daemon.errors import (
    BadTensor,
    DaemonError,
    Malformed,
    SignatureNotFound,
    TooLarge,
    Unsupported,
)
from daemon.modelfile import InputTable, ModelTables
from daemon.tensors import Media, MediaBatch, PredictResult, Timing

JPEG = b"\xff\xd8\xff\xe0" + bytes(40)
ONE = make_view()  # input x and output y, FP32 [1, 3]


def request(*inputs, **members):
    return orjson.dumps({"inputs": list(inputs), **members})


def x(**changes):
    return {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3], **changes}


def with_blocks(document, *blocks):
    head = orjson.dumps(document)
    return head + b"".join(blocks), len(head)


def prefixed(*elements):
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def binary_x(size=12, **changes):
    return {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 3],
        "parameters": {"binary_data_size": size},
        **changes,
    }


def strings(*elements):
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def result(**outputs):
    return PredictResult("m", 7, "r", "cpu", "cpu", False, Timing(), outputs)


def answer(call, labels=(), details=None, **outputs):
    """The answer's JSON, and the blocks after it."""
    body, json_bytes = encode_infer(call, result(**outputs), labels, details)
    return orjson.loads(body[:json_bytes]), body[json_bytes:] if json_bytes else None


class TestHeaderLength:
    def test_an_absent_header_means_that_all_is_json(self):
        assert parse_header_length(None, 10) is None

    @pytest.mark.parametrize("value", ["0", "5", "10"])
    def test_any_length_up_to_the_body_is_taken(self, value):
        assert parse_header_length(value, 10) == int(value)

    @pytest.mark.parametrize("value", ["11", "-1", "99999999999999999999"])
    def test_a_length_out_of_range_is_refused_in_tritons_words(self, value):
        expected = rf"inference header size should be in range \(0, 10\), got: {value}"
        with pytest.raises(Malformed, match=expected):
            parse_header_length(value, 10)

    @pytest.mark.parametrize("value", ["", "x", "1.5", "+5", "1_0", "٣", "9" * 5000])
    def test_what_is_no_number_is_refused(self, value):
        with pytest.raises(Malformed, match="Unable to parse Inference-Header-Content-Length"):
            parse_header_length(value, 10)


class TestJsonInputs:
    @pytest.mark.parametrize("data", [[1, 2, 3], [[1, 2, 3]]])
    def test_values_are_flat_or_nested(self, data):
        call = decode_infer(request(x(data=data)), None, ONE)

        assert call.inputs["x"].tolist() == [[1, 2, 3]]

    def test_a_header_length_of_the_whole_body_changes_nothing(self):
        body = request(x())

        assert decode_infer(body, len(body), ONE).inputs["x"].tolist() == [[1, 2, 3]]

    def test_unknown_members_and_parameters_are_ignored(self):
        body = request(
            x(parameters={"note": "n"}, extra=1),
            model_name="other",
            parameters={"mine": 1, "yours": "a", "ours": True, "headers": {"a": "b"}},
        )

        assert decode_infer(body, None, ONE).parameters["mine"] == 1

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"", "the body is empty"),
            (b"[]", "must be a JSON object"),
            (b"null", "must be a JSON object"),
            (b"{}", "non-existing object member 'inputs'"),
            (b'{"inputs": {}}', "JSON non-array as array"),
            (b'{"inputs": [1]}', "each must be an object"),
            (request(x(name=5)), "Unable to parse 'name'"),
            (request({"datatype": "FP32"}), "non-existing object member 'name'"),
            (request(x(datatype=None)), "Unable to parse 'datatype'"),
            (request(x(shape=None)), "non-existing object member 'shape'"),
            (request(x(shape=3)), "Unable to parse 'shape'"),
            (request(x(shape=[1, -3])), "non-unsigned-integer as unsigned-integer"),
            (request(x(shape=[1.0, 3])), "non-unsigned-integer as unsigned-integer"),
            (request(x(shape=[True, 3])), "non-unsigned-integer as unsigned-integer"),
            (request(x(), id=5), "Unable to parse 'id'"),
            (request(x(), parameters=[]), "Unable to parse 'parameters'"),
            (request(x(), parameters={"a": []}), "'a' must be a string, a number or a boolean"),
            (request(x(), parameters={"a": None}), "'a' must be a string"),
            (request(x(), parameters={"timeout": "1"}), "Unable to parse 'timeout'"),
            (request(x(), parameters={"timeout": -1}), "Unable to parse 'timeout'"),
            (request(x(), parameters={"priority": 1.5}), "Unable to parse 'priority'"),
            (request(x(), parameters={"signature": 1}), "Unable to parse 'signature'"),
            (request(x(), parameters={"binary_data_output": 1}), "'binary_data_output'"),
            (request(x(), parameters={"triton_x": 1}), "reserved for Triton"),
            (request(x(), parameters={"sequence_id": 1}), "sequences are not offered"),
            (request(x(), outputs={}), "Unable to parse 'outputs'"),
            (request(x(), outputs=[1]), "each must be an object"),
            (request(x(), outputs=[{}]), "non-existing object member 'name'"),
            (request(x(), outputs=[{"name": "y", "parameters": 1}]), "must be an object"),
            (request(x(parameters=[])), "must be an object"),
            (request(binary_x(data=[1])), "both 'data' and 'binary_data_size'"),
            (request({k: v for k, v in x().items() if k != "data"}), "has no values"),
        ],
    )
    def test_what_is_not_the_protocol_is_malformed(self, body, message):
        with pytest.raises(Malformed, match=message):
            decode_infer(body, None, ONE)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (request(), "missing 'x'"),
            (request(x(name="z")), "unexpected inference input 'z' for model 'm'; expected 'x'"),
            (request(x(), x(name="z")), "unexpected inference input 'z'"),
            (request(x(), x()), "given twice"),
            (request(x(datatype="INT32")), "data-type is 'INT32', but the model expects 'FP32'"),
            (request(x(datatype="FLOAT")), "'FLOAT' is not one of BOOL, UINT8"),
            (request(x(datatype="BF16")), "is not one of"),
            (request(x(datatype="BYTES")), "data-type is 'BYTES', but"),
            (request(x(shape=[3])), "unexpected shape"),
            (request(x(shape=[3, 1])), "unexpected shape"),
            (request(x(shape=[])), "unexpected shape"),
            (request(x(shape=[2**62, 2**62])), "unexpected shape"),
            (request(x(data=[1, 2])), "needs 3 values, got 2"),
            (request(x(data="abc")), "expected a list of 3 values"),
            (request(x(data=None)), "expected a list of 3 values, got null"),
            (request(x(), outputs=[{"name": "z"}]), "unexpected inference output 'z'"),
            (request(x(), outputs=[{"name": "y"}] * 2), "asked for twice"),
        ],
    )
    def test_tensors_that_are_not_the_models_are_refused(self, body, message):
        with pytest.raises(BadTensor, match=message):
            decode_infer(body, None, ONE)

    def test_a_free_dimension_cannot_ask_for_more_than_the_body_holds(self):
        view = make_view([tensor("x", shape=(-1, -1))])

        with pytest.raises(BadTensor, match="needs 4611686014132420609 values, got 1"):
            decode_infer(request(x(shape=[2**31 - 1] * 2, data=[1])), None, view)

    def test_a_dimension_beyond_32_bits_is_refused(self):
        view = make_view([tensor("x", shape=(-1,))])

        with pytest.raises(BadTensor, match="unexpected shape"):
            decode_infer(request(x(shape=[2**31], data=[])), None, view)

    @pytest.mark.parametrize("where", ["input", "output"])
    def test_shared_memory_is_refused_as_not_offered(self, where):
        region = {"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 12}}
        source = {k: v for k, v in x().items() if k != "data"} | region
        body = (
            request(source) if where == "input" else request(x(), outputs=[{"name": "y", **region}])
        )

        with pytest.raises(Unsupported, match="shared memory is not offered"):
            decode_infer(body, None, ONE)

    def test_a_model_without_inputs_takes_a_request_without_inputs(self):
        others = (SignatureSpec("get_weights", (), (tensor("w"),)),)
        view = make_view(others=others)
        body = orjson.dumps({"parameters": {"signature": "get_weights"}})

        call = decode_infer(body, None, view)

        assert call.inputs == {}
        assert call.signature.name == "get_weights"

    def test_the_parameter_signature_selects_one(self):
        view = make_view(others=(SignatureSpec("other", (tensor("x"),), (tensor("z"),)),))

        call = decode_infer(request(x(), parameters={"signature": "other"}), None, view)

        assert [wish.spec.name for wish in call.outputs] == ["z"]

    def test_an_unknown_signature_is_refused_with_the_known_ones(self):
        with pytest.raises(SignatureNotFound, match="it has: serving_default"):
            decode_infer(request(x(), parameters={"signature": "other"}), None, ONE)

    def test_only_the_default_signature_takes_batches(self):
        others = (SignatureSpec("other", (tensor("x"),), (tensor("z"),)),)
        view = make_view(max_batch=8, others=others)
        two = x(shape=[2, 3], data=[1] * 6)

        assert decode_infer(request(two), None, view).inputs["x"].shape == (2, 3)
        with pytest.raises(BadTensor, match="unexpected shape"):
            decode_infer(request(two, parameters={"signature": "other"}), None, view)

    @pytest.mark.parametrize("given", ["", "abc"])
    def test_a_given_id_is_kept_even_when_empty(self, given):
        assert decode_infer(request(x(), id=given), None, ONE).request_id == given

    def test_no_id_is_told_from_an_empty_one(self):
        assert decode_infer(request(x()), None, ONE).request_id is None

    def test_timeout_is_in_microseconds(self):
        call = decode_infer(request(x(), parameters={"timeout": 1500}), None, ONE)

        assert call.timeout_us == 1500

    def test_wanted_outputs_keep_their_order(self):
        view = make_view(outputs=[tensor("a"), tensor("b")])

        call = decode_infer(request(x(), outputs=[{"name": "b"}, {"name": "a"}]), None, view)

        assert call.output_names == ("b", "a")

    @pytest.mark.parametrize("outputs", [{}, {"outputs": []}, {"outputs": None}])
    def test_all_outputs_are_wanted_when_none_is_named(self, outputs):
        view = make_view(outputs=[tensor("a"), tensor("b")])

        call = decode_infer(request(x(), **outputs), None, view)

        assert call.output_names is None
        assert [wish.spec.name for wish in call.outputs] == ["a", "b"]


class TestBinaryInputs:
    @given(
        st.sampled_from([d for d in DataType if d is not DataType.BYTES]).flatmap(
            lambda datatype: st.tuples(
                st.just(datatype),
                hnp.arrays(
                    datatype.dtype,
                    hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
                    elements=hnp.from_dtype(datatype.dtype),
                ),
            )
        )
    )
    def test_every_datatype_survives_both_ways(self, case):
        datatype, array = case
        spec = tensor("x", datatype, array.shape)
        view = make_view([spec], [tensor("y", datatype, array.shape)])
        given = {
            "name": "x",
            "datatype": datatype.value,
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        body, json_bytes = with_blocks(
            {"inputs": [given], "parameters": {"binary_data_output": True}}, array.tobytes()
        )

        call = decode_infer(body, json_bytes, view)
        document, block = answer(call, y=call.inputs["x"])

        np.testing.assert_array_equal(call.inputs["x"], array, strict=True)
        assert block == array.tobytes()
        assert document["outputs"][0]["shape"] == list(array.shape)
        assert document["outputs"][0]["parameters"] == {"binary_data_size": array.nbytes}

    @given(st.lists(st.binary(max_size=20), min_size=1, max_size=6))
    def test_strings_of_any_bytes_survive_both_ways(self, elements):
        shape = (len(elements),)
        view = make_view([tensor("x", DataType.BYTES, (-1,))], [tensor("y", DataType.BYTES, (-1,))])
        block = prefixed(*elements)
        given = binary_x(len(block), datatype="BYTES", shape=shape)
        body, json_bytes = with_blocks(
            {"inputs": [given], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
            block,
        )

        call = decode_infer(body, json_bytes, view)
        document, back = answer(call, y=call.inputs["x"])

        assert call.inputs["x"].tolist() == elements
        assert back == block
        assert document["outputs"][0]["datatype"] == "BYTES"

    def test_numbers_are_not_copied(self):
        body, json_bytes = with_blocks({"inputs": [binary_x()]}, bytes(12))

        array = decode_infer(body, json_bytes, ONE).inputs["x"]

        assert np.shares_memory(array, np.frombuffer(body, np.uint8))

    def test_any_byte_but_zero_is_true(self):
        view = make_view([tensor("x", DataType.BOOL)])
        given = binary_x(3, datatype="BOOL")
        body, json_bytes = with_blocks({"inputs": [given]}, b"\x00\x01\x02")

        assert decode_infer(body, json_bytes, view).inputs["x"].tolist() == [[False, True, True]]

    def test_blocks_follow_each_other_in_input_order_beside_json_inputs(self):
        view = make_view([tensor("a"), tensor("b"), tensor("c")])
        first, second = np.float32([[1, 2, 3]]), np.float32([[4, 5, 6]])
        inputs = [binary_x(name="c"), x(name="b"), binary_x(name="a")]
        body, json_bytes = with_blocks({"inputs": inputs}, first.tobytes(), second.tobytes())

        call = decode_infer(body, json_bytes, view)

        assert call.inputs["c"].tolist() == first.tolist()
        assert call.inputs["a"].tolist() == second.tolist()

    @pytest.mark.parametrize(
        ("given", "block", "message"),
        [
            (binary_x(), bytes(10), "expecting 2 additional bytes for model 'm'"),
            (binary_x(), bytes(13), "unexpected additional input data for model 'm'"),
            (x(), b"\x00", "unexpected additional input data for model 'm'"),
            (binary_x("12"), bytes(12), "Unable to parse 'binary_data_size'"),
            (binary_x(-1), bytes(12), "Unable to parse 'binary_data_size'"),
            (binary_x(2**63), bytes(12), "expecting 9223372036854775796 additional bytes"),
        ],
    )
    def test_short_and_left_over_data_is_refused_in_tritons_words(self, given, block, message):
        body, json_bytes = with_blocks({"inputs": [given]}, block)

        with pytest.raises(Malformed, match=message):
            decode_infer(body, json_bytes, ONE)

    def test_a_size_without_the_header_lacks_all_its_bytes(self):
        with pytest.raises(Malformed, match="expecting 12 additional bytes"):
            decode_infer(request(binary_x()), None, ONE)

    def test_a_block_that_is_not_the_shapes_size_is_refused(self):
        body, json_bytes = with_blocks({"inputs": [binary_x(8)]}, bytes(8))

        with pytest.raises(BadTensor, match=r"byte size 8 for input 'x', expecting 12"):
            decode_infer(body, json_bytes, ONE)

    @pytest.mark.parametrize(
        ("block", "message"),
        [
            (prefixed(b"a", b"b", b"c"), "found 2 with 5 bytes left"),
            (prefixed(b"abcd"), "found 1 with 0 bytes left"),
            (prefixed(b"a") + b"\x01\x00\x00", "length of element 1 is cut off"),
            (prefixed(b"a") + b"\xff\xff\xff\xff", "says it has 4294967295 bytes, 0 are left"),
            (b"\x00", "need at least 8 bytes, got 1"),
        ],
    )
    def test_strings_whose_lengths_do_not_fit_are_refused(self, block, message):
        view = make_view([tensor("x", DataType.BYTES, (2,))])
        given = binary_x(len(block), datatype="BYTES", shape=[2])
        body, json_bytes = with_blocks({"inputs": [given]}, block)

        with pytest.raises(BadTensor, match=message):
            decode_infer(body, json_bytes, view)

    def test_a_string_of_rank_0_is_refused(self):
        view = make_view([tensor("x", DataType.BYTES, ())])

        with pytest.raises(BadTensor, match="BYTES of rank 0"):
            decode_infer(request(x(datatype="BYTES", shape=[], data=["a"])), None, view)

    @given(st.binary(max_size=80), st.integers(0, 80))
    def test_random_bytes_are_refused_and_nothing_else_happens(self, body, json_bytes):
        view = make_view([tensor("x"), tensor("z")])

        with pytest.raises(DaemonError):
            decode_infer(body, min(json_bytes, len(body)), view)


class TestRawBodies:
    @pytest.mark.parametrize(
        ("spec_shape", "count", "shape"),
        [
            ((1, 3), 3, (1, 3)),
            ((-1, 3), 6, (2, 3)),
            ((2, -1), 8, (2, 4)),
            ((-1, -1), 5, (1, 5)),
            ((), 1, ()),
        ],
    )
    def test_the_body_is_the_single_input(self, spec_shape, count, shape):
        view = make_view([tensor("x", shape=spec_shape)])
        values = np.arange(count, dtype=np.float32)

        call = decode_infer(values.tobytes(), 0, view)

        np.testing.assert_array_equal(call.inputs["x"], values.reshape(shape), strict=True)
        assert all(wish.binary for wish in call.outputs)

    @pytest.mark.parametrize("spec_shape", [(1,), (-1,), (1, 1), (-1, 1)])
    def test_a_string_comes_without_its_length(self, spec_shape):
        view = make_view([tensor("x", DataType.BYTES, spec_shape)])

        call = decode_infer(b"any bytes", 0, view)

        assert call.inputs["x"].reshape(-1).tolist() == [b"any bytes"]
        assert call.inputs["x"].ndim == len(spec_shape)

    @pytest.mark.parametrize(
        ("inputs", "body", "message"),
        [
            ([tensor("x")], bytes(11), "unexpected total byte size 11 for input 'x', expecting 12"),
            ([tensor("x")], b"", "unexpected total byte size 0"),
            ([tensor("x", shape=(-1, 3))], bytes(13), "unexpected total byte size 13"),
            ([tensor("x", shape=(-1, 3))], b"", "unexpected total byte size 0"),
            ([tensor("x", shape=(1, -1, -1))], bytes(12), "at most 1 dimension open"),
            ([tensor("x", shape=(-1, 0))], b"abcd", "unexpected total byte size 4"),
            ([tensor("x"), tensor("z")], bytes(12), "for models with 1 input; 'm' has 2"),
            ([tensor("x", DataType.BYTES, (-1, 3))], b"a", "raw BYTES are one element"),
            ([tensor("x", DataType.BYTES, ())], b"a", "raw BYTES are one element"),
        ],
    )
    def test_what_cannot_be_the_single_input_is_refused(self, inputs, body, message):
        with pytest.raises(BadTensor, match=message):
            decode_infer(body, 0, make_view(inputs))

    def test_a_picture_models_raw_body_is_a_picture_unless_it_has_the_tensors_size(self):
        view = make_picture_view()

        assert decode_infer(JPEG, 0, view).inputs == Media(JPEG)
        assert decode_infer(bytes(192), 0, view).inputs["image"].shape == (1, 8, 8, 3)


class TestPictures:
    def given(self, shape, **members):
        return {"name": "image", "datatype": "BYTES", "shape": shape, **members}

    def test_a_length_prefixed_picture_is_taken(self):
        block = prefixed(JPEG)
        given = self.given([1], parameters={"binary_data_size": len(block)})
        body, json_bytes = with_blocks({"inputs": [given]}, block)

        assert decode_infer(body, json_bytes, make_picture_view()).inputs == MediaBatch((JPEG,))

    @pytest.mark.parametrize("parameters", [{}, {"binary_data_size": len(JPEG)}])
    def test_a_single_picture_may_come_without_its_length_and_size(self, parameters):
        given = self.given([1], parameters=parameters)
        body, json_bytes = with_blocks({"inputs": [given]}, JPEG)

        assert decode_infer(body, json_bytes, make_picture_view()).inputs == MediaBatch((JPEG,))

    def test_several_pictures_are_rows(self):
        block = prefixed(JPEG, b"other")
        given = self.given([2], parameters={"binary_data_size": len(block)})
        body, json_bytes = with_blocks({"inputs": [given]}, block)

        call = decode_infer(body, json_bytes, make_picture_view(rows=-1))

        assert call.inputs == MediaBatch((JPEG, b"other"))

    @pytest.mark.parametrize("wrap", [lambda text: text, lambda text: {"b64": text}])
    @pytest.mark.parametrize("shape", [[1], [1, 1]])
    def test_json_pictures_are_base64(self, wrap, shape):
        data = [wrap(base64.b64encode(JPEG).decode())]

        call = decode_infer(request(self.given(shape, data=data)), None, make_picture_view())

        assert call.inputs == MediaBatch((JPEG,))

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ({"shape": [2], "data": ["", ""]}, "2 rows are more than the 1"),
            ({"shape": [0], "data": []}, r"BYTES of shape \[N\]"),
            ({"shape": [], "data": ["AA=="]}, r"BYTES of shape \[N\]"),
            ({"shape": [1, 8, 8, 3], "data": [""]}, r"BYTES of shape \[N\]"),
            ({"shape": [1], "data": ["!"]}, "unable to base64 decode"),
            ({"shape": [1], "data": [5]}, "must be a string of base64"),
            ({"shape": [1], "data": []}, "expected a list of 1 base64 strings"),
        ],
    )
    def test_what_is_no_list_of_pictures_is_refused(self, members, message):
        with pytest.raises(BadTensor, match=message):
            decode_infer(request({**self.given([1]), **members}), None, make_picture_view())

    def test_a_model_of_one_sound_takes_one_at_a_time(self):
        tables = ModelTables(input=InputTable(kind="audio", sample_rate_hz=16000))
        view = make_view([tensor("image", DataType.FP32, (16000,))], tables=tables)

        with pytest.raises(BadTensor, match="one sound at a time, got 2"):
            decode_infer(request(self.given([2], data=["", ""])), None, view)

    def test_several_pictures_in_json_may_be_nested(self):
        data = [[base64.b64encode(JPEG).decode(), base64.b64encode(b"b").decode()]]

        call = decode_infer(request(self.given([2], data=data)), None, make_picture_view(rows=-1))

        assert call.inputs == MediaBatch((JPEG, b"b"))

    def test_tensors_are_still_taken(self):
        given = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [0] * 192}

        assert decode_infer(request(given), None, make_picture_view()).inputs["image"].sum() == 0


class TestAnswers:
    def call(self, body=None, view=ONE):
        return decode_infer(body or request(x()), None, view)

    def test_the_answer_names_model_and_version_and_holds_flat_json(self):
        document, block = answer(self.call(), y=np.float32([[1, 2.5, np.nan]]))

        assert block is None
        assert document == {
            "model_name": "m",
            "model_version": "7",
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.5, "NaN"]}
            ],
        }

    @pytest.mark.parametrize("given", ["", "abc"])
    def test_a_given_id_is_echoed(self, given):
        document, _ = answer(self.call(request(x(), id=given)), y=np.zeros((1, 3), np.float32))

        assert document["id"] == given

    def test_details_are_the_answers_parameters(self):
        document, _ = answer(self.call(), details={"device": "cpu"}, y=np.zeros(3, np.float32))

        assert document["parameters"] == {"device": "cpu"}

    def test_each_output_is_json_or_binary_as_it_was_asked_for(self):
        view = make_view(outputs=[tensor("a"), tensor("b"), tensor("c")])
        wishes = [
            {"name": "c", "parameters": {"binary_data": True}},
            {"name": "a", "parameters": {"binary_data": False}},
            {"name": "b"},
        ]
        body = request(x(), outputs=wishes, parameters={"binary_data_output": True})
        arrays = {name: np.full((1, 3), i, np.float32) for i, name in enumerate("abc")}

        document, block = answer(self.call(body, view), **arrays)

        assert [output["name"] for output in document["outputs"]] == ["c", "a", "b"]
        assert "data" not in document["outputs"][0]
        assert document["outputs"][1]["data"] == [0.0, 0.0, 0.0]
        assert block == arrays["c"].tobytes() + arrays["b"].tobytes()

    @pytest.mark.parametrize("shape", [(), (0, 3)])
    def test_scalars_and_empty_outputs_have_binary_blocks_of_their_size(self, shape):
        body = request(x(), parameters={"binary_data_output": True})
        array = np.zeros(shape, np.float32)

        document, block = answer(self.call(body), y=array)

        assert document["outputs"][0]["parameters"] == {"binary_data_size": array.nbytes}
        assert block == array.tobytes()

    def test_texts_are_json_strings(self):
        view = make_view(outputs=[tensor("y", DataType.BYTES, (2,))])

        document, _ = answer(self.call(view=view), y=strings(b"a", "ä".encode()))

        assert document["outputs"][0]["data"] == ["a", "ä"]

    def test_bytes_that_are_no_text_must_be_asked_for_as_binary(self):
        view = make_view(outputs=[tensor("y", DataType.BYTES, (1,))])

        with pytest.raises(BadTensor, match=r"output 'y': .* ask for binary data"):
            answer(self.call(view=view), y=strings(b"\xff"))

    def test_what_is_too_large_for_json_is_still_sent_as_binary(self):
        large = np.broadcast_to(np.float32(0), (MAX_JSON_ANSWER_VALUES + 1,))
        view = make_view(outputs=[tensor("y", shape=(-1,))])
        as_binary = {"name": "y", "parameters": {"binary_data": True}}

        _, block = answer(self.call(request(x(), outputs=[as_binary]), view), y=large)

        assert len(block) == large.nbytes
        with pytest.raises(TooLarge, match="binary"):
            answer(self.call(view=view), y=large)


def test_more_strings_than_are_taken_at_a_time_are_refused():
    count = MAX_STRINGS + 1
    view = make_view([tensor("x", DataType.BYTES, (-1,))])
    given = {"name": "x", "datatype": "BYTES", "shape": [count]}
    given["parameters"] = {"binary_data_size": 4 * count}
    body, head_bytes = with_blocks({"inputs": [given]}, bytes(4 * count))

    with pytest.raises(TooLarge, match=f"{count} strings"):
        decode_infer(body, head_bytes, view)


class TestClassification:
    def call(self, count, view, **parameters):
        wish = {"name": "y", "parameters": {"classification": count, **parameters}}
        return decode_infer(request(x(), outputs=[wish]), None, view)

    def test_rows_keep_their_best_classes_with_labels(self):
        view = make_view(outputs=[tensor("y", shape=(-1, 3))])
        array = np.float32([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]])

        document, _ = answer(self.call(2, view), labels=("cat", "", "dog"), y=array)

        (output,) = document["outputs"]
        assert output["datatype"] == "BYTES"
        assert output["shape"] == [2, 2]
        assert output["data"] == ["0.700000:1", "0.200000:2:dog", "0.500000:0:cat", "0.250000:1"]

    @pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
    def test_no_rows_and_no_classes_are_an_empty_answer(self, shape):
        view = make_view(outputs=[tensor("y", shape=(-1,) * len(shape))])

        document, _ = answer(self.call(2, view), y=np.zeros(shape, np.float32))

        (output,) = document["outputs"]
        assert output["data"] == []
        assert output["shape"][:-1] == list(shape[:-1])

    def test_integers_stay_integers_and_a_vector_stays_one(self):
        view = make_view(outputs=[tensor("y", DataType.UINT8, (3,))])

        document, _ = answer(self.call(1, view), y=np.uint8([3, 200, 7]))

        assert document["outputs"][0]["shape"] == [1]
        assert document["outputs"][0]["data"] == ["200:1"]

    def test_more_classes_than_there_are_means_all(self):
        document, _ = answer(self.call(100, ONE), y=np.float32([[1, 2, 3]]))

        assert len(document["outputs"][0]["data"]) == 3

    def test_classes_may_be_binary(self):
        document, block = answer(self.call(1, ONE, binary_data=True), y=np.float32([[1, 2, 3]]))

        assert block == prefixed(b"3.000000:2")
        assert document["outputs"][0]["parameters"] == {"binary_data_size": len(block)}

    @pytest.mark.parametrize("count", [-1, 1.5, "2", True])
    def test_a_count_that_is_no_whole_number_is_malformed(self, count):
        with pytest.raises(Malformed, match="Unable to parse 'classification'"):
            self.call(count, ONE)

    def test_texts_have_no_classes(self):
        view = make_view(outputs=[tensor("y", DataType.BYTES, (1,))])

        with pytest.raises(BadTensor, match="BYTES has no classes"):
            self.call(1, view)
