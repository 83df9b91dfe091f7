"""The express lane is not to be seen: framing, pipelining, limits and ends are the ordinary way's.

Which way a request went is told by aiohttp's own count, see `support/lane.py`.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from email.utils import parsedate_to_datetime

import pytest
import pytest_asyncio
from support import tflite_builder
from support.daemon import running_daemon
from support.eventually import eventually
from support.lane import (
    HEADER,
    ask,
    floats,
    head_bytes,
    infer,
    outputs_of,
    receive,
    receive_all,
    running_lane,
    unknown,
)
from support.rest import get, head, post
from support.workers import paused_workers

from daemon.rest.express import MAX_BODY_BYTES

ASK = infer()
HEAD, BODY = ASK[: head_bytes(ASK)], ASK[head_bytes(ASK) :]
ROWS = 8000
LARGE = infer(bytes(ROWS * 16), b"", headers={HEADER: "0"})
"""128 KB there and back: the input is the whole body, its JSON has no bytes."""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "scale.tflite"
    path.write_bytes(tflite_builder.scale())
    async with running_daemon([path]) as daemon:
        yield daemon


@pytest_asyncio.fixture(loop_scope="module")
async def lane(daemon):
    async with running_lane(daemon) as lane:
        yield lane


async def the_only(lane):
    """The server's end of the only connection there is."""
    await eventually(lambda: len(lane.connections) == 1)
    return lane.connections[0]


class TestAnswers:
    @pytest.mark.parametrize("local", [False, True], ids=["tcp", "unix"])
    async def test_later_ones_on_a_kept_connection_equal_the_first(self, lane, local):
        client = await lane.connect(local=local)

        first, *later = [await ask(client, ASK) for _ in range(5)]

        assert first.status_line == "HTTP/1.1 200 OK"
        assert outputs_of([first]) == [[2, 4, 6, 8]]
        assert later == [first] * 4
        assert lane.ordinary == 1

    async def test_other_numbers_under_the_same_head_get_their_own_answer(self, lane):
        client = await lane.connect()

        answers = [await ask(client, infer(floats(n, 0, 0, n))) for n in range(4)]

        assert outputs_of(answers) == [[2 * n, 0, 0, 2 * n] for n in range(4)]
        assert lane.ordinary == 1

    async def test_what_one_connection_taught_holds_for_another(self, lane):
        first = await lane.teach(ASK)

        assert await lane.ask(ASK) == first
        assert lane.ordinary == 1

    async def test_the_date_is_that_of_the_answer(self, lane):
        await lane.teach(ASK)
        client = await lane.connect()
        dates = set()
        while len(dates) < 2:
            before = int(time.time())
            date = parsedate_to_datetime((await client.ask(ASK)).headers["date"])
            assert before <= date.timestamp() <= time.time()
            dates.add(date)

        assert lane.ordinary == 1

    async def test_a_large_one_is_whole(self, lane):
        first = await lane.teach(LARGE)

        assert await lane.ask(LARGE) == first
        assert len(first.body) > ROWS * 16
        assert lane.ordinary == 1

    @pytest.mark.parametrize(
        "raw",
        [
            ASK.replace(b"/v2", b"http://localhost/v2", 1),
            ASK.replace(b"Host: localhost", b"hOsT:\tlocalhost\t", 1),
            b"\r\n" + ASK,
            b"\n" + ASK,
            infer(headers={"Accept-Encoding": "identity, gzip;q=0"}),
            infer(headers={"Connection": "keep-alive"}),
            infer(headers={"Origin": "http://localhost"}),
            infer(headers={"X-Latin": "\xe4\xf6\xfc"}),
            ASK.replace(b"Content-Length: ", b"Content-Length: 000", 1),
            ASK.replace(b"/scale/", b"/%73cale/", 1).replace(b"/infer", b"/infer?a=b", 1),
        ],
        ids=[
            "absolute target",
            "odd spelling",
            "empty line before",
            "bare line feed before",
            "no compression wanted",
            "keep-alive",
            "a page of this server",
            "not ASCII",
            "length with zeros",
            "escaped path",
        ],
    )
    async def test_any_head_that_was_answered_well_is_known_by_its_bytes(self, lane, raw):
        client = await lane.connect()

        first, *later = [await ask(client, raw) for _ in range(3)]

        assert first.status == 200
        assert later == [first] * 2
        assert lane.ordinary == 1


