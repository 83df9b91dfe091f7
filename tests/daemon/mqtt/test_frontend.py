"""The front end's life: announcements, sharing, restarts of the broker, and its own end."""

import asyncio
import base64
import io
import json
import signal

import pytest
import requests
from PIL import Image
from support.daemon import daemon_process, free_port
from support.eventually import eventually
from support.mosquitto import Broker, running_broker
from support.mqtt_client import TestClient
from support.workers import paused_workers

from daemon.config import MqttTable
from daemon.errors import ConfigError
from daemon.mqtt.frontend import MqttFrontEnd

pytestmark = pytest.mark.broker

PREDICT = "inferd/box-1/models/fashion/predict"
ANY = "inferd/any/models/fashion/predict"


async def _until(client, topic, payload):
    """The next message that says this, past others."""
    while True:
        message = await client.anext()
        if (message.topic, message.payload) == (topic, payload):
            return message


async def test_it_says_online_and_offline_retained(broker, start_front_end, connect):
    front_end = await start_front_end(broker)
    early, late = connect(), connect()
    early.subscribe("inferd/box-1/availability")
    online = await _until(early, "inferd/box-1/availability", b"online")

    await front_end.stop(5)
    await _until(early, "inferd/box-1/availability", b"offline")
    late.subscribe("inferd/box-1/availability")

    assert online.qos == 1
    assert (await late.anext()).retain


async def test_the_state_is_retained_and_follows_the_models(service, front_end, connect):
    client = connect()
    client.subscribe("inferd/box-1/state")
    before = await client.anext()

    await service.unload("fashion")
    while (after := (await client.anext()).json)["models"][0]["wanted"]:
        pass

    assert before.retain
    assert before.json["device"] == "box-1"
    assert before.json["ready"] is True
    assert before.json["models"][0]["versions"][0]["state"] == "READY"
    assert before.json["models"][0]["versions"][0]["device"] == "cpu"
    assert after["models"][0]["name"] == "fashion"


async def test_a_killed_daemon_goes_offline_by_its_last_will(broker, connect, demo_model, tmp_path):
    client = connect()
    client.subscribe("inferd/box-9/availability")
    with daemon_process(
        [demo_model],
        root=tmp_path,
        port=free_port(),
        mqtt={"url": broker.url},
        device={"id": "box-9"},
    ) as daemon:
        await _until(client, "inferd/box-9/availability", b"online")

        daemon.process.send_signal(signal.SIGKILL)

        await _until(client, "inferd/box-9/availability", b"offline")


async def test_two_appliances_share_requests_to_any_and_a_stopped_one_has_no_share(
    broker, start_front_end, connect, picture
):
    await start_front_end(broker, device_id="left")
    right = await start_front_end(broker, device_id="right")
    client = connect()
    client.subscribe("inferd/+/models/fashion/result")

    for _ in range(10):
        client.publish(ANY, picture)
    both = [(await client.anext()).topic.split("/")[1] for _ in range(10)]
    await right.stop(5)
    for _ in range(4):
        client.publish(ANY, picture)
    one = [(await client.anext()).topic.split("/")[1] for _ in range(4)]

    assert (both.count("left"), both.count("right")) == (5, 5)
    assert one == ["left"] * 4


async def test_without_a_group_it_takes_no_part_in_any(broker, start_front_end, connect, picture):
    await start_front_end(broker, device_id="alone", shared_group="")
    await start_front_end(broker, device_id="member")
    client = connect()
    client.subscribe("inferd/+/models/fashion/result")

    for _ in range(3):
        client.publish(ANY, picture)

    assert {(await client.anext()).topic.split("/")[1] for _ in range(3)} == {"member"}


