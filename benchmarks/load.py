"""Sends requests over raw sockets, so that the client costs little next to the server."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """What a load saw: per status, each answer's latency in seconds."""

    latencies_s: dict[int, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, status: int, latency_s: float) -> None:
        """Note one answer."""
        self.latencies_s.setdefault(status, []).append(latency_s)

    def count(self, status: int) -> int:
        """Answers of a status."""
        return len(self.latencies_s.get(status, []))

    def percentile_ms(self, status: int, percent: float) -> float:
        """Of the answers of a status, in milliseconds; NaN when there is none."""
        values = sorted(self.latencies_s.get(status, []))
        if not values:
            return float("nan")
        return values[min(len(values) - 1, int(len(values) * percent / 100))] * 1e3


def make_request(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    """A whole HTTP/1.1 request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{headers}\r\n".encode("ascii") + body


class Connection:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, request: bytes) -> int:
        """Send a request and read its whole answer; gives the status."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
        await self._reader.readexactly(length)
        if "connection: close" in head:
            self.close()
        return int(head.split(" ", 2)[1])

    def close(self) -> None:
        """End it."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def closed_loop(port: int, request: bytes, *, connections: int, seconds: float) -> Outcome:
    """So many connections, each sending its next request when it has its answer."""
    outcome = Outcome()
    ends = time.monotonic() + seconds

    async def client() -> None:
        connection = Connection(port)
        while (began := time.monotonic()) < ends:
            status = await connection.send(request)
            outcome.add(status, time.monotonic() - began)
        connection.close()

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(connections)))
    outcome.seconds = time.monotonic() - began
    return outcome


async def open_loop(
    port: int, request: bytes, *, rate_per_s: float, seconds: float, connections: int
) -> Outcome:
    """Requests at a steady rate, whatever the answers do; latency counts from the sending.

    Args:
        connections: at most so many requests under way; one that finds none free waits, and that
            wait is the client's, not the server's.
    """
    outcome = Outcome()
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(connections):
        idle.put_nowait(Connection(port))

    async def one() -> None:
        connection = await idle.get()
        sent = time.monotonic()
        status = await connection.send(request)
        outcome.add(status, time.monotonic() - sent)
        idle.put_nowait(connection)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate_per_s * seconds)):
            planned = began + number / rate_per_s
            await asyncio.sleep(max(0.0, planned - time.monotonic()))
            group.create_task(one())
    outcome.seconds = time.monotonic() - began
    return outcome
