"""The benchmark's own programs: run as processes, so that nothing they import weighs on anybody.

This process itself imports nothing but the standard library: what it shared with a server would be
taken off that server's proportional set size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Load
from benchmarks.processes import Unavailable
from benchmarks.workloads import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.wire import Request


HTTP_CLIENT = "benchmarks.client"


def program(module: str, *arguments: str) -> tuple[str, ...]:
    """The command of one of them."""
    return (sys.executable, "-m", module, *arguments)


def run(module: str, *arguments: str) -> dict[str, Any]:
    """Run one to its end: the JSON that it prints.

    Raises:
        Unavailable: it failed; the message has its last words.
    """
    done = subprocess.run(
        program(module, *arguments), check=False, capture_output=True, cwd=ROOT, text=True
    )
    if done.returncode != 0:
        raise Unavailable(f"{module} failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def run_load(module: str, *arguments: str) -> Load:
    """Run one that prints the figures of a load."""
    return Load(**run(module, *arguments))


class HttpLoad:
    """Sends one request again and again with our own client.

    Args:
        address: a port of loopback, or the path of a unix socket.
        folder: takes the request.
        name: of that file.
    """

    def __init__(self, address: int | Path, request: Request, folder: Path, name: str) -> None:
        self._address = address
        self._request = folder / f"{name}.request"
        self._request.write_bytes(request.to_bytes())

    def __call__(self, connections: int, seconds: int) -> Load:
        """Load it."""
        return run_load(HTTP_CLIENT, *self.arguments(connections, seconds))

    def arguments(self, connections: int, seconds: int) -> tuple[str, ...]:
        """Those of the client's program."""
        return (
            str(self._address), str(self._request),
            "--connections", str(connections), "--seconds", str(seconds),
        )  # fmt: skip


class MqttLoad:
    """Sends one payload again and again to a topic.

    Args:
        port: of a broker on loopback.
        folder: takes the payload.
        name: of that file.
    """

    def __init__(self, port: int, topic: str, payload: bytes, folder: Path, name: str) -> None:
        self._port = port
        self._topic = topic
        self._payload = folder / f"{name}.payload"
        self._payload.write_bytes(payload)

    def __call__(self, connections: int, seconds: int) -> Load:
        """Load it; a connection is a request under way."""
        return run_load(
            "benchmarks.mqttload", str(self._port), self._topic, str(self._payload),
            "--under-way", str(connections), "--seconds", str(seconds),
        )  # fmt: skip
