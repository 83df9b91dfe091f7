"""Our own load against real sockets."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from benchmarks.client import closed_loop
from benchmarks.wire import Request

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000
BAD = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
REQUEST = Request("/x", b"abc").to_bytes()


async def load(address, answers, *, connections: int):
    """Load a server that gives these answers in turn, for a moment; None closes the connection.

    It listens on a unix socket at `address`, or on a port where that is None.
    """
    turn = itertools.cycle(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readexactly(len(REQUEST)) and (answer := next(turn)) is not None:
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    starting = (
        asyncio.start_unix_server(serve, address)
        if address
        else asyncio.start_server(serve, "127.0.0.1", 0)
    )
    async with await starting as server:
        where = address or server.sockets[0].getsockname()[1]
        return await asyncio.to_thread(
            closed_loop, where, REQUEST, connections=connections, seconds=0.2
        )


@pytest.mark.parametrize("connections", [1, 8])
async def test_every_answer_is_a_sample_with_its_status(connections):
    samples, failures = await load(None, [GOOD, BAD], connections=connections)

    assert {each.status for each in samples} == {200, 503}
    assert failures == 0
    assert all(each.began < each.ended for each in samples)


async def test_a_unix_socket_is_loaded_alike(tmp_path):
    samples, failures = await load(str(tmp_path / "s"), [GOOD], connections=2)

    assert {each.status for each in samples} == {200}
    assert failures == 0


async def test_a_closed_connection_is_a_failure_and_opened_again():
    samples, failures = await load(None, [GOOD, None], connections=1)

    assert failures >= 1
    assert len(samples) >= 2
