"""Whatever bytes come in whatever pieces: with the lane and without it the answers are the same."""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tflite_builder
from support.daemon import running_daemon
from support.lane import HEADER, document, floats, head_bytes, infer, running_lane
from support.lane import given as tensor
from support.rest import ANSWER_TIMEOUT_S, get, head, post

pytestmark = pytest.mark.asyncio(loop_scope="module")

KNOWN = [
    infer(),
    infer(pad_to=200),
    infer(floats(1, 2, 3, 4), b"", headers={HEADER: "0"}),
    infer(asked=document(tensor(), id="abc")),
    infer(headers={"Connection": "keep-alive"}).replace(b"/infer", b"/versions/1/infer", 1),
]
# Not Upgrade and CONNECT: what aiohttp makes of the bytes behind them depends on when they come.
ODD = [
    get("/healthz"),
    get("/healthz", headers={"Connection": "close"}),
    head("HEAD", "/healthz", {}),
    post("/nowhere", b"abc"),
    post("/v2/models/nobody/infer", KNOWN[0][-100:]),
    infer(headers={"Expect": "100-continue"}),
    infer(headers={"Connection": "close"}),
    infer(headers={"Origin": "http://evil.example"}),
    KNOWN[0].replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    head("POST", "/v2/models/scale/infer", {HEADER: "0", "Transfer-Encoding": "chunked"})
    + b"10\r\n0123456789abcdef\r\n0\r\n\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
]
ENDING = b"\0" * 20000
"""Completes any body that is still to come, is no HTTP, and so ends every connection."""


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A request that is known, with a little of it changed."""
    raw = draw(st.sampled_from(KNOWN))
    end = head_bytes(raw)
    place = draw(st.integers(0, len(raw) - 1))
    byte = bytes([draw(st.one_of(st.sampled_from(b'\r\n\0 :/0159"]},'), st.integers(0, 255)))])
    lines = raw[: end - 4].split(b"\r\n")
    line = draw(st.integers(0, len(lines) - 1))
    return draw(
        st.sampled_from(
            [
                raw[:place] + byte + raw[place + 1 :],
                raw[:place] + byte + raw[place:],
                raw[:place] + raw[place + 1 :],
                raw[:end] + raw[end : max(end, place)] + byte + raw[max(end, place) + 1 :],
                raw + byte,
                raw[:-1],
                raw + raw[:place],
                b"\r\n".join([*lines, lines[line]]) + raw[end - 4 :],
                b"\r\n".join([*lines[:line], *lines[line + 1 :]]) + raw[end - 4 :],
                b"\r\n".join([lines[0], *reversed(lines[1:])]) + raw[end - 4 :],
            ]
        )
    )


REQUESTS = st.one_of(
    st.sampled_from(KNOWN), st.sampled_from(KNOWN), st.sampled_from(ODD), mutated()
)
STREAMS = st.lists(REQUESTS, min_size=1, max_size=6)
CUTS = st.one_of(
    st.just(()), st.lists(st.integers(0, 2000), max_size=6), st.just("after each request")
)


def pieces_of(requests: list[bytes], cuts: object) -> list[bytes]:
    if cuts == "after each request":
        return requests
    stream = b"".join(requests)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    return [stream[a:b] for a, b in pairwise(places)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lane(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "scale.tflite"
    path.write_bytes(tflite_builder.scale())
    times = {"header_timeout_s": 5, "body_timeout_s": 5}
    async with running_daemon([path]) as daemon, running_lane(daemon, **times) as lane:
        yield lane


class Collector(asyncio.Protocol):
    """Keeps whatever the server sends; unlike a stream, also when it then resets the connection."""

    def __init__(self) -> None:
        self.received = b""
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        self.ended.set_result(None)


async def answers_to(lane, prober, pieces, *, ordinarily):
    """All that the server answers to these pieces, until it ends the connection."""
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(Collector, "127.0.0.1", lane.server.port)
    if ordinarily:
        transport.write(head("POST", "/nowhere", {"Transfer-Encoding": "chunked"}) + b"0\r\n\r\n")
        while not client.received.endswith(b"}"):
            await lane.turn_by(prober)
        client.received = b""
    for piece in [*pieces, ENDING]:
        if not client.ended.done():
            transport.write(piece)
        await lane.turn_by(prober)
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        await client.ended
    return normalised(client.received)


def normalised(stream: bytes) -> list[tuple[bytes, ...] | bytes]:
    """Each answer's lines in one order and without its date, and each body."""
    found: list[tuple[bytes, ...] | bytes] = []
    while match := re.match(rb"(HTTP/.*?)\r\n\r\n", stream, re.DOTALL):
        status_line, *lines = match[1].split(b"\r\n")
        kept = sorted(line for line in lines if not line.startswith(b"Date: "))
        found.append((status_line, *kept))
        size = next((int(n) for n in re.findall(rb"\nContent-Length: (\d+)", match[1])), 0)
        stream = stream[match.end() :]
        if not stream.startswith(b"HTTP/"):  # the answer to HEAD has a length and no body
            found.append(stream[:size])
            stream = stream[size:]
    return [*found, stream]


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(requests=STREAMS, cuts=CUTS)
async def test_the_answers_are_the_same_with_the_lane_and_without(lane, requests, cuts):
    pieces = pieces_of(requests, cuts)
    for raw in KNOWN:
        await lane.teach(raw)
    prober = await lane.connect()

    expected = await answers_to(lane, prober, pieces, ordinarily=True)
    found = await answers_to(lane, prober, pieces, ordinarily=False)

    assert found == expected
    assert lane.target().gate.pending == 0
    await prober.close()


async def test_what_is_called_ordinary_here_is_and_what_is_called_known_is_not(lane):
    for raw in KNOWN:
        await lane.teach(raw)
    prober = await lane.connect()
    given_to_aiohttp = []
    for ordinarily in (True, False):
        before = lane.ordinary
        await answers_to(lane, prober, KNOWN * 3, ordinarily=ordinarily)
        turns = len(KNOWN) * 3 + 1 + ordinarily
        given_to_aiohttp.append(lane.ordinary - before - turns)

    assert given_to_aiohttp == [1 + len(KNOWN) * 3 + 1, 1]
