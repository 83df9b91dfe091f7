"""The demo's own broker."""

from __future__ import annotations

import queue

import pytest
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from daemon.cli.broker import HOST, run_broker, run_iotcore, run_mosquitto
from daemon.cli.outcome import CommandError


def echo(port: int, payload: bytes) -> bytes:
    """What comes back of a message published over MQTT 5."""
    arrived: queue.Queue[bytes] = queue.Queue()
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.on_connect = lambda *_: client.subscribe("echo", 1)
    client.on_subscribe = lambda *_: client.publish("echo", payload, 1)
    client.on_message = lambda _client, _data, message: arrived.put(message.payload)
    client.connect(HOST, port)
    client.loop_start()
    try:
        return arrived.get(timeout=30)
    finally:
        client.disconnect()
        client.loop_stop()


@pytest.mark.broker
def test_mosquitto_carries_messages_and_leaves_nothing(mosquitto, tmp_path):
    with run_mosquitto(mosquitto, tmp_path) as broker:
        assert echo(broker.port, b"x" * 200_000) == b"x" * 200_000

    with pytest.raises(ConnectionRefusedError):
        echo(broker.port, b"")


def test_iotcore_carries_messages_where_mosquitto_is_not_installed(tmp_path):
    with run_iotcore(tmp_path) as broker:
        assert echo(broker.port, b"x" * 200_000) == b"x" * 200_000


@pytest.mark.broker
def test_mosquitto_is_preferred(mosquitto, tmp_path):
    with run_broker(tmp_path) as broker:
        assert broker.program == "mosquitto"


def test_a_broker_that_does_not_start_is_reported_with_its_own_words(tmp_path):
    failing = tmp_path / "mosquitto"
    failing.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 3\n")
    failing.chmod(0o755)

    with (
        pytest.raises(CommandError, match="out of luck"),
        run_mosquitto(str(failing), tmp_path),
    ):
        pass
