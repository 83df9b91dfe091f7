"""Whatever happens to a worker, its calls end, another takes its place and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import tflite_builder as models

from accelerators.errors import CallTimedOut, InvokeFailed, ModelRefused, WorkerLost
from accelerators.supervisor import DeathReason


def at_work(bench, x) -> asyncio.Future:
    return bench.pool.call(bench.pool.report.signatures[0].name, {"x": x})


@pytest.fixture
def taken_up(wait_until):
    """Waits until the pool's first worker burns time in a call."""

    async def wait(bench) -> None:
        worker = psutil.Process(bench.pool.pids[0])
        before = sum(worker.cpu_times()[:2])
        await wait_until(lambda: sum(worker.cpu_times()[:2]) >= before + 0.05)

    return wait


HANG = np.array([0], np.float32)
FINE = np.array([5], np.float32)


async def test_killed_worker_is_replaced_and_says_how_it_died(open_pool, ones):
    bench = await open_pool(models.scale())
    pid = bench.pool.pids[0]

    os.kill(pid, signal.SIGSEGV)
    await bench.until(lambda: bench.events and bench.pool.alive == 1)

    event = bench.events[0]
    assert (event.pid, event.reason, event.retry_in_s) == (pid, DeathReason.CRASH, 0)
    assert event.detail == "killed by SIGSEGV"
    assert bench.pool.pids != (pid,)
    assert (await bench.call(x=ones(1, 4)))["y"].tolist() == [[2, 2, 2, 2]]


async def test_call_that_ran_when_its_worker_died_was_started_and_the_staged_one_was_not(
    open_pool, taken_up
):
    bench = await open_pool(models.hangs_while_at_most(0.0))
    running, staged = at_work(bench, HANG), at_work(bench, FINE)
    await taken_up(bench)

    os.kill(bench.pool.pids[0], signal.SIGKILL)

    with pytest.raises(WorkerLost, match="killed by SIGKILL") as first:
        await running
    with pytest.raises(WorkerLost, match="killed by SIGKILL") as second:
        await staged
    assert (first.value.started, second.value.started) == (True, False)
    assert not isinstance(first.value, CallTimedOut)


async def test_no_call_is_lost_twice_under_load_with_kills(open_pool, ones):
    bench = await open_pool(models.scale(), instances=2)
    lost = answered = 0

    for number in range(400):
        await bench.until(lambda: bench.pool.free_slots > 0)
        answer = at_work(bench, ones(1, 4))
        if number % 100 == 50:
            os.kill(bench.pool.pids[0], signal.SIGKILL)
        try:
            assert (await asyncio.wait_for(answer, 10)).outputs["y"].tolist() == [[2, 2, 2, 2]]
            answered += 1
        except WorkerLost:
            lost += 1

    assert answered >= 396
    assert lost + answered == 400
    await bench.until(lambda: bench.pool.alive == 2)
    assert len(bench.events) == 4


async def test_call_that_outlives_its_time_is_ended(open_pool):
    bench = await open_pool(models.hangs_while_at_most(0.0), call_timeout_s=0.3)
    pid = bench.pool.pids[0]
    running, staged = at_work(bench, HANG), at_work(bench, FINE)

    with pytest.raises(CallTimedOut, match=r"longer than 0.3 s") as first:
        await asyncio.wait_for(running, 20)
    with pytest.raises(WorkerLost) as second:
        await staged
    await bench.until(lambda: bench.events and bench.pool.alive == 1)

    assert first.value.started
    assert not isinstance(second.value, CallTimedOut)
    assert not second.value.started
    assert (bench.events[0].reason, bench.events[0].pid) == (DeathReason.TIMEOUT, pid)
    assert (await bench.call(x=FINE))["y"].tolist() == [5]


def descriptor_of(pid: int) -> int:
    """The one by which this process can signal another."""
    for info in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if f"Pid:\t{pid}\n" in info.read_text():
                return int(info.name)
    raise LookupError(pid)


