"""What a native body is, what it becomes, and what its answer looks like."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
from support.kserve_views import make_picture_view, make_view, tensor

from accelerators.base import DataType, SignatureSpec
from daemon.codec.native import (
    Options,
    decode_predict,
    encode_predict,
    make_request,
    read_options,
)
from daemon.errors import BadTensor, Malformed, SignatureNotFound, UnsupportedMedia
from daemon.tensors import (
    Box,
    Category,
    Classification,
    ClassShare,
    Detection,
    Media,
    PredictResult,
    Segmentation,
    Timing,
)

JPEG = b"\xff\xd8\xff\xe0 and so on"
CURL = "application/x-www-form-urlencoded"
OCTETS = "application/octet-stream"
PICTURE_BYTES = 8 * 8 * 3


def kserve(name="x", datatype="FP32", shape=(1, 3), data=(1, 2, 3), **more):
    given = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return json.dumps({"inputs": [given], **more}).encode()


def riff(kind):
    return b"RIFF" + struct.pack("<I", 100) + kind + b"...."


class TestContentDecides:
    @pytest.mark.parametrize(
        "body",
        [
            JPEG,
            b"\x89PNG\r\n\x1a\n...",
            b"GIF87a...",
            b"GIF89a...",
            b"BM\x10\0\0\0",
            riff(b"WEBP"),
            riff(b"WAVE"),
        ],
    )
    @pytest.mark.parametrize("content_type", ["", CURL, "image/jpeg", "text/plain", OCTETS])
    def test_a_picture_or_sound_is_known_by_its_first_bytes(self, body, content_type):
        call = decode_predict(body, content_type, make_picture_view())

        assert call.inputs == Media(body)

    def test_numbers_of_the_right_size_are_raw_even_when_they_begin_like_a_picture(self):
        body = JPEG.ljust(PICTURE_BYTES, b"\0")

        call = decode_predict(body, OCTETS, make_picture_view())

        assert call.inputs["image"].tobytes() == body

    def test_a_picture_of_the_raw_size_is_a_picture_unless_called_octets(self):
        body = JPEG.ljust(PICTURE_BYTES, b"\0")

        assert decode_predict(body, CURL, make_picture_view()).inputs == Media(body)
        assert decode_predict(body, "image/jpeg", make_picture_view()).inputs == Media(body)

    def test_a_tensor_model_takes_the_right_size_for_raw_whatever_it_begins_with(self):
        view = make_view([tensor("x", DataType.UINT8, (1, len(JPEG)))])

        assert decode_predict(JPEG, CURL, view).inputs["x"].tobytes() == JPEG

    @pytest.mark.parametrize("content_type", ["", CURL, OCTETS, "application/json; charset=utf-8"])
    def test_an_object_is_json(self, content_type):
        call = decode_predict(b" \n" + kserve() + b"\n", content_type, make_view())

        assert call.inputs["x"].tolist() == [[1, 2, 3]]

    def test_the_type_json_makes_anything_json(self):
        with pytest.raises(Malformed, match="JSON"):
            decode_predict(JPEG, "application/json", make_picture_view())

    def test_raw_numbers_in_braces_are_raw_when_called_octets(self):
        body = b"{" + bytes(10) + b"}"

        assert decode_predict(body, OCTETS, make_view()).inputs["x"].tobytes() == body

    def test_cut_json_is_told_as_such(self):
        with pytest.raises(Malformed, match="looks like JSON"):
            decode_predict(kserve()[:-1], CURL, make_picture_view())

    def test_an_empty_body_is_malformed(self):
        with pytest.raises(Malformed, match="empty"):
            decode_predict(b"", OCTETS, make_view())

    def test_a_picture_for_a_tensor_model_is_unsupported(self):
        with pytest.raises(UnsupportedMedia, match="takes tensors"):
            decode_predict(JPEG, "image/jpeg", make_view())

    def test_text_for_a_picture_model_is_unsupported(self):
        with pytest.raises(UnsupportedMedia, match=r"neither a JPEG.*192 bytes"):
            decode_predict(b"hello", "text/plain", make_picture_view())

    def test_a_form_is_what_its_file_is(self):
        form = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n'
            b"Content-Type: image/jpeg\r\n\r\n" + JPEG + b"\r\n--b--\r\n"
        )

        call = decode_predict(form, "multipart/form-data; boundary=b", make_picture_view())

        assert call.inputs == Media(JPEG)


class TestRaw:
    @pytest.mark.parametrize(
        ("datatype", "numbers"),
        [
            (DataType.FP32, [1.5, -2.5, 3.5]),
            (DataType.INT64, [2**53 + 1, -1, 0]),
            (DataType.UINT8, [0, 128, 255]),
            (DataType.INT16, [-5, 0, 5]),
        ],
    )
    def test_numbers_are_little_endian_and_row_major(self, datatype, numbers):
        sent = np.array([numbers], datatype.dtype)

        call = decode_predict(sent.tobytes(), OCTETS, make_view([tensor("x", datatype)]))

        assert call.inputs["x"].dtype == datatype.dtype
        assert call.inputs["x"].tolist() == sent.tolist()

    def test_a_free_first_dimension_takes_any_number_of_rows(self):
        view = make_view([tensor("x", shape=(-1, 3))])

        assert decode_predict(bytes(36), OCTETS, view).inputs["x"].shape == (3, 3)

    def test_a_proven_batch_takes_several_rows(self):
        view = make_view(max_batch=4)

        assert decode_predict(bytes(24), OCTETS, view).inputs["x"].shape == (2, 3)

    @pytest.mark.parametrize("size", [1, 11, 13, 24])
    def test_another_size_is_refused_with_the_right_one(self, size):
        with pytest.raises(BadTensor, match=r"has \d+ bytes.*FP32 \[1, 3\] \(12 bytes\)"):
            decode_predict(bytes(size), OCTETS, make_view())

    def test_two_free_dimensions_have_no_raw_form(self):
        with pytest.raises(BadTensor):
            decode_predict(bytes(16), OCTETS, make_view([tensor("x", shape=(-1, -1))]))

    def test_two_inputs_have_no_raw_form(self):
        with pytest.raises(BadTensor, match="inputs 'a', 'b'"):
            decode_predict(bytes(24), OCTETS, make_view([tensor("a"), tensor("b")]))

    def test_a_string_model_takes_the_body_as_its_one_string(self):
        view = make_view([tensor("x", DataType.BYTES, (-1, 1))])

        array = decode_predict(b"a\0b\xff\0", OCTETS, view).inputs["x"]

        assert (array.shape, array.tolist()) == ((1, 1), [[b"a\0b\xff\0"]])

    def test_a_model_of_three_strings_has_no_raw_form(self):
        with pytest.raises(BadTensor):
            decode_predict(b"abc", OCTETS, make_view([tensor("x", DataType.BYTES, (1, 3))]))

    def test_booleans_are_bytes_of_0_and_1(self):
        view = make_view([tensor("x", DataType.BOOL)])

        assert decode_predict(b"\0\1\1", OCTETS, view).inputs["x"].tolist() == [[False, True, True]]
        with pytest.raises(BadTensor, match="0 or 1"):
            decode_predict(b"\0\1\2", OCTETS, view)

    def test_the_signature_option_chooses_whose_input_it_is(self):
        other = SignatureSpec("other", (tensor("z", shape=(2,)),), (tensor("y"),))
        view = make_view(others=[other])

        call = decode_predict(bytes(8), OCTETS, view, Options(signature="other"))

        assert call.inputs["z"].shape == (2,)
        assert call.signature is other

    def test_an_unknown_signature_is_not_found(self):
        with pytest.raises(SignatureNotFound, match="serving_default"):
            decode_predict(bytes(8), OCTETS, make_view(), Options(signature="other"))


class TestJson:
    def test_its_id_signature_and_outputs_are_taken(self):
        other = SignatureSpec("other", (tensor("z"),), (tensor("p"), tensor("q")))
        body = kserve("z", id="me", parameters={"signature": "other"}, outputs=[{"name": "q"}])

        call = decode_predict(body, "", make_view(others=[other]))

        assert (call.request_id, call.signature, call.outputs) == ("me", other, ("q",))

    def test_a_signature_in_the_query_is_refused(self):
        with pytest.raises(Malformed, match="parameters"):
            decode_predict(kserve(), "", make_view(), Options(signature="serving_default"))

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"[]", "object"),
            (b"{}", "inputs"),
            (b'{"inputs": 5}', "inputs"),
            (b'{"inputs": [' + b"[" * 5000 + b"]" * 5000 + b"]}", "JSON"),
            (kserve(data=[1]).replace(b"[1]", b"[NaN, 1, 2]"), "NaN"),
            (b'{"inputs": "\xff"}', "UTF-8"),
        ],
        ids=["list", "empty", "number", "deep", "nan", "not utf-8"],
    )
    def test_what_is_not_a_request_is_malformed(self, body, message):
        with pytest.raises(Malformed, match=message):
            decode_predict(body, "application/json", make_view())

    @pytest.mark.parametrize(
        "body",
        [
            kserve("other"),
            kserve(datatype="INT8"),
            kserve(shape=(1, 4), data=[1, 2, 3, 4]),
            kserve(data=[1, 2]),
            kserve(data=[1, 2, "three"]),
        ],
        ids=["name", "datatype", "shape", "count", "element"],
    )
    def test_what_the_model_does_not_take_is_a_bad_tensor(self, body):
        with pytest.raises(BadTensor):
            decode_predict(body, "application/json", make_view())


class TestOptions:
    def test_every_option_is_read(self):
        pairs = [("top_k", "3"), ("threshold", "0.5"), ("label", "stable"), ("signature", "s")]

        options = read_options([*pairs, ("outputs", "a"), ("outputs", "b")])

        assert options == Options(3, 0.5, "s", "stable", ("a", "b"))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("top_k", "0"),
            ("top_k", "-1"),
            ("top_k", "10001"),
            ("top_k", "1.5"),
            ("top_k", "٣"),
            ("top_k", "9" * 5000),
            ("threshold", "nan"),
            ("threshold", "inf"),
            ("threshold", "high"),
            ("label", ""),
            ("outputs", "x" * 1025),
        ],
    )
    def test_a_value_out_of_range_is_malformed_and_named(self, key, value):
        with pytest.raises(Malformed, match=key):
            read_options([(key, value)])

    def test_an_unknown_option_is_malformed_and_the_known_are_named(self):
        with pytest.raises(Malformed, match="'topk' is not known; there are: top_k, threshold"):
            read_options([("topk", "3")])

    def test_an_option_that_is_there_twice_is_malformed(self):
        with pytest.raises(Malformed, match="twice"):
            read_options([("top_k", "3"), ("top_k", "4")])


class TestRequest:
    def test_media_asks_for_meaning_and_not_for_tensors(self):
        call = decode_predict(JPEG, "", make_picture_view())

        request = make_request(call, Options(top_k=2), deadline=5.0, request_id="r")

        assert (request.want_meaning, request.want_outputs, request.top_k) == (True, False, 2)

    def test_media_with_named_outputs_asks_for_both(self):
        options = Options(outputs=("scores",))
        call = decode_predict(JPEG, "", make_picture_view(), options)

        request = make_request(call, options, deadline=5.0, request_id="r")

        assert (request.want_outputs, request.outputs) == (True, ("scores",))

    def test_tensors_ask_for_both(self):
        call = decode_predict(bytes(12), OCTETS, make_view())

        request = make_request(call, Options(), deadline=5.0, request_id="r")

        assert (request.want_meaning, request.want_outputs, request.outputs) == (True, True, None)

    def test_the_id_of_the_body_goes_before_that_of_the_header(self):
        call = decode_predict(kserve(id="body"), "", make_view())

        assert make_request(call, Options(), deadline=5.0, request_id="r").request_id == "body"


def make_result(**facts):
    basics = {
        "model": "m",
        "version": 7,
        "request_id": "r",
        "device": "cpu",
        "requested_device": "edgetpu",
        "degraded": True,
        "timing": Timing(0.001, 0.002, 0.0030004, 0.004, 0.01),
    }
    return PredictResult(**{**basics, **facts})


def encode(datatype=DataType.FP32, **facts):
    signature = SignatureSpec("s", (tensor("x"),), (tensor("y", datatype),))
    return json.loads(encode_predict(make_result(**facts), signature))


def encode_array(array, datatype):
    return encode(datatype, outputs={"y": array})["outputs"][0]


class TestAnswer:
    def test_it_says_what_answered_and_where_the_time_went(self):
        answer = encode(meaning=(Classification((Category("cat", 3, 0.5),)),))

        assert answer == {
            "model": "m",
            "version": "7",
            "id": "r",
            "device": "cpu",
            "requested_device": "edgetpu",
            "degraded": True,
            "timing_ms": {
                "queue": 1.0,
                "preprocess": 2.0,
                "invoke": 3.0,
                "postprocess": 4.0,
                "total": 10.0,
            },
            "classification": [{"label": "cat", "index": 3, "score": 0.5}],
        }

    def test_boxes_are_listed_as_detection(self):
        box = Box("dog", 1, 0.25, (0.1, 0.2, 0.3, 0.4))

        answer = encode(meaning=(Detection((box,)),))

        assert answer["detection"] == [
            {"label": "dog", "index": 1, "score": 0.25, "box": [0.1, 0.2, 0.3, 0.4]}
        ]

    def test_a_mask_is_base64_png_with_shares(self):
        mask = Segmentation(2, 1, (ClassShare("sky", 4, 0.75),), b"\x89PNG")

        answer = encode(meaning=(mask,))

        assert answer["segmentation"] == {
            "width": 2,
            "height": 1,
            "classes": [{"label": "sky", "index": 4, "share": 0.75}],
            "mask_png": base64.b64encode(b"\x89PNG").decode(),
        }

    def test_several_rows_are_a_list_of_lists_under_the_plural(self):
        row = Classification((Category("cat", 3, 0.5),))

        answer = encode(meaning=(row, row))

        assert "classification" not in answer
        assert answer["classifications"] == [[{"label": "cat", "index": 3, "score": 0.5}]] * 2

    def test_a_model_that_found_nothing_answers_an_empty_list(self):
        assert encode(meaning=(Detection(()),))["detection"] == []

    def test_scores_that_are_no_numbers_are_named(self):
        row = Classification((Category("cat", 3, float("nan")), Category("a", 1, float("inf"))))

        scores = [category["score"] for category in encode(meaning=(row,))["classification"]]

        assert scores == ["NaN", "Infinity"]

    def test_tensors_are_flat_with_their_shape(self):
        output = encode_array(np.arange(6, dtype=np.float32).reshape(2, 3), DataType.FP32)

        assert output == {
            "name": "y",
            "datatype": "FP32",
            "shape": [2, 3],
            "data": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        }

    def test_floats_that_are_no_numbers_are_named(self):
        array = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)

        assert encode_array(array, DataType.FP32)["data"] == ["NaN", "Infinity", "-Infinity", 1.5]

    def test_integers_keep_all_their_digits(self):
        array = np.array([2**53 + 1, -(2**63)], np.int64)

        assert encode_array(array, DataType.INT64)["data"] == [2**53 + 1, -(2**63)]

    def test_half_floats_are_the_numbers_they_hold(self):
        array = np.array([0.5, np.nan], np.float16)

        output = encode_array(array, DataType.FP16)

        assert (output["datatype"], output["data"]) == ("FP16", [0.5, "NaN"])

    def test_strings_are_text_or_else_base64(self):
        array = np.array([b"h\xc3\xa9", b"\xff\x00"], object)

        assert encode_array(array, DataType.BYTES)["data"] == ["hé", {"b64": "/wA="}]

    def test_a_number_alone_has_an_empty_shape(self):
        output = encode_array(np.float32(2.5).reshape(()), DataType.FP32)

        assert (output["shape"], output["data"]) == ([], [2.5])
