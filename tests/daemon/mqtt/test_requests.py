"""What a message asks for, from whatever bytes."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kserve_views import make_view, tensor

from daemon.codec.jsontensors import MAX_JSON_BYTES, MAX_JSON_CONTAINERS
from daemon.codec.native import NO_OPTIONS, decode_predict
from daemon.codec.numberlists import Numbers
from daemon.documents import HEAVY_BYTES
from daemon.errors import DaemonError, Malformed
from daemon.mqtt.messages import Delivery
from daemon.mqtt.requests import read_address, read_envelope, read_wish
from daemon.mqtt.topics import reply_topic_problem

DEFAULT = "inferd/box-1/models/m/result"


def _delivery(payload=b"", **facts):
    return Delivery(
        connection=1,
        topic="inferd/box-1/models/m/predict",
        payload=payload if isinstance(payload, bytes) else json.dumps(payload).encode(),
        qos=1,
        mid=1,
        received_at=0.0,
        **facts,
    )


def _address(delivery):
    return read_address(delivery, read_envelope(delivery), DEFAULT)


def _wish(delivery):
    return read_wish(delivery, read_envelope(delivery))


def test_a_picture_has_no_envelope_and_keeps_its_bytes():
    delivery = _delivery(b"\xff\xd8\xff rest", content_type="image/jpeg")

    wish = _wish(delivery)

    assert read_envelope(delivery).members == {}
    assert (wish.body, wish.content_type) == (b"\xff\xd8\xff rest", "image/jpeg")
    assert (wish.version, wish.timeout_s) == (None, None)


@pytest.mark.parametrize(
    "costly",
    [
        b'{"id": "x"' + b" " * MAX_JSON_BYTES + b"}",
        b'{"id": [' + b"[]," * MAX_JSON_CONTAINERS + b"1]}",
    ],
    ids=["long", "many lists"],
)
def test_json_that_is_parsed_nowhere_has_no_envelope(costly):
    envelope = read_envelope(_delivery(costly))

    assert (envelope.members, envelope.take_document()) == ({}, None)


def test_the_members_of_an_envelope_are_those_that_mean_something():
    envelope = read_envelope(_delivery({"id": "a", "inputs": [], "more": 1}))

    assert envelope.members == {"id": "a"}


def test_an_envelope_hands_its_document_on_once():
    envelope = read_envelope(_delivery({"id": "a", "inputs": []}))

    assert envelope.take_document() == {"id": "a", "inputs": []}
    assert envelope.take_document() is None


def _large(data):
    return {"id": "a", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": data}]}


def test_large_lists_of_numbers_are_handed_on_as_numbers():
    numbers = list(range(HEAVY_BYTES))

    envelope = read_envelope(_delivery(_large(numbers)))
    data = envelope.take_document()["inputs"][0]["data"]

    assert envelope.members == {"id": "a"}
    assert type(data) is Numbers
    assert data.to_lists() == numbers


def test_large_lists_of_anything_else_are_not_kept():
    envelope = read_envelope(_delivery(_large(["text"] * HEAVY_BYTES)))

    assert envelope.members == {"id": "a"}
    assert envelope.take_document() is None


@pytest.mark.parametrize("count", [3, 50_000])
def test_what_a_document_is_decoded_to_is_what_its_text_is_decoded_to(count):
    view = make_view([tensor("x", shape=(1, count))])
    given = {"name": "x", "datatype": "FP32", "shape": [1, count], "data": [0.5, 7, -3][:count]}
    given["data"] += [1] * (count - 3)
    delivery = _delivery({"inputs": [given]})

    known = read_envelope(delivery).take_document()
    call = decode_predict(delivery.payload, "", view, NO_OPTIONS, known)

    assert known is not None
    assert call.inputs["x"].tolist() == [given["data"]]


def test_a_document_is_refused_in_the_words_that_its_text_is_refused_in():
    view = make_view([tensor("x", shape=(1, 20_000))])
    delivery = _delivery(_large([1] * 20_000))

    with pytest.raises(DaemonError) as by_text:
        decode_predict(delivery.payload, "", view)
    known = read_envelope(delivery).take_document()
    with pytest.raises(DaemonError) as by_document:
        decode_predict(delivery.payload, "", view, NO_OPTIONS, known)

    assert str(by_document.value) == str(by_text.value)


@pytest.mark.parametrize(
    "wish",
    [
        {"properties": (("label", "x" * 2000),)},
        {"payload": {"label": ""}},
        {"properties": (("signature", "a"), ("signature", "b"), ("outputs", ""))},
    ],
)
def test_an_option_that_is_refused_is_called_what_it_is_over_mqtt(wish):
    with pytest.raises(Malformed, match=r"^option '"):
        _wish(_delivery(**wish))


def test_data_b64_is_the_body_with_its_own_hint():
    body = {"data_b64": base64.b64encode(b"abc").decode(), "content_type": "audio/wav"}

    wish = _wish(_delivery(body, content_type="application/json"))

    assert (wish.body, wish.content_type) == (b"abc", "audio/wav")


def test_members_are_options():
    wish = _wish(
        _delivery({"top_k": 3, "threshold": 0.5, "version": 2, "timeout_ms": 250, "inputs": []})
    )

    assert (wish.options.top_k, wish.options.threshold) == (3, 0.5)
    assert (wish.version, wish.timeout_s) == (2, 0.25)


def test_user_properties_go_before_members():
    wish = _wish(
        _delivery({"top_k": 3}, properties=(("TOP-K", "1"), ("outputs", "a"), ("outputs", "b")))
    )

    assert wish.options.top_k == 1
    assert wish.options.outputs == ("a", "b")


@pytest.mark.parametrize("value", [True, [], {}, 0, -1, 1.5, "x", 2**70, ""])
def test_a_version_that_is_none_is_malformed(value):
    with pytest.raises(Malformed):
        _wish(_delivery({"version": value}))


def test_ids_come_from_a_property_or_a_member_or_are_made():
    made = [_address(_delivery(b"x")).request_id for _ in range(2)]

    assert _address(_delivery({"id": "a"}, properties=(("id", "b"),))).request_id == "b"
    assert _address(_delivery({"id": "a"})).request_id == "a"
    assert len(_address(_delivery({"id": "a" * 500})).request_id) == 128
    assert made[0] != made[1]


def test_an_address_that_is_refused_falls_back_to_the_models_topic():
    address = _address(_delivery({"reply_to": "inferd/any/models/m/predict"}))

    assert address.topic == DEFAULT
    assert "as a request" in address.problem


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_MEMBERS = st.dictionaries(
    st.sampled_from(
        [
            "id",
            "reply_to",
            "data_b64",
            "content_type",
            "version",
            "label",
            "top_k",
            "threshold",
            "timeout_ms",
            "signature",
            "outputs",
            "inputs",
        ]
    ),
    _JSON,
)
_PROPERTIES = st.lists(
    st.tuples(
        st.sampled_from(["id", "Version", "label", "top-k", "threshold", "timeout-ms", "x"]),
        st.text(max_size=10),
    ),
    max_size=4,
).map(tuple)


@given(_MEMBERS.map(lambda members: json.dumps(members).encode()) | st.binary(), _PROPERTIES)
def test_whatever_comes_is_read_or_refused_and_the_answer_has_a_place_to_go(payload, properties):
    delivery = _delivery(payload, properties=properties)

    address = _address(delivery)
    try:
        wish = _wish(delivery)
    except DaemonError:
        wish = None

    assert address.topic == DEFAULT or reply_topic_problem(address.topic) == ""
    assert 1 <= len(address.request_id) <= 128
    assert wish is None or isinstance(wish.body, bytes)
