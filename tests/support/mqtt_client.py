"""A plain MQTT client for tests: connects, listens, publishes, and waits for what comes."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import threading
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

WAIT_S = 20


@dataclass(frozen=True)
class Received:
    """A message, with what MQTT 5 says of it."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    correlation: bytes | None
    content_type: str | None
    expiry_s: int | None

    @property
    def json(self) -> Any:
        return json.loads(self.payload)


class TestClient:
    """Connected when it is made. Its `close` ends the session."""

    __test__ = False  # for pytest

    def __init__(self, port: int, *, mqtt5: bool = True, client_id: str = "") -> None:
        self._received: queue.Queue[Received] = queue.Queue()
        self._subscribed = threading.Semaphore(0)
        self._subscriptions: list[tuple[str, int]] = []
        self.connected = threading.Semaphore(0)
        self._mqtt5 = mqtt5
        is_persistent = client_id != ""
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if mqtt5 else not is_persistent,
            protocol=MQTTProtocolVersion.MQTTv5 if mqtt5 else MQTTProtocolVersion.MQTTv311,
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.on_message = self._on_message
        self._client.on_socket_open = _without_nagle
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.release()
        properties = None
        if mqtt5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 600 if is_persistent else 0
        self._client.connect("127.0.0.1", port, 30, properties=properties)
        self._client.loop_start()
        assert self.connected.acquire(timeout=WAIT_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def subscribe(self, topic: str, qos: int = 1) -> None:
        """Returns when the broker has confirmed."""
        self._subscriptions.append((topic, qos))
        self._client.subscribe(topic, qos)
        assert self._subscribed.acquire(timeout=WAIT_S)

    def publish(self, topic: str, payload: bytes = b"", *, qos: int = 1, **facts: Any) -> None:
        """Returns at once for QoS 0, else when the broker has it.

        `facts`: retain, response_topic, correlation, content_type, expiry_s, user (a list of
        pairs); wait=False not to wait.
        """
        wait = facts.pop("wait", True) and qos > 0
        retain = facts.pop("retain", False)
        properties = _properties(facts) if self._mqtt5 else None
        info = self._client.publish(topic, payload, qos, retain, properties)
        if wait:
            info.wait_for_publish(WAIT_S)
            assert info.is_published()

    def next(self, timeout_s: float = WAIT_S) -> Received:
        """The next message."""
        return self._received.get(timeout=timeout_s)

    async def anext(self, timeout_s: float = WAIT_S) -> Received:
        """The next message, while the event loop runs on."""
        return await asyncio.to_thread(self.next, timeout_s)

    def waiting(self) -> int:
        """How many messages have come and were not looked at."""
        return self._received.qsize()

    def _on_connect(self, *_: object) -> None:
        for topic, qos in self._subscriptions:  # at a reconnect
            self._client.subscribe(topic, qos)
        self.connected.release()

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        properties = message.properties
        self._received.put(
            Received(
                topic=message.topic,
                payload=bytes(message.payload),
                qos=message.qos,
                retain=bool(message.retain),
                correlation=getattr(properties, "CorrelationData", None),
                content_type=getattr(properties, "ContentType", None),
                expiry_s=getattr(properties, "MessageExpiryInterval", None),
            )
        )


def _without_nagle(_client: Client, _userdata: object, sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _properties(facts: dict[str, Any]) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    names = {
        "response_topic": "ResponseTopic",
        "correlation": "CorrelationData",
        "content_type": "ContentType",
        "expiry_s": "MessageExpiryInterval",
        "user": "UserProperty",
    }
    for fact, value in facts.items():
        setattr(properties, names[fact], value)
    return properties