@pytest.mark.parametrize("mqtt5", [True, False])
async def test_a_restart_of_the_broker_loses_no_qos_1_result_and_keeps_their_order(
    broker, start_front_end, mqtt5
):
    protocol = "5" if mqtt5 else "3.1.1"
    front_end = await start_front_end(broker, max_inflight=50, protocol=protocol)
    client = TestClient(broker.port, client_id="asks", mqtt5=mqtt5)
    client.subscribe("inferd/box-1/models/fashion/result")
    with paused_workers():
        for number in range(20):
            client.publish(PREDICT, _numbered(number))
        await eventually(lambda: front_end.status()["requests_running"] == 20)
        await asyncio.to_thread(broker.stop)
        await eventually(lambda: not front_end.connected)
    await eventually(lambda: front_end.status()["requests_running"] == 0)
    await eventually(lambda: front_end.status()["outbox_messages"] == 20)

    await asyncio.to_thread(broker.start)
    answers = [(await client.anext()).json for _ in range(20)]

    assert [int(answer["id"]) for answer in answers] == list(range(20))
    assert all("outputs" in answer for answer in answers)
    await eventually(lambda: front_end.status()["outbox_messages"] == 0)
    client.close()


def _numbered(number):
    """A raw tensor, which one worker answers in the order of arrival."""
    data = base64.b64encode(bytes(28 * 28)).decode()
    return json.dumps({"id": str(number), "data_b64": data}).encode()


async def test_results_that_wait_outlive_the_daemon(broker, start_front_end):
    front_end = await start_front_end(broker, max_inflight=50)
    client = TestClient(broker.port, client_id="asks")
    client.subscribe("inferd/box-1/models/fashion/result")
    with paused_workers():
        for number in range(5):
            client.publish(PREDICT, _numbered(number))
        await eventually(lambda: front_end.status()["requests_running"] == 5)
        await asyncio.to_thread(broker.stop)
        await eventually(lambda: not front_end.connected)
    await front_end.stop(10)

    await asyncio.to_thread(broker.start)
    await start_front_end(broker)

    answers = [(await client.anext()).json for _ in range(5)]
    assert [answer["id"] for answer in answers] == ["0", "1", "2", "3", "4"]
    client.close()


async def test_results_that_wait_outlive_kill_9(broker, demo_model, tmp_path):
    client = TestClient(broker.port)
    client.subscribe("inferd/box-9/#")
    port = free_port()

    def start():
        return daemon_process(
            [demo_model],
            root=tmp_path,
            port=port,
            mqtt={"url": broker.url},
            device={"id": "box-9"},
        )

    def status():
        return requests.get(f"http://127.0.0.1:{port}/api/status", timeout=5).json()["mqtt"]

    with start() as daemon:
        await _until(client, "inferd/box-9/availability", b"online")
        with paused_workers():
            for number in range(5):
                client.publish("inferd/box-9/models/fashion/predict", _numbered(number))
            await eventually(lambda: status()["requests_running"] == 5)
            await asyncio.to_thread(broker.stop)
        await eventually(lambda: status()["outbox_messages"] == 5)
        daemon.process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(broker.start)
    with start():
        answers = []
        while len(answers) < 5:
            message = await client.anext()
            answers += [message.json["id"]] if message.topic.endswith("/result") else []
    client.close()

    assert answers == ["0", "1", "2", "3", "4"]


async def test_requests_under_way_are_answered_before_the_end(
    broker, start_front_end, connect, picture
):
    front_end = await start_front_end(broker)
    client = connect()
    client.subscribe("inferd/box-1/#")
    with paused_workers():
        client.publish(PREDICT, picture)
        await eventually(lambda: front_end.status()["requests_running"] == 1)
        stopping = asyncio.create_task(front_end.stop(20))
        await asyncio.to_thread(broker.wait_for_log, "UNSUBSCRIBE")
    await stopping

    while (message := await client.anext()).topic != "inferd/box-1/models/fashion/result":
        pass
    assert "classification" in message.json
    await _until(client, "inferd/box-1/availability", b"offline")


async def test_requests_that_outlast_the_grace_are_given_up(
    broker, start_front_end, connect, picture
):
    front_end = await start_front_end(broker)
    client = connect()
    with paused_workers():
        client.publish(PREDICT, picture)
        await eventually(lambda: front_end.status()["requests_running"] == 1)
        await front_end.stop(0.05)

    assert front_end.status()["requests_running"] == 0


async def test_a_broker_that_is_away_at_the_start_holds_nobody_up(
    tmp_path, start_front_end, picture, caplog
):
    broker = Broker(tmp_path)
    front_end = await start_front_end(broker, await_connection=False)
    await eventually(lambda: "refused" in str(front_end.status()["reason"]).lower())

    await asyncio.to_thread(broker.start)
    await eventually(lambda: front_end.connected)

    client = TestClient(broker.port)
    client.subscribe("inferd/box-1/models/fashion/result")
    client.publish(PREDICT, picture)
    assert "classification" in (await client.anext()).json
    client.close()
    assert caplog.text.count("mqtt not connected") == 1
    await front_end.stop(5)
    await asyncio.to_thread(broker.stop)


