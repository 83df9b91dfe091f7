"""Runs the real daemon inside a test: in its event loop, or as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from support.tables import read_tables

from daemon.app import Running, serve
from daemon.config import Config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence

    from daemon.models.registry import ModelRegistry
    from daemon.service import InferenceService

LOG = "daemon.log"
START_TIMEOUT_S = 60
"""Loading all models of the shared set takes some seconds on a busy machine."""


@dataclass(frozen=True)
class RunningDaemon:
    """A daemon that is ready. `url` is its HTTP address without a slash at the end."""

    url: str
    root: Path
    service: InferenceService
    registry: ModelRegistry
    addresses: tuple[str, ...]


def make_tables(
    models: Sequence[Path | Mapping[str, object]], root: Path, tables: Mapping[str, Any]
) -> dict[str, Any]:
    """A configuration on free ports below `root`; an item of `models` is a path or an entry."""
    served = [dict(m) if not isinstance(m, Path) else {"path": m} for m in models]
    config: dict[str, Any] = {
        "paths": {"root": root},
        "http": {"listen": ["127.0.0.1:0"]},
        "models": {"folders": [], "serve": served, "poll_interval_s": 0.1},
        "device": {"id": "box-1"},
    }
    for table, keys in tables.items():
        config[table] = {**config.get(table, {}), **keys}
    return config


@asynccontextmanager
async def running_daemon(
    models: Sequence[Path | Mapping[str, object]],
    /,
    *,
    root: Path | None = None,
    wait_ready: bool = True,
    **tables: Any,
) -> AsyncIterator[RunningDaemon]:
    """Serve these models in this event loop until the block ends.

    Args:
        models: paths, or `[[models.serve]]` tables.
        root: where state and sockets go; a temporary folder when None.
        wait_ready: wait until every model answers or was refused; else only until HTTP answers.
        tables: configuration tables to change, e.g. `http={"max_body_mib": 1}`.
    """
    with tempfile.TemporaryDirectory(prefix="inferd-") as temporary:
        home = root or Path(temporary)
        config = read_tables(Config, make_tables(models, home, tables))
        ready: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
        told = {"on_ready" if wait_ready else "on_listening": ready.set_result}
        task = asyncio.create_task(serve(config, handle_signals=False, environment={}, **told))
        await asyncio.wait({task, ready}, timeout=START_TIMEOUT_S, return_when="FIRST_COMPLETED")
        if not ready.done():
            task.cancel()
            await task
            raise AssertionError("the daemon stopped or did not become ready")
        running = ready.result()
        try:
            yield RunningDaemon(
                url=next(a for a in running.addresses if a.startswith("http")),
                root=home,
                service=running.service,
                registry=running.registry,
                addresses=running.addresses,
            )
        finally:
            running.stop()
            await asyncio.wait_for(task, START_TIMEOUT_S)


@dataclass(frozen=True)
class DaemonProcess:
    """`python -m daemon` as a process of its own."""

    process: subprocess.Popen[bytes]
    url: str
    root: Path

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.root / LOG).read_text(encoding="utf-8")


@contextmanager
def daemon_process(
    served: Sequence[Path | Mapping[str, object]], /, *, root: Path, port: int, **tables: Any
) -> Iterator[DaemonProcess]:
    """Serve these models in a process of its own, on a given port, with SIGKILL at the end."""
    tables = {**tables, "http": {**tables.get("http", {}), "listen": [f"127.0.0.1:{port}"]}}
    file = root / "inferd.toml"
    file.write_text(_to_toml(make_tables(served, root, tables)), encoding="utf-8")
    with (
        (root / LOG).open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "daemon", "--config", str(file)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        ) as process,
    ):
        try:
            yield DaemonProcess(process, f"http://127.0.0.1:{port}", root)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)


def _to_toml(tables: Mapping[str, Any]) -> str:
    """The configuration as TOML: JSON values are TOML values, but for null and tables."""
    lines: list[str] = []
    for table, keys in tables.items():
        plain = {k: v for k, v in keys.items() if k != "serve"}
        if plain:
            lines.append(f"[{table}]")
            lines += [f"{k} = {_value(v)}" for k, v in plain.items() if v is not None]
        for entry in keys.get("serve", []):
            lines.append("[[models.serve]]")
            lines += [f"{k} = {_value(v)}" for k, v in entry.items() if v is not None]
    text = "\n".join(lines) + "\n"
    tomllib.loads(text)
    return text


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, default=str)


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_settled(
    url: str, *, models: Collection[str] = (), timeout_s: float = START_TIMEOUT_S
) -> list[dict[str, Any]]:
    """Wait until the daemon answers, knows these models and loads none; gives /api/models."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            listed = requests.get(f"{url}/api/models", timeout=5).json()["models"]
        except requests.ConnectionError:
            listed = []
        states = {version["state"] for model in listed for version in model["versions"]}
        known = {model["name"] for model in listed if model["versions"]}
        if states and "LOADING" not in states and known.issuperset(models):
            return listed
        time.sleep(0.02)  # there is no event to wait for in another process
    raise AssertionError(f"the daemon at {url} did not settle within {timeout_s} s")
