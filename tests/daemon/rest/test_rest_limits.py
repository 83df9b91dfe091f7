"""What a client can do to the HTTP front end: nothing that the next client would notice."""

from __future__ import annotations

import asyncio
import gzip
import logging
import zlib

import pytest
from support.eventually import eventually
from support.rest import ANSWER_TIMEOUT_S, Client, get, head, post, running_server

ANYTHING = "/api/models/nobody/predict"
"""A path that reads a body and then answers 404: whatever comes before proves a limit."""
TWO_GB = str(2 * 1024**3)
MIB = 1024 * 1024


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


async def test_two_gigabytes_are_refused_before_they_are_sent() -> None:
    async with running_server() as server:
        client = await server.connect()

        answer = await client.ask(head("POST", ANYTHING, {"Content-Length": TWO_GB}))

        assert answer.status == 413
        assert answer.document["unit"] == "bytes"
        assert answer.document["limit"] == 64 * MIB
        assert await client.is_closed_by_server()
        assert (await server.ask(get("/healthz"))).status == 200


async def test_a_client_that_asks_first_is_refused_without_continue() -> None:
    headers = {"Content-Length": TWO_GB, "Expect": "100-continue"}
    async with running_server() as server:
        answer = await server.ask(head("POST", ANYTHING, headers))

        assert answer.status == 413
        assert "larger" in answer.error


async def test_a_client_that_asks_first_is_told_to_continue() -> None:
    async with running_server() as server:
        client = await server.connect()

        first = await client.ask(
            head("POST", ANYTHING, {"Content-Length": "3", "Expect": "100-continue"})
        )
        second = await client.ask(b"abc")

        assert (first.status, second.status) == (100, 404)


async def test_an_unknown_expectation_is_refused() -> None:
    async with running_server() as server:
        answer = await server.ask(post(ANYTHING, b"abc", headers={"Expect": "a miracle"}))

        assert answer.status == 417
        assert "100-continue" in answer.error


async def test_a_chunked_body_is_read() -> None:
    request = head("POST", ANYTHING, {"Transfer-Encoding": "chunked"}) + chunked(b"ab", b"c")
    async with running_server() as server:
        assert (await server.ask(request)).status == 404


async def test_a_chunked_body_is_refused_when_it_passes_the_limit() -> None:
    async with running_server(max_body_mib=1) as server:
        client = await server.connect()
        await client.send(head("POST", ANYTHING, {"Transfer-Encoding": "chunked"}))

        await client.send(b"180000\r\n" + bytes(0x180000))  # 1.5 MiB, and no end
        answer = await client.receive()

        assert answer.status == 413


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    async with running_server(max_body_mib=1) as server:
        assert (await server.ask(post(ANYTHING, bytes(MIB)))).status == 404


async def test_a_body_one_byte_over_the_limit_is_refused() -> None:
    async with running_server(max_body_mib=1) as server:
        assert (await server.ask(post(ANYTHING, bytes(MIB + 1)))).status == 413


@pytest.mark.parametrize(
    "broken", [b"zz\r\nabc\r\n", b"-1\r\nabc\r\n", b"3\r\nabcdef\r\n0\r\n\r\n", b"\r\n"]
)
async def test_broken_chunks_are_malformed_and_end_the_connection(
    broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with running_server() as server:
        client = await server.connect()

        answer = await client.ask(head("POST", ANYTHING, {"Transfer-Encoding": "chunked"}) + broken)

        assert answer.status == 400
        assert answer.error
        assert await client.is_closed_by_server()
        assert caplog.records == []


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", gzip.compress(b"abc")),
        ("deflate", zlib.compress(b"abc")),
        ("deflate", zlib.compress(b"abc")[2:-4]),
        ("identity", b"abc"),
    ],
    ids=["gzip", "zlib", "raw deflate", "identity"],
)
async def test_a_compressed_body_is_read(coding: str, data: bytes) -> None:
    async with running_server() as server:
        answer = await server.ask(post(ANYTHING, data, headers={"Content-Encoding": coding}))

        assert answer.status == 404


