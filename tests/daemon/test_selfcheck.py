"""The question that feeds the watchdog: asked of real servers, good, mute and babbling."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from support.rest import running_server

from daemon.selfcheck import answers

PATIENCE_S = 0.3
"""For servers that never answer: all of it is waited."""


async def test_our_own_server_answers_by_either_way(tmp_path):
    async with running_server(tmp_path / "s") as server:
        tcp = [address for address in server.addresses if address.startswith("http")]

        assert await answers(server.addresses, timeout_s=20)
        assert await answers(tcp, timeout_s=20)


async def test_a_server_that_refuses_because_it_is_full_is_alive():
    async with running_server(max_connections=1) as server:
        busy = await server.connect()
        await busy.send(
            b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        )
        await asyncio.sleep(0)

        assert await answers(server.addresses, timeout_s=20)


@pytest.mark.parametrize("said", [None, b"", b"SSH-2.0-nothing", b"HTTP"])
async def test_who_says_nothing_or_something_else_does_not_answer(said):
    async with server_that_says(said) as address:
        assert not await answers([address], timeout_s=PATIENCE_S)


async def test_where_nobody_listens_nobody_answers(tmp_path):
    assert not await answers([f"unix:{tmp_path / 'nothing'}"], timeout_s=PATIENCE_S)


async def test_without_any_address_there_is_nothing_to_ask():
    assert await answers((), timeout_s=PATIENCE_S)


@asynccontextmanager
async def server_that_says(data):
    """Send some bytes and hang up; None: send nothing and stay."""
    done = asyncio.Event()

    async def serve(_reader, writer):
        if data is None:
            await done.wait()
        else:
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        done.set()
