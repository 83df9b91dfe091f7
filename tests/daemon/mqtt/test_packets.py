"""Our packets are what paho reads, paho's are what we read, and nothing else breaks anything."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from daemon.mqtt.messages import PACKET_OVERHEAD_BYTES, Publication, ReceiptKind, packet_bytes
from daemon.mqtt.packets import (
    BrokenPacket,
    find_body,
    puback_packet,
    publish_packet,
    read_puback,
    read_publish,
    whole_packet,
)

NOW = 1000.0

# paho takes no null and no byte order mark, in any text.
_TEXT = st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=9)
_TOPIC = _TEXT.filter(bool)
_BLOCK = st.binary(max_size=200)
_PUBLICATIONS = st.builds(
    Publication,
    topic=_TOPIC,
    payload=st.binary(max_size=20_000),
    qos=st.integers(0, 1),
    retain=st.booleans(),
    content_type=st.sampled_from(["", "application/json", "text/plain"]),
    correlation=st.none() | _BLOCK,
    expires_at=st.none() | st.floats(0, 1e10),
)
_FACTS = st.fixed_dictionaries(
    {},
    optional={
        "ContentType": _TEXT,
        "ResponseTopic": _TEXT,
        "CorrelationData": _BLOCK,
        "MessageExpiryInterval": st.integers(0, 2**32 - 1),
        "PayloadFormatIndicator": st.integers(0, 1),
        "SubscriptionIdentifier": st.integers(1, 268_435_455),
        "TopicAlias": st.integers(1, 65535),
        "UserProperty": st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=3),
    },
)


def _block(data):
    return len(data).to_bytes(2, "big") + data


def _packed(facts):
    """Properties of a PUBLISH, by paho."""
    properties = Properties(PacketTypes.PUBLISH)
    for name, value in facts.items():
        setattr(properties, name, value)
    return properties.pack()


def _body(packet):
    start, end = find_body(packet, 0)
    assert end == len(packet)
    return packet[0], memoryview(packet)[start:end]


def _read(first, body, *, mqtt5=True):
    return read_publish(first, memoryview(body), connection=3, mqtt5=mqtt5, now=NOW)


def _publish(publication, mid=77, *, mqtt5=True):
    return publish_packet(publication, mid, mqtt5=mqtt5, now=NOW)


@given(_TOPIC, st.binary(max_size=300), st.integers(0, 1), st.booleans(), _FACTS)
def test_every_message_that_paho_packs_is_read(topic, payload, qos, retain, facts):
    mid = (258).to_bytes(2, "big") if qos else b""
    body = _block(topic.encode()) + mid + _packed(facts) + payload

    delivery = _read(0x30 | qos << 1 | retain, body)

    assert (delivery.connection, delivery.topic, delivery.payload) == (3, topic, payload)
    assert (delivery.qos, delivery.mid, delivery.retained) == (qos, 258 if qos else 0, retain)
    assert delivery.received_at == NOW
    assert delivery.content_type == facts.get("ContentType", "")
    assert delivery.response_topic == facts.get("ResponseTopic")
    assert delivery.correlation == facts.get("CorrelationData")
    assert delivery.expiry_s == facts.get("MessageExpiryInterval")
    assert delivery.properties == tuple(facts.get("UserProperty", ()))


@given(_TOPIC, st.binary(max_size=300), st.integers(0, 1))
def test_a_message_of_mqtt_3_1_1_is_topic_and_payload(topic, payload, qos):
    mid = b"\x01\x02" if qos else b""

    delivery = _read(0x30 | qos << 1, _block(topic.encode()) + mid + payload, mqtt5=False)

    assert (delivery.topic, delivery.payload, delivery.qos) == (topic, payload, qos)
    assert delivery.mid == (258 if qos else 0)


@given(_PUBLICATIONS)
def test_every_message_that_is_written_is_what_paho_unpacks(publication):
    first, body = _body(_publish(publication))
    body = bytes(body)
    topic = publication.topic.encode()
    rest = body[2 + len(topic) + 2 * publication.qos :]
    properties, length = Properties(PacketTypes.PUBLISH).unpack(rest)

    assert first == 0x30 | publication.qos << 1 | publication.retain
    assert body.startswith(_block(topic) + (b"\0\x4d" if publication.qos else b""))
    assert rest[length:] == publication.payload
    assert getattr(properties, "ContentType", "") == publication.content_type
    assert getattr(properties, "CorrelationData", None) == publication.correlation
    assert hasattr(properties, "PayloadFormatIndicator") == bool(publication.content_type)
    expires = publication.expires_at
    expiry = None if expires is None else min(2**32 - 1, max(1, -int((NOW - expires) // 1)))
    assert getattr(properties, "MessageExpiryInterval", None) == expiry


@given(_PUBLICATIONS, st.booleans())
def test_what_is_written_is_read_and_no_larger_than_told(publication, mqtt5):
    packet = _publish(publication, mqtt5=mqtt5)

    delivery = _read(*_body(packet), mqtt5=mqtt5)

    assert (delivery.topic, delivery.payload) == (publication.topic, publication.payload)
    assert len(packet) <= packet_bytes(publication) <= len(packet) + PACKET_OVERHEAD_BYTES + 300


@given(st.binary(max_size=60), st.integers(0, 255), st.booleans())
def test_a_body_of_any_bytes_raises_nothing_but_that_it_is_broken(body, first, mqtt5):
    with suppress(BrokenPacket):
        _read(first, body, mqtt5=mqtt5)
    with suppress(BrokenPacket):
        read_puback(memoryview(body))


_TOPIC_AND_NO_MORE = _block(b"t")


@pytest.mark.parametrize(
    ("first", "body", "what"),
    [
        (0x34, _TOPIC_AND_NO_MORE + b"\0\x01\0", "QoS 2"),
        (0x32, _TOPIC_AND_NO_MORE + b"\0", "read"),
        (0x30, b"\xff\xff", "read"),
        (0x30, _TOPIC_AND_NO_MORE, "read"),
        (0x30, _TOPIC_AND_NO_MORE + b"\x05\x01\x01", "read"),
        (0x30, _TOPIC_AND_NO_MORE + b"\xff\xff\xff\xff\x01", "four bytes"),
        (0x30, _TOPIC_AND_NO_MORE + b"\x04\x02\0\0\0", "read"),
        (0x30, _TOPIC_AND_NO_MORE + b"\x05\x09\0\x09ab", "read"),
        (0x30, _TOPIC_AND_NO_MORE + b"\x05\x08\0\x02\xff\xff", "read"),
        (0x30, _TOPIC_AND_NO_MORE + b"\x02\x07\0", "property 0x07"),
        (0x30, _TOPIC_AND_NO_MORE + b"\x08\x09\0\x01a\x09\0\x01b", "0x09 twice"),
    ],
    ids=[
        "an unasked QoS",
        "half a packet id",
        "a topic that is longer than the packet",
        "no properties",
        "properties that are longer than the packet",
        "a length without an end",
        "an expiry cut off",
        "correlation data cut off",
        "a response topic that is not UTF-8",
        "a property that no message has",
        "a property twice",
    ],
)
def test_a_message_that_is_not_as_the_standard_says_is_broken(first, body, what):
    with pytest.raises(BrokenPacket, match=what):
        _read(first, body)


def test_nulls_and_byte_order_marks_in_texts_break_nothing():
    pair = _block("\ufeffk".encode()) + _block(b"a\0b")
    body = _block(b"t") + bytes([1 + len(pair), 0x26]) + pair

    assert _read(0x30, body).properties == (("\ufeffk", "a\0b"),)


def test_a_topic_that_is_not_utf_8_is_none():
    assert _read(0x30, _block(b"\xff") + b"\0").topic == ""


@pytest.mark.parametrize(
    ("body", "kind", "detail"),
    [
        (b"\x01\x02", ReceiptKind.TAKEN, ""),
        (b"\x01\x02\0", ReceiptKind.TAKEN, ""),
        (b"\x01\x02\x10\0", ReceiptKind.UNHEARD, ""),
        (b"\x01\x02\x95", ReceiptKind.TOO_LARGE, "Packet too large"),
        (b"\x01\x02\x87\x05\x1f\0\x02no", ReceiptKind.REFUSED, "Not authorized"),
        (b"\x01\x02\xee", ReceiptKind.REFUSED, "reason code 0xee"),
    ],
)
def test_an_acknowledgement_says_what_became_of_a_message(body, kind, detail):
    mid, receipt = read_puback(memoryview(body))

    assert (mid, receipt.kind, receipt.detail) == (258, kind, detail)


def test_an_acknowledgement_is_written_with_its_packet_id():
    assert puback_packet(258) == b"\x40\x02\x01\x02"
    assert puback_packet(65535) == b"\x40\x02\xff\xff"


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_a_packet_is_found_when_all_of_its_head_is_here(size):
    packet = whole_packet(0x30, memoryview(bytes(size)))
    head = len(packet) - size

    assert find_body(packet, 0) == (head, head + size)
    assert find_body(b"xx" + packet, 2) == (head + 2, head + 2 + size)
    assert [find_body(packet[:length], 0) for length in range(head)] == [None] * head


def test_a_length_without_an_end_is_broken():
    with pytest.raises(BrokenPacket):
        find_body(b"\x30\xff\xff\xff\xff", 0)


def test_what_no_packet_can_hold_is_a_mistake_of_ours():
    huge = Publication("t", bytes(268_435_456))

    with pytest.raises(ValueError, match="packet"):
        _publish(huge)
