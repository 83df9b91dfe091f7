"""One connection to the broker, from CONNECT to its end, on paho.

paho is driven through its interface for foreign event loops, by one thread: its own loop uses
`select`, which fails beyond file descriptor 1023, and re-sends what it holds at every reconnect.
Each connection is a fresh client, so nothing of an old one can leak into a new one; what was not
acknowledged is the sender's to send again.
"""

from __future__ import annotations

import logging
import math
import selectors
import socket
import ssl
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from daemon.mqtt.acks import OrderedAcks
from daemon.mqtt.crossing import Acknowledge, Publish, Unsubscribe
from daemon.mqtt.failures import explain_failure
from daemon.mqtt.messages import BrokerLimits, Delivery, Publication, Receipt, ReceiptKind

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from paho.mqtt.client import ConnectFlags, DisconnectFlags, SocketLike
    from paho.mqtt.reasoncodes import ReasonCode

    from daemon.mqtt.crossing import Crossing

_log = logging.getLogger(f"inferd.{__name__}")

_CONNECT_TIMEOUT_S = 10.0
"""For TCP, TLS and CONNACK each: longer than a slow mobile link needs."""

_TICK_S = 1.0
"""How often keepalive is looked after; paho counts it in seconds."""

_PACKET_TOO_LARGE = 0x95
_NO_MATCHING_SUBSCRIBERS = 0x10
"""Reason codes of MQTT 5, section 2.4."""

_EXTRA_PACKET_BYTES = 128 * 1024
"""Room for topic and properties beside a payload."""


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained with QoS 1, when we vanish."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How to connect, and what to listen to.

    Attributes:
        tls: None for a plain connection.
        subscriptions: topic filters, all with QoS 1.
        receive_maximum: QoS 1 messages the broker may have open with us (MQTT 5).
        max_payload_bytes: of a request; somewhat more is still received, so that it can be refused
            with a reason.
        backoff_first_s, backoff_most_s: wait before the first and the latest reconnect.
    """

    host: str
    port: int
    client_id: str
    mqtt5: bool
    keepalive_s: int
    will: Will
    subscriptions: tuple[str, ...]
    receive_maximum: int
    max_payload_bytes: int
    tls: bool = False
    ca_file: Path | None = None
    username: str = ""
    password_file: Path | None = None
    backoff_first_s: float = 1.0
    backoff_most_s: float = 30.0


class Events(Protocol):
    """What a session tells its owner, on the event loop."""

    def on_connected(self, connection: int, limits: BrokerLimits) -> None:
        """The broker has accepted us and the subscriptions are on their way."""

    def on_disconnected(self, connection: int, reason: str) -> None:
        """The connection is gone; nothing that was open on it will be acknowledged."""

    def on_unreachable(self, reason: str) -> None:
        """A try to connect failed; the next one follows."""

    def on_delivery(self, delivery: Delivery) -> None:
        """A message came. With QoS 1 it is to be given to `Session.acknowledge` once."""

    def on_published(self, connection: int, token: int, receipt: Receipt) -> None:
        """The broker has acknowledged a publication."""


class Connection:
    """One connection. Only the session's thread uses it; `Events` are called on the event loop."""

    def __init__(
        self, number: int, settings: SessionSettings, events: Events, crossing: Crossing
    ) -> None:
        self._number = number
        self._settings = settings
        self._events = events
        self._commands = crossing.commands
        self._to_loop = crossing.to_loop
        self._hand_over = crossing.hand_over
        self._acks = OrderedAcks()
        self._tokens: dict[int, int] = {}  # by packet id
        self._accepted = False
        self._end_reason = ""
        self._client = self._make_client()

    def converse(self, stop: threading.Event) -> None:
        """Connect and talk until the connection ends, or until `stop` and then say good-bye.

        Failures are told to `Events` by `close`.
        """
        try:
            self._open()
        except (OSError, ValueError) as exc:  # ValueError: a host name or a file's text cannot be
            self._end_reason = explain_failure(exc, self._settings.host, self._settings.port)
            return
        with selectors.DefaultSelector() as selector:
            self._talk(selector, stop)

    def close(self) -> None:
        """Free the socket and tell the owner how it ended."""
        self._client.on_disconnect = None
        if (sock := self._client.socket()) is not None:
            sock.close()
        reason = self._end_reason or "the connection was lost"
        if self._accepted:
            self._to_loop.call(partial(self._events.on_disconnected, self._number, reason))
            return
        self._to_loop.call(partial(self._events.on_unreachable, reason))

    def _open(self) -> None:
        settings = self._settings
        if settings.tls:
            cafile = None if settings.ca_file is None else str(settings.ca_file)
            self._client.tls_set_context(ssl.create_default_context(cafile=cafile))
        if settings.username or settings.password_file is not None:
            self._client.username_pw_set(settings.username, self._password())
        self._client.connect_timeout = _CONNECT_TIMEOUT_S
        properties = self._connect_properties() if settings.mqtt5 else None
        self._client.connect(
            settings.host, settings.port, settings.keepalive_s, properties=properties
        )

    def _talk(self, selector: selectors.BaseSelector, stop: threading.Event) -> None:
        connack_deadline = time.monotonic() + _CONNECT_TIMEOUT_S
        sock = cast("socket.socket | None", self._client.socket())
        if sock is None or self._commands.wake_socket is None:
            return
        selector.register(self._commands.wake_socket, selectors.EVENT_READ)
        selector.register(sock, selectors.EVENT_READ)
        # Small packets both ways: without it each may wait 40 ms for a delayed acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        is_leaving = False
        while not is_leaving or self._client.want_write():
            self._wait_and_read(selector, sock)
            if self._client.want_write():
                self._client.loop_write()
            if self._accepted:
                self._execute_commands()
            elif time.monotonic() > connack_deadline:
                self._end_reason = self._end_reason or "the broker did not answer CONNECT in time"
                return
            if stop.is_set() and not is_leaving:
                is_leaving = True
                if self._accepted:
                    self._execute_commands()  # those handed in before the stop
                # What a congested socket has not taken by now, the sender still has.
                self._client.disconnect()
                self._client.loop_write()
            self._client.loop_misc()
            if self._client.socket() is None:
                return

    def _wait_and_read(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        pending = getattr(sock, "pending", None)  # TLS may hold bytes that no selector sees
        buffered = pending is not None and pending() > 0
        events = selectors.EVENT_READ
        if self._client.want_write():
            events |= selectors.EVENT_WRITE
        selector.modify(sock, events)
        for key, ready in selector.select(0 if buffered else _TICK_S):
            if key.fileobj is sock:
                buffered = buffered or bool(ready & selectors.EVENT_READ)
            else:
                self._commands.clear_wake()
        if buffered:
            self._client.loop_read()

    def _execute_commands(self) -> None:
        # While the socket takes no more, commands wait in our own bounded queue, not in paho's.
        while not self._client.want_write():
            taken = self._commands.take()
            if taken is None:
                return
            connection, command = taken
            if connection != self._number:
                continue  # its connection is gone, and its owner knows
            match command:
                case Publish():
                    self._publish(command)
                case Acknowledge():
                    for mid in self._acks.settle(command.mid):
                        self._client.ack(mid, 1)
                case Unsubscribe():
                    self._client.unsubscribe(list(self._settings.subscriptions))
            self._client.loop_write()
            if self._client.socket() is None:
                return

    def _publish(self, command: Publish) -> None:
        publication = command.publication
        info = self._client.publish(
            publication.topic,
            publication.payload,
            qos=publication.qos,
            retain=publication.retain,
            properties=_publish_properties(publication) if self._settings.mqtt5 else None,
        )
        if publication.qos > 0:
            self._tokens[info.mid] = command.token
        if info.rc is MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise RuntimeError("more publications in flight than the window allows")

    def _make_client(self) -> Client:
        settings = self._settings
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=None if settings.mqtt5 else True,
            protocol=MQTTProtocolVersion.MQTTv5 if settings.mqtt5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.max_inflight_messages = 0  # the sender keeps the window
        client.max_queued_messages = 65535
        client.will_set(settings.will.topic, settings.will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        # With this set, paho leaves the writing to us instead of doing it in the middle of a call.
        client.on_socket_register_write = _leave_the_writing
        return client

    def _connect_properties(self) -> Properties:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho has no types for it
        properties.ReceiveMaximum = self._settings.receive_maximum
        properties.SessionExpiryInterval = 0
        # Beyond it the broker drops the message in silence, but it cannot fill our memory either.
        properties.MaximumPacketSize = 2 * self._settings.max_payload_bytes + _EXTRA_PACKET_BYTES
        return properties

    def _password(self) -> str | None:
        path = self._settings.password_file
        if path is None:
            return None
        # Read at every connect: a changed password needs no restart.
        return path.read_text(encoding="utf-8").rstrip("\r\n")

    def _on_connect(
        self,
        client: Client,
        _: object,
        __: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._end_reason = f"the broker refused the connection: {reason}"
            return
        self._accepted = True
        for topic_filter in self._settings.subscriptions:
            self._subscribe(client, topic_filter)
        limits = BrokerLimits(
            max_packet_bytes=getattr(properties, "MaximumPacketSize", None),
            receive_maximum=getattr(properties, "ReceiveMaximum", 65535),
        )
        self._to_loop.call(partial(self._events.on_connected, self._number, limits))

    def _subscribe(self, client: Client, topic_filter: str) -> None:
        if not self._settings.mqtt5:
            client.subscribe(topic_filter, qos=1)
            return
        shared = topic_filter.startswith("$share/")  # where the standard forbids noLocal
        client.subscribe(
            topic_filter,
            options=SubscribeOptions(
                qos=1, noLocal=not shared, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND
            ),
        )

    def _on_subscribe(
        self, _: Client, __: object, ___: int, reasons: list[ReasonCode], ____: Properties | None
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                _log.error(
                    "mqtt broker refused a subscription: requests will not arrive reason=%s", reason
                )

    def _on_disconnect(
        self,
        _: Client,
        __: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        ___: Properties | None,
    ) -> None:
        if self._end_reason:
            return  # CONNACK has said why
        who = "the broker closed it" if flags.is_disconnect_packet_from_server else "it was lost"
        self._end_reason = f"{who}: {reason}"

    def _on_message(self, _: Client, __: object, message: MQTTMessage) -> None:
        if message.qos > 0:
            self._acks.received(message.mid)
        delivery = _delivery(self._number, message)
        if not self._hand_over.enter(len(delivery.payload)):
            return  # stopping
        self._to_loop.call(partial(self._deliver, delivery))

    def _deliver(self, delivery: Delivery) -> None:
        """Runs on the event loop."""
        self._hand_over.leave(len(delivery.payload))
        self._events.on_delivery(delivery)

    def _on_publish(
        self, _: Client, __: object, mid: int, reason: ReasonCode, ___: Properties | None
    ) -> None:
        token = self._tokens.pop(mid, None)
        if token is None:
            return
        receipt = _receipt(reason)
        self._to_loop.call(partial(self._events.on_published, self._number, token, receipt))


def _receipt(reason: ReasonCode) -> Receipt:
    if reason.value == _PACKET_TOO_LARGE:
        return Receipt(ReceiptKind.TOO_LARGE, str(reason))
    if reason.is_failure:
        return Receipt(ReceiptKind.REFUSED, str(reason))
    if reason.value == _NO_MATCHING_SUBSCRIBERS:
        return Receipt(ReceiptKind.UNHEARD)
    return Receipt(ReceiptKind.TAKEN)


def _leave_the_writing(client: Client, userdata: object, sock: SocketLike) -> None:
    """The conversation's loop looks at `want_write` itself."""


def _delivery(connection: int, message: MQTTMessage) -> Delivery:
    properties = message.properties
    try:
        topic = message.topic
    except UnicodeDecodeError:  # the broker should have refused it
        topic = ""
    return Delivery(
        connection=connection,
        topic=topic,
        payload=bytes(message.payload),
        qos=message.qos,
        mid=message.mid if message.qos else 0,
        received_at=time.monotonic(),
        retained=bool(message.retain),
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
        content_type=getattr(properties, "ContentType", ""),
        expiry_s=getattr(properties, "MessageExpiryInterval", None),
        properties=tuple(getattr(properties, "UserProperty", ())),
    )


def _publish_properties(publication: Publication) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho has no types for it
    if publication.content_type:
        properties.PayloadFormatIndicator = 1
        properties.ContentType = publication.content_type
    if publication.correlation is not None:
        properties.CorrelationData = publication.correlation
    if publication.expires_at is not None:
        left_s = publication.expires_at - time.monotonic()
        properties.MessageExpiryInterval = max(1, math.ceil(left_s))
    return properties
