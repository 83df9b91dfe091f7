"""What comes from the broker and what goes to it, without the client library. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PACKET_OVERHEAD_BYTES = 32
"""Bytes of a PUBLISH besides topic, payload, content type and correlation data, at most: packet
type and length 5, topic length 2, packet id 2, property length 4, heads of content type and
correlation data 6, expiry interval 5."""

CONTENT_TYPE = "application/json"
"""Of everything this appliance publishes but its availability."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as it came.

    Attributes:
        connection: number of the connection it came on; it can be acknowledged only there.
        mid: its packet id; 0 with QoS 0.
        received_at: `time.monotonic()` seconds.
        retained: it lay at the broker before we subscribed.
        expiry_s: seconds it was still worth something on arrival; None for ever.
        properties: MQTT 5 user properties, in order.
    """

    connection: int
    topic: str
    payload: bytes
    qos: int
    mid: int
    received_at: float
    retained: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str = ""
    expiry_s: int | None = None
    properties: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to send.

    Attributes:
        qos: 0 or 1.
        content_type: told to MQTT 5 receivers; "" for none.
        correlation: the request's Correlation Data; needs MQTT 5 on the way out.
        expires_at: `time.monotonic()` seconds after which nobody wants it; None for never.
        request_id: of the request that it answers; "" for announcements.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    content_type: str = CONTENT_TYPE
    correlation: bytes | None = None
    expires_at: float | None = None
    request_id: str = ""

    @property
    def is_durable(self) -> bool:
        """It must not be lost: it waits on disk while the broker is away."""
        return self.qos > 0 and self.expires_at is None


class ReceiptKind(Enum):
    """What a broker's PUBACK says."""

    TAKEN = "taken"  # it is the broker's now
    UNHEARD = "unheard"  # it is, and nobody was subscribed: told by MQTT 5 brokers, not by all
    TOO_LARGE = "too large"  # over the broker's limit for a packet
    REFUSED = "refused"  # for another reason, which trying again will not change


@dataclass(frozen=True, slots=True)
class Receipt:
    """The broker's word on one publication.

    Attributes:
        detail: why it was not taken; "" when it was.
    """

    kind: ReceiptKind
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """What the broker said it takes when it accepted the connection.

    Attributes:
        max_packet_bytes: a whole PUBLISH packet; None when it named no limit.
        receive_maximum: QoS 1 messages it takes before it has acknowledged them.
    """

    max_packet_bytes: int | None = None
    receive_maximum: int = 65535


def packet_bytes(publication: Publication) -> int:
    """An upper bound, by a few bytes, of the PUBLISH packet this makes."""
    correlation = publication.correlation
    return (
        PACKET_OVERHEAD_BYTES
        + len(publication.topic.encode())
        + len(publication.payload)
        + len(publication.content_type)
        + (0 if correlation is None else len(correlation))
    )
