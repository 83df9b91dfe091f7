"""What happens to waiting requests when workers answer, die or hang."""

from __future__ import annotations

import asyncio
import time
import weakref

import numpy as np
import pytest

from accelerators.base import CallResult
from accelerators.errors import CallTimedOut, InvokeFailed, WorkerLost
from daemon.dispatch import AwaitedJob, Dispatcher, sharing_key
from daemon.errors import DeadlineExceeded, PredictionFailed, WorkerCrashed


class HandPool:
    """Stands for the hardware: keeps every call until the test says how it ends."""

    def __init__(self, slots: int = 1):
        self.slots = slots
        self.calls: list[tuple[str, dict, object]] = []
        self.called = asyncio.Event()
        self.given_up: list[float] = []
        self.usual_s = 0.0
        self.faults: list[str] = []
        self.on_capacity = lambda: None

    @property
    def free_slots(self):
        return self.slots - sum(not reply.done() for *_, reply in self.calls)

    def send(self, signature, rows, reply):
        inputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        self.calls.append((signature, inputs, reply))
        self.called.set()

    def give_up(self, reply, *, patience_s):
        self.given_up.append(patience_s)
        reply.cancel()

    async def answer(self, index, outputs=None):
        await settle()
        inputs = self.calls[index][1]
        outputs = outputs or {"y": inputs["x"] * 2}
        self.calls[index][2].set_result(CallResult(outputs, 0.001, 0.0, 0.002))
        self.on_capacity()
        await settle()

    async def fail(self, index, error):
        await settle()
        self.calls[index][2].set_exception(error)
        self.on_capacity()
        await settle()


async def settle():
    for _ in range(3):
        await asyncio.sleep(0)


def make_dispatcher(pool, *, max_rows=1, max_delay_s=0.0, retry=True):
    dispatcher = Dispatcher(
        pool,
        max_rows=max_rows,
        max_delay_s=max_delay_s,
        retry=retry,
        usual_s=lambda: pool.usual_s,
        patience_s=lambda: 1.5,
        on_batch=lambda _rows, _result: None,
        on_fault=lambda: pool.faults.append("fault"),
    )
    pool.on_capacity = dispatcher.pump
    return dispatcher


def row(value):
    return {"x": np.full((1, 2), value, np.float32)}


def submit(dispatcher, value, *, inputs=None, signature="serve", shareable=True, timeout_s=60):
    inputs = inputs or row(value)
    job = AwaitedJob(
        signature,
        inputs,
        rows=1,
        key=sharing_key(inputs) if shareable else None,
        deadline=time.monotonic() + timeout_s,
    )
    dispatcher.submit(job)
    return job


async def test_a_request_is_handed_to_a_free_worker_at_once():
    pool = HandPool()
    future = submit(make_dispatcher(pool), 3)

    await pool.answer(0)

    assert (await future.future).outputs["y"].tolist() == [[6, 6]]


async def test_requests_wait_while_every_worker_is_busy_and_keep_their_order():
    pool = HandPool()
    dispatcher = make_dispatcher(pool)
    for value in (1, 2, 3):
        submit(dispatcher, value)
    await settle()
    assert len(pool.calls) == 1

    await pool.answer(0)
    await pool.answer(1)

    assert [call[1]["x"][0, 0] for call in pool.calls] == [1, 2, 3]


async def test_a_request_whose_client_left_is_never_handed_out():
    pool = HandPool()
    dispatcher = make_dispatcher(pool)
    submit(dispatcher, 1)
    dispatcher.withdraw(submit(dispatcher, 2))
    submit(dispatcher, 3)

    await pool.answer(0)

    assert [call[1]["x"][0, 0] for call in pool.calls] == [1, 3]


async def test_a_request_whose_client_left_keeps_no_memory():
    pool = HandPool(slots=0)
    dispatcher = make_dispatcher(pool)
    inputs = row(1)
    tensor = weakref.ref(inputs["x"])
    job = submit(dispatcher, 1, inputs=inputs)
    del inputs

    dispatcher.withdraw(job)
    del job

    assert tensor() is None


async def test_an_invocation_is_given_up_when_the_last_one_who_waits_for_it_leaves():
    pool = HandPool()
    dispatcher = make_dispatcher(pool, max_rows=2)
    submit(dispatcher, 0)
    await settle()
    shared = [submit(dispatcher, 1), submit(dispatcher, 2)]
    await pool.answer(0)

    dispatcher.withdraw(shared[0])
    assert pool.given_up == []
    dispatcher.withdraw(shared[1])

    assert pool.given_up == [1.5]


async def test_waiting_requests_share_an_invocation_and_get_their_own_rows():
    pool = HandPool()
    dispatcher = make_dispatcher(pool, max_rows=4)
    first = submit(dispatcher, 0)
    await settle()
    waiting = [submit(dispatcher, value) for value in (1, 2, 3, 4)]

    await pool.answer(0)
    await pool.answer(1)

    assert pool.calls[1][1]["x"].shape == (4, 2)
    assert (await first.future).batch_rows == 1
    assert [(await f.future).outputs["y"][0, 0] for f in waiting] == [2, 4, 6, 8]


