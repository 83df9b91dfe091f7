"""One client's connection: bounded in number, in memory and in the time it may take.

aiohttp does the HTTP. This adds what it lacks: a limit on connections, under which idle ones make
room for new ones, time limits on the head of a request ("slow loris") and on taking the answer, an
account of the memory that bodies and answers take, JSON answers to bytes that are no HTTP, and a
drain that lets requests finish whose bodies are still arriving.

Between two of aiohttp's requests, and never while it holds a single byte, a request whose head is
known takes the express lane (`daemon/rest/express.py`). aiohttp does not hear of it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from itertools import count
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

import orjson
from aiohttp import HttpVersion11, web

from daemon.rest.answers import json_response
from daemon.rest.express import CommonHeaders, KnownHeads

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from daemon.rest.context import BodyBudget
    from daemon.rest.express import Errand, Plan

_log = logging.getLogger(f"inferd.{__name__}")

_FULL_BODY = orjson.dumps({"error": "too many connections are open; try again later"})
_FULL_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)
_MAX_EXPLAINED = 32
"""Refused connections that may stay for a moment; enough for people, nothing for an attacker."""
_EXPLAIN_S = 0.5
_MAX_ERROR_CHARACTERS = 300
_LAST_REQUEST_S = 0.5
"""At the stop, for requests on their way: longer than a steady client waits between two."""
_MANY_PIECES, _LARGE_PIECE_BYTES = 16, 64 * 1024
"""Of what arrives while an answer is due; then no more is read until it is sent."""


class Connections:
    """All open connections that came by one kind of address.

    Attributes:
        budget: the memory that large bodies and answers may take together.
        head_timeout_s: a request's head must be there within it.
        answer_timeout_s: a client must take its answer within it.
        keepalive_timeout_s: a connection may be idle for so long.
        heads: what may take the express lane; one for each kind of address, since they differ in
            what is allowed.
        common: of all answers on the express lane.
        is_draining: the server is stopping.
        next_turn: counts up.
    """

    def __init__(
        self,
        *,
        limit: int,
        budget: BodyBudget,
        head_timeout_s: float,
        answer_timeout_s: float,
        keepalive_timeout_s: float,
    ) -> None:
        self.limit = limit
        self.budget = budget
        self.head_timeout_s = head_timeout_s
        self.answer_timeout_s = answer_timeout_s
        self.keepalive_timeout_s = keepalive_timeout_s
        self.heads = KnownHeads()
        self.common = CommonHeaders()
        self.is_draining = False
        self._takes_last_requests = True
        self._open: set[Connection] = set()
        self._refused: set[Connection] = set()
        self.next_turn = count().__next__
        self._gone = asyncio.Event()
        self._gone.set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> bool:
        """Register one; False when there are too many, all of them at work.

        When there are too many, the one that has been idle for longest makes room: clients of
        HTTP expect kept connections to end at any time.
        """
        if len(self._open) >= self.limit and not self._end_longest_idle():
            return False
        self._open.add(connection)
        self._gone.clear()
        return True

    def _end_longest_idle(self) -> bool:
        idle = ((c.idle_turn, c) for c in self._open if c.idle_turn is not None)
        longest = min(idle, key=itemgetter(0), default=None)
        if longest is None:
            return False
        _, connection = longest
        self._open.discard(connection)
        connection.force_close()
        return True

    def may_explain(self, connection: Connection) -> bool:
        """A refused connection may stay for a moment, so that the client can read why; few may."""
        if self.is_draining or len(self._refused) >= _MAX_EXPLAINED:
            return False
        self._refused.add(connection)
        return True

    def remove(self, connection: Connection) -> None:
        """Forget one that was lost."""
        self._open.discard(connection)
        self._refused.discard(connection)
        if not self._open:
            self._gone.set()

    def begin_drain(self) -> None:
        """Let each connection have one more answer, its last; those that stay idle are closed.

        A client that has connected, or keeps a connection, may have sent its request already.
        """
        self.is_draining = True
        asyncio.get_running_loop().call_later(_LAST_REQUEST_S, self._end_idle)

    @property
    def takes_new(self) -> bool:
        """Whether what has been accepted is still served."""
        return not self.is_draining or self._takes_last_requests

    def _end_idle(self) -> None:
        self._takes_last_requests = False
        for connection in tuple(self._open):
            if not connection.is_busy:
                connection.force_close()

    async def drained(self) -> None:
        """Wait until no connection is left."""
        await self._gone.wait()


@dataclass(slots=True)
class _Arriving:
    """A request on the express lane whose body is not there yet; it begins at `start` of `data`."""

    plan: Plan
    start: int
    data: bytearray
    have_bytes: int


class Connection(web.RequestHandler):
    """aiohttp's connection, with our limits.

    Attributes:
        is_busy: a request has been taken up and its answer is not sent yet.
        is_local: it came by the unix socket, which no browser can reach.
        idle_turn: counts up with each connection that falls idle: nothing has arrived and nothing
            is under way; None while something is.
    """

    __slots__ = (
        "_answer_since",
        "_arriving",
        "_connections",
        "_errand",
        "_fed_bytes",
        "_first",
        "_head_since",
        "_held_back",
        "_held_bytes",
        "_idle_since",
        "_is_between",
        "_timer",
        "idle_turn",
        "is_busy",
        "is_local",
    )

    def __init__(
        self,
        manager: web.Server,
        connections: Connections,
        *,
        loop: asyncio.AbstractEventLoop,
        **options: Any,  # noqa: ANN401 (aiohttp's own options, passed through)
    ) -> None:
        super().__init__(manager, loop=loop, **options)
        self.is_busy = False
        self.is_local = False
        self.idle_turn: float | None = None
        self._connections = connections
        self._held_bytes = 0
        self._head_since: float | None = None
        self._answer_since: float | None = None
        self._idle_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        # Whether aiohttp has had whole requests and nothing else, and has answered them all.
        self._is_between = True
        self._first = b""  # of the bytes it has of its request, and how many in all
        self._fed_bytes = 0
        self._arriving: _Arriving | None = None
        self._errand: Errand | None = None
        self._held_back: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection up, or answer 503 when there are too many."""
        if not (self._connections.takes_new and self._connections.add(self)):
            self._refuse(transport)
            return
        self.is_local = not isinstance(transport.get_extra_info("sockname"), tuple)
        self._head_since = self._idle_since = self._loop.time()
        self.idle_turn = self._connections.next_turn()
        self._look_again()
        super().connection_made(transport)

    def _refuse(self, transport: asyncio.BaseTransport) -> None:
        self.force_close()  # so that aiohttp drops what arrives now, and it alone is asked
        self._is_between = False
        if not self._connections.may_explain(self):
            transport.close()
            return
        cast("asyncio.Transport", transport).write(_FULL_ANSWER)
        # Closing with unread data in the socket would reset it, and the answer would be lost.
        self._timer = self._loop.call_later(_EXPLAIN_S, transport.close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of everything."""
        if self._timer is not None:
            self._timer.cancel()
        self._connections.remove(self)
        self.release()
        if self._errand is not None:
            self._errand.abandon()
            self._errand = None
        if self._arriving is not None:
            self._arriving.plan.abandon()
            self._arriving = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the express lane where the head is known, else let aiohttp parse."""
        self.idle_turn = None
        if self._errand is not None:
            self._hold_back(data)
        elif self._arriving is not None:
            self._go_on_arriving(self._arriving, data)
        elif not (self._is_between and self._begin_express(data)):
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        """The ordinary way; notes when a new request's head begins to arrive."""
        if self._is_between:
            self._is_between = False
            self._first = data
            self._fed_bytes = 0
        self._fed_bytes += len(data)
        if self._head_since is None and not self.is_busy:
            self._head_since = self._loop.time()
        super().data_received(data)

    def _begin_express(self, data: bytes) -> bool:
        """Begin a request whose head is known; False where the ordinary way must be taken."""
        start = data.find(b"\r\n\r\n") + 4
        known = self._connections.heads.get(data[:start])
        if known is None or self.is_draining or self._paused:
            return False
        plan, body_bytes = known
        size = start + body_bytes
        if len(data) == size:
            return self._run_errand(plan, data, start)
        if len(data) > size:  # pipelined
            return False
        self._arriving = _Arriving(plan, start, bytearray(size), len(data))
        self._arriving.data[: len(data)] = data
        self.is_busy = True
        self._head_since = self._loop.time()
        return True

    def _go_on_arriving(self, arriving: _Arriving, data: bytes) -> None:
        begin, end = arriving.have_bytes, arriving.have_bytes + len(data)
        if end > len(arriving.data):
            self._give_to_aiohttp(arriving)
            self._feed(data)
            return
        arriving.data[begin:end] = data
        arriving.have_bytes = end
        if end == len(arriving.data):
            self._arriving = self._head_since = None
            if not self._run_errand(arriving.plan, arriving.data, arriving.start):
                self._feed(bytes(arriving.data))

    def _give_to_aiohttp(self, arriving: _Arriving) -> None:
        self._arriving = self._head_since = None
        self._feed(bytes(arriving.data[: arriving.have_bytes]))

    def _run_errand(self, plan: Plan, data: bytes | bytearray, start: int) -> bool:
        self._errand = plan.begin(data, start, self)
        if self._errand is None:
            return False
        self.is_busy = True
        self._head_since = None
        return True

    def reply(self, head: bytes, body: bytes) -> None:
        """Send an answer of the express lane."""
        self._errand = None
        self.is_busy = False
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.is_draining:
            head += b"Connection: close\r\n"
        transport.write(head + self._connections.common.lines() + body)
        self._become_idle()
        if self.is_draining:
            self.force_close()
        elif self._held_back:
            transport.resume_reading()
            pieces, self._held_back = self._held_back, []
            for data in pieces:
                self.data_received(data)

    def _hold_back(self, data: bytes) -> None:
        """What arrives while an answer is due waits for it.

        Little of it does not stop the reading: else nobody would notice that the client leaves.
        """
        self._held_back.append(data)
        is_much = len(data) >= _LARGE_PIECE_BYTES or len(self._held_back) >= _MANY_PIECES
        if is_much and self.transport is not None:
            self.transport.pause_reading()

    def learn(self, request: web.BaseRequest, plan: Plan) -> None:
        """Let requests with this one's head take the express lane, if it lies before us whole.

        To be called before it is answered. Not for heads that ask for another kind of answer:
        HTTP/1.0's, one before the body, the connection's last.
        """
        if request.version != HttpVersion11 or not request.keep_alive or _is_special(request):
            return
        end = self._first.find(b"\r\n\r\n") + 4
        body_bytes = request.content_length
        if body_bytes is not None and self._fed_bytes == end + body_bytes:
            self._connections.heads.learn(self._first[:end], plan, body_bytes)

    def pause_writing(self) -> None:
        """The client does not take its answers as fast as they are made."""
        super().pause_writing()
        if self._answer_since is None:
            self._answer_since = self._loop.time()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if not self.is_busy:
            self._answer_since = None

    def begin_request(self) -> None:
        """Its head is complete."""
        self.is_busy = True
        self._head_since = self.idle_turn = None

    def _become_idle(self) -> None:
        self._idle_since = self._loop.time()
        self.idle_turn = self._connections.next_turn()

    def hold(self, size_bytes: int) -> bool:
        """Account for the request's body or answer of that size; False when there is no room.

        A body and the answer to it count as the larger one: when the answer is there, the body is
        done with.
        """
        if size_bytes <= self._held_bytes:
            return True
        if not self._connections.budget.take(self._held_bytes, size_bytes):
            return False
        self._held_bytes = size_bytes
        return True

    def release(self) -> None:
        """The request's body and answer are gone."""
        if self._held_bytes:
            self._connections.budget.give_back(self._held_bytes)
            self._held_bytes = 0

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer; when the server is stopping it is the connection's last."""
        resp.headers["Server"] = "inferd"
        self._answer_since = self._loop.time()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.release()
            self.is_busy = False
            self._answer_since = None
            self._is_between = self._had_just(request) and bool(resp.keep_alive)
            if self._head_since is None:
                self._become_idle()
            if self.is_draining:
                self.close()

    def _had_just(self, request: BaseRequest) -> bool:
        """Whether all that aiohttp has been given is this request."""
        end = self._first.find(b"\r\n\r\n") + 4
        body_bytes = request.content_length or 0
        self._first = b""
        return self._fed_bytes == end + body_bytes and not _is_special(request)

    @property
    def is_draining(self) -> bool:
        """The server is stopping: the answer under way is this connection's last."""
        return self._connections.is_draining

    def _look_again(self) -> None:
        """One timer that looks from time to time, instead of one for each request."""
        limits = self._connections
        wait_s = min(limits.head_timeout_s, limits.answer_timeout_s, limits.keepalive_timeout_s)
        self._timer = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        """End the connection when the client has kept it waiting for too long."""
        now, limits = self._loop.time(), self._connections
        if self._head_since is not None and now - self._head_since >= limits.head_timeout_s:
            if self._arriving is None:
                self.force_close()
                return
            self._give_to_aiohttp(self._arriving)  # which knows how long a body may take
        if self._answer_since is not None and now - self._answer_since >= limits.answer_timeout_s:
            self._abort()  # closing would wait for the client to take the rest
            return
        if self.idle_turn is not None and now - self._idle_since >= limits.keepalive_timeout_s:
            self.force_close()
            return
        self._look_again()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP with JSON 400, without a traceback; log what is our own bug."""
        if status >= 500:  # noqa: PLR2004 (a server error by RFC 9110)
            _log.error("request failed outside its handler", exc_info=exc)
            message = "internal error; the log says more"
        else:
            first_line = (message or "").strip().partition("\n")[0]
            message = f"not a valid HTTP request: {first_line}"[:_MAX_ERROR_CHARACTERS]
        if request.writer.output_size > 0:
            raise ConnectionError("part of the answer is sent already")
        response = json_response({"error": message}, status=status)
        response.force_close()
        return response


def connection_of(request: BaseRequest) -> Connection:
    """The connection a request came by."""
    connection = request.protocol
    assert isinstance(connection, Connection)  # noqa: S101 (the server makes no other)
    return connection


def _is_special(request: BaseRequest) -> bool:
    """Whether more than a head and a body of known length may have been exchanged."""
    headers = request.headers
    return "Transfer-Encoding" in headers or "Upgrade" in headers or "Expect" in headers