class TestWhatIsNeverKnown:
    @pytest.mark.parametrize(
        "raw",
        [
            ASK.replace(b"HTTP/1.1", b"HTTP/1.0", 1),
            ASK.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n", 1),
            infer(headers={"Connection": "close"}),
            infer(headers={"Connection": "Upgrade", "Upgrade": "websocket"}),
            infer(headers={"Connection": "Upgrade", "Upgrade": "h2c"}),
            infer(headers={"Accept-Encoding": "gzip"}),
            infer(headers={"X-Long": "a" * 4096}),
            infer(bytes(MAX_BODY_BYTES), b"", headers={HEADER: "0"})[:-16].replace(
                b"Content-Length: 1048576", b"Content-Length: 1048560", 1
            ),
            infer(bytes(MAX_BODY_BYTES + 16), b"", headers={HEADER: "0"}),
            b"\r\n\r\n" + ASK,
            ASK + b"\r\n",
        ],
        ids=[
            "HTTP/1.0",
            "HTTP/1.0 kept",
            "close",
            "WebSocket",
            "HTTP/2",
            "gzip wanted",
            "long head",
            "large answer",
            "large body",
            "empty lines before",
            "empty line behind",
        ],
    )
    async def test_a_head_of_which_more_hangs_than_its_bytes(self, lane, raw):
        first, *later = [await lane.ask(raw) for _ in range(3)]

        assert first.status == 200
        assert later == [first] * 2
        assert lane.ordinary == 3

    async def test_a_compressed_body(self, lane):
        packed = gzip.compress(BODY)
        length = HEAD.split(HEADER.encode() + b": ")[1].split(b"\r\n")[0].decode()
        raw = post(
            "/v2/models/scale/infer", packed, headers={HEADER: length, "Content-Encoding": "gzip"}
        )

        answers = [await lane.ask(raw) for _ in range(3)]

        assert answers == [await lane.ask_ordinarily(ASK)] * 3
        assert lane.ordinary == 4

    async def test_a_chunked_body(self, lane):
        chunked = HEAD.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked")
        raw = chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

        answers = [await lane.ask(raw) for _ in range(3)]

        assert answers == [await lane.ask_ordinarily(ASK)] * 3
        assert lane.known == 1

    @pytest.mark.parametrize("together", [True, False])
    async def test_a_client_that_asks_before_it_sends(self, lane, together):
        raw = infer(headers={"Expect": "100-continue"})
        for _ in range(3):
            client = await lane.connect()
            await client.send(raw if together else raw[: head_bytes(raw)])
            assert (await receive(client)).status == 100
            if not together:
                await client.send(raw[head_bytes(raw) :])
            assert await receive(client) == await lane.ask_ordinarily(ASK)

        assert lane.known == 3  # those of the ordinary ones

    @pytest.mark.parametrize(
        "lines",
        [
            b"Content-Length: %d\r\n" % len(BODY),
            b"Content-Length: 3\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: identity\r\n",
            b"Transfer-Encoding:\x0bchunked\r\n",
            b"X: a\r\n folded\r\n",
            b"X: a\0b\r\n",
            b"X : a\r\n",
            b"X: a\n",
            b"\n",
            b"Host: evil.example\r\n",
            b"Origin: http://evil.example\r\n",
        ],
    )
    async def test_a_head_that_was_refused(self, lane, lines):
        line, rest = ASK.split(b"\r\n", 1)
        raw = b"%b\r\n%b%b" % (line, lines, rest)
        if lines.startswith(b"Host"):
            raw = raw.replace(b"Host: localhost\r\n", b"", 1)

        answers = [await lane.ask(raw) for _ in range(2)]

        assert {answer.status for answer in answers} <= {400, 403}
        assert lane.known == 0
        assert lane.ordinary == 2

    async def test_one_of_the_unix_socket_is_unknown_to_the_network(self, lane):
        raw = ASK.replace(b"Host: localhost", b"Host: evil.example", 1)
        for _ in range(2):
            await lane.teach(raw, local=True)
        assert lane.ordinary == 1

        assert (await lane.ask(raw)).status == 403
        assert lane.ordinary == 2

    async def test_one_of_the_network_is_unknown_to_the_unix_socket(self, lane):
        await lane.teach(ASK)

        await lane.teach(ASK, local=True)

        assert lane.ordinary == 2


