"""MQTT 5 request and response through a broker: so many requests under way at a time. A program."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.measure import load_from

if TYPE_CHECKING:
    from paho.mqtt.client import MQTTMessage

    from benchmarks.measure import Load

_ANSWERS = "bench/answers"
_REFUSAL = b'{"error"'
_STALLED_S = 30.0
"""Requests without an answer for so long count as errors."""


class _Loop:
    """Publishes the next request when an answer comes, until its time is over."""

    def __init__(self, client: Client, topic: str, payload: bytes, seconds: float) -> None:
        self._client = client
        self._topic = topic
        self._payload = payload
        self._sent: dict[bytes, float] = {}
        self._number = 0
        self.latencies_s: list[float] = []
        self.refusals = 0
        self.began = time.monotonic()
        self.answered = self.began
        self._ends = self.began + seconds

    @property
    def under_way(self) -> int:
        return len(self._sent)

    def send(self) -> None:
        self._number += 1
        correlation = self._number.to_bytes(4, "big")
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = _ANSWERS
        properties.CorrelationData = correlation
        self._sent[correlation] = time.monotonic()
        self._client.publish(self._topic, self._payload, properties=properties)

    def receive(self, message: MQTTMessage) -> None:
        sent = self._sent.pop(message.properties.CorrelationData, None)
        if sent is None:
            return
        self.answered = time.monotonic()
        if message.payload.startswith(_REFUSAL):
            self.refusals += 1
        else:
            self.latencies_s.append(self.answered - sent)
        if self.answered < self._ends:
            self.send()


def request_loop(port: int, topic: str, payload: bytes, *, under_way: int, seconds: float) -> Load:
    """Keep so many requests under way, QoS 0, and wait for the last answers."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_connect = lambda *_: client.subscribe(_ANSWERS)
    client.connect("127.0.0.1", port)
    subscribed: list[bool] = []
    client.on_subscribe = lambda *_: subscribed.append(True)
    while not subscribed:
        client.loop()
    loop = _Loop(client, topic, payload, seconds)
    client.on_message = lambda _client, _userdata, message: loop.receive(message)
    for _ in range(under_way):
        loop.send()
    while loop.under_way and time.monotonic() - loop.answered < _STALLED_S:
        client.loop()
    elapsed = loop.answered - loop.began
    client.disconnect()
    return load_from(loop.latencies_s, elapsed, loop.refusals + loop.under_way)


def main() -> int:
    """Print the load's figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("topic")
    parser.add_argument("payload", type=Path)
    parser.add_argument("--under-way", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    load = request_loop(
        options.port,
        options.topic,
        options.payload.read_bytes(),
        under_way=options.under_way,
        seconds=options.seconds,
    )
    print(json.dumps(asdict(load)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
