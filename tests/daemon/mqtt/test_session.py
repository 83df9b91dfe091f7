"""The session comes back for ever, and tells the event loop everything once and in order."""

import asyncio
import gc
import os
import socket
import subprocess
from contextlib import asynccontextmanager

import pytest
from support.certificates import Authority
from support.mosquitto import Broker, running_broker
from support.mqtt_client import TestClient

from daemon.mqtt.connection import SessionSettings, Will
from daemon.mqtt.messages import Publication, Receipt, ReceiptKind
from daemon.mqtt.session import Session

pytestmark = pytest.mark.broker

WAIT_S = 20


class Recorder:
    """Events, as a queue of tuples."""

    def __init__(self):
        self.events = asyncio.Queue()

    def on_connected(self, connection, limits):
        self.events.put_nowait(("connected", connection, limits))

    def on_disconnected(self, connection, reason):
        self.events.put_nowait(("disconnected", connection, reason))

    def on_unreachable(self, reason):
        self.events.put_nowait(("unreachable", reason))

    def on_delivery(self, delivery):
        self.events.put_nowait(("delivery", delivery))

    def on_published(self, connection, token, receipt):  # noqa: ARG002 (the protocol)
        self.events.put_nowait(("published", token, receipt))

    async def next(self, kind):
        """The next event, which must be of this kind."""
        event = await asyncio.wait_for(self.events.get(), WAIT_S)
        assert event[0] == kind, event
        return event[1:]

    async def until(self, kind):
        """The next event of this kind, past others."""
        while True:
            event = await asyncio.wait_for(self.events.get(), WAIT_S)
            if event[0] == kind:
                return event[1:]


def _settings(port, **changes):
    facts = {
        "host": "127.0.0.1",
        "port": port,
        "client_id": "inferd-test",
        "mqtt5": True,
        "keepalive_s": 10,
        "will": Will("will", b"gone"),
        "subscriptions": ("in/+",),
        "receive_maximum": 5,
        "max_payload_bytes": 100_000,
        "backoff_first_s": 0.01,
        "backoff_most_s": 0.05,
    }
    return SessionSettings(**{**facts, **changes})


@asynccontextmanager
async def _session(port, **changes):
    recorder = Recorder()
    session = Session(_settings(port, **changes), recorder)
    session.start()
    try:
        yield session, recorder
    finally:
        await session.stop(WAIT_S)


@pytest.mark.parametrize("mqtt5", [True, False])
async def test_a_message_arrives_and_an_answer_leaves(broker, connect, mqtt5):
    client = connect()
    client.subscribe("out")
    async with _session(broker.port, mqtt5=mqtt5) as (session, recorder):
        (number, _) = await recorder.next("connected")
        await asyncio.to_thread(broker.wait_for_log, "SUBACK to inferd-test")
        client.publish("in/a", b"question")
        (delivery,) = await recorder.next("delivery")

        session.publish(number, 7, Publication("out", b"answer"))
        session.acknowledge(delivery)

        assert (delivery.topic, delivery.payload, delivery.qos) == ("in/a", b"question", 1)
        assert await recorder.next("published") == (7, Receipt(ReceiptKind.TAKEN))
        assert (await client.anext()).payload == b"answer"


async def test_mqtt5_properties_cross_both_ways(broker, connect):
    client = connect()
    client.subscribe("out")
    async with _session(broker.port) as (session, recorder):
        (number, _) = await recorder.next("connected")
        await asyncio.to_thread(broker.wait_for_log, "SUBACK to inferd-test")
        client.publish(
            "in/a",
            b"q",
            response_topic="r",
            correlation=b"\0c",
            content_type="image/jpeg",
            expiry_s=60,
            user=[("k", "v"), ("k", "w")],
        )
        (delivery,) = await recorder.next("delivery")
        session.publish(number, 1, Publication("out", b"a", correlation=b"\0c"))

        assert delivery.response_topic == "r"
        assert delivery.correlation == b"\0c"
        assert delivery.content_type == "image/jpeg"
        assert 58 <= delivery.expiry_s <= 60
        assert delivery.properties == (("k", "v"), ("k", "w"))
        answer = await client.anext()
        assert (answer.correlation, answer.content_type) == (b"\0c", "application/json")


