"""PUBLISH and PUBACK as bytes: the packets that every request costs. Pure.

paho speaks the rest of MQTT. For these two it makes objects that take five times as long as what
is here (docs/adr/0007-mqtt-on-the-event-loop.md); tests hold one against the other.

Source: MQTT 5, sections 1.5, 2.1, 2.2, 3.3 and 3.4; MQTT 3.1.1, sections 2, 3.3 and 3.4.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from daemon.mqtt.messages import Delivery, Receipt, ReceiptKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from daemon.mqtt.messages import Publication

PUBLISH = 3
PUBACK = 4
"""Packet types."""
_TYPE_SHIFT = 4

_RETAIN = 0x01
_QOS_SHIFT = 1
_QOS_MASK = 3
_MAX_QOS = 1
"""What we subscribe with."""

_MAX_LENGTH_BYTES = 4
_MORE = 0x80
"""The bit of a length's byte that says: there is another one."""

_PAYLOAD_FORMAT = 0x01
_EXPIRY = 0x02
_CONTENT_TYPE = 0x03
_RESPONSE_TOPIC = 0x08
_CORRELATION = 0x09
_SUBSCRIPTION_ID = 0x0B
_TOPIC_ALIAS = 0x23
_USER_PROPERTY = 0x26

_NO_MATCHING_SUBSCRIBERS = 0x10
_FIRST_FAILURE = 0x80
_PACKET_TOO_LARGE = 0x95
"""None of a PUBACK by the standard: mosquitto with `message_size_limit` says it."""
_FAILURES = {
    0x80: "Unspecified error",
    0x83: "Implementation specific error",
    0x87: "Not authorized",
    0x90: "Topic name invalid",
    0x91: "Packet identifier in use",
    _PACKET_TOO_LARGE: "Packet too large",
    0x97: "Quota exceeded",
    0x99: "Payload format invalid",
}

_MAX_PACKET_BYTES = 268_435_455
"""What four bytes of length can say."""


class BrokenPacket(Exception):
    """The broker sent what is no MQTT: what follows cannot be understood either."""