class TestPieces:
    async def test_a_request_may_be_cut_anywhere(self, lane):
        first = await lane.teach(ASK)
        expected = lane.ordinary
        for cut in range(1, len(ASK)):
            client = await lane.connect()
            await client.send(ASK[:cut])
            await lane.turn()
            expected += 1

            assert await ask(client, ASK[cut:]) == first
            expected += cut < len(HEAD)
            assert lane.ordinary == expected
            await client.close()

    async def test_a_body_may_come_byte_by_byte(self, lane):
        first = await lane.teach(ASK)
        before = lane.ordinary
        client = await lane.connect()

        for start in range(len(HEAD), len(ASK)):
            await client.send(ASK[start - 1 : start] if start > len(HEAD) else HEAD)
            await lane.turn()

        assert await ask(client, ASK[-1:]) == first
        assert lane.ordinary == before + len(BODY)  # only those of `turn`

    async def test_a_head_may_come_byte_by_byte(self, lane):
        first = await lane.teach(ASK)
        client = await lane.connect()

        for place in range(len(ASK) - 1):
            await client.send(ASK[place : place + 1])
            await lane.turn()

        assert await ask(client, ASK[-1:]) == first

    @pytest.mark.parametrize("cut", [1, 3, 50, len(HEAD) - 1])
    async def test_a_head_in_pieces_teaches_nothing(self, lane, cut):
        client = await lane.connect()
        await client.send(ASK[:cut])
        await lane.turn()

        assert (await ask(client, ASK[cut:])).status == 200
        assert lane.known == 0

    async def test_a_body_in_pieces_teaches_the_head(self, lane):
        client = await lane.connect()
        await client.send(HEAD)
        await lane.turn()
        first = await ask(client, BODY)
        before = lane.ordinary

        assert await ask(client, ASK) == first
        assert lane.ordinary == before

    async def test_after_a_head_in_pieces_all_is_answered(self, lane):
        client = await lane.connect()
        first = await ask(client, ASK)
        await client.send(ASK[:20])
        await lane.turn()

        later = [await ask(client, raw) for raw in (ASK[20:], ASK, ASK)]

        assert later == [first] * 3