async def test_a_byte_order_mark_in_a_property_breaks_nothing(broker, connect):
    async with _session(broker.port) as (_, recorder):
        await recorder.next("connected")
        await asyncio.to_thread(broker.wait_for_log, "SUBACK to inferd-test")
        connect().publish("in/a", b"q", user=[("k", "\ufeffv")])

        (delivery,) = await recorder.next("delivery")

    assert delivery.properties == (("k", "\ufeffv"),)


async def test_unacknowledged_messages_wait_at_the_broker(broker, connect):
    client = connect()
    async with _session(broker.port, receive_maximum=3) as (session, recorder):
        await recorder.next("connected")
        await asyncio.to_thread(broker.wait_for_log, "SUBACK to inferd-test")
        for number in range(5):
            client.publish("in/a", str(number).encode())
        first = [(await recorder.next("delivery"))[0] for _ in range(3)]
        # The broker has all five by now; a ping answered shows that it has nothing more for us.
        assert recorder.events.empty()

        for delivery in first[1:]:
            session.acknowledge(delivery)
        session.acknowledge(first[0])

        rest = [(await recorder.next("delivery"))[0] for _ in range(2)]
        assert [d.payload for d in (*first, *rest)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_broker_that_comes_back_is_found_and_subscribed_to_again(broker, connect):
    async with _session(broker.port) as (_, recorder):
        (first, _) = await recorder.next("connected")
        await asyncio.to_thread(broker.stop)
        await recorder.next("disconnected")
        mark = len(broker.lines)
        await asyncio.to_thread(broker.start)
        (second, _) = await recorder.until("connected")
        await asyncio.to_thread(broker.wait_for_log, "SUBACK to inferd-test", after=mark)

        connect().publish("in/a", b"again")

        assert second > first
        assert (await recorder.next("delivery"))[0].payload == b"again"


async def test_a_broker_that_is_away_at_the_start_is_waited_for(tmp_path):
    broker = Broker(tmp_path)
    async with _session(broker.port) as (_, recorder):
        assert await recorder.next("unreachable") == (
            f"the broker at 127.0.0.1:{broker.port} refused the connection: is it running?",
        )
        await asyncio.to_thread(broker.start)
        await recorder.until("connected")
    await asyncio.to_thread(broker.stop)


async def test_a_host_that_does_not_exist_is_unreachable(broker):
    async with _session(broker.port, host="no-such-host.invalid") as (_, recorder):
        (reason,) = await recorder.next("unreachable")
        assert f"no-such-host.invalid:{broker.port} cannot be resolved: " in reason


async def test_a_port_where_nobody_speaks_mqtt_is_given_up_and_tried_again():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        async with _session(deaf.getsockname()[1]) as (_, recorder):
            for _ in range(2):
                caller, _ = await asyncio.to_thread(deaf.accept)
                caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                caller.close()
                await recorder.next("unreachable")


async def test_broken_packets_end_the_connection_and_not_the_session():
    with socket.create_server(("127.0.0.1", 0)) as liar:
        async with _session(liar.getsockname()[1]) as (_, recorder):
            caller, _ = await asyncio.to_thread(liar.accept)
            await asyncio.to_thread(caller.recv, 65536)
            caller.sendall(b"\x20\x03\x00\x00\x00")  # CONNACK
            await recorder.next("connected")
            caller.sendall(b"\x32\x02\xff\xff")  # a PUBLISH that ends in its topic
            await recorder.next("disconnected")
            caller.close()
            again, _ = await asyncio.to_thread(liar.accept)
            again.close()
            await recorder.next("unreachable")


async def test_a_good_stop_publishes_no_will(broker, connect):
    client = connect()
    client.subscribe("will")
    client.subscribe("end")
    async with _session(broker.port) as (_, recorder):
        await recorder.next("connected")

    client.publish("end")
    assert (await client.anext()).topic == "end"


async def test_commands_for_a_connection_that_is_gone_are_dropped(broker, connect):
    client = connect()
    client.subscribe("out")
    async with _session(broker.port) as (session, recorder):
        (number, _) = await recorder.next("connected")
        session.publish(number - 1, 1, Publication("out", b"stale"))
        session.publish(number, 2, Publication("out", b"fresh"))

        assert await recorder.next("published") == (2, Receipt(ReceiptKind.TAKEN))
        assert (await client.anext()).payload == b"fresh"


async def test_retained_messages_are_not_sent_to_mqtt5_and_marked_in_3_1_1(broker, connect):
    connect().publish("in/a", b"old", retain=True)
    async with _session(broker.port, mqtt5=False) as (_, recorder):
        await recorder.next("connected")
        assert (await recorder.next("delivery"))[0].retained
    async with _session(broker.port) as (_, recorder):
        await recorder.next("connected")
        await asyncio.to_thread(broker.wait_for_log, "SUBACK to inferd-test")
        connect().publish("in/b", b"new")
        assert (await recorder.next("delivery"))[0].payload == b"new"


async def test_the_brokers_largest_packet_is_told(tmp_path):
    with running_broker(tmp_path, "max_packet_size 5000") as broker:
        async with _session(broker.port) as (_, recorder):
            (_, limits) = await recorder.next("connected")
    assert limits.max_packet_bytes == 5000


def _make_user(users, name, password):
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(users), name, password], check=True)


