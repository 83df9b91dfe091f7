"""Asks for predictions over MQTT 5, as any other program would. The demo's client."""

from __future__ import annotations

import itertools
import json
import queue
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from daemon.cli.outcome import CommandError

if TYPE_CHECKING:
    from types import TracebackType

    from paho.mqtt.reasoncodes import ReasonCode

ANSWER_TIMEOUT_S = 30.0
_LOOK_EVERY_S = 0.1


class MqttRequester:
    """A connection that sends requests to one appliance and waits for each one's answer.

    Use it as a context manager, from one thread at a time.

    Args:
        over: once it is set there is nobody left to ask, and nothing is waited for.
    """

    def __init__(
        self, host: str, port: int, device: str, over: threading.Event | None = None
    ) -> None:
        self._host, self._port, self._device = host, port, device
        self._over = over or threading.Event()
        self._answer_topic = f"inferd-demo/{device}/answers"
        self._availability_topic = f"inferd/{device}/availability"
        self._arrived: queue.Queue[MQTTMessage] = queue.Queue(maxsize=1000)
        self._numbers = itertools.count(1)
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.on_socket_open = _send_at_once
        self._client.on_connect = self._subscribe
        self._client.on_message = self._keep

    def __enter__(self) -> Self:
        try:
            self._client.connect(self._host, self._port)
        except OSError as error:
            raise CommandError(f"no broker at {self._host}:{self._port}: {error}") from error
        self._client.loop_start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_until_online(self) -> None:
        """Return once the appliance says that it takes requests.

        Raises:
            CommandError: it did not in time.
        """
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            message = self._next(deadline, f"{self._availability_topic} says online")
            if message.topic == self._availability_topic and message.payload == b"online":
                return

    def predict(self, model: str, payload: bytes) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            CommandError: the answer is a refusal, or none came in time.
        """
        correlation = str(next(self._numbers)).encode()
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho leaves it bare
        properties.ResponseTopic = self._answer_topic
        properties.CorrelationData = correlation
        self._client.publish(self.request_topic(model), payload, qos=1, properties=properties)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            message = self._next(deadline, f"the answer of {model}")
            if getattr(message.properties, "CorrelationData", None) == correlation:
                break
        answer: dict[str, Any] = json.loads(message.payload)
        if "error" in answer:
            raise CommandError(f"{model} refused over MQTT: {answer['error']}")
        return answer

    def request_topic(self, model: str) -> str:
        """Where requests for a model go."""
        return f"inferd/{self._device}/models/{quote(model, safe='')}/predict"

    def _next(self, deadline: float, what: str) -> MQTTMessage:
        while not self._over.is_set():
            left_s = deadline - time.monotonic()
            try:
                return self._arrived.get(timeout=min(_LOOK_EVERY_S, max(0.0, left_s)))
            except queue.Empty:
                if left_s <= 0:
                    message = f"waited {ANSWER_TIMEOUT_S:.0f} s for {what}"
                    raise CommandError(message) from None
        raise CommandError(f"there is nobody left to ask for {what}")

    def _subscribe(
        self,
        client: Client,
        _data: object,
        _flags: ConnectFlags,
        _reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        client.subscribe([(self._answer_topic, 1), (self._availability_topic, 1)])

    def _keep(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self._arrived.put_nowait(message)


def _send_at_once(_client: Client, _data: object, connection: Any) -> None:  # noqa: ANN401 (paho's)
    """Else each request after an answer waits 40 ms for the broker's acknowledgement (Nagle)."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
