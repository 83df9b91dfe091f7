"""Dispatcher: the queue in front of one version's workers.

What happens to a request whose worker dies:
1. It had not been begun: it goes back to the front of the queue, as often as needed.
2. It had been begun: it is tried once more, alone, unless the model keeps state between calls.
3. It ran into the model's time limit: it is not tried again, since it would hang the next worker.
A shared invocation that fails is repeated row by row, so that one bad row fails only itself.

What happens to an invocation that nobody waits for any more: its result is dropped, and when it
runs on for far longer than usual it is taken for hung. Not so for a model that keeps state: it has
its whole time limit, since its worker's end would lose the state.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from accelerators.errors import AcceleratorError, CallTimedOut, InvokeFailed, WorkerLost
from daemon.admission import choose_batch
from daemon.errors import DeadlineExceeded, PredictionFailed, WorkerCrashed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from accelerators.base import Array, CallResult

_MAX_LOOKAHEAD = 256
"""Waiting requests looked at for one shared invocation: as many as the largest batch has rows."""


class Workers(Protocol):
    """What the queue needs of a pool; see `accelerators.supervisor.WorkerPool`."""

    @property
    def free_slots(self) -> int:
        """Calls that `call` would accept now."""

    def call(self, signature: str, inputs: Mapping[str, Array]) -> asyncio.Future[CallResult]:
        """Hand a call to a worker."""

    def give_up(self, call: asyncio.Future[CallResult], *, patience_s: float) -> None:
        """Nobody waits for a call any more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request's invocation gave.

    Attributes:
        outputs: by name; this request's own rows.
        queue_s, invoke_s: seconds it waited, and seconds inside the runtime.
        batch_rows: rows of the invocation it was part of.
    """

    outputs: Mapping[str, Array]
    queue_s: float
    invoke_s: float
    batch_rows: int


class _Job:
    """One request in the queue."""

    __slots__ = ("alone", "attempts", "enqueued_at", "future", "inputs", "key", "rows", "signature")

    def __init__(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        rows: int,
        key: object,
        future: asyncio.Future[Answer],
    ) -> None:
        self.signature = signature
        self.inputs = inputs
        self.rows = rows
        self.key = key  # requests of equal key may share an invocation; None: never
        self.future = future
        self.enqueued_at = time.monotonic()
        self.attempts = 0
        self.alone = False


class Dispatcher:
    """Hands waiting requests to a pool's free workers, several in one invocation where proven.

    Not thread-safe: use it from the pool's event loop.
    """

    def __init__(
        self,
        pool: Workers,
        *,
        max_rows: int,
        max_delay_s: float,
        retry: bool,
        patience_s: Callable[[], float],
        on_batch: Callable[[int, CallResult], None],
    ) -> None:
        """Store only.

        Args:
            pool: its workers; `pump` is to be called when it has free slots.
            max_rows: rows of a shared invocation; 1 for none.
            max_delay_s: how long the first waiting request may wait for others, seconds.
            retry: whether rule 2 may try again: False for models that keep state.
            patience_s: how long an invocation that nobody waits for may run; asked each time.
            on_batch: told of every invocation's rows and result.
        """
        self._pool = pool
        self._max_rows = max_rows
        self._max_delay_s = max_delay_s
        self._retry = retry
        self._patience_s = patience_s
        self._on_batch = on_batch
        # In order of arrival; by future, so that one whose client left is taken out at once.
        self._queue: OrderedDict[asyncio.Future[Answer], _Job] = OrderedDict()
        self._calls: dict[asyncio.Future[CallResult], list[_Job]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def submit(
        self, signature: str, inputs: Mapping[str, Array], *, rows: int, shareable: bool
    ) -> asyncio.Future[Answer]:
        """Queue one request. Whoever gives the future up tells `withdraw`.

        Args:
            signature: a name the model has.
            inputs: checked tensors.
            rows: the first dimension that all inputs share; 1 when they share none.
            shareable: whether rows of several requests may go into one invocation.

        The future's exceptions:
            PredictionFailed: the model failed on this input.
            DeadlineExceeded: rule 3.
            WorkerCrashed: rule 2, for the second time.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        key: object = None
        if shareable and self._max_rows > rows:
            key = tuple((name, array.shape[1:]) for name, array in sorted(inputs.items()))
        job = _Job(signature, inputs, rows, key, future)
        self._queue[future] = job
        self.pump()
        return future

    def withdraw(self, future: asyncio.Future[Answer]) -> None:
        """Nobody waits for this request any more: let its place and its tensors go.

        An invocation that nobody waits for is given up too.
        """
        future.cancel()
        if self._queue.pop(future, None) is not None:
            return
        for call, jobs in list(self._calls.items()):
            if not call.done() and all(job.future.done() for job in jobs):
                self._pool.give_up(call, patience_s=self._patience_s())

    def pump(self) -> None:
        """Hand out what can be handed out now."""
        while self._queue and self._pool.free_slots > 0:
            head = next(iter(self._queue.values()))
            if self._may_wait(head):
                return
            self._send(self._take(head))

    def fail_all(self, error: Exception) -> None:
        """Give every waiting request this error."""
        while self._queue:
            future, _ = self._queue.popitem(last=False)
            if not future.done():
                future.set_exception(error)

    def _may_wait(self, head: _Job) -> bool:
        """Whether the first request should wait for company; sets the timer that ends the wait."""
        if self._max_delay_s <= 0 or head.key is None or head.alone:
            return False
        due_in = head.enqueued_at + self._max_delay_s - time.monotonic()
        if due_in <= 0 or sum(job.rows for job in self._queue.values()) >= self._max_rows:
            return False
        if self._timer is None:
            self._timer = self._loop.call_later(due_in, self._on_timer)
        return True

    def _on_timer(self) -> None:
        self._timer = None
        self.pump()

    def _take(self, head: _Job) -> list[_Job]:
        """The first waiting request and those behind it that share its invocation."""
        company = [head]
        if head.key is not None and not head.alone and len(self._queue) > 1:
            company = self._company(head)
        for job in company:
            del self._queue[job.future]
        return company

    def _company(self, head: _Job) -> list[_Job]:
        company: list[_Job] = []
        rows = 0
        for job in self._queue.values():
            if len(company) == _MAX_LOOKAHEAD or rows >= self._max_rows:
                break
            if job.key == head.key and not job.alone:
                company.append(job)
                rows += job.rows
        return company[: choose_batch([job.rows for job in company], self._max_rows)]

    def _send(self, jobs: list[_Job]) -> None:
        first = jobs[0]
        inputs = first.inputs
        if len(jobs) > 1:
            inputs = {
                name: np.concatenate([job.inputs[name] for job in jobs]) for name in first.inputs
            }
        call = self._pool.call(first.signature, inputs)
        self._calls[call] = jobs
        call.add_done_callback(self._finish)

    def _finish(self, call: asyncio.Future[CallResult]) -> None:
        jobs = self._calls.pop(call)
        if call.cancelled():  # by `withdraw`: nobody waits for it
            return
        error = call.exception()
        if error is None:
            self._deliver(jobs, call.result())
        elif isinstance(error, AcceleratorError):
            self._settle(jobs, error)
        else:
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)
        self.pump()

    def _deliver(self, jobs: list[_Job], result: CallResult) -> None:
        rows = sum(job.rows for job in jobs)
        self._on_batch(rows, result)
        start = 0
        for job in jobs:
            outputs = result.outputs
            if len(jobs) > 1:
                end = start + job.rows
                outputs = {name: array[start:end] for name, array in outputs.items()}
                start = end
            if not job.future.done():
                queue_s = max(0.0, result.started_at - job.enqueued_at)
                job.future.set_result(Answer(outputs, queue_s, result.invoke_s, rows))

    def _settle(self, jobs: list[_Job], error: AcceleratorError) -> None:
        """Apply the rules above to requests whose invocation failed."""
        not_begun = isinstance(error, WorkerLost) and not error.started
        again: list[_Job] = []  # goes to the front of the queue, in its order
        for job in jobs:
            if job.future.done():
                continue
            if not_begun:
                again.append(job)
            elif len(jobs) > 1 and not job.alone:
                job.alone = True
                again.append(job)
            elif self._may_retry(job, error):
                job.attempts += 1
                job.alone = True
                again.append(job)
            else:
                job.future.set_exception(_final_error(error))
        for job in reversed(again):
            self._queue[job.future] = job
            self._queue.move_to_end(job.future, last=False)

    def _may_retry(self, job: _Job, error: AcceleratorError) -> bool:
        if isinstance(error, (InvokeFailed, CallTimedOut)):
            return False
        return self._retry and job.attempts == 0


def _final_error(error: AcceleratorError) -> Exception:
    if isinstance(error, CallTimedOut):
        return DeadlineExceeded(f"the model's time limit passed: {error.reason}")
    if isinstance(error, WorkerLost):
        return WorkerCrashed(f"the model's worker died with this request: {error.reason}")
    return PredictionFailed(f"the model failed on this input: {error}")