class TestSlowBodies:
    @pytest_asyncio.fixture(loop_scope="module")
    async def hasty(self, daemon):
        async with running_lane(daemon, header_timeout_s=0.2, body_timeout_s=0.2) as lane:
            await lane.teach(ASK)
            yield lane

    async def test_one_that_does_not_arrive_in_time_is_refused(self, hasty):
        client = await hasty.connect()
        await client.send(ASK[:-1])

        answer = await receive(client)

        assert answer == await self._refused_ordinarily(hasty)
        assert answer.status == 408
        assert await receive_all(client) == b""
        assert hasty.requests("bad_request") == 2

    async def test_one_that_drips_is_refused_and_leaves_nothing(self, hasty):
        client = await hasty.connect()
        dripping = asyncio.create_task(self._drip(client))

        answer = await receive(client)
        dripping.cancel()

        assert answer.status == 408
        await client.close()
        await eventually(lambda: hasty.connections == [])
        assert hasty.target().gate.pending == 0
        assert hasty.server.context.bodies.used_bytes == 0

    async def test_one_that_never_comes_is_counted_as_ordinarily(self, hasty):
        for raw in (ASK, unknown(ASK)):
            client = await hasty.connect()
            await client.send(raw[:-1])
            await hasty.turn()
            await client.close()

        await eventually(lambda: hasty.requests("cancelled") == 2)
        assert hasty.connections == []

    @staticmethod
    async def _refused_ordinarily(lane):
        client = await lane.connect()
        return await ask(client, unknown(ASK)[:-1])

    @staticmethod
    async def _drip(client):
        client.writer.write(HEAD)
        for place in range(len(BODY)):
            client.writer.write(BODY[place : place + 1])
            await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0.05)


class TestPipelining:
    @pytest.mark.parametrize("times", [2, 3, 50])
    async def test_requests_in_one_packet_are_answered_in_order(self, lane, times):
        await lane.teach(ASK)
        client = await lane.connect()

        await client.send(b"".join(infer(floats(n, n, n, n)) for n in range(times)))
        answers = [await receive(client) for _ in range(times)]

        assert outputs_of(answers) == [[2 * n] * 4 for n in range(times)]

    @pytest.mark.parametrize("cut", [1, len(HEAD), len(HEAD) + 1, len(ASK) - 1, len(ASK)])
    async def test_what_comes_while_an_answer_is_due_waits_for_it(self, lane, cut):
        await lane.teach(ASK)
        before = lane.ordinary
        client = await lane.connect()
        second = infer(floats(7, 7, 7, 7))
        with paused_workers():
            await client.send(ASK)
            await eventually(lambda: lane.target().gate.pending == 1)
            await client.send(second[:cut])
            await lane.turn()
            assert lane.ordinary == before + 1

        answers = [await receive(client)]
        await client.send(second[cut:])
        answers.append(await receive(client))

        assert outputs_of(answers) == [[2, 4, 6, 8], [14] * 4]

    async def test_much_that_comes_while_an_answer_is_due_is_bounded_and_not_lost(self, lane):
        await lane.teach(ASK)
        await lane.teach(LARGE)
        client = await lane.connect()
        times = 40  # 5 MB
        with paused_workers():
            await client.send(ASK)
            await eventually(lambda: lane.target().gate.pending == 1)
            client.writer.write(LARGE * times)
            await lane.turn()
            await lane.turn()
            (connection,) = [c for c in lane.connections if c._errand is not None]
            assert 0 < sum(map(len, connection._held_back)) <= 1024 * 1024

        answers = [await receive(client) for _ in range(1 + times)]

        assert outputs_of(answers[:1]) == [[2, 4, 6, 8]]
        assert answers[1:] == [await lane.ask(LARGE)] * times

    async def test_requests_that_come_one_by_one_before_their_turn_all_take_the_lane(self, lane):
        await lane.teach(ASK)
        client = await lane.connect()
        times = 100
        with paused_workers():
            for number in range(times):
                await client.send(infer(floats(number, 0, 0, 0)))
                await lane.turn()
            (connection,) = [c for c in lane.connections if c._errand is not None]
            assert len(connection._held_back) <= 16

        answers = [await receive(client) for _ in range(times)]

        assert [row[0] for row in outputs_of(answers)] == [2 * n for n in range(times)]

    async def test_a_get_between_two_posts(self, lane):
        client = await lane.connect()

        answers = [await ask(client, raw) for raw in (ASK, get("/healthz"), ASK, ASK)]

        assert [answer.status for answer in answers] == [200] * 4
        assert answers[2:] == [answers[0]] * 2
        assert lane.ordinary == 2

    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            (ASK.replace(b"/scale/", b"/nobody/", 1), 404),
            (ASK.replace(b"FP32", b"INT8", 1), 400),
            (post("/nowhere", b"abc"), 404),
            (head("DELETE", "/v2/models/scale/infer", {}), 405),
        ],
    )
    async def test_an_error_between_two_express_ones(self, lane, raw, status):
        client = await lane.connect()

        answers = [await ask(client, given) for given in (ASK, ASK, raw, ASK, ASK)]

        assert [answer.status for answer in answers] == [200, 200, status, 200, 200]
        assert lane.ordinary == 2

    async def test_nothing_is_begun_behind_a_request_that_closes(self, lane):
        await lane.teach(ASK)
        client = await lane.connect()
        connection = await the_only(lane)

        await client.send(infer(headers={"Connection": "close"}))
        await receive(client)

        assert not connection._is_between
        assert await client.is_closed_by_server()


