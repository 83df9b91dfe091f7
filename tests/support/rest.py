"""The real HTTP front end on a free port, without models; and a client that speaks raw bytes."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from support.tables import read_tables

from accelerators.forkserver import ForkServer
from accelerators.inventory import DeviceInventory
from accelerators.registry import HardwareSettings
from daemon.config import Config
from daemon.metrics import Metrics
from daemon.models.registry import ModelRegistry
from daemon.pipeline.media import MediaLimits
from daemon.rest.context import RestContext
from daemon.rest.doors import open_doors
from daemon.rest.server import HttpServer
from daemon.service import InferenceService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ANSWER_TIMEOUT_S = 30
"""A bound for tests; nothing here takes so long."""


def make_context(
    metrics: Metrics | None = None,
    service: InferenceService | None = None,
    forkserver: ForkServer | None = None,
    **http: Any,
) -> RestContext:
    """A context whose service knows no model unless it is given; needs a running event loop.

    Args:
        forkserver: from which drivers are asked; the caller's to stop.
    """
    config = read_tables(
        Config, {"http": {"listen": ["127.0.0.1:0"], **http}, "models": {"folders": []}}
    )
    metrics = metrics or Metrics(CollectorRegistry())
    doors = open_doors(config.http)
    return RestContext(
        guard=doors.guard,
        certificate=doors.certificate,
        service=service or _make_service(config, metrics),
        metrics=metrics,
        inventory=DeviceInventory(HardwareSettings(), forkserver or ForkServer()),
        config=config.http,
        version="1.2.3",
        device_id="box-1",
    )


def _make_service(config: Config, metrics: Metrics) -> InferenceService:
    registry = ModelRegistry(config, forkserver=ForkServer(), metrics=metrics)
    return InferenceService(
        registry,
        metrics=metrics,
        media_limits=MediaLimits(max_pixels=1_000_000, max_audio_s=1.0),
        media_executor=ThreadPoolExecutor(1),
    )


@dataclass(frozen=True)
class RunningServer:
    """A server that listens. `port` is that of its first TCP address."""

    server: HttpServer
    context: RestContext
    addresses: tuple[str, ...]
    clients: list[Client] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.addresses[0].rpartition(":")[2])

    @property
    def url(self) -> str:
        return self.addresses[0]

    async def connect(self) -> Client:
        client = await Client.open(self.url)
        self.clients.append(client)
        return client

    async def ask(self, raw_request: bytes) -> Answer:
        """One request on a connection of its own."""
        client = await self.connect()
        answer = await client.ask(raw_request)
        await client.close()
        return answer


@asynccontextmanager
async def running_server(
    unix_socket: Path | None = None,
    *,
    service: InferenceService | None = None,
    metrics: Metrics | None = None,
    **http: Any,
) -> AsyncIterator[RunningServer]:
    """Listen on a free port, with these keys of `[http]`; without models unless given a service."""
    forkserver = ForkServer()
    context = make_context(metrics, service, forkserver, **http)
    server = HttpServer(context)
    addresses = await server.start(unix_socket)
    running = RunningServer(server, context, addresses)
    try:
        yield running
    finally:
        await asyncio.gather(*(client.close() for client in running.clients))
        await server.stop(grace_s=ANSWER_TIMEOUT_S)
        await context.inventory.stop()
        await forkserver.stop()


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. `headers` have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an error that is told as errors are: JSON with `error`."""
        assert self.headers["content-type"].startswith("application/json")
        return self.document["error"]


class Client:
    """A connection whose every byte the test decides."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, url: str) -> Client:
        """A connection to http://HOST:PORT."""
        host, _, port = url.removeprefix("http://").rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, raw_request: bytes) -> Answer:
        await self.send(raw_request)
        return await self.receive()

    async def receive(self) -> Answer:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status_line, *lines = head.rstrip().split("\r\n")
            pairs = (line.partition(":") for line in lines)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(status_line.split(" ")[1]), headers, body)

    async def is_closed_by_server(self) -> bool:
        """Wait until the server closes; False when it sends something instead."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            try:
                return await self.reader.read(1) == b""
            except ConnectionResetError:
                return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return


def post(
    path: str, body: bytes = b"", *, headers: dict[str, str] | None = None, host: str = "localhost"
) -> bytes:
    """A whole POST request."""
    return head("POST", path, {"Content-Length": str(len(body)), **(headers or {})}, host) + body


def get(path: str, *, headers: dict[str, str] | None = None, host: str = "localhost") -> bytes:
    """A whole GET request."""
    return head("GET", path, headers or {}, host)


def head(method: str, path: str, headers: dict[str, str], host: str = "localhost") -> bytes:
    """A request without its body."""
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