async def test_a_wrong_password_is_said_and_the_right_one_is_read_anew(tmp_path):
    users = tmp_path / "users"
    _make_user(users, "box", "right")
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    options = ("allow_anonymous false", f"password_file {users}")
    with running_broker(tmp_path, *options) as broker:
        async with _session(broker.port, username="box", password_file=secret) as (_, recorder):
            (reason,) = await recorder.next("unreachable")
            secret.write_text("right\n")
            await recorder.until("connected")
    assert "Not authorized" in reason
    assert "wrong" not in reason


async def test_a_password_file_that_is_missing_is_said(tmp_path):
    async with _session(1, password_file=tmp_path / "absent") as (_, recorder):
        (reason,) = await recorder.next("unreachable")
    assert reason == f"{tmp_path}/absent cannot be read: No such file or directory"


@pytest.fixture
def authority(tmp_path):
    """Whom broker and session believe."""
    return Authority(tmp_path)


@pytest.fixture
def tls_options(authority):
    """What makes a broker speak TLS."""
    certificate, key = authority.issue("broker")
    return f"certfile {certificate}", f"keyfile {key}"


async def test_tls_is_verified_with_the_given_ca_and_large_messages_cross(
    tmp_path, authority, tls_options
):
    with running_broker(tmp_path, *tls_options) as broker:
        async with _session(
            broker.port, tls=True, ca_file=authority.file, subscriptions=("in/#",)
        ) as (session, recorder):
            (number, _) = await recorder.next("connected")
            await asyncio.to_thread(broker.wait_for_log, "SUBACK to inferd-test")
            for size in (1, 70_000, 99_000):
                session.publish(number, size, Publication("other", b"x" * size))
                assert await recorder.next("published") == (size, Receipt(ReceiptKind.UNHEARD))


async def test_a_broker_that_asks_is_shown_our_certificate(tmp_path, authority, tls_options):
    asking = (*tls_options, f"cafile {authority.file}", "require_certificate true")
    options = {"tls": True, "ca_file": authority.file}
    with running_broker(tmp_path, *asking) as broker:
        async with _session(broker.port, certificate=authority.issue("us"), **options) as (_, told):
            await told.next("connected")
        async with _session(broker.port, **options) as (_, told):
            (reason,) = await told.next("unreachable")
    # With TLS 1.3 our side is done before the broker misses a certificate: its reset may overtake
    # its alert, whose words are lost then.
    assert "certificate required" in reason or "reset" in reason


async def test_a_certificate_of_an_unknown_authority_is_refused_with_the_reason(
    tmp_path, tls_options
):
    with running_broker(tmp_path, *tls_options) as broker:
        async with _session(broker.port, tls=True) as (_, recorder):
            (reason,) = await recorder.next("unreachable")
    gc.collect()  # a socket that was left open would be a warning, and so an error
    told = f"the certificate of the broker at 127.0.0.1:{broker.port} was not accepted: "
    assert reason == told + "unable to get local issuer certificate"


