"""One client's connection: bounded in number, in memory and in the time it may take.

aiohttp does the HTTP. This adds what it lacks: a limit on connections, under which idle ones make
room for new ones, time limits on the head of a request ("slow loris") and on taking the answer, an
account of the memory that bodies and answers take, JSON answers to bytes that are no HTTP, and a
drain that lets requests finish whose bodies are still arriving.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

import orjson
from aiohttp import web

from daemon.rest.answers import json_response

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from daemon.rest.context import BodyBudget

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


class Connections:
    """All open connections that came by one kind of address.

    Attributes:
        budget: the memory that large bodies and answers may take together.
        head_timeout_s: a request's head must be there within it.
        answer_timeout_s: a client must take its answer within it.
        is_draining: the server is stopping.
        next_turn: counts up.
    """

    def __init__(
        self, *, limit: int, budget: BodyBudget, head_timeout_s: float, answer_timeout_s: float
    ) -> None:
        self.limit = limit
        self.budget = budget
        self.head_timeout_s = head_timeout_s
        self.answer_timeout_s = answer_timeout_s
        self.is_draining = False
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
        """Close idle connections and take no more; the others finish what they are at."""
        self.is_draining = True
        for connection in tuple(self._open):
            if not connection.is_busy:
                connection.force_close()

    async def drained(self) -> None:
        """Wait until no connection is left."""
        await self._gone.wait()


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
        "_connections",
        "_head_since",
        "_held_bytes",
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
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection up, or answer 503 when there are too many."""
        if self._connections.is_draining or not self._connections.add(self):
            self._refuse(transport)
            return
        self.is_local = not isinstance(transport.get_extra_info("sockname"), tuple)
        self._head_since = self._loop.time()
        self.idle_turn = self._connections.next_turn()
        self._look_again(self._connections.head_timeout_s)
        super().connection_made(transport)

    def _refuse(self, transport: asyncio.BaseTransport) -> None:
        self.force_close()  # so that what arrives now is dropped
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
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and note when a new request's head begins to arrive."""
        self.idle_turn = None
        if self._head_since is None and not self.is_busy:
            self._head_since = self._loop.time()
        super().data_received(data)

    def begin_request(self) -> None:
        """Its head is complete."""
        self.is_busy = True
        self._head_since = self.idle_turn = None

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
            self.idle_turn = self._connections.next_turn() if self._head_since is None else None
            if self.is_draining:
                self.close()

    @property
    def is_draining(self) -> bool:
        """The server is stopping: the answer under way is this connection's last."""
        return self._connections.is_draining

    def _look_again(self, wait_s: float) -> None:
        """One timer that looks from time to time, instead of one for each request."""
        self._timer = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        """End the connection when the client has kept it waiting for too long."""
        now, limits = self._loop.time(), self._connections
        if self._head_since is not None and now - self._head_since >= limits.head_timeout_s:
            self.force_close()
            return
        if self._answer_since is not None and now - self._answer_since >= limits.answer_timeout_s:
            self._abort()  # closing would wait for the client to take the rest
            return
        since = self._head_since or now
        self._look_again(since + limits.head_timeout_s - now)

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