def find_body(buffer: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """Where the packet at `start` has its body, from and to; None while its head is not all here.

    Raises:
        BrokenPacket: its length is none.
    """
    length = 0
    for index in range(_MAX_LENGTH_BYTES):
        at = start + 1 + index
        if at >= len(buffer):
            return None
        byte = buffer[at]
        length |= (byte & ~_MORE) << (7 * index)
        if byte < _MORE:
            return at + 1, at + 1 + length
    raise BrokenPacket("a length of more than four bytes")


def packet_type(first: int) -> int:
    """What a packet is, by its first byte."""
    return first >> _TYPE_SHIFT


def whole_packet(first: int, body: memoryview) -> bytes:
    """A packet as it came."""
    return b"".join((bytes((first,)), _variable(len(body)), body))


def read_publish(
    first: int, body: memoryview, *, connection: int, mqtt5: bool, now: float
) -> Delivery:
    """A message that came. One whose topic is not UTF-8 has the topic "".

    Args:
        first: the packet's first byte.
        body: what follows its length.
        now: `time.monotonic()` seconds.

    Raises:
        BrokenPacket: it is not as the standard says.
    """
    qos = (first >> _QOS_SHIFT) & _QOS_MASK
    if qos > _MAX_QOS:
        raise BrokenPacket(f"a message with QoS {qos}")
    try:
        raw_topic, at = _read_block(body, 0)
        mid = 0
        if qos:
            mid = body[at] << 8 | body[at + 1]
            at += 2
        properties: dict[str, Any] = {}
        if mqtt5:
            length, at = _read_variable(body, at)
            properties = _read_properties(_cut(body, at, at + length))
            at += length
    except (IndexError, UnicodeDecodeError) as exc:
        raise BrokenPacket(f"a message that cannot be read: {exc}") from exc
    return Delivery(
        connection=connection,
        topic=_decode_topic(raw_topic),
        payload=bytes(body[at:]),
        qos=qos,
        mid=mid,
        received_at=now,
        retained=bool(first & _RETAIN),
        **properties,
    )


def read_puback(body: memoryview) -> tuple[int, Receipt]:
    """The packet id, and what the broker says of the message.

    Raises:
        BrokenPacket: it is not as the standard says.
    """
    if len(body) < 2:  # noqa: PLR2004 (the packet id)
        raise BrokenPacket("an acknowledgement without a packet id")
    mid = body[0] << 8 | body[1]
    return mid, _receipt(body[2] if len(body) > 2 else 0)  # noqa: PLR2004 (no code: success)


def publish_packet(publication: Publication, mid: int, *, mqtt5: bool, now: float) -> bytes:
    """The packet that sends this.

    Args:
        mid: its packet id; with QoS 0 it has none.
        now: `time.monotonic()` seconds.

    Raises:
        ValueError: it is larger than any packet may be.
    """
    first = PUBLISH << _TYPE_SHIFT | publication.qos << _QOS_SHIFT | publication.retain
    head = [_block(publication.topic.encode())]
    if publication.qos:
        head.append(mid.to_bytes(2, "big"))
    if mqtt5:
        properties = _properties(publication, now)
        head += (_variable(len(properties)), properties)
    length = sum(map(len, head)) + len(publication.payload)
    if length > _MAX_PACKET_BYTES:
        raise ValueError(f"{length} bytes are more than a packet may have")
    return b"".join((bytes((first,)), _variable(length), *head, publication.payload))


def puback_packet(mid: int) -> bytes:
    """The packet that says that this message is done with."""
    return bytes((PUBACK << _TYPE_SHIFT, 2, mid >> 8, mid & 0xFF))


def _read_properties(raw: memoryview) -> dict[str, Any]:
    """As members of `Delivery`. Each may be there once, user properties as often as they like."""
    found: dict[str, Any] = {}
    pairs: list[object] = []
    at = 0
    while at < len(raw):
        kind = raw[at]
        if kind not in _PROPERTIES:
            raise BrokenPacket(f"a message with a property {kind:#04x}")
        name, read = _PROPERTIES[kind]
        value, at = read(raw, at + 1)
        if kind == _USER_PROPERTY:
            pairs.append(value)
        elif name in found:
            raise BrokenPacket(f"a message with a property {kind:#04x} twice")
        elif name:
            found[name] = value
    if pairs:
        found["properties"] = tuple(pairs)
    return found


def _read_byte(raw: memoryview, at: int) -> tuple[int, int]:
    return raw[at], at + 1


def _read_two(raw: memoryview, at: int) -> tuple[int, int]:
    return raw[at] << 8 | raw[at + 1], at + 2


def _read_four(raw: memoryview, at: int) -> tuple[int, int]:
    return int.from_bytes(_cut(raw, at, at + 4), "big"), at + 4


def _read_variable(raw: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_MAX_LENGTH_BYTES):
        byte = raw[at + index]
        value |= (byte & ~_MORE) << (7 * index)
        if byte < _MORE:
            return value, at + index + 1
    raise BrokenPacket("a number of more than four bytes")


def _read_block(raw: memoryview, at: int) -> tuple[bytes, int]:
    start = at + 2
    end = start + (raw[at] << 8 | raw[at + 1])
    return bytes(_cut(raw, start, end)), end


def _read_text(raw: memoryview, at: int) -> tuple[str, int]:
    block, at = _read_block(raw, at)
    return block.decode(), at


def _read_pair(raw: memoryview, at: int) -> tuple[tuple[str, str], int]:
    key, at = _read_text(raw, at)
    value, at = _read_text(raw, at)
    return (key, value), at


_PROPERTIES: Mapping[int, tuple[str, Callable[[memoryview, int], tuple[object, int]]]] = {
    _PAYLOAD_FORMAT: ("", _read_byte),
    _EXPIRY: ("expiry_s", _read_four),
    _CONTENT_TYPE: ("content_type", _read_text),
    _RESPONSE_TOPIC: ("response_topic", _read_text),
    _CORRELATION: ("correlation", _read_block),
    _SUBSCRIPTION_ID: ("", _read_variable),
    _TOPIC_ALIAS: ("", _read_two),
    _USER_PROPERTY: ("properties", _read_pair),
}
"""All properties of a PUBLISH: the member of `Delivery`, "" for none, and how to read it."""


def _cut(raw: memoryview, start: int, end: int) -> memoryview:
    if end > len(raw):
        raise IndexError("it ends in the middle")
    return raw[start:end]


def _decode_topic(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:  # the broker should have refused it
        return ""


def _receipt(reason: int) -> Receipt:
    if reason == _PACKET_TOO_LARGE:
        return Receipt(ReceiptKind.TOO_LARGE, _FAILURES[reason])
    if reason >= _FIRST_FAILURE:
        return Receipt(ReceiptKind.REFUSED, _FAILURES.get(reason, f"reason code {reason:#04x}"))
    return _UNHEARD if reason == _NO_MATCHING_SUBSCRIBERS else _TAKEN


_TAKEN = Receipt(ReceiptKind.TAKEN)
_UNHEARD = Receipt(ReceiptKind.UNHEARD)


def _properties(publication: Publication, now: float) -> bytes:
    parts = []
    if publication.content_type:
        parts.append(_TEXT_PAYLOAD + _block(publication.content_type.encode()))
    if publication.correlation is not None:
        parts += (_CORRELATION_HEAD, _block(publication.correlation))
    if publication.expires_at is not None:
        left_s = min(_MAX_EXPIRY_S, max(1, math.ceil(publication.expires_at - now)))
        parts += (_EXPIRY_HEAD, left_s.to_bytes(4, "big"))
    return b"".join(parts)


_MAX_EXPIRY_S = 2**32 - 1
_TEXT_PAYLOAD = bytes((_PAYLOAD_FORMAT, 1, _CONTENT_TYPE))
_CORRELATION_HEAD = bytes((_CORRELATION,))
_EXPIRY_HEAD = bytes((_EXPIRY,))


def _block(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _variable(value: int) -> bytes:
    raw = bytearray()
    while value >= _MORE:
        raw.append(value & ~_MORE & 0xFF | _MORE)
        value >>= 7
    raw.append(value)
    return bytes(raw)