async def test_worker_that_hangs_and_cannot_be_killed_is_left_behind(open_pool, monkeypatch):
    monkeypatch.setattr("accelerators.process._EXIT_GRACE_S", 0.1)
    monkeypatch.setattr("accelerators.process._KILL_GRACE_S", 0.1)
    bench = await open_pool(models.hangs_while_at_most(0.0), call_timeout_s=0.3)
    pid = bench.pool.pids[0]
    os.dup2(0, descriptor_of(pid), inheritable=False)  # it is no process any more
    running, staged = at_work(bench, HANG), at_work(bench, FINE)

    with pytest.raises(CallTimedOut):
        await asyncio.wait_for(running, 20)
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(staged, 20)
    await bench.until(lambda: bench.events and bench.pool.alive == 1)

    assert psutil.pid_exists(pid)
    assert (bench.events[0].reason, bench.events[0].pid) == (DeathReason.TIMEOUT, pid)
    assert (await bench.call(x=FINE))["y"].tolist() == [5]


async def test_time_of_a_staged_call_begins_when_its_turn_comes(open_pool):
    bench = await open_pool(models.hangs_while_at_most(0.0), call_timeout_s=0.4)
    for _ in range(3):  # the watch is armed by the first and must not be the others' end
        first, second = at_work(bench, FINE), at_work(bench, FINE)
        await asyncio.gather(first, second)

    late = at_work(bench, HANG)
    begun = asyncio.get_running_loop().time()
    with pytest.raises(CallTimedOut):
        await asyncio.wait_for(late, 20)

    assert asyncio.get_running_loop().time() - begun >= 0.4


async def test_deaths_in_quick_succession_are_answered_more_slowly(open_pool):
    bench = await open_pool(models.scale())

    for count in (1, 2, 3):
        os.kill(bench.pool.pids[0], signal.SIGKILL)
        await bench.until(lambda n=count: len(bench.events) == n and bench.pool.alive == 1)

    delays = [event.retry_in_s for event in bench.events]
    assert delays[0] == 0
    assert 0 < delays[1] < delays[2]


async def test_worker_that_hung_is_replaced_at_once_every_time(open_pool):
    bench = await open_pool(models.hangs_while_at_most(0.0), call_timeout_s=0.1)

    for count in (1, 2, 3, 4):
        with pytest.raises(CallTimedOut):
            await bench.call(x=HANG)
        await bench.until(lambda n=count: len(bench.events) == n and bench.pool.alive == 1)

    assert [event.retry_in_s for event in bench.events] == [0, 0, 0, 0]


async def test_call_that_hangs_and_was_given_up_is_ended_long_before_its_limit(open_pool):
    bench = await open_pool(models.hangs_while_at_most(0.0), call_timeout_s=600)
    hung, behind = at_work(bench, HANG), at_work(bench, FINE)

    bench.pool.give_up(hung, patience_s=0.1)

    with pytest.raises(WorkerLost) as lost:
        await behind
    assert not lost.value.started
    assert "nobody waited for" in lost.value.reason
    await bench.until(lambda: bench.events and bench.pool.alive == 1)
    assert [event.reason for event in bench.events] == [DeathReason.TIMEOUT]


async def test_call_that_was_given_up_while_it_waited_is_ended_when_its_turn_makes_it_hang(
    open_pool,
):
    bench = await open_pool(models.hangs_while_at_most(0.0), call_timeout_s=600)
    first, hung = at_work(bench, FINE), at_work(bench, HANG)

    bench.pool.give_up(hung, patience_s=0.1)
    await first
    await bench.until(lambda: bench.events and bench.pool.alive == 1)

    assert (await bench.call(x=FINE))["y"] is not None


async def test_call_that_was_given_up_and_ends_in_time_costs_no_worker(open_pool):
    bench = await open_pool(models.scale())
    given_up = bench.pool.call("serving_default", {"x": np.ones((1, 4), np.float32)})

    bench.pool.give_up(given_up, patience_s=20)
    await bench.call(x=np.ones((1, 4), np.float32))

    assert bench.events == []


async def test_pool_without_a_worker_says_why(open_pool):
    bench = await open_pool(models.scale())
    seen = []

    os.kill(bench.pool.pids[0], signal.SIGKILL)
    await bench.until(lambda: bench.events)
    seen.append((bench.pool.alive, bench.pool.free_slots, bench.pool.failure))
    await bench.until(lambda: bench.pool.alive == 1)

    assert seen == [(0, 0, "its worker was killed by SIGKILL and is being restarted")]
    assert bench.pool.failure == ""


