"""Runs the real daemon inside a test: in its event loop, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import requests
from support.tables import read_tables

from daemon.app import Running, serve
from daemon.config import Config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence

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


class KeptDaemon:
    """`python -m daemon` on one port, in one life after the other, as systemd would keep it.

    A context: the first life begins with it, and none outlives it.

    Attributes:
        lives: that have begun.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int,
        served: Sequence[Path | Mapping[str, object]] = (),
        python: Path = Path(sys.executable),
        **tables: Any,
    ) -> None:
        """Write its configuration.

        Args:
            served, tables: as for `running_daemon`.
            python: that runs it.
        """
        self.root = root
        self._python = python
        self.url = f"http://127.0.0.1:{port}"
        self.lives = 0
        self._ready_life: int | None = None
        self._file = root / "inferd.toml"
        self._process: subprocess.Popen[bytes] | None = None
        http = {**tables.get("http", {}), "listen": [f"127.0.0.1:{port}"]}
        config = make_tables(served, root, {**tables, "http": http})
        self._file.write_text(_to_toml(config), encoding="utf-8")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        """What it has logged in all of its lives."""
        return (self.root / LOG).read_text(encoding="utf-8")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Of the present life, or the last one."""
        assert self._process is not None, "it was never started"
        return self._process

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def ready_life(self) -> int | None:
        """The number of the present life, once it serves what there is; None until then."""
        return self._ready_life

    def outlives(self, life: int) -> bool:
        """Whether this life goes on; the last one does not when its end is a second away."""
        if self.lives != life:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)  # its connections end some moments before it does
        return self.lives == life and self.is_alive

    def start(self) -> None:
        """Begin a life, and wait until it serves what there is."""
        self.spawn()
        self.wait_until_ready()

    def spawn(self) -> None:
        """Begin a life and wait for nothing."""
        assert not self.is_alive, "one at a time"
        self._ready_life = None
        with (self.root / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._python), "-m", "daemon", "--config", str(self._file)],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            )
        self.lives += 1

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until it serves what there is."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.is_alive, f"the daemon has ended:\n{self.log[-4000:]}"
            if self.look_whether_ready():
                return
            time.sleep(0.02)  # there is no event to wait for in another process
        raise AssertionError(f"the daemon at {self.url} is not ready within {timeout_s} s")

    def look_whether_ready(self) -> bool:
        """Ask it."""
        life = self.lives
        try:
            is_ready = requests.get(f"{self.url}/readyz", timeout=5).ok
        except requests.RequestException:
            return False
        if is_ready:
            self._ready_life = life
        return is_ready

    def kill(self) -> None:
        """SIGKILL; none alive is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_TIMEOUT_S)

    def stop(self) -> None:
        """SIGTERM, and wait until it has stopped in good order."""
        self.process.terminate()
        assert self.process.wait(START_TIMEOUT_S) == 0, self.log[-4000:]

    def wait_ended(self, timeout_s: float = START_TIMEOUT_S) -> int:
        """Wait until it has died by itself; gives its exit status."""
        return self.process.wait(timeout_s)


class Keeper(threading.Thread):
    """Starts a daemon again whenever it has died, as systemd does with `Restart=always`.

    A context.
    """

    def __init__(self, daemon: KeptDaemon, *, may_live: Callable[[], bool] = lambda: True) -> None:
        """Store only.

        Args:
            may_live: asked of each life as soon as it has begun; False: it is killed at once.
        """
        super().__init__(name="keeper", daemon=True)
        self._daemon, self._may_live = daemon, may_live
        self._ending = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self.join(START_TIMEOUT_S)

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until some life serves what there is."""
        deadline = time.monotonic() + timeout_s
        while self._daemon.ready_life is None or not self._daemon.is_alive:
            assert time.monotonic() < deadline, f"not ready within {timeout_s} s"
            time.sleep(0.02)  # there is no event to wait for in another process

    def run(self) -> None:
        while not self._ending.wait(0.02):
            if not self._daemon.is_alive:
                self._daemon.spawn()
            elif not self._may_live():
                self._daemon.kill()
            elif self._daemon.ready_life is None:
                self._daemon.look_whether_ready()


@contextmanager
def daemon_process(
    served: Sequence[Path | Mapping[str, object]],
    /,
    *,
    root: Path,
    port: int,
    python: Path = Path(sys.executable),
    **tables: Any,
) -> Iterator[DaemonProcess]:
    """Serve these models in a process of its own, on a given port, with SIGKILL at the end."""
    kept = KeptDaemon(root, port=port, served=served, python=python, **tables)
    (root / LOG).unlink(missing_ok=True)
    kept.spawn()
    try:
        yield DaemonProcess(kept.process, kept.url, root)
    finally:
        kept.kill()


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
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
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
