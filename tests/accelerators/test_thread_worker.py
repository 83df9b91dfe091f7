"""isolation = "thread": the same answers, in the same process, with the same errors."""

from __future__ import annotations

import asyncio
import math
import threading

import numpy as np
import pytest
from support import tflite_builder as models

from accelerators.base import Isolation, LoadSpec
from accelerators.errors import CallTimedOut, InvokeFailed, LoadStage, ModelRefused
from accelerators.forkserver import ForkServer
from accelerators.supervisor import DeathReason, WorkerEvent, WorkerPool


@pytest.fixture
def in_thread(open_pool):
    async def start(model, **fields):
        return await open_pool(model, isolation=Isolation.THREAD, **fields)

    return start


async def test_answers_as_a_process_does(in_thread, ones):
    bench = await in_thread(models.scale(), instances=2)

    answers = [(await bench.call(x=ones(rows, 4)))["y"].tolist() for rows in (1, 3, 1)]

    assert answers == [[[2] * 4] * rows for rows in (1, 3, 1)]
    assert bench.pool.pids == ()
    assert bench.pool.alive == 2


async def test_answers_are_the_callers_own(in_thread, ones):
    bench = await in_thread(models.scale())

    first = (await bench.call(x=ones(1, 4)))["y"]
    await bench.call(x=5 * ones(1, 4))

    assert first.tolist() == [[2, 2, 2, 2]]


async def test_strings_keep_every_byte(in_thread):
    bench = await in_thread(models.strings((-1, 2)))
    words = np.array([[b"a\0b", b"\xff"]], object)

    assert (await bench.call(a=words))["output_0"].tolist() == words.tolist()


async def test_refusal_says_why(in_thread):
    with pytest.raises(ModelRefused, match="unresolved custom op: Nobody") as caught:
        await in_thread(models.custom("Nobody"))

    assert caught.value.stage is LoadStage.ALLOCATE


async def test_wrong_shape_is_an_error_of_the_call_alone(in_thread, ones):
    bench = await in_thread(models.scale())

    with pytest.raises(InvokeFailed, match="has shape"):
        await bench.call(x=ones(1, 5))

    assert (await bench.call(x=ones(1, 4)))["y"].shape == (1, 4)


async def test_state_is_kept(in_thread):
    bench = await in_thread(models.accumulator(), instances=3)
    x = np.array([[2]], np.float32)

    assert [float((await bench.call(x=x))["y"][0, 0]) for _ in range(3)] == [2, 4, 6]
    assert bench.pool.alive == 1


async def test_call_that_hangs_is_given_up_and_the_pool_has_failed(save, wait_until):
    # Slow rather than endless: a thread cannot be ended, and this test must leave none behind.
    path = save(models.hog(1, on_call=True))
    events: list[WorkerEvent] = []
    spec = LoadSpec(path, isolation=Isolation.THREAD, call_timeout_s=0.01)
    pool = WorkerPool(spec, ForkServer(), on_capacity=lambda: None, on_event=events.append)
    await pool.start()
    x = np.ones((1, 1024), np.float32)
    tiles = np.array([50_000, 1], np.int32)  # 200 MiB

    answer = pool.call("serving_default", {"x": x, "tiles": tiles})
    with pytest.raises(CallTimedOut, match=r"longer than 0\.01 s"):
        await asyncio.wait_for(answer, 20)

    await wait_until(lambda: bool(events))
    assert events[0].reason is DeathReason.TIMEOUT
    assert (pool.alive, pool.retry_at, events[0].retry_in_s) == (0, math.inf, math.inf)
    assert "left behind" in pool.failure
    await pool.stop()
    await wait_until(lambda: "inferd-model" not in {t.name for t in threading.enumerate()})