@pytest.mark.parametrize("option", ["max_packet_size 600", "message_size_limit 500"])
async def test_a_result_too_large_for_the_broker_becomes_a_refusal_and_traffic_goes_on(
    tmp_path, start_front_end, picture, option
):
    with running_broker(tmp_path, option) as broker:
        front_end = await start_front_end(broker)
        client = TestClient(broker.port)
        client.subscribe("answers/#")
        facts = {"response_topic": "answers/1", "correlation": b"c"}
        client.publish(PREDICT, picture, user=[("top_k", "10")], **facts)
        refused = await client.anext()
        client.publish(PREDICT, picture, user=[("top_k", "1")], **facts)
        answered = await client.anext()
        client.close()
        await front_end.stop(5)

    assert refused.json["error"]["code"] == "too_large"
    assert refused.correlation == b"c"
    assert "classification" in answered.json


async def test_a_result_on_which_a_broker_hangs_up_is_replaced_though_it_tells_no_limit(
    tmp_path, start_front_end
):
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "PNG")
    ask = {"reply_to": "answers/1", "data_b64": base64.b64encode(picture.getvalue()).decode()}
    with running_broker(tmp_path, "max_packet_size 600") as broker:
        front_end = await start_front_end(broker, protocol="3.1.1")
        client = TestClient(broker.port)
        client.subscribe("answers/#")
        client.publish(PREDICT, json.dumps({**ask, "top_k": 1}).encode())
        answered = await client.anext()
        client.publish(PREDICT, json.dumps({**ask, "top_k": 10}).encode())
        refused = await client.anext()
        client.close()
        await front_end.stop(5)

    assert "classification" in answered.json
    assert refused.json["error"]["code"] == "too_large"


async def test_results_wait_until_the_one_who_asked_is_back(broker, start_front_end):
    front_end = await start_front_end(broker, max_inflight=50)
    client = TestClient(broker.port)
    client.subscribe("inferd/box-1/models/fashion/result")
    with paused_workers():
        for number in range(3):
            client.publish(PREDICT, _numbered(number))
        await eventually(lambda: front_end.status()["requests_running"] == 3)
        client.close()
        await asyncio.to_thread(broker.restart)
        await eventually(lambda: front_end.connected)
    await asyncio.to_thread(broker.wait_for_log, "'inferd/box-1/models/fashion/result'")
    await eventually(lambda: front_end.status()["outbox_messages"] == 3)

    back = TestClient(broker.port)
    back.subscribe("inferd/box-1/models/fashion/result")

    assert [(await back.anext()).json["id"] for _ in range(3)] == ["0", "1", "2"]
    await eventually(lambda: front_end.status()["outbox_messages"] == 0)
    assert back.waiting() == 0
    back.close()


async def test_nothing_named_any_can_be_an_appliance(service, tmp_path):
    with pytest.raises(ConfigError, match="appliance"):
        MqttFrontEnd(
            MqttTable(url="mqtt://127.0.0.1"),
            device_id="any",
            service=service,
            metrics=None,
            state_dir=tmp_path,
        )


async def test_a_stop_without_a_start_does_nothing(service, tmp_path):
    from prometheus_client import CollectorRegistry  # noqa: PLC0415

    from daemon.metrics import Metrics  # noqa: PLC0415

    front_end = MqttFrontEnd(
        MqttTable(url="mqtt://127.0.0.1"),
        device_id="x",
        service=service,
        metrics=Metrics(CollectorRegistry()),
        state_dir=tmp_path,
    )

    await front_end.stop(1)

    assert list(tmp_path.iterdir()) == []


async def test_a_password_file_that_others_can_read_is_warned_of(
    broker, start_front_end, tmp_path, caplog
):
    secret = tmp_path / "secret"
    secret.write_text("pa55")
    secret.chmod(0o644)

    await start_front_end(broker, username="box", password_file=secret)

    assert "can be read by others" in caplog.text
    assert "pa55" not in caplog.text
