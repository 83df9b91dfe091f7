"""Two models on one device: calls of one are kept together, and each gets its share.

Through real pools, on a stand-in that takes longer after another model's call.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import tflite_builder as models

from accelerators.away import Away
from accelerators.base import LoadSpec
from accelerators.errors import WorkerLost
from accelerators.hosts import DeviceHosts
from accelerators.supervisor import WorkerPool
from accelerators.turns import HOLD_S, Turns

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 60.0
X = np.ones((1, 4), np.float32)


class Tenant:
    """A model on the device with a queue of calls in front, as the daemon has."""

    def __init__(self, spec: LoadSpec, hosts: DeviceHosts, turns: Turns) -> None:
        self.away = Away(spec.device, turns, lambda _: self.pump())
        self.away.pool = WorkerPool(
            spec,
            hosts.of(spec.device),
            on_capacity=self.away.on_pool_capacity,
            on_event=lambda _: self.on_loss(),
        )
        self.on_loss: Callable[[], object] = lambda: None
        self._queue: deque[asyncio.Future] = deque()

    def want(self, calls: int) -> list[asyncio.Future]:
        """Queue so many calls."""
        loop = asyncio.get_running_loop()
        replies = [loop.create_future() for _ in range(calls)]
        self._queue.extend(replies)
        self.pump()
        return replies

    def pump(self) -> None:
        while self._queue and self.away.pool.free_slots and self.away.turn.ask():
            self.away.send("serving_default", ({"x": X},), self._queue.popleft())


@pytest.fixture
async def share(forkserver, standin, tmp_path):
    """Starts two models that double and triple, with options of the device."""
    hosts, turns = DeviceHosts(forkserver), Turns()
    tenants: list[Tenant] = []

    async def start(**options) -> list[Tenant]:
        device = standin.device(exclusive=True, lock=tmp_path / "lock", **options)
        for factor in (2.0, 3.0):
            path = tmp_path / f"{factor}.tflite"
            path.write_bytes(models.scale(factor))
            tenants.append(Tenant(LoadSpec(path, device=device), hosts, turns))
            await tenants[-1].away.start()
        return tenants

    yield start
    for tenant in tenants:
        await tenant.away.close()
    await hosts.stop()


async def finished(replies: list[asyncio.Future]) -> list[tuple[float, float]]:
    """When each call was taken up, and its first output."""
    results = await asyncio.wait_for(asyncio.gather(*replies), WAIT_S)
    return [(result.started_at, float(result.outputs["y"].ravel()[0])) for result in results]


async def test_calls_of_one_model_are_kept_together(share):
    one, other = await share(delay_us=1000, switch_us=11_000)
    replies = [reply for _ in range(20) for reply in (*one.want(10), *other.want(10))]

    calls = sorted(await finished(replies))

    answers = [answer for _, answer in calls]
    assert (answers.count(2.0), answers.count(3.0)) == (200, 200)
    switches = sum(before != after for before, after in pairwise(answers))
    assert switches <= (calls[-1][0] - calls[0][0]) / HOLD_S + 2
    assert switches < 200  # one after the other there would be 400


async def test_model_with_few_calls_is_served_among_the_many_of_another(share):
    busy, seldom = await share(delay_us=2000)
    many = busy.want(300)
    few = []
    for _ in range(3):
        few += await finished(seldom.want(1))

    all_of_many = await finished(many)

    assert [answer for _, answer in few] == [3.0] * 3
    assert max(when for when, _ in few) < max(when for when, _ in all_of_many)


async def test_model_whose_neighbour_leaves_in_the_middle_goes_on(share):
    one, other = await share(delay_us=20_000)
    lost = one.want(50)
    waiting = other.want(3)

    await one.away.close()

    assert [answer for _, answer in await finished(waiting)] == [3.0] * 3
    for reply in lost:
        reply.cancel()
    await asyncio.gather(*lost, return_exceptions=True)


async def test_call_that_comes_between_two_lives_of_its_process_is_lost(share):
    one, _ = await share()
    replies: list[asyncio.Future] = []
    lost = asyncio.Event()

    def call() -> None:
        replies.append(one.away.call("serving_default", {"x": X}))
        lost.set()

    one.on_loss = call
    os.kill(one.away.pool.pids[0], signal.SIGKILL)
    await asyncio.wait_for(lost.wait(), WAIT_S)

    with pytest.raises(WorkerLost) as error:
        await replies[0]
    assert not error.value.started
