"""docs/mqtt.md names the topics, codes and options that there are, and its commands work."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path

import pytest
from support.daemon import running_daemon
from support.eventually import eventually
from support.mosquitto import running_broker
from support.mqtt_client import TestClient
from support.updaterpeer import Peer, answering

from daemon.mqtt.messages import Delivery
from daemon.mqtt.refusals import CODES
from daemon.mqtt.requests import Envelope, read_wish
from daemon.mqtt.topics import Command, Topics, reply_topic_problem
from daemon.updates import UpdateEvent, event_document

REFERENCE = (Path(__file__).resolve().parents[2] / "docs" / "mqtt.md").read_text()
TOPICS = Topics("<device>", "<mqtt.shared_group>")


def section(title: str) -> str:
    return re.split(r"^##+ ", REFERENCE.split(f"# {title}\n", 1)[1], flags=re.MULTILINE)[0]


def test_every_topic_is_there():
    result = TOPICS.result(Command("<model>", "<model>"))
    request = TOPICS.requests.replace("+", "<model>")

    ours = (TOPICS.availability, TOPICS.state, TOPICS.updates, *TOPICS.hints)
    for topic in (request, TOPICS.shared_requests, result, *ours):
        assert f"`{topic}`" in section("Topics")


def test_the_event_in_the_document_is_one_that_leaves():
    documented = json.loads(re.search(r"^```json\n(.*)\n```$", section("Updates"), re.MULTILINE)[1])
    ours = {key: documented.pop(key) for key in ("device", "sequence", "time")}

    event = UpdateEvent(sequence=ours["sequence"], time=ours["time"], event=documented)

    assert list(event_document("box-1", event).items()) == list((ours | documented).items())


@pytest.mark.broker
async def test_the_hint_of_the_document_is_one(tmp_path):
    command = re.search(r"^\$ (mosquitto_pub .*)$", section("Updates"), re.MULTILINE)[1]
    peer = Peer()
    with running_broker(tmp_path) as broker:
        with_port = re.sub(r"^(\w+)", rf"\1 -p {broker.port}", command)
        await asyncio.to_thread(subprocess.run, ["bash", "-euc", with_port], check=True, timeout=30)
        async with (
            answering(tmp_path / "run/inferd/updater.sock", peer.answer),
            running_daemon([], root=tmp_path, mqtt={"url": broker.url}),
        ):
            await eventually(lambda: peer.asked)

    assert peer.asked == [("refresh", {"origin": "mqtt"})]


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


EXAMPLES = re.findall(r"^\$ (mosquitto_(?:pub|rr) .*)$", section("Ask"), re.MULTILINE)


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
