"""Answers at the updater's unix socket, well or badly, and notes what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """Answers every wish alike.

    Attributes:
        asked: verb and document of each wish, in order.
        status, document: of the answer.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.status = 202
        self.document: object = {"in_s": 0.0}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one wish and answer it."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await reader.readexactly(int(fields["content-length"]))
        self.asked.append((head.split(" ")[1].strip("/"), json.loads(body)))
        answer = json.dumps(self.document).encode()
        writer.write(
            f"HTTP/1.1 {self.status} Whatever\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(answer)}\r\n\r\n".encode()
            + answer
        )


@asynccontextmanager
async def answering(path: Path, behaviour: Behaviour) -> AsyncIterator[None]:
    """Listen there until the block ends."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await behaviour(reader, writer)
        writer.close()

    path.parent.mkdir(parents=True, exist_ok=True)
    server = await asyncio.start_unix_server(talk, path)
    try:
        yield
    finally:
        server.close()
        for each in talks:
            each.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        path.unlink(missing_ok=True)  # noqa: ASYNC240 (a moment)