async def test_failed_calls_do_not_make_the_worker_grow(open_pool):
    bench = await open_pool(models.gather(rows=4))
    worker = psutil.Process(bench.pool.pids[0])
    sizes = []

    # The first ones fill the allocator; 6,000 more would leave some 2 MiB of the runtime's texts.
    for calls in (3000, 6000):
        for _ in range(calls):
            with pytest.raises(InvokeFailed):
                await bench.call(index=np.array([99], np.int32))
        sizes.append(worker.memory_info().rss)

    assert sizes[1] - sizes[0] < 1 << 20


async def test_call_that_needs_too_much_memory_fails_alone(open_pool):
    bench = await open_pool(models.hog(1, on_call=True), memory_mib=64)
    x = np.ones((1, 1024), np.float32)

    async def tiles(count: int) -> float:
        return float((await bench.call(x=x, tiles=np.array([count, 1], np.int32)))["y"][0, 0])

    with pytest.raises(InvokeFailed, match="more memory"):
        await tiles(200_000)

    assert await tiles(10_000) == 10_000
    assert await tiles(10) == 10
    assert bench.pool.alive == 1


async def test_crash_with_the_memory_used_up_is_put_down_to_memory(open_pool):
    bench = await open_pool(models.hog(1, on_call=True), memory_mib=128)
    tiles = np.array([25_000, 1], np.int32)  # 100 MiB

    await bench.call(x=np.ones((1, 1024), np.float32), tiles=tiles)
    os.kill(bench.pool.pids[0], signal.SIGSEGV)
    await bench.until(lambda: bench.events)

    assert bench.events[0].reason is DeathReason.MEMORY
    assert "128 MiB" in bench.events[0].detail


async def test_stateful_model_that_leaks_is_ended_and_starts_anew(open_pool):
    """Nobody gets an answer from a state that was lost without a word."""
    bench = await open_pool(models.leaks(8), memory_mib=128)
    x = np.ones((1, 4), np.float32)

    async def ask_often() -> None:
        for _ in range(40):
            await bench.call(x=x)

    with pytest.raises(InvokeFailed, match=r"more memory.*its state is lost"):
        await ask_often()
    await bench.until(lambda: bench.pool.alive == 1 and bench.events)

    assert bench.events[0].reason is DeathReason.MEMORY
    assert (await bench.call(x=x))["y"].tolist() == [[2, 2, 2, 2]]


async def test_call_larger_than_a_slot_may_be_fails_alone(open_pool):
    bench = await open_pool(models.scale(width=1024), memory_mib=16)

    with pytest.raises(InvokeFailed, match="bytes of tensors"):
        await bench.call(x=np.ones((8192, 1024), np.float32))

    assert (await bench.call(x=np.ones((2, 1024), np.float32)))["y"].shape == (2, 1024)
    assert bench.pool.free_slots == 2


async def test_dead_fork_server_is_replaced_with_its_workers(open_pool, forkserver, ones):
    bench = await open_pool(models.scale(), instances=2)
    old, pids = forkserver.pid, bench.pool.pids

    os.kill(old, signal.SIGKILL)
    await bench.until(lambda: len(bench.events) == 2 and bench.pool.alive == 2)

    assert forkserver.pid not in (0, old)
    assert not set(pids) & set(bench.pool.pids)
    assert not any(psutil.pid_exists(pid) and alive(pid) for pid in pids)
    assert (await bench.call(x=ones(1, 4)))["y"].tolist() == [[2, 2, 2, 2]]


def alive(pid: int) -> bool:
    """Not a zombie that only waits for whoever inherited it."""
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_replacement_that_finds_another_file_is_not_used(open_pool, save):
    bench = await open_pool(models.scale(2.0))

    save(b"").unlink()  # a loaded file must never change in place
    save(models.scale(3.0))
    os.kill(bench.pool.pids[0], signal.SIGKILL)
    await bench.until(lambda: bench.events)
    await bench.until(lambda: len(bench.events) >= 3)

    assert bench.pool.alive == 0
    assert {(event.pid, event.reason) for event in bench.events[1:]} == {(0, DeathReason.START)}
    assert "another one" in bench.events[1].detail
    assert bench.pool.failure.endswith(f"its replacement does not start: {bench.events[1].detail}")
    assert bench.pool.retry_at is not None