@pytest.mark.parametrize(
    "data",
    [
        b"no gzip at all",
        gzip.compress(b"abc" * 1000)[:-10],
        gzip.compress(b"abc")[:10],
        gzip.compress(b"abc") + b"more",
        gzip.compress(b"abc")[:-5] + b"\0\0\0\0\0",
    ],
    ids=["garbage", "cut", "head only", "followed by more", "wrong checksum"],
)
async def test_wrong_gzip_is_malformed(data: bytes) -> None:
    async with running_server() as server:
        client = await server.connect()

        answer = await client.ask(post(ANYTHING, data, headers={"Content-Encoding": "gzip"}))

        assert answer.status == 400
        assert "compress" in answer.error or "Content-Encoding" in answer.error
        assert (await client.ask(get("/healthz"))).status == 200


async def test_a_gzip_bomb_is_refused_when_it_passes_the_limit() -> None:
    bomb = gzip.compress(bytes(200 * MIB), compresslevel=9)
    async with running_server(max_body_mib=1) as server:
        answer = await server.ask(post(ANYTHING, bomb, headers={"Content-Encoding": "gzip"}))

        assert answer.status == 413
        assert server.context.bodies.used_bytes == 0


async def test_an_unknown_content_encoding_is_unsupported() -> None:
    async with running_server() as server:
        answer = await server.ask(post(ANYTHING, b"abc", headers={"Content-Encoding": "br"}))

        assert answer.status == 415
        assert "gzip or deflate" in answer.error


async def test_a_body_that_does_not_arrive_in_time_is_refused() -> None:
    async with running_server(body_timeout_s=0.2) as server:
        client = await server.connect()

        answer = await client.ask(head("POST", ANYTHING, {"Content-Length": "10"}) + b"slow")

        assert answer.status == 408
        assert await client.is_closed_by_server()


async def test_a_head_that_does_not_arrive_in_time_ends_the_connection() -> None:
    async with running_server(header_timeout_s=0.2) as server:
        client = await server.connect()

        await client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")

        assert await client.is_closed_by_server()


async def test_a_head_that_drips_ends_the_connection() -> None:
    async with running_server(header_timeout_s=0.3) as server:
        client = await server.connect()
        dripping = asyncio.create_task(_drip(client.writer))

        assert await client.is_closed_by_server()
        dripping.cancel()


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
    while True:
        writer.write(b"a")
        await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0.02)


async def test_a_second_head_that_does_not_arrive_in_time_ends_the_connection() -> None:
    async with running_server(header_timeout_s=0.2) as server:
        client = await server.connect()
        first = await client.ask(get("/healthz"))

        await client.send(b"GET /healthz HTTP/1.1\r\n")

        assert first.status == 200
        assert await client.is_closed_by_server()


async def test_a_connection_that_sends_nothing_is_ended() -> None:
    async with running_server(header_timeout_s=0.2) as server:
        client = await server.connect()

        assert await client.is_closed_by_server()


async def test_an_idle_connection_outlives_the_head_timeout() -> None:
    async with running_server(header_timeout_s=0.1, keepalive_timeout_s=30) as server:
        client = await server.connect()
        first = await client.ask(get("/healthz"))

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.4)

        assert first.status == 200
        assert (await client.ask(get("/healthz"))).status == 200


async def test_an_idle_connection_ends_after_the_keepalive_timeout() -> None:
    async with running_server(keepalive_timeout_s=0.2) as server:
        client = await server.connect()
        answer = await client.ask(get("/healthz"))

        assert answer.status == 200
        assert await client.is_closed_by_server()


async def test_a_client_that_does_not_take_its_answers_is_cut_off() -> None:
    async with running_server(header_timeout_s=0.1, body_timeout_s=0.2) as server:
        client = await server.connect()
        client.writer.transport.pause_reading()

        client.writer.write(get("/openapi.json") * 2000)  # some 40 MB of answers
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while not client.writer.is_closing():
                client.writer.write(b"\r\n")
                await server.ask(get("/healthz"))

        assert (await server.ask(get("/healthz"))).status == 200


async def hold(server, *, times: int) -> list[Client]:
    """Connections with a request under way whose body is still arriving."""
    held = [await server.connect() for _ in range(times)]
    for client in held:
        await client.send(head("POST", ANYTHING, {"Content-Length": "8", "Expect": "100-continue"}))
        assert (await client.receive()).status == 100
    return held