class TestLeaving:
    @pytest.mark.parametrize("behind", [b"", b"P", ASK[:-1], ASK], ids=["", "byte", "most", "all"])
    async def test_a_client_that_leaves_frees_its_place_and_is_counted(self, lane, behind):
        await lane.teach(ASK)
        target = lane.target()
        failures = target.counters.failures
        client = await lane.connect()
        with paused_workers():
            await client.send(ASK)
            await eventually(lambda: target.gate.pending == 1)
            await client.send(behind)
            await lane.turn()
            await client.close()
            await eventually(lambda: target.gate.pending == 0)

            assert lane.requests("cancelled") == 1
            assert lane.connections == []
            assert target.dispatcher._running == set()

        assert target.counters.failures == failures + 1
        assert await lane.ask(ASK) == await lane.ask_ordinarily(ASK)

    async def test_a_client_that_leaves_does_not_hold_up_an_unload(self, lane, caplog):
        await lane.teach(ASK)
        gate = lane.target().gate
        client = await lane.connect()
        with paused_workers():
            await client.send(ASK)
            await eventually(lambda: gate.pending == 1)
            unloading = asyncio.create_task(lane.daemon.service.unload("scale"))
            await client.close()
            await eventually(lambda: gate.pending == 0)
        await unloading
        await lane.daemon.service.load("scale")

        assert "requests under way" not in caplog.text

    async def test_one_that_is_under_way_when_the_model_is_unloaded_is_answered(self, lane):
        first = await lane.teach(ASK)
        client = await lane.connect()
        with paused_workers():
            await client.send(ASK)
            await eventually(lambda: lane.target().gate.pending == 1)
            unloading = asyncio.create_task(lane.daemon.service.unload("scale"))
            await lane.turn()
            assert (await lane.ask(ASK)).status == 503

        assert await receive(client) == first
        await unloading
        await lane.daemon.service.load("scale")

    async def test_a_client_that_takes_no_answer_is_cut_off_and_costs_little(self, daemon):
        async with running_lane(daemon, header_timeout_s=0.1, body_timeout_s=0.2) as lane:
            await lane.teach(LARGE)
            counters = lane.target().counters
            client = await lane.connect()
            connection = await the_only(lane)
            transport = connection.transport
            client.writer.transport.pause_reading()
            most = 0
            while connection in lane.connections:
                done = counters.successes
                client.writer.write(LARGE)
                await eventually(
                    lambda done=done: (
                        counters.successes > done
                        or connection not in lane.connections
                        or connection._paused
                    )
                )
                most = max(most, transport.get_write_buffer_size())
                await lane.turn()

            assert 64 * 1024 < most < 4 * len(LARGE)
            assert lane.target().gate.pending == 0


