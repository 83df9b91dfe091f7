"""docs/mqtt.md names the topics, codes and options that there are, and its commands work."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path

import pytest
from support.daemon import running_daemon
from support.mosquitto import running_broker
from support.mqtt_client import TestClient

from daemon.mqtt.messages import Delivery
from daemon.mqtt.refusals import CODES
from daemon.mqtt.requests import Envelope, read_wish
from daemon.mqtt.topics import Command, Topics, reply_topic_problem

REFERENCE = (Path(__file__).resolve().parents[2] / "docs" / "mqtt.md").read_text()
TOPICS = Topics("<device>", "<mqtt.shared_group>")


def section(title: str) -> str:
    return re.split(r"^##+ ", REFERENCE.split(f"# {title}\n", 1)[1], flags=re.MULTILINE)[0]


def test_every_topic_is_there():
    result = TOPICS.result(Command("<model>", "<model>"))
    request = TOPICS.requests.replace("+", "<model>")

    for topic in (request, TOPICS.shared_requests, result, TOPICS.availability, TOPICS.state):
        assert f"`{topic}`" in section("Topics")


def test_exactly_the_codes_that_exist_are_listed():
    first_column = re.findall(r"^\| (`[^|]*`) \|", section("Answers"), re.MULTILINE)
    listed = {code for cell in first_column for code in re.findall(r"`(\w+)`", cell)}

    assert listed == set(CODES.values())


def test_every_option_listed_is_understood():
    rows = re.findall(r"user property `(\w+)`", section("Properties and members"))
    values = {"version": "1", "timeout_ms": "5", "top_k": "1", "threshold": "0.5"}
    for name in rows:
        delivery = Delivery(1, "t", b"x", 1, 1, 0.0, properties=((name, values.get(name, "x")),))
        read_wish(delivery, Envelope({}))

    assert set(rows) == {
        "id",
        "timeout_ms",
        "version",
        "label",
        "top_k",
        "threshold",
        "signature",
        "outputs",
    }


def test_the_topics_of_the_examples_may_be_used():
    for topic in re.findall(r"(?:response-topic|-e|reply_to\\\": \\\")\s*([\w/]+)", REFERENCE):
        assert reply_topic_problem(topic) == ""


EXAMPLES = re.findall(r"^\$ (mosquitto_(?:pub|rr) .*)$", REFERENCE, re.MULTILINE)


@pytest.mark.broker
@pytest.mark.parametrize("command", EXAMPLES, ids=["mqtt5", "rr", "3.1.1"])
async def test_the_commands_get_an_answer(command, demo_model, tmp_path):
    (tmp_path / "bag.png").write_bytes((demo_model / "samples" / "bag.png").read_bytes())
    with running_broker(tmp_path) as broker:
        async with running_daemon([demo_model], mqtt={"url": broker.url}):
            client = TestClient(broker.port)
            client.subscribe("inferd/box-1/availability")
            while (await client.anext()).payload != b"online":
                pass
            client.subscribe("answers/1")
            with_port = re.sub(r"^(\w+)", rf"\1 -p {broker.port}", command)

            await asyncio.to_thread(
                subprocess.run, ["bash", "-euc", with_port], cwd=tmp_path, check=True, timeout=30
            )

            answer = await client.anext()
            client.close()
    assert json.loads(answer.payload)["classification"][0]["label"] == "bag"
