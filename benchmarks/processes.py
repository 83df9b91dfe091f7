"""Servers under measurement: started on loopback, waited for, weighed, and always stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.wire import read_answer
from benchmarks.workloads import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.wire import Answer, Request

START_TIMEOUT_S = 60
"""Several times what the slowest of them takes on a busy machine."""
STOP_TIMEOUT_S = 15
_POLL_S = 0.005
_ANSWER_TIMEOUT_S = 30
_LOG_TAIL_CHARS = 300


class Unavailable(Exception):
    """Somebody who cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a server.

    Attributes:
        environment: what it gets beside this process's.
        folder: where it runs.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = ROOT


@dataclass(frozen=True, slots=True)
class Server:
    """A running one, the first of its processes."""

    pid: int

    def pids(self) -> list[int]:
        """Its process and all below it."""
        found = [self.pid]
        for pid in found:
            found += _children(pid)
        return found

    def pss_bytes(self) -> int:
        """Proportional set size of all its processes."""
        return sum(_pss_kib(pid) for pid in self.pids()) * 1024


@contextmanager
def running(command: Command, log: Path, is_ready: Callable[[], bool]) -> Iterator[Server]:
    """Run it until the block ends; the block begins when it is ready.

    Args:
        log: takes what it prints.
        is_ready: asked again and again.

    Raises:
        Unavailable: it ended or was not ready in time.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=command.folder,
            env={**os.environ, **command.environment},
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait_ready(process, is_ready, log)
            yield Server(process.pid)
        finally:
            _stop(process)


def ask(port: int, request: Request) -> Answer | None:
    """The answer of a server on loopback; None while nobody answers.

    Speaks HTTP by itself: http.client would bring in the TLS library, which then counted as shared.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_TIMEOUT_S) as connection:
            connection.sendall(request.to_bytes())
            with connection.makefile("rb") as stream:
                return read_answer(stream)
    except (OSError, ValueError):
        return None


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(process: subprocess.Popen[bytes], is_ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(f"it ended with {process.returncode}: {_tail(log)}")
        if is_ready():
            return
        time.sleep(_POLL_S)
    raise Unavailable(f"it did not become ready within {START_TIMEOUT_S} s: {_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:  # and whatever it left behind in its group
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(log: Path) -> str:
    """The last line that speaks of an error, else the last ones."""
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = [line for line in text.splitlines() if "error" in line.lower()]
    return " ".join((errors[-1] if errors else text)[-_LOG_TAIL_CHARS:].split())


def _children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        texts = [(thread / "children").read_text(encoding="ascii") for thread in threads]
    except OSError:
        return []
    return [int(child) for text in texts for child in text.split()]


def _pss_kib(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    line = next((line for line in rollup.splitlines() if line.startswith("Pss:")), "Pss: 0")
    return int(line.split()[1])
