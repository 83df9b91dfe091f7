"""The express lane: answers a request whose head is known byte for byte.

A client that keeps its connection sends the same head again and again. Once the ordinary way has
parsed one, checked it and answered it well, the same bytes mean the same: route, model, length,
rights and limits. They are looked up here instead of taken apart, and the request goes straight
into the model's queue, without a task, a request object or a response object of its own.

Rules:
1. Only the ordinary way teaches: a head becomes known when it was answered with 200.
2. What cannot be begun at once goes the ordinary way after all: unknown bytes, a model that is
   gone, a full queue, tensors that do not fit. So there is one place that words refusals.
3. Bodies and answers are small; large ones are the ordinary way's, which accounts for them.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aiohttp import web

MAX_BODY_BYTES = 1024 * 1024
"""Rule 3: what `BodyBudget` does not count either."""
MAX_ANSWER_BYTES = 256 * 1024

_MAX_HEADS = 256
_MAX_HEAD_BYTES = 4096
"""So that all known heads together stay within 1 MiB."""


class Reply(Protocol):
    """The connection, as an errand sees it."""

    def reply(self, head: bytes, body: bytes) -> None:
        """Send an answer: status line and headers without the last empty line, and the body."""


class Errand(Protocol):
    """A request that was begun; it calls `reply` once, unless it is abandoned."""

    def abandon(self) -> None:
        """The client has left."""


class Plan(Protocol):
    """What a known head asks for."""

    def begin(self, data: bytes | bytearray, start: int, connection: Reply) -> Errand | None:
        """Begin a request.

        Args:
            data: holds the body from `start` to its end; it is not changed any more.
            connection: takes the answer, later.

        Returns:
            None where rule 2 holds; nothing has happened then.
        """

    def abandon(self) -> None:
        """The client has left before its body was whole."""


class KnownHeads:
    """The heads that are known, each with its plan and the length of the body that follows."""

    def __init__(self) -> None:
        self._plans: dict[bytes, tuple[Plan, int]] = {}
        self.get = self._plans.get

    def clear(self) -> None:
        """Know none any more."""
        self._plans.clear()

    def learn(self, head: bytes, plan: Plan, body_bytes: int) -> None:
        """Know one more; the one known for longest gives way when there are too many."""
        if len(head) > _MAX_HEAD_BYTES or body_bytes > MAX_BODY_BYTES or head in self._plans:
            return
        if len(self._plans) >= _MAX_HEADS:
            del self._plans[next(iter(self._plans))]
        self._plans[head] = plan, body_bytes


class CommonHeaders:
    """The end of every answer's head: what does not depend on the request."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = b""

    def lines(self) -> bytes:
        """Server and Date, and the empty line; made anew once a second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            date = formatdate(second, usegmt=True)
            self._lines = f"Server: inferd\r\nDate: {date}\r\n\r\n".encode("ascii")
        return self._lines


def head_of(response: web.Response, body_bytes: int) -> bytes:
    """A response's status line and headers, for `Reply.reply`."""
    lines = [
        f"HTTP/1.1 {response.status} {response.reason}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
        f"Content-Length: {body_bytes}",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1")
