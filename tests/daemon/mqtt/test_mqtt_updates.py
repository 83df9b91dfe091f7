"""Updates over MQTT: events are never lost, hints come in, the state says what goes on."""

import asyncio
import itertools
import json
import time

import orjson
import pytest
from support.eventually import eventually
from support.mosquitto import Broker
from support.mqtt_client import TestClient

from daemon.errors import NotKept
from daemon.mqtt.outbox import Outbox
from daemon.rest.errors import UpdaterUnavailable
from daemon.updates import UpdateBoard, UpdateEvent

pytestmark = pytest.mark.broker

TOPIC = "inferd/box-1/updates"
HINT = "inferd/box-1/updates/refresh"
ANY_HINT = "inferd/any/updates/refresh"


def events(first, last, **facts):
    return [
        UpdateEvent(sequence=n, time=1.76e9 + n, event={"event": "committed", **facts})
        for n in range(first, last + 1)
    ]


async def sequences(client, count):
    return [(await client.anext()).json["sequence"] for _ in range(count)]


async def all_until(client, last):
    """The numbers that come, each at least once, up to this one; repetitions left out."""
    heard = []
    while not heard or heard[-1] != last:
        heard += await sequences(client, 1)
    return list(dict.fromkeys(heard))


# Events.


async def test_an_event_leaves_with_its_number_its_time_and_its_device(front_end, connect):
    client = connect()
    client.subscribe(TOPIC)

    taken = await front_end.publish_updates(events(7, 7, model="fashion"))

    message = await client.anext()
    assert taken == 7
    assert (message.qos, message.retain, message.content_type) == (1, False, "application/json")
    assert message.json == {
        "device": "box-1",
        "sequence": 7,
        "time": 1.76e9 + 7,
        "event": "committed",
        "model": "fashion",
    }
    await eventually(lambda: front_end.status()["outbox_messages"] == 0)


async def test_what_is_the_daemons_to_say_no_event_can_say(front_end, connect):
    client = connect()
    client.subscribe(TOPIC)

    await front_end.publish_updates(events(1, 1, device="other", sequence=9, time=0))

    assert (await client.anext()).json["device"] == "box-1"


async def test_events_keep_their_order_however_many_there_are(front_end, connect):
    client = connect()
    client.subscribe(TOPIC)

    for first in range(1, 500, 100):
        assert await front_end.publish_updates(events(first, first + 99)) == first + 99

    assert await sequences(client, 500) == list(range(1, 501))


async def test_they_are_on_disk_before_they_are_said_to_be_taken(broker, start_front_end, tmp_path):
    front_end = await start_front_end(broker)
    await asyncio.to_thread(broker.stop)
    await eventually(lambda: not front_end.connected)

    taken = await front_end.publish_updates(events(1, 3))

    assert taken == 3
    # As a look at the disk after a kill or a loss of power would find it: by copies of its files.
    copies = tmp_path / "copies"
    copies.mkdir()
    for file in (tmp_path / "box-1").iterdir():
        (copies / file.name).write_bytes(file.read_bytes())
    found = Outbox(copies / "mqtt-outbox.db", max_messages=100, max_bytes=1 << 20)
    found.open()
    stored = found.peek(after_row=0, limit=10)
    found.close()
    assert [orjson.loads(each.publication.payload)["sequence"] for each in stored] == [1, 2, 3]


async def test_they_wait_for_the_broker_and_outlive_the_daemon(broker, start_front_end):
    front_end = await start_front_end(broker)
    await asyncio.to_thread(broker.stop)
    await eventually(lambda: not front_end.connected)
    await front_end.publish_updates(events(1, 3))
    await front_end.stop(5)
    await asyncio.to_thread(broker.start)
    client = TestClient(broker.port)
    client.subscribe(TOPIC)

    await start_front_end(broker)

    assert await sequences(client, 3) == [1, 2, 3]
    client.close()


async def test_a_restart_of_the_broker_loses_none_and_keeps_their_order(broker, start_front_end):
    front_end = await start_front_end(broker)
    client = TestClient(broker.port, client_id="fleet")
    client.subscribe(TOPIC)
    await front_end.publish_updates(events(1, 50))
    await asyncio.to_thread(broker.restart)
    await front_end.publish_updates(events(51, 100))

    assert await all_until(client, 100) == list(range(1, 101))
    client.close()


async def test_an_outbox_takes_what_leaves_room_for_results_and_says_which_was_the_last(
    broker, start_front_end
):
    front_end = await start_front_end(broker, outbox_max_messages=12)
    client = TestClient(broker.port, client_id="fleet")
    client.subscribe(TOPIC)
    await asyncio.to_thread(broker.stop)
    await eventually(lambda: not front_end.connected)

    assert await front_end.publish_updates(events(1, 5)) == 3
    with pytest.raises(NotKept, match="full"):
        await front_end.publish_updates(events(4, 5))
    assert front_end.status()["outbox_messages"] == 3

    await asyncio.to_thread(broker.start)
    await eventually(lambda: front_end.status()["outbox_messages"] == 0)
    assert await front_end.publish_updates(events(4, 5)) == 5

    assert await all_until(client, 5) == [1, 2, 3, 4, 5]
    client.close()


async def test_one_that_alone_is_too_large_for_the_outbox_is_not_taken(broker, start_front_end):
    front_end = await start_front_end(broker, outbox_max_mib=1)

    with pytest.raises(NotKept, match="full"):
        await front_end.publish_updates(events(1, 1, reason="x" * (1 << 20)))


async def test_a_disk_that_refuses_takes_none(broker, start_front_end, tmp_path):
    (tmp_path / "box-1").write_bytes(b"a file where the folder should be")
    front_end = await start_front_end(broker)

    with pytest.raises(NotKept, match="the outbox cannot be used"):
        await front_end.publish_updates(events(1, 1))