async def test_one_connection_too_many_is_told_so_and_closed() -> None:
    async with running_server(max_connections=2) as server:
        held = await hold(server, times=2)

        client = await server.connect()
        refused = await client.ask(get("/healthz"))
        answers = [await client.ask(b"all of it"[:8]) for client in held]

        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert "connections" in refused.error
        assert await client.is_closed_by_server()
        assert [answer.status for answer in answers] == [404, 404]


async def test_the_connection_that_is_idle_for_longest_makes_room() -> None:
    async with running_server(max_connections=3) as server:
        first, second = await server.connect(), await server.connect()
        for client in (first, second, first):
            await client.ask(get("/healthz"))
        await hold(server, times=1)

        newcomer = await server.connect()
        answer = await newcomer.ask(get("/healthz"))

        assert answer.status == 200
        assert await second.is_closed_by_server()
        assert (await first.ask(get("/healthz"))).status == 200


async def test_connections_that_send_nothing_keep_nobody_out() -> None:
    async with running_server(max_connections=2) as server:
        silent = [await server.connect() for _ in range(2)]

        answer = await server.ask(get("/healthz"))

        assert answer.status == 200
        assert await silent[0].is_closed_by_server()


async def test_the_unix_socket_answers_when_the_network_is_full(tmp_path) -> None:
    async with running_server(tmp_path / "s", max_connections=1) as server:
        await hold(server, times=1)

        local = Client(*await asyncio.open_unix_connection(tmp_path / "s"))
        answer = await local.ask(get("/healthz"))
        await local.close()

        assert answer.status == 200
        assert (await server.ask(get("/healthz"))).status == 503


async def test_a_connection_that_ends_makes_room() -> None:
    async with running_server(max_connections=1) as server:
        first = await server.connect()
        await first.ask(get("/healthz", headers={"Connection": "close"}))
        assert await first.is_closed_by_server()

        assert (await server.ask(get("/healthz"))).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n",
        b"GET\r\n\r\n",
        b"BREW /coffee HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    ],
    ids=[
        "tls",
        "no path",
        "unknown method",
        "version",
        "long line",
        "long header",
        "many headers",
        "no colon",
        "negative length",
        "smuggling",
        "two lengths",
    ],
)
async def test_what_is_not_http_gets_json_400_and_no_log(
    raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with running_server() as server:
        client = await server.connect()

        answer = await client.ask(raw)

        assert answer.status == 400
        assert answer.error.startswith("not a valid HTTP request")
        assert await client.is_closed_by_server()
        assert caplog.records == []


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running_server() as server:
        client = await server.connect()

        await client.send(
            get("/healthz") + get("/nowhere") + post(ANYTHING, b"x") + get("/healthz")
        )
        answers = [await client.receive() for _ in range(4)]

        assert [answer.status for answer in answers] == [200, 404, 404, 200]


async def test_a_flood_of_pipelined_requests_is_answered() -> None:
    async with running_server() as server:
        client = await server.connect()

        await client.send(get("/healthz") * 500)
        answers = [await client.receive() for _ in range(500)]

        assert {answer.status for answer in answers} == {200}


async def test_http_1_0_without_host_is_answered() -> None:
    async with running_server() as server:
        client = await server.connect()

        answer = await client.ask(b"GET /healthz HTTP/1.0\r\n\r\n")

        assert answer.status == 200
        assert await client.is_closed_by_server()


@pytest.mark.parametrize(
    "path", ["/nowhere", "/api", "/api/models/a/b/c", "/api/models/..%2f..%2fetc", "//", "/%ff%00"]
)
async def test_an_unknown_path_is_json_404(path: str) -> None:
    async with running_server() as server:
        answer = await server.ask(post(path, b"{}"))

        assert answer.status in {404, 405}
        assert answer.error in {"Not Found", "Method Not Allowed"}


async def test_a_wrong_method_is_json_405_with_the_right_ones() -> None:
    async with running_server() as server:
        answer = await server.ask(get(ANYTHING))

        assert answer.status == 405
        assert answer.error == "Method Not Allowed"
        assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "PATCH", "DELETE"])
