"""What is wished of the updater reaches it; whatever answers there cannot harm the daemon."""

from __future__ import annotations

import asyncio
import gzip
import os
import tracemalloc

import pytest
from support.updaterpeer import Peer, answering

from daemon.rest.errors import UpdaterRefused, UpdaterUnavailable
from daemon.rest.updaterlink import tell_updater

BOUND_S = 30
"""Six times what a wish may take."""
MIB = 1 << 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "updater.sock"


def says(raw):
    """A peer that reads the wish, says this, and closes."""

    async def behave(reader, writer):
        await reader.read(65536)
        writer.write(raw)
        await writer.drain()

    return behave


def ok(body, *headers):
    lines = ["HTTP/1.1 202 Accepted", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def test_a_wish_and_its_answer_come_through(path):
    peer = Peer()
    async with answering(path, peer.answer):
        answer = await tell_updater(path, "refresh", {"origin": "mqtt"})

    assert answer == {"in_s": 0.0}
    assert peer.asked == [("refresh", {"origin": "mqtt"})]


@pytest.mark.parametrize(
    ("status", "error"), [(400, UpdaterRefused), (409, UpdaterRefused), (503, UpdaterUnavailable)]
)
async def test_its_no_is_told_in_its_own_words(path, status, error):
    peer = Peer()
    peer.status, peer.document = status, {"error": "there is nothing to go back to"}

    async with answering(path, peer.answer):
        with pytest.raises(error, match=r"^there is nothing to go back to$"):
            await tell_updater(path, "rollback", {"model": "m"})


async def test_its_words_are_cut_and_made_safe(path):
    peer = Peer()
    peer.status, peer.document = 409, {"error": "\x1b[2J" + "x" * 10_000}

    async with answering(path, peer.answer):
        with pytest.raises(UpdaterRefused) as refused:
            await tell_updater(path, "rollback", {"model": "m"})

    assert len(str(refused.value)) <= 500
    assert "\x1b" not in str(refused.value)


async def test_nobody_there_is_said(path):
    with pytest.raises(UpdaterUnavailable, match=r"is inferd-updater running\?"):
        await tell_updater(path, "refresh", {})


async def test_a_socket_whose_owner_died_is_said(path):
    async with answering(path, says(b"")):
        os.link(path, path.with_name("left"))

    with pytest.raises(UpdaterUnavailable):
        await tell_updater(path.with_name("left"), "refresh", {})


async def test_a_path_that_no_socket_can_have_is_said(tmp_path):
    with pytest.raises(UpdaterUnavailable):
        await tell_updater(tmp_path / ("x" * 200), "refresh", {})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff" * 1000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 202 Accepted\r\nContent-Length: -1\r\n\r\n{}",
        b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 202 Accepted\r\nX: " + b"y" * 100_000 + b"\r\n\r\n{}",
        ok(b""),
        ok(b"<html>"),
        ok(b"[]"),
        ok(b"null"),
        ok(b'"text"'),
        ok(b"\xff\xfe"),
        ok(b"[" * 60_000),
        ok(gzip.compress(b"{}"), "Content-Encoding: gzip"),
        ok(b"{}", "Content-Encoding: gzip").replace(b"202", b"500"),
        b"HTTP/1.1 307 Go\r\nLocation: http://updater/refresh\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    ],
)
async def test_nonsense_is_no_answer(path, raw):
    async with answering(path, says(raw)), asyncio.timeout(BOUND_S):
        with pytest.raises(UpdaterUnavailable):
            await tell_updater(path, "refresh", {})


async def test_an_error_without_words_is_an_error_all_the_same(path):
    async with answering(path, says(ok(b"{}").replace(b"202", b"409"))):
        with pytest.raises(UpdaterRefused, match="status 409"):
            await tell_updater(path, "refresh", {})


async def hangs(reader, _writer):
    await reader.read(-1)


async def drips(_reader, writer):
    writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 60000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def promises_for_ever(_reader, writer):
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("behaviour", [hangs, drips, promises_for_ever])
async def test_one_that_never_finishes_is_not_waited_for(path, behaviour):
    async with answering(path, behaviour), asyncio.timeout(BOUND_S):
        with pytest.raises(UpdaterUnavailable):
            await tell_updater(path, "refresh", {})


@pytest.mark.parametrize("head", ["Content-Length: 9000000000", "Transfer-Encoding: chunked"])
async def test_an_endless_answer_takes_little_memory(path, head):
    piece = b"100000\r\n" + b" " * MIB + b"\r\n"

    async def gushes(_reader, writer):
        writer.write(f"HTTP/1.1 202 Accepted\r\n{head}\r\n\r\n".encode())
        while True:
            writer.write(piece)
            await writer.drain()

    async with answering(path, gushes), asyncio.timeout(BOUND_S):
        tracemalloc.start()
        try:
            with pytest.raises(UpdaterUnavailable):
                await tell_updater(path, "refresh", {})
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert peak_bytes < 16 * MIB