async def test_before_the_start_and_after_the_stop_none_is_taken(broker, start_front_end):
    front_end = await start_front_end(broker)
    await front_end.stop(5)

    with pytest.raises(NotKept, match="MQTT does not run"):
        await front_end.publish_updates(events(1, 1))


async def test_one_that_was_handed_over_by_somebody_who_left_leaves_all_the_same(
    front_end, connect
):
    client = connect()
    client.subscribe(TOPIC)
    handing_over = asyncio.create_task(front_end.publish_updates(events(1, 1)))
    await asyncio.sleep(0)  # it has begun

    handing_over.cancel()
    await front_end.publish_updates(events(2, 2))

    heard = await sequences(client, 1)
    assert heard in ([1], [2])
    await eventually(lambda: front_end.status()["outbox_messages"] == 0)


# Hints.


class Updater:
    """Notes when hints reach it, and counts those that do not."""

    def __init__(self):
        self.hints = []
        self.missed = 0
        self.is_there = True

    async def hear(self):
        self.missed += not self.is_there
        if not self.is_there:
            raise UpdaterUnavailable("is inferd-updater running?")
        self.hints.append(time.monotonic())


@pytest.fixture
def updater():
    return Updater()


@pytest.mark.parametrize("topic", [HINT, ANY_HINT])
@pytest.mark.parametrize("payload", [b"", b"\xff" * 100_000, b'{"run": "this"}'])
async def test_a_hint_is_passed_on_whatever_it_says(
    broker, start_front_end, updater, topic, payload
):
    client = TestClient(broker.port)
    await start_front_end(broker, pass_hint_on=updater.hear)

    client.publish(topic, payload)
    client.close()

    await eventually(lambda: len(updater.hints) == 1)


async def test_every_appliance_hears_a_hint_at_any(broker, start_front_end, connect):
    left, right = Updater(), Updater()
    await start_front_end(broker, device_id="left", pass_hint_on=left.hear)
    await start_front_end(broker, device_id="right", pass_hint_on=right.hear)

    connect().publish(ANY_HINT)

    await eventually(lambda: left.hints and right.hints)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_retained_hint_reaches_one_that_was_off(
    broker, start_front_end, connect, updater, protocol
):
    connect().publish(ANY_HINT, b"look", retain=True)

    await start_front_end(broker, pass_hint_on=updater.hear, protocol=protocol)

    await eventually(lambda: len(updater.hints) == 1)


async def test_a_retained_request_is_still_ignored(broker, start_front_end, connect, picture):
    client = connect()
    client.subscribe("inferd/box-1/models/fashion/result")
    client.publish("inferd/box-1/models/fashion/predict", picture, retain=True)
    await start_front_end(broker, protocol="3.1.1")

    client.publish("inferd/box-1/models/fashion/predict", b'{"id": "fresh", "data_b64": ""}')

    assert (await client.anext()).json["id"] == "fresh"


async def test_a_thousand_hints_are_one_a_second_and_the_last_is_not_forgotten(
    broker, start_front_end, connect, updater
):
    await start_front_end(broker, pass_hint_on=updater.hear)
    client = connect()
    for _ in range(1000):
        client.publish(HINT, b"x" * 100, wait=False)
    await eventually(lambda: len(updater.hints) >= 2)

    heard = updater.hints
    assert all(later - earlier > 0.9 for earlier, later in itertools.pairwise(heard))


async def test_hints_that_reach_nobody_are_told_once_and_then_forgotten(
    broker, start_front_end, connect, updater, caplog
):
    updater.is_there = False
    await start_front_end(broker, pass_hint_on=updater.hear)
    client = connect()
    for number in range(1, 4):
        client.publish(HINT)
        await eventually(lambda number=number: updater.missed == number)

    updater.is_there = True
    client.publish(HINT)

    await eventually(lambda: len(updater.hints) == 1)
    assert caplog.text.count("a hint at updates reached nobody") == 1


async def test_without_an_updater_hints_are_not_even_subscribed_to(broker, start_front_end):
    await start_front_end(broker)

    assert not any("updates/refresh" in line for line in broker.lines)


# The state.


def report(state, reason=""):
    return {
        "models": [{"model": "fashion", "state": state, "version": 2, "reason": reason}],
        "checked_at": time.time(),
    }


async def next_updates(client):
    while (updates := (await client.anext()).json["updates"]) is None:
        pass
    return updates["models"][0]


async def test_the_state_follows_what_the_updater_says(broker, start_front_end, connect):
    board = UpdateBoard()
    client = connect()
    client.subscribe("inferd/box-1/state")
    await start_front_end(broker, updates=board)
    before = (await client.anext()).json["updates"]

    board.adopt(report("DOWNLOADING", "1 of 40 MB"))
    first = await next_updates(client)
    board.adopt(report("PROBATION"))
    second = await next_updates(client)

    assert before is None
    assert first == {
        "model": "fashion",
        "state": "DOWNLOADING",
        "version": 2,
        "reason": "1 of 40 MB",
    }
    assert second["state"] == "PROBATION"


async def test_a_broker_that_was_away_learns_the_state_of_updates(
    tmp_path, start_front_end, updater
):
    broker = Broker(tmp_path)
    board = UpdateBoard()
    board.adopt(report("PROBATION"))
    await start_front_end(broker, await_connection=False, updates=board, pass_hint_on=updater.hear)

    await asyncio.to_thread(broker.start)
    client = TestClient(broker.port)
    client.subscribe("inferd/box-1/state")

    assert json.loads((await client.anext()).payload)["updates"]["models"][0]["version"] == 2
    client.close()
    await asyncio.to_thread(broker.stop)
