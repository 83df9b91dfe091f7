"""HTTP requests at a steady rate, whatever the answers do, with a slow probe beside: a program."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import percentile
from benchmarks.wire import Request

_PROBE_CONNECTIONS = 4
_PROBES_PER_S = 20


@dataclass(slots=True)
class Outcome:
    """What a load saw: per status, each answer's latency in seconds."""

    latencies_s: dict[int, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, status: int, latency_s: float) -> None:
        """Note one answer."""
        self.latencies_s.setdefault(status, []).append(latency_s)

    def as_dict(self) -> dict[str, Any]:
        """Per status, how many answers, their p99 and the slowest, in milliseconds."""
        statuses = {
            str(status): {
                "count": len(each),
                "p99_ms": percentile(sorted(each), 99) * 1e3,
                "slowest_ms": max(each) * 1e3,
            }
            for status, each in self.latencies_s.items()
        }
        return {"seconds": self.seconds, "statuses": statuses}


class _Connection:
    """One keep-alive connection, opened when it is first needed and after the server closed it."""

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
            self._writer.close()
            self._reader = self._writer = None
        return int(head.split(" ", 2)[1])


async def open_loop(
    port: int, request: bytes, *, rate_per_s: float, seconds: float, connections: int
) -> Outcome:
    """Requests at a steady rate; latency counts from the sending.

    Args:
        connections: at most so many requests under way; one that finds none free waits, and that
            wait is the client's, not the server's.
    """
    outcome = Outcome()
    idle: asyncio.Queue[_Connection] = asyncio.Queue()
    for _ in range(connections):
        idle.put_nowait(_Connection(port))

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


async def storm(options: argparse.Namespace) -> dict[str, Any]:
    """The load and the probe at the same time."""
    probe = Request(options.probe, b"", method="GET").to_bytes()
    load, health = await asyncio.gather(
        open_loop(
            options.port,
            options.request.read_bytes(),
            rate_per_s=options.rate,
            seconds=options.seconds,
            connections=options.connections,
        ),
        open_loop(
            options.port,
            probe,
            rate_per_s=_PROBES_PER_S,
            seconds=options.seconds,
            connections=_PROBE_CONNECTIONS,
        ),
    )
    return {"load": load.as_dict(), "probe": health.as_dict()}


def main() -> int:
    """Print what came back as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("request", type=Path, help="a file with the whole request")
    parser.add_argument("probe", help="the path of the probe")
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=256)
    print(json.dumps(asyncio.run(storm(parser.parse_args()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
