"""Asks for predictions over MQTT 5, as any other program would. The demo's client."""

from __future__ import annotations

import itertools
import json
import queue
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


class MqttRequester:
    """A connection that sends requests to one appliance and waits for each one's answer.

    Use it as a context manager, from one thread.
    """

    def __init__(self, host: str, port: int, device: str) -> None:
        self._host, self._port, self._device = host, port, device
        self._answer_topic = f"inferd-demo/{device}/answers"
        self._availability_topic = f"inferd/{device}/availability"
        self._arrived: queue.Queue[MQTTMessage] = queue.Queue(maxsize=1000)
        self._numbers = itertools.count(1)
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
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
        try:
            return self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise CommandError(f"waited {ANSWER_TIMEOUT_S:.0f} s for {what}") from None

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