async def test_requests_that_arrive_together_share_though_none_of_them_waits():
    pool = HandPool()
    dispatcher = make_dispatcher(pool, max_rows=4)

    together = [submit(dispatcher, value) for value in (1, 2, 3, 4)]
    await pool.answer(0)

    assert pool.calls[0][1]["x"].shape == (4, 2)
    assert [(await job.future).outputs["y"][0, 0] for job in together] == [2, 4, 6, 8]


async def test_a_request_whose_deadline_passes_fails_alone_and_leaves_its_place():
    pool = HandPool(slots=0)
    dispatcher = make_dispatcher(pool)
    later = submit(dispatcher, 1, timeout_s=60)
    sooner = submit(dispatcher, 2, timeout_s=0.01)

    with pytest.raises(DeadlineExceeded, match="before the answer"):
        await asyncio.wait_for(sooner.future, 5)
    pool.slots = 1
    dispatcher.pump()
    await pool.answer(0)

    assert (await later.future).outputs["y"][0, 0] == 2
    assert len(pool.calls) == 1


async def test_an_invocation_all_of_whose_deadlines_passed_is_given_up():
    pool = HandPool()
    dispatcher = make_dispatcher(pool, max_rows=2)
    shared = [submit(dispatcher, value, timeout_s=0.01) for value in (1, 2)]

    for job in shared:
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(job.future, 5)

    assert pool.given_up == [1.5]


async def test_requests_of_other_shapes_do_not_share():
    pool = HandPool()
    dispatcher = make_dispatcher(pool, max_rows=4)
    submit(dispatcher, 0)
    await settle()
    submit(dispatcher, 1)
    submit(dispatcher, 2, inputs={"x": np.zeros((1, 3), np.float32)})

    await pool.answer(0)

    assert pool.calls[1][1]["x"].shape == (1, 2)


async def test_requests_that_may_not_share_never_do():
    pool = HandPool()
    dispatcher = make_dispatcher(pool, max_rows=4)
    for value in range(3):
        submit(dispatcher, value, signature="other", shareable=False)

    await pool.answer(0)

    assert pool.calls[1][1]["x"].shape == (1, 2)


async def test_a_first_request_waits_for_company_no_longer_than_allowed():
    pool = HandPool()
    dispatcher = make_dispatcher(pool, max_rows=4, max_delay_s=0.01)
    future = submit(dispatcher, 1)
    assert pool.calls == []

    await asyncio.wait_for(pool.called.wait(), 5)
    await pool.answer(0)

    assert (await future.future).batch_rows == 1


async def test_a_full_invocation_does_not_wait():
    pool = HandPool()
    dispatcher = make_dispatcher(pool, max_rows=2, max_delay_s=60)

    submit(dispatcher, 1)
    submit(dispatcher, 2)
    await settle()

    assert pool.calls[0][1]["x"].shape == (2, 2)


async def test_a_request_its_dead_worker_had_not_begun_goes_to_the_next_worker():
    pool = HandPool()
    future = submit(make_dispatcher(pool), 1)

    for attempt in range(5):
        await pool.fail(attempt, WorkerLost("killed by SIGKILL", started=False))
    await pool.answer(5)

    assert (await future.future).outputs["y"][0, 0] == 2


async def test_a_request_that_was_begun_is_tried_once_more_and_then_given_up():
    pool = HandPool()
    future = submit(make_dispatcher(pool), 1)

    await pool.fail(0, WorkerLost("killed by SIGSEGV", started=True))
    await pool.fail(1, WorkerLost("killed by SIGSEGV", started=True))

    with pytest.raises(WorkerCrashed, match="SIGSEGV"):
        await future.future
    assert len(pool.calls) == 2


async def test_a_request_to_a_model_with_state_is_not_tried_again():
    pool = HandPool()
    future = submit(make_dispatcher(pool, retry=False), 1)

    await pool.fail(0, WorkerLost("killed by SIGSEGV", started=True))

    with pytest.raises(WorkerCrashed):
        await future.future


async def test_a_request_that_hung_its_worker_is_not_tried_again():
    pool = HandPool()
    future = submit(make_dispatcher(pool), 1)

    await pool.fail(0, CallTimedOut("it ran for 30 s", started=True))

    with pytest.raises(DeadlineExceeded, match="30 s"):
        await future.future
    assert len(pool.calls) == 1


async def test_a_bad_row_fails_only_itself():
    pool = HandPool()
    dispatcher = make_dispatcher(pool, max_rows=2)
    submit(dispatcher, 0)
    await settle()
    good, bad = submit(dispatcher, 1), submit(dispatcher, 2)
    await pool.answer(0)

    await pool.fail(1, InvokeFailed("index out of range"))
    await pool.answer(2)
    await pool.fail(3, InvokeFailed("index out of range"))

    assert (await good.future).outputs["y"][0, 0] == 2
    with pytest.raises(PredictionFailed, match="index out of range"):
        await bad.future
    assert pool.faults == ["fault"]


async def test_requests_that_wait_can_be_failed_together():
    pool = HandPool(slots=0)
    dispatcher = make_dispatcher(pool)
    waiting = [submit(dispatcher, value) for value in range(3)]

    dispatcher.fail_all(WorkerCrashed("the model was stopped"))

    results = await asyncio.gather(*(job.future for job in waiting), return_exceptions=True)
    assert [type(result) for result in results] == [WorkerCrashed] * 3