class TestConnections:
    async def test_an_idle_one_is_ended_and_a_busy_one_is_not(self, daemon):
        async with running_lane(daemon, keepalive_timeout_s=0.2, header_timeout_s=0.1) as lane:
            first = await lane.teach(ASK)
            idle, busy = await lane.connect(), await lane.connect()
            assert await ask(idle, ASK) == first
            with paused_workers():
                await busy.send(ASK)

                assert await idle.is_closed_by_server()
                again = await lane.connect()
                await lane.turn()
                assert await again.is_closed_by_server()

            assert await receive(busy) == first
            assert await busy.is_closed_by_server()

    async def test_an_idle_one_outlives_the_time_for_a_head(self, daemon):
        async with running_lane(daemon, header_timeout_s=0.1) as lane:
            client = await lane.connect()
            first = [await ask(client, ASK) for _ in range(2)]
            silent = await lane.connect()
            assert await silent.is_closed_by_server()
            silent = await lane.connect()
            assert await silent.is_closed_by_server()

            assert [await ask(client, ASK)] * 2 == first

    @pytest.mark.parametrize("sent", [len(ASK), len(ASK) - 1, len(HEAD)])
    async def test_idle_ones_make_room_and_busy_ones_do_not(self, daemon, sent):
        async with running_lane(daemon, max_connections=2) as lane:
            first = await lane.teach(ASK)
            idle, busy = await lane.connect(), await lane.connect()
            await ask(idle, ASK)
            with paused_workers():
                await busy.send(ASK[:sent])
                await eventually(lambda: any(c.is_busy for c in lane.connections))
                newcomer = await lane.connect()
                await newcomer.send(ASK)
                assert await idle.is_closed_by_server()
                await eventually(lambda: all(c.is_busy for c in lane.connections))
                refused = await lane.connect()
                before = lane.counts()

                answer = await ask(refused, ASK)

                assert answer.status == 503
                assert await refused.is_closed_by_server()
                assert lane.counts() == before
            await busy.send(ASK[sent:])

            assert [await receive(newcomer), await receive(busy)] == [first] * 2

    async def test_stopping_lets_one_under_way_finish(self, lane):
        first = await lane.teach(ASK)
        client = await lane.connect()
        with paused_workers():
            await client.send(ASK)
            await eventually(lambda: lane.target().gate.pending == 1)
            await client.send(ASK)
            await lane.turn()
            stopping = asyncio.create_task(lane.server.server.stop(grace_s=30))
            await eventually(lambda: lane.network.is_draining)

        answer = await receive(client)

        assert "Connection: close" in answer.headers
        assert answer.without("Connection: close") == first
        assert await receive_all(client) == b""
        await stopping

    @pytest.mark.parametrize("cut", [len(HEAD), len(HEAD) + 10, len(ASK) - 1])
    async def test_stopping_lets_one_finish_whose_body_still_arrives(self, lane, cut):
        first = await lane.teach(ASK)
        client = await lane.connect()
        await client.send(ASK[:cut])
        await lane.turn()
        stopping = asyncio.create_task(lane.server.server.stop(grace_s=30))
        await eventually(lambda: lane.network.is_draining)

        answer = await ask(client, ASK[cut:])

        assert "Connection: close" in answer.headers
        assert answer.without("Connection: close") == first
        await stopping

    async def test_stopping_cuts_off_what_outlives_the_grace(self, lane):
        await lane.teach(ASK)
        under_way, arriving = await lane.connect(), await lane.connect()
        with paused_workers():
            await under_way.send(ASK)
            await arriving.send(ASK[:-1])
            await eventually(lambda: lane.target().gate.pending == 1)

            await lane.server.server.stop(grace_s=0.1)

            assert await under_way.is_closed_by_server()
            assert await arriving.is_closed_by_server()
            await eventually(lambda: lane.target().gate.pending == 0)
        assert lane.requests("cancelled") == 2


async def test_many_different_heads_take_bounded_memory(lane):
    client = await lane.connect()
    for number in range(300):
        await ask(client, infer(headers={"X-Number": str(number)}))

    assert lane.known == 256
    assert lane.ordinary == 300
    assert await ask(client, infer(headers={"X-Number": "299"})) == await ask(client, ASK)
    assert lane.ordinary == 301
