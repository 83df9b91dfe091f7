"""Large calls and large reports pass, and leave neither memory nor the loop taken."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import tflite_builder as models

KEPT_BYTES = 4 << 20  # per slot
ROWS = 8192  # of 4 KiB


def slots_bytes() -> int:
    """Memory that all slots take."""
    sizes = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own is gone already
            if "memfd:inferd-slot" in str(link.readlink()):
                found = link.stat()
                sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


async def test_memory_of_a_large_call_goes_back(open_pool, wait_until):
    bench = await open_pool(models.scale(width=1024))
    small = slots_bytes()

    answers = [
        await bench.call(x=np.full((ROWS, 1024), 3, np.float32)),
        await bench.call(x=np.ones((1, 1024), np.float32)),
    ]
    full = slots_bytes()
    await wait_until(lambda: slots_bytes() <= 2 * KEPT_BYTES)
    answers += [
        await bench.call(x=np.ones((2, 1024), np.float32)),
        await bench.call(x=np.full((ROWS, 1024), 5, np.float32)),
    ]

    assert small < KEPT_BYTES
    assert full > 32 << 20
    shapes = [(answer["y"].shape[0], float(answer["y"].max())) for answer in answers]
    assert shapes == [(ROWS, 6), (1, 2), (2, 2), (ROWS, 10)]


async def test_memory_of_a_call_nobody_waits_for_goes_back(open_pool, wait_until):
    bench = await open_pool(models.scale(width=1024))
    x = np.ones((ROWS, 1024), np.float32)

    bench.pool.call("serving_default", {"x": x}).cancel()

    await bench.until(lambda: bench.pool.free_slots == 2)
    await wait_until(lambda: slots_bytes() <= 2 * KEPT_BYTES)
    assert (await bench.call(x=x))["y"].min() == 2


class Counted(ThreadPoolExecutor):
    """Tells of work that is handed to it, and can be kept from doing it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.handed_over = asyncio.Event()
        self.gate = threading.Event()
        self.submit(self.gate.wait)
        self.handed_over.clear()

    def submit(self, *args, **kwargs):
        self.handed_over.set()
        return super().submit(*args, **kwargs)


@pytest.fixture
async def executor():
    """The loop's own, with the gate closed."""
    counted = Counted()
    asyncio.get_running_loop().set_default_executor(counted)
    yield counted
    counted.gate.set()


async def test_large_report_is_decoded_beside_the_loop(open_pool, executor):
    executor.gate.set()

    bench = await open_pool(models.labelled(200_000))

    labels = bench.pool.report.metadata.outputs[0].labels
    assert (len(labels), labels[-1]) == (200_000, "label 199999")
    assert executor.handed_over.is_set()


async def test_small_report_is_decoded_at_once(open_pool, executor):
    bench = await open_pool(models.labelled(1000))

    assert len(bench.pool.report.metadata.outputs[0].labels) == 1000
    assert not executor.handed_over.is_set()


async def test_worker_that_dies_while_its_report_is_decoded_is_replaced(
    open_pool, executor, forkserver, wait_until
):
    start = asyncio.create_task(open_pool(models.labelled(50_000)))
    await asyncio.wait_for(executor.handed_over.wait(), 20)
    server = psutil.Process(forkserver.pid)
    (worker,) = server.children()

    worker.send_signal(signal.SIGKILL)
    await wait_until(lambda: not server.children())
    executor.gate.set()
    bench = await start
    await bench.until(lambda: bench.events and bench.pool.alive == 1)

    assert bench.events[0].pid == worker.pid
    assert (await bench.call(x=np.ones((1, 3), np.float32)))["y"].shape == (1, 3)


async def test_start_that_is_cancelled_while_a_report_is_decoded_leaves_nothing(
    open_pool, executor
):
    start = asyncio.create_task(open_pool(models.labelled(50_000)))
    await asyncio.wait_for(executor.handed_over.wait(), 20)

    start.cancel()

    with pytest.raises(asyncio.CancelledError):
        await start
