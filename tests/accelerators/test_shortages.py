"""Want of descriptors, processes or threads is told, judges no model, and passes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import tflite_builder as models
from support.shortage import few_descriptors, no_descriptors

from accelerators.base import Isolation
from accelerators.errors import InvokeFailed, WorkerUnavailable
from accelerators.forkserver import ForkFailed
from accelerators.supervisor import DeathReason

OFTEN = 14  # descriptors: more than a worker takes


@pytest.fixture
def ends():
    """Both ends of a socket, for a child that waits for an order that never comes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield [theirs.fileno(), theirs.fileno()]


async def kept(child) -> None:
    child.kill()
    await child.exited
    child.close()


async def test_fork_server_comes_back_when_descriptors_do(forkserver, ends, wait_until):
    old = forkserver.pid

    with no_descriptors():
        os.kill(old, signal.SIGKILL)
        await wait_until(lambda: forkserver.pid == 0)
        with pytest.raises(ForkFailed, match="Too many open files"):
            await forkserver.fork(ends)
    await wait_until(lambda: forkserver.pid not in (0, old))

    await kept(await forkserver.fork(ends))


async def test_child_whose_descriptor_finds_no_room_here_is_ended(forkserver, ends, wait_until):
    with no_descriptors(), pytest.raises(ForkFailed, match="Too many open files"):
        await forkserver.fork(ends)

    await wait_until(lambda: psutil.Process(forkserver.pid).children() == [])
    await kept(await forkserver.fork(ends))


def leave_descriptors(server: psutil.Process, free: int) -> tuple[int, int]:
    """Let another process open so many more; returns the limit it had."""
    before = server.rlimit(psutil.RLIMIT_NOFILE)
    taken = {int(link.name) for link in Path(f"/proc/{server.pid}/fd").iterdir()}
    limit = next(n for n in range(1, 1000) if len(set(range(n)) - taken) == free + 1) - 1
    server.rlimit(psutil.RLIMIT_NOFILE, (limit, before[1]))
    return before


@pytest.mark.parametrize("free", [0, 1, 2])  # the worker's two and its own to the worker
async def test_fork_server_without_descriptors_forks_nobody(forkserver, ends, free):
    server = psutil.Process(forkserver.pid)
    taken = server.num_fds()
    before = leave_descriptors(server, free)

    with pytest.raises(ForkFailed, match="Too many open files"):
        await forkserver.fork(ends)

    assert (server.children(), server.num_fds()) == ([], taken)
    server.rlimit(psutil.RLIMIT_NOFILE, before)
    await kept(await forkserver.fork(ends))


async def test_load_short_of_descriptors_is_not_the_models_fault(open_pool, save):
    path = save(models.labelled(2000))
    outcomes = []

    for free in range(OFTEN + 1):
        with few_descriptors(free):
            try:
                bench = await asyncio.wait_for(open_pool(path), 20)
            except WorkerUnavailable as exc:
                outcomes.append("Too many open files" in exc.reason)
            else:
                outcomes.append(None)
                await bench.pool.stop()

    served = outcomes.index(None)
    assert outcomes[:served] == [True] * served
    assert outcomes[served:] == [None] * (OFTEN + 1 - served)
    assert served >= 9  # each of slots, socket, stderr and process was refused


async def test_pool_tells_of_each_replacement_that_does_not_start(open_pool, ones):
    bench = await open_pool(models.scale())
    pid = bench.pool.pids[0]
    unharmed = bench.pool.retry_at

    with no_descriptors():
        os.kill(pid, signal.SIGKILL)
        await bench.until(lambda: len(bench.events) >= 3)
        failure, retry_at = bench.pool.failure, bench.pool.retry_at
    told = time.monotonic()
    await bench.until(lambda: bench.pool.alive == 1)

    died, first, second = bench.events[:3]
    assert (died.pid, died.reason) == (pid, DeathReason.CRASH)
    assert (first.pid, first.reason) == (0, DeathReason.START)
    assert "Too many open files" in first.detail
    assert 0 < first.retry_in_s < second.retry_in_s
    assert failure.startswith(
        "its worker was killed by SIGKILL and its replacement does not start: no worker can be"
    )
    assert retry_at - told <= second.retry_in_s
    assert retry_at > told - 20
    assert (unharmed, bench.pool.retry_at, bench.pool.failure) == (None, None, "")
    assert (await bench.call(x=ones(1, 4)))["y"].tolist() == [[2, 2, 2, 2]]


async def test_pools_say_why_there_is_no_fork_server(
    open_pool, forkserver, monkeypatch, tmp_path, ones
):
    bench = await open_pool(models.scale())

    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(tmp_path / "no-python"))
        os.kill(forkserver.pid, signal.SIGKILL)
        await bench.until(lambda: len(bench.events) >= 2)
        with pytest.raises(WorkerUnavailable, match="the fork server cannot be started"):
            await open_pool(models.scale())
    await bench.until(lambda: bench.pool.alive == 1)

    assert bench.events[1].reason is DeathReason.START
    assert "the fork server cannot be started" in bench.events[1].detail
    assert (await bench.call(x=ones(1, 4)))["y"].tolist() == [[2, 2, 2, 2]]


async def test_model_that_loads_when_the_fork_server_dies_is_not_judged(
    open_pool, forkserver, wait_until
):
    start = asyncio.create_task(open_pool(models.hangs_while_at_most(1.0)))
    server = psutil.Process(forkserver.pid)
    await wait_until(lambda: any(sum(c.cpu_times()[:2]) > 0.2 for c in server.children()))

    server.kill()

    with pytest.raises(WorkerUnavailable, match=r"with the fork server during the first"):
        await asyncio.wait_for(start, 20)


async def test_worker_that_dies_before_it_saw_the_model_does_not_judge_it(open_pool, forkserver):
    leave_descriptors(psutil.Process(forkserver.pid), 5)  # the child needs more

    with pytest.raises(WorkerUnavailable, match="before it began"):
        await open_pool(models.scale())


async def test_want_of_threads_is_not_the_models_fault(open_pool):
    before = threading.stack_size(1 << 46)  # more than there are addresses
    try:
        with pytest.raises(WorkerUnavailable, match="can't start new thread"):
            await open_pool(models.scale(), isolation=Isolation.THREAD)
    finally:
        threading.stack_size(before)

    assert (await open_pool(models.scale(), isolation=Isolation.THREAD)).pool.alive == 1


async def test_call_that_finds_no_room_fails_alone(open_pool, ones):
    bench = await open_pool(models.scale(width=1024))

    with no_descriptors(), pytest.raises(InvokeFailed, match="Too many open files"):
        await bench.call(x=ones(2, 1024))

    assert bench.pool.free_slots == 2
    assert np.all((await bench.call(x=ones(2, 1024)))["y"] == 2)