async def test_worn_worker_is_replaced_without_losing_a_call(open_pool, ones):
    bench = await open_pool(models.scale(), recycle_after_calls=50)
    first = bench.pool.pids

    for _ in range(300):
        await bench.call(x=ones(1, 4))
    await bench.until(lambda: len(bench.events) >= 2)

    assert {event.reason for event in bench.events} == {DeathReason.RECYCLE}
    assert bench.events[0].pid == first[0]
    assert bench.pool.alive == 1
    assert bench.pool.pids != first


async def test_stop_ends_a_call_that_hangs(open_pool, taken_up):
    bench = await open_pool(models.hangs_while_at_most(0.0))
    running = at_work(bench, HANG)
    await taken_up(bench)

    await asyncio.wait_for(bench.pool.stop(), 10)

    with pytest.raises(WorkerLost, match="stopped"):
        await running
    assert bench.pool.alive == 0


async def test_stop_while_a_replacement_is_being_started(open_pool):
    bench = await open_pool(models.scale(), instances=2)
    os.kill(bench.pool.pids[0], signal.SIGKILL)
    await bench.until(lambda: bench.events)

    await asyncio.wait_for(bench.pool.stop(), 10)

    assert bench.pool.alive == 0


async def test_cancelled_start_leaves_nothing(open_pool, wait_until):
    start = asyncio.create_task(open_pool(models.hangs_while_at_most(1.0)))
    await wait_until(lambda: len(psutil.Process().children(recursive=True)) == 2)

    start.cancel()

    with pytest.raises(asyncio.CancelledError):
        await start


async def test_stateful_model_has_one_worker_that_keeps_its_state(open_pool):
    bench = await open_pool(models.accumulator(), instances=4, recycle_after_calls=2)
    x = np.array([[2]], np.float32)

    totals = [float((await bench.call(x=x))["y"][0, 0]) for _ in range(5)]

    assert bench.pool.report.stateful
    assert bench.pool.report.max_batch == 1
    assert bench.pool.alive == 1
    assert totals == [2, 4, 6, 8, 10]


async def test_signatures_share_the_state_and_a_new_worker_starts_again(open_pool):
    bench = await open_pool(models.counter())
    x = np.array([3], np.float32)

    before = (await bench.call("total"))["value"].tolist()
    await bench.call("add", x=x)
    await bench.call("add", x=x)
    after = (await bench.call("total"))["value"].tolist()
    os.kill(bench.pool.pids[0], signal.SIGKILL)
    await bench.until(lambda: bench.events and bench.pool.alive == 1)
    anew = (await bench.call("total"))["value"].tolist()

    assert (before, after, anew) == ([0], [6], [0])


async def test_refused_replica_stops_those_already_there(open_pool, save):
    with pytest.raises(ModelRefused):
        await open_pool(models.hog(64), memory_mib=16, instances=4)


async def test_everything_ends_with_the_daemon(save):
    path = save(models.hangs_while_at_most(0.0))
    program = f"""
import asyncio, numpy as np
from pathlib import Path
from accelerators.base import LoadSpec
from accelerators.forkserver import ForkServer
from accelerators.supervisor import WorkerPool

async def main():
    server = ForkServer()
    await server.start()
    spec = LoadSpec(Path({str(path)!r}), instances=2)
    pool = WorkerPool(spec, server, on_capacity=lambda: None, on_event=print)
    await pool.start()
    hang = pool.call("serving_default", {{"x": np.zeros(1, np.float32)}})
    print("ready", flush=True)
    await hang

asyncio.run(main())
"""
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert await daemon.stdout.readline() == b"ready\n"
    family = psutil.Process(daemon.pid).children(recursive=True)
    assert len(family) == 3

    daemon.kill()
    await daemon.wait()

    await asyncio.to_thread(psutil.wait_procs, family, 20)
    left = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []
