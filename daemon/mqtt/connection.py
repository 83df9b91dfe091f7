"""One connection to the broker, from CONNECT to its end, on paho and the event loop.

paho speaks MQTT, asyncio moves the bytes (`daemon.mqtt.stream`): in one thread, so that no message
waits for another thread to let go of the interpreter (docs/adr/0007-mqtt-on-the-event-loop.md).
Each connection is a fresh client, so nothing of an old one can leak into a new one; what was not
acknowledged is the sender's to send again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from daemon.mqtt import packets
from daemon.mqtt.acks import OrderedAcks
from daemon.mqtt.failures import explain_failure
from daemon.mqtt.messages import BrokerLimits, Delivery, Publication, Receipt
from daemon.mqtt.opening import find_way, open_stream
from daemon.mqtt.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from paho.mqtt.client import ConnectFlags, DisconnectFlags, SocketLike
    from paho.mqtt.reasoncodes import ReasonCode

_log = logging.getLogger(f"inferd.{__name__}")

_CONNACK_TIMEOUT_S = 10.0
"""Longer than a slow mobile link needs."""

_TICK_S = 1.0
"""How often keepalive is looked after; paho counts it in seconds."""

_PACKETS_AT_ONCE = 16
"""Read before others get a turn: 2 ms of requests (2 cores of x86-64, 2026-11)."""

_UNCONFIRMED_MESSAGES = 256
_UNCONFIRMED_BYTES = 64 * 2**20
"""QoS 0 answers that wait for a socket that takes no more; further ones are dropped."""

_FIRST_MID = 1024
_LAST_MID = 65535
"""Packet ids of what we publish; paho counts its own from 1, for a few subscriptions."""

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
        subscriptions: topic filters, all with QoS 1; what was retained there is not wanted.
        standing: the same, where it is: what lies there still holds.
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
    standing: tuple[str, ...] = ()
    tls: bool = False
    ca_file: Path | None = None
    certificate: tuple[Path, Path] | None = None
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
    """One connection, on the event loop, where `Events` are called as well."""

    def __init__(self, number: int, settings: SessionSettings, events: Events) -> None:
        self._number = number
        self._settings = settings
        self._events = events
        self._stream = Stream(self._read, self._send_waiting)
        self._waiting: deque[Callable[[], None]] = deque()  # for a stream that is congested
        self._unconfirmed = 0
        self._unconfirmed_bytes = 0
        self._acks = OrderedAcks()
        self._tokens: dict[int, int] = {}  # by packet id
        self._last_mid = _FIRST_MID
        self._is_open = False
        self._limits: BrokerLimits | None = None  # None until the broker has accepted us
        self._is_leaving = False
        self._end_reason = ""
        self._ended = asyncio.Event()
        self._client = self._make_client()

    @property
    def is_open(self) -> bool:
        """There is somebody to say good-bye to."""
        return self._is_open

    async def converse(self) -> None:
        """Connect and talk until the connection ends. Failures are told to `Events` by `close`."""
        try:
            await self._open()
        except (OSError, ValueError) as exc:  # ValueError: a host name or a file's text cannot be
            self._end_reason = explain_failure(exc, self._settings.host, self._settings.port)
            return
        connack_deadline = time.monotonic() + _CONNACK_TIMEOUT_S
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _TICK_S)
            if self._limits is None and time.monotonic() > connack_deadline:
                self._end("the broker did not answer CONNECT in time")
            self._client.loop_misc()
            self._follow_paho()

    def leave(self) -> None:
        """Say good-bye when all that was handed in is sent; then the conversation ends."""
        self._is_leaving = True
        if self._is_open:
            self._do(self._disconnect)

    def close(self) -> None:
        """Free the socket and tell the owner how it ended."""
        self._client.on_disconnect = None
        self._ended.set()
        self._stream.abort()
        reason = self._end_reason or "the connection was lost"
        if self._limits is not None:
            self._events.on_disconnected(self._number, reason)
        elif not self._is_leaving:
            self._events.on_unreachable(reason)

    def publish(self, token: int, publication: Publication) -> None:
        """Send a QoS 1 message."""
        self._do(partial(self._publish, publication, token))

    def publish_unconfirmed(self, publication: Publication) -> bool:
        """Send a QoS 0 message; False when too many wait already."""
        if not self._must_wait:
            self._publish(publication)
            return True
        size = len(publication.payload)
        if self._unconfirmed >= _UNCONFIRMED_MESSAGES:
            return False
        if self._unconfirmed and self._unconfirmed_bytes + size > _UNCONFIRMED_BYTES:
            return False
        self._unconfirmed += 1
        self._unconfirmed_bytes += size
        self._waiting.append(partial(self._publish_late, publication))
        return True

    def acknowledge(self, mid: int) -> None:
        """A QoS 1 message is done with."""
        self._do(partial(self._acknowledge, mid))

    def unsubscribe(self) -> None:
        """Ask for no more messages."""
        self._do(self._unsubscribe)

    async def _open(self) -> None:
        settings = self._settings
        way = await find_way(
            settings.host,
            settings.port,
            tls=settings.tls,
            ca_file=settings.ca_file,
            certificate=settings.certificate,
            password_file=settings.password_file,
        )
        await open_stream(way, settings.host, lambda: self._stream)
        if settings.username or way.password is not None:
            self._client.username_pw_set(settings.username, way.password)
        properties = self._connect_properties() if settings.mqtt5 else None
        self._client.connect(
            settings.host, settings.port, settings.keepalive_s, properties=properties
        )
        self._is_open = True
        self._follow_paho()
        self._read()

    def _end(self, reason: str) -> None:
        """For this reason, unless there was one already."""
        self._end_reason = self._end_reason or reason
        self._ended.set()

    def _read(self) -> None:
        """Take what has come, some packets at a time: others want their turn as well."""
        if not self._is_open:
            return
        try:
            is_all = self._take_packets()
        except packets.BrokenPacket as exc:
            self._end(f"the broker sent what is no MQTT: {exc}")
            return
        except Exception:  # noqa: BLE001 (top of a task: the next connection may fare better)
            _log.exception("mqtt connection failed unexpectedly connection=%d", self._number)
            self._end("the connection was given up")
            return
        if not is_all:
            self._stream.pause_reading()
            asyncio.get_running_loop().call_soon(self._read)
        elif self._stream.is_lost:
            error = self._stream.error
            self._end("the broker closed it" if error is None else f"it was lost: {error}")
        else:
            self._stream.resume_reading()

    def _take_packets(self) -> bool:
        """Whether all that is here was taken."""
        for _ in range(_PACKETS_AT_ONCE):
            if self._ended.is_set() or (packet := self._stream.next_packet()) is None:
                return True
            self._take(*packet)
        return False

    def _take(self, first: int, body: memoryview) -> None:
        match packets.packet_type(first):
            case packets.PUBLISH if self._limits is not None:
                self._take_message(first, body)
            case packets.PUBACK:
                mid, receipt = packets.read_puback(body)
                if (token := self._tokens.pop(mid, None)) is not None:
                    self._events.on_published(self._number, token, receipt)
            case _:
                self._give_to_paho(packets.whole_packet(first, body))

    def _take_message(self, first: int, body: memoryview) -> None:
        delivery = packets.read_publish(
            first,
            body,
            connection=self._number,
            mqtt5=self._settings.mqtt5,
            now=time.monotonic(),
        )
        if delivery.qos > 0:
            self._acks.received(delivery.mid)
        self._events.on_delivery(delivery)

    def _give_to_paho(self, packet: bytes) -> None:
        was_accepted = self._limits is not None
        self._stream.give_to_paho(packet)
        self._client.loop_read()
        if self._limits is not None and not was_accepted:
            self._welcome(self._limits)
        self._follow_paho()

    def _welcome(self, limits: BrokerLimits) -> None:
        """The broker has accepted us."""
        for topic_filter in self._settings.subscriptions:
            self._subscribe(topic_filter, SubscribeOptions.RETAIN_DO_NOT_SEND)
        for topic_filter in self._settings.standing:
            self._subscribe(topic_filter, SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE)
        self._follow_paho()
        self._events.on_connected(self._number, limits)

    def _follow_paho(self) -> None:
        """Send what paho wants to send, and see whether it has ended the connection."""
        if self._client.want_write():
            self._client.loop_write()
        if self._client.socket() is None and not self._is_leaving:
            self._end("the connection was lost")

    @property
    def _must_wait(self) -> bool:
        return bool(self._waiting) or self._stream.is_congested

    def _do(self, command: Callable[[], None]) -> None:
        """Now, or when the stream takes more."""
        if self._must_wait:
            self._waiting.append(command)
        else:
            command()

    def _send_waiting(self) -> None:
        while self._waiting and not self._stream.is_congested:
            self._waiting.popleft()()

    def _publish_late(self, publication: Publication) -> None:
        self._unconfirmed -= 1
        self._unconfirmed_bytes -= len(publication.payload)
        self._publish(publication)

    def _publish(self, publication: Publication, token: int = 0) -> None:
        mid = 0
        if token:
            mid = self._next_mid()
            self._tokens[mid] = token
        self._stream.send(
            packets.publish_packet(
                publication, mid, mqtt5=self._settings.mqtt5, now=time.monotonic()
            )
        )

    def _next_mid(self) -> int:
        """A packet id that is not in use; the low ones are paho's, for subscriptions."""
        while True:
            self._last_mid = self._last_mid + 1 if self._last_mid < _LAST_MID else _FIRST_MID
            if self._last_mid not in self._tokens:
                return self._last_mid

    def _acknowledge(self, mid: int) -> None:
        for settled in self._acks.settle(mid):
            self._stream.send(packets.puback_packet(settled))

    def _unsubscribe(self) -> None:
        self._client.unsubscribe([*self._settings.subscriptions, *self._settings.standing])
        self._follow_paho()

    def _disconnect(self) -> None:
        self._client.disconnect()
        self._follow_paho()

    def _make_client(self) -> Client:
        settings = self._settings
        client = _StreamClient(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=None if settings.mqtt5 else True,
            protocol=MQTTProtocolVersion.MQTTv5 if settings.mqtt5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.will_set(settings.will.topic, settings.will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        # With this set, paho leaves the writing to us instead of doing it in the middle of a call.
        client.on_socket_register_write = _leave_the_writing
        client.stream = self._stream
        return client

    def _connect_properties(self) -> Properties:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho has no types for it
        properties.ReceiveMaximum = self._settings.receive_maximum
        properties.SessionExpiryInterval = 0
        # Beyond it the broker drops the message in silence, but it cannot fill our memory either.
        properties.MaximumPacketSize = 2 * self._settings.max_payload_bytes + _EXTRA_PACKET_BYTES
        return properties

    def _on_connect(
        self,
        _: Client,
        __: object,
        ___: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._end_reason = f"the broker refused the connection: {reason}"
            return
        self._limits = BrokerLimits(
            max_packet_bytes=getattr(properties, "MaximumPacketSize", None),
            receive_maximum=getattr(properties, "ReceiveMaximum", 65535),
        )

    def _subscribe(self, topic_filter: str, retained: int) -> None:
        if not self._settings.mqtt5:
            self._client.subscribe(topic_filter, qos=1)
            return
        shared = topic_filter.startswith("$share/")  # where the standard forbids noLocal
        self._client.subscribe(
            topic_filter,
            options=SubscribeOptions(qos=1, noLocal=not shared, retainHandling=retained),
        )

    def _on_subscribe(
        self, _: Client, __: object, ___: int, reasons: list[ReasonCode], ____: Properties | None
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                _log.error(
                    "mqtt broker refused a subscription: what is sent there will not arrive "
                    "reason=%s",
                    reason,
                )

    def _on_disconnect(
        self,
        _: Client,
        __: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        ___: Properties | None,
    ) -> None:
        who = "the broker closed it" if flags.is_disconnect_packet_from_server else "it was lost"
        self._end_reason = self._end_reason or f"{who}: {reason}"  # CONNACK may have said why


class _StreamClient(Client):
    """paho on a stream that is open already, instead of a socket that it opens, and waits for."""

    stream: SocketLike

    def _create_socket(self) -> SocketLike:
        return self.stream


def _leave_the_writing(client: Client, userdata: object, sock: SocketLike) -> None:
    """The conversation's loop looks at `want_write` itself."""
