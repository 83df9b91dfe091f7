"""The HTTP front end before real models, and a way to see which way a request went.

aiohttp counts the requests it is given: one that was answered without being counted took the
express lane.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from support.rest import ANSWER_TIMEOUT_S, Client, RunningServer, get, post, running_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from support.daemon import RunningDaemon

    from daemon.metrics import Metrics
    from daemon.models.served import Target
    from daemon.rest.connection import Connection, Connections

HEADER = "Inference-Header-Content-Length"
_once = itertools.count()


@dataclass(frozen=True)
class Whole:
    """All of an HTTP answer but its date; headers in no particular order."""

    status_line: str
    headers: tuple[str, ...]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.status_line.split(" ")[1])

    def without(self, header: str) -> Whole:
        kept = tuple(line for line in self.headers if line != header)
        return Whole(self.status_line, kept, self.body)


@dataclass(frozen=True, repr=False)
class Lane:
    """A daemon's models behind an HTTP server of the test's own."""

    daemon: RunningDaemon
    server: RunningServer
    socket: Path
    before: Mapping[str, float]

    async def connect(self, *, local: bool = False) -> Client:
        if not local:
            return await self.server.connect()
        client = Client(*await asyncio.open_unix_connection(self.socket))
        self.server.clients.append(client)
        return client

    async def ask(self, raw_request: bytes) -> Whole:
        """One request on a connection of its own."""
        client = await self.connect()
        answer = await ask(client, raw_request)
        await client.close()
        return answer

    async def ask_ordinarily(self, raw_request: bytes) -> Whole:
        """The same request with one more header, so that nobody can know its head."""
        before = self.ordinary
        answer = await self.ask(unknown(raw_request))
        assert self.ordinary == before + 1
        return answer

    async def teach(self, raw_request: bytes, *, local: bool = False) -> Whole:
        """Make a request's head known."""
        client = await self.connect(local=local)
        answer = await ask(client, raw_request)
        await client.close()
        assert answer.status == 200, answer
        return answer

    async def turn(self) -> None:
        """Whatever was sent before has reached the server when this returns."""
        assert (await self.server.ask(get("/healthz"))).status == 200

    async def turn_by(self, client: Client) -> None:
        """The same by way of an open connection."""
        assert (await client.ask(get("/healthz"))).status == 200

    @property
    def ordinary(self) -> int:
        """How many requests aiohttp was given."""
        return self.server.server._runner.server.requests_count

    @property
    def network(self) -> Connections:
        return self.server.server._network

    @property
    def local(self) -> Connections:
        return self.server.server._local

    @property
    def known(self) -> int:
        """How many heads are known, however they came."""
        return len(self.network.heads._plans) + len(self.local.heads._plans)

    @property
    def connections(self) -> list[Connection]:
        """Open ones of the network."""
        return list(self.network._open)

    def target(self, model: str = "scale") -> Target:
        return self.daemon.service.lease(model).target

    def counts(self) -> dict[str, float]:
        """What was counted since this server began; of durations only how many there were."""
        now = _read(self.server.context.metrics)
        return {
            name: value - self.before.get(name, 0)
            for name, value in now.items()
            if value != self.before.get(name, 0)
        }

    def requests(self, outcome: str) -> float:
        """How many ended so, of whichever model."""
        return sum(
            value
            for name, value in self.counts().items()
            if name.startswith("inferd_requests_total") and f'"outcome": "{outcome}"' in name
        )


@asynccontextmanager
async def running_lane(daemon: RunningDaemon, **http: Any) -> AsyncIterator[Lane]:
    """Put an HTTP server of its own, with these keys of `[http]`, before a daemon's models."""
    metrics = daemon.service._metrics
    with tempfile.TemporaryDirectory(prefix="inferd-") as folder:
        socket = Path(folder) / "s"
        async with running_server(
            socket, service=daemon.service, metrics=metrics, **http
        ) as server:
            yield Lane(daemon, server, socket, _read(metrics))


def _read(metrics: Metrics) -> dict[str, float]:
    text = metrics.render()[0].decode()
    return {
        f"{sample.name} {json.dumps(sample.labels, sort_keys=True)}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.endswith(("_total", "_count", "_depth"))
    }


async def ask(client: Client, raw_request: bytes) -> Whole:
    await client.send(raw_request)
    return await receive(client)


async def receive(client: Client) -> Whole:
    """The next answer; the server must not have sent anything before it."""
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        head = (await client.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        lengths = [line for line in lines if line.lower().startswith("content-length:")]
        assert len(lengths) == (0 if status_line.split(" ")[1] == "100" else 1), head
        size = int(lengths[0].partition(":")[2]) if lengths else 0
        body = await client.reader.readexactly(size)
    kept = sorted(line for line in lines if not line.startswith("Date: "))
    return Whole(status_line, tuple(kept), body)


async def receive_all(client: Client) -> bytes:
    """Everything until the server closes."""
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        return await client.reader.read()


def given(
    name: str = "x", shape: Sequence[int] = (1, 4), datatype: str = "FP32", *, size: int = 16
) -> dict[str, object]:
    """An input whose numbers follow the JSON."""
    parameters = {"binary_data_size": size}
    return {"name": name, "shape": [*shape], "datatype": datatype, "parameters": parameters}


def document(*inputs: dict[str, object], **more: object) -> dict[str, object]:
    """A request that wants its outputs as bytes."""
    return {"inputs": [*inputs], "parameters": {"binary_data_output": True}, **more}


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def infer(
    content: bytes = floats(1, 2, 3, 4),
    asked: Mapping[str, object] | bytes | None = None,
    *,
    model: str = "scale",
    pad_to: int = 0,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A whole request; `pad_to`: so many bytes of JSON, filled up with spaces."""
    if asked is None:
        asked = document(given())
    text = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    text = text.ljust(pad_to)
    path = f"/v2/models/{model}/infer"
    return post(path, text + content, headers={HEADER: str(len(text)), **(headers or {})})


def unknown(raw_request: bytes) -> bytes:
    """The same request under a head that nobody has sent before."""
    line, rest = raw_request.lstrip(b"\r\n").split(b"\r\n", 1)
    return b"%b\r\nX-Once: %d\r\n%b" % (line, next(_once), rest)


def head_bytes(raw_request: bytes) -> int:
    return raw_request.index(b"\r\n\r\n") + 4


def outputs_of(answers: Iterable[Whole]) -> list[list[float]]:
    """The last four numbers of each."""
    return [np.frombuffer(answer.body[-16:], "<f4").tolist() for answer in answers]
