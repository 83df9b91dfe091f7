"""A daemon under measurement: started as its users start it, with its processes at hand."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_TIMEOUT_S = 60
INFERCTL = Path(sys.executable).with_name("inferctl")


@dataclass(frozen=True, slots=True)
class Server:
    """A daemon that is ready.

    Attributes:
        ready_s: from the start of the process to the first 200 of /readyz.
    """

    pid: int
    port: int
    ready_s: float

    def pids(self) -> list[int]:
        """Its process and all below it."""
        found = [self.pid]
        for pid in found:
            children = Path(f"/proc/{pid}/task/{pid}/children")
            found += [int(child) for child in children.read_text(encoding="ascii").split()]
        return found

    def pss_mib(self) -> float:
        """Proportional set size of the daemon, its fork server and its workers together, in MiB."""
        return sum(_pss_kib(pid) for pid in self.pids()) / 1024


@contextmanager
def serve(models: Sequence[Path], environment: dict[str, str] | None = None) -> Iterator[Server]:
    """`inferctl serve` these models on a free port until the block ends."""
    port = _free_port()
    started = time.monotonic()
    command = [str(INFERCTL), "serve", *map(str, models), "--http", f"127.0.0.1:{port}"]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    ) as process:
        try:
            _wait_ready(port, process)
            yield Server(process.pid, port, time.monotonic() - started)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_TIMEOUT_S)


def _wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the daemon ended with {process.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            body = json.loads(answer.read())
            connection.close()
        except OSError:
            time.sleep(0.005)
            continue
        if answer.status == http.HTTPStatus.OK and body["ready"]:
            return
        time.sleep(0.005)
    raise RuntimeError("the daemon did not become ready")


def _pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