async def test_other_methods_are_json_405(method: str) -> None:
    async with running_server() as server:
        answer = await server.ask(head(method, "/api/models", {"Content-Length": "0"}))

        assert answer.status == 405
        assert answer.error == "Method Not Allowed"


async def test_head_is_get_without_a_body() -> None:
    async with running_server() as server:
        client = await server.connect()

        await client.send(head("HEAD", "/healthz", {"Connection": "close"}))
        raw = await asyncio.wait_for(client.reader.read(), ANSWER_TIMEOUT_S)

        assert raw.startswith(b"HTTP/1.1 200 ")
        assert raw.endswith(b"\r\n\r\n")


async def test_a_client_that_leaves_is_counted_as_cancelled() -> None:
    async with running_server() as server:
        client = await server.connect()
        await client.send(head("POST", ANYTHING, {"Content-Length": "10"}) + b"half")
        await client.close()

        metrics = await _wait_for_metric(server, b'outcome="cancelled"')

        assert b'protocol="native"' in metrics


async def _wait_for_metric(server, label: bytes) -> bytes:
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        while label not in (answer := await server.ask(get("/metrics"))).body:
            pass
    return answer.body


async def test_stopping_lets_a_request_finish_whose_body_still_arrives() -> None:
    async with running_server() as server:
        client = await server.connect()
        await client.send(head("POST", ANYTHING, {"Content-Length": "8"}) + b"half")
        await server.ask(get("/healthz"))

        stopping = asyncio.create_task(server.server.stop(grace_s=ANSWER_TIMEOUT_S))
        answer = await client.ask(b"rest")
        await stopping

        assert answer.status == 404
        assert answer.headers["connection"] == "close"


async def test_at_stop_a_request_that_is_on_its_way_is_the_connections_last() -> None:
    """One by a connection that was kept, one by a connection that has not said a word yet."""
    async with running_server() as server:
        kept = await server.connect()
        assert (await kept.ask(get("/healthz"))).status == 200
        fresh = await server.connect()
        await eventually(lambda: len(server.server._network) == 2)
        stopping = asyncio.create_task(server.server.stop(grace_s=ANSWER_TIMEOUT_S))
        await eventually(lambda: server.server._network.is_draining)

        answers = [await client.ask(get("/healthz")) for client in (kept, fresh)]

        assert [answer.status for answer in answers] == [200, 200]
        assert [answer.headers["connection"] for answer in answers] == ["close", "close"]
        assert await kept.is_closed_by_server()
        assert await fresh.is_closed_by_server()
        await stopping


async def test_stopping_ends_connections_that_stay_idle() -> None:
    async with running_server() as server:
        idle = await server.connect()
        await idle.ask(get("/healthz"))
        half = await server.connect()
        await half.send(b"GET /healthz HT")

        await server.server.stop(grace_s=ANSWER_TIMEOUT_S)

        assert await idle.is_closed_by_server()
        assert await half.is_closed_by_server()


async def test_stopping_cuts_off_what_outlives_the_grace() -> None:
    async with running_server() as server:
        client = await server.connect()
        await client.send(head("POST", ANYTHING, {"Content-Length": "8"}) + b"half")
        await server.ask(get("/healthz"))

        await server.server.stop(grace_s=0.1)

        assert await client.is_closed_by_server()


async def test_large_bodies_share_one_budget_and_give_it_back() -> None:
    most = bytes(3 * MIB - 1)
    async with running_server(max_body_mib=3) as server:
        bodies = server.context.bodies
        held = [await server.connect() for _ in range(6)]
        for client in held:
            await client.send(head("POST", ANYTHING, {"Content-Length": str(3 * MIB)}) + most)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while bodies.used_bytes < 6 * (2 * MIB - 1):
                await server.ask(get("/healthz"))

        refused = await server.ask(post(ANYTHING, bytes(2 * MIB)))
        small = await server.ask(post(ANYTHING, bytes(1000)))
        finished = [await client.ask(b"x") for client in held]

        assert refused.status == 503
        assert refused.headers["retry-after"]
        assert small.status == 404
        assert {answer.status for answer in finished} == {404}
        assert bodies.used_bytes == 0
