"""A fork server, pools on it, and the certainty that a test leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from accelerators.base import LoadSpec
from accelerators.forkserver import ForkServer
from accelerators.supervisor import WorkerPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from accelerators.supervisor import WorkerEvent

WAIT_S = 20.0  # far above what anything here takes, below the test's own limit


class Bench:
    """A started pool, what it told, and a way to wait for it."""

    def __init__(self, spec: LoadSpec, forkserver: ForkServer) -> None:
        self.events: list[WorkerEvent] = []
        self._changed = asyncio.Event()
        self.pool = WorkerPool(
            spec, forkserver, on_capacity=self._changed.set, on_event=self._on_event
        )

    def _on_event(self, event: WorkerEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for the pool to tell of a change after which `condition` holds."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def call(self, signature: str = "", **inputs: Any) -> dict[str, Any]:
        """Call when there is room; the default signature unless named."""
        await self.until(lambda: self.pool.free_slots > 0)
        name = signature or self.pool.report.signatures[0].name
        result = await asyncio.wait_for(self.pool.call(name, inputs), WAIT_S)
        return dict(result.outputs)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No child process, descriptor or thread outlives the test that made it."""
    fds = _descriptors()
    threads = set(threading.enumerate())
    yield
    gc.collect()
    assert psutil.Process().children(recursive=True) == []
    assert {t.name for t in set(threading.enumerate()) - threads} == set()
    assert {fd: what for fd, what in _descriptors().items() if fd not in fds} == {}


def _descriptors() -> dict[str, str]:
    """Open descriptors and what they are, without the listing's own."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[link.name] = str(link.readlink())
    return {fd: what for fd, what in found.items() if not what.endswith("/fd")}


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait, within a bound, for what nobody tells of."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.005)


@pytest.fixture
async def forkserver() -> AsyncIterator[ForkServer]:
    server = ForkServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes a model file."""

    def write(data: bytes) -> Path:
        path = tmp_path / "model.tflite"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
async def open_pool(
    forkserver: ForkServer, save: Callable[[bytes], Path]
) -> AsyncIterator[Callable[..., Awaitable[Bench]]]:
    """Starts a pool for model bytes or a path, with LoadSpec's other fields by name."""
    benches: list[Bench] = []

    async def start(model: bytes | Path, **fields: Any) -> Bench:
        path = model if isinstance(model, Path) else save(model)
        bench = Bench(LoadSpec(path, **fields), forkserver)
        await bench.pool.start()
        benches.append(bench)
        return bench

    yield start
    for bench in benches:
        await bench.pool.stop()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    return eventually


@pytest.fixture
def ones() -> Callable[..., np.ndarray[Any, Any]]:
    """float32 ones of a shape."""
    return lambda *shape: np.ones(shape, np.float32)