async def test_a_session_that_another_client_of_its_name_throws_out_comes_back(broker):
    async with _session(broker.port) as (_, recorder):
        await recorder.next("connected")
        other = TestClient(broker.port, client_id="inferd-test")
        await recorder.next("disconnected")
        other.close()

        await recorder.until("connected")


CONNACK = b"\x20\x03\x00\x00\x00"
MESSAGE = b"\x30\x07\x00\x04in/a\x00"


@asynccontextmanager
async def _scripted_broker(talk):
    """Accepts one connection, reads its CONNECT and goes on as `talk(reader, writer)` says."""
    done = asyncio.Event()

    async def serve(reader, writer):
        await reader.read(1000)
        try:
            await talk(reader, writer)
            await done.wait()
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            done.set()


async def _until_payload(reader, payload):
    await asyncio.wait_for(reader.readuntil(payload), WAIT_S)


async def test_a_broker_that_does_not_read_gets_a_bounded_number_of_qos_0_messages():
    may_read = asyncio.Event()
    heard = asyncio.get_running_loop().create_future()

    async def talk(reader, writer):
        writer.write(CONNACK)
        await may_read.wait()
        reader._limit = 2**30
        await _until_payload(reader, b"the last one")
        heard.set_result(True)

    async with (
        _scripted_broker(talk) as port,
        _session(port, subscriptions=()) as (session, recorder),
    ):
        (number, _) = await recorder.next("connected")
        large = Publication("out", bytes(2**20), qos=0)
        taken = 0
        while session.publish_unconfirmed(number, large):
            taken += 1
            await asyncio.sleep(0)
        while not session.publish_unconfirmed(number, Publication("out", b"the last one", qos=0)):
            may_read.set()
            await asyncio.sleep(0)

        assert await asyncio.wait_for(heard, WAIT_S)
        assert 64 <= taken < 100  # 64 MiB here, some in the kernel


async def test_a_flood_leaves_others_their_turn():
    async def talk(_, writer):
        writer.write(CONNACK + MESSAGE * 1000)

    async with _scripted_broker(talk) as port, _session(port) as (_, recorder):
        await recorder.next("connected")
        at_once = []
        seen = recorder.events.qsize()
        while seen < 1000:
            await asyncio.sleep(0)
            at_once.append(recorder.events.qsize() - seen)
            seen += at_once[-1]

    assert max(at_once) <= 32  # 16 from the socket and 16 from what it had left


async def test_a_message_before_the_broker_has_accepted_us_is_none():
    async def talk(_, writer):
        writer.write(MESSAGE + CONNACK + MESSAGE.replace(b"in/a", b"in/b"))

    async with _scripted_broker(talk) as port, _session(port) as (_, recorder):
        await recorder.next("connected")
        (delivery,) = await recorder.next("delivery")

    assert delivery.topic == "in/b"


async def test_what_was_handed_in_before_the_stop_leaves_before_the_good_bye():
    heard = asyncio.get_running_loop().create_future()

    async def talk(reader, writer):
        writer.write(CONNACK)
        heard.set_result(await asyncio.wait_for(reader.read(), WAIT_S))

    async with _scripted_broker(talk) as port:
        async with _session(port, subscriptions=()) as (session, recorder):
            (number, _) = await recorder.next("connected")
            for each in range(3):
                session.publish(number, each + 1, Publication("out", b"result %d" % each))
        said = await heard

    assert [said.index(b"result %d" % each) for each in range(3)] == sorted(
        said.index(b"result %d" % each) for each in range(3)
    )
    assert said.endswith(b"\xe0\x00")  # DISCONNECT


async def test_a_stop_while_it_looks_the_broker_up_waits_for_nobody(tmp_path):
    pipe = tmp_path / "pipe"  # reading it waits for somebody who writes
    os.mkfifo(pipe)
    async with _session(1, password_file=pipe) as (_, recorder):
        await asyncio.sleep(0)

    assert recorder.events.empty()
    await asyncio.to_thread(pipe.write_bytes, b"")
