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
import math
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from accelerators.errors import AcceleratorError, CallTimedOut, InvokeFailed, WorkerLost
from daemon.admission import choose_batch
from daemon.errors import DeadlineExceeded, PredictionFailed, WorkerCrashed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from accelerators.base import Array, CallResult, Origin
    from accelerators.calls import Reply

_MAX_LOOKAHEAD = 256
"""Waiting requests looked at for one shared invocation: as many as the largest batch has rows."""


class Workers(Protocol):
    """What the queue needs of a pool; see `accelerators.supervisor.WorkerPool`."""

    @property
    def free_slots(self) -> int:
        """Calls that `call` would accept now."""

    def send(self, signature: str, rows: Sequence[Mapping[str, Array]], reply: Reply) -> None:
        """Hand a call to a worker."""

    def give_up(self, reply: Reply, *, patience_s: float) -> None:
        """Nobody waits for a call any more."""


@dataclass(slots=True)  # not frozen, as it is made for every request and that costs a microsecond
class Answer:
    """What a request's invocation gave. Nobody changes it.

    Attributes:
        outputs: by name; this request's own rows.
        queue_s, invoke_s: seconds it waited, and seconds inside the runtime.
        batch_rows: rows of the invocation it was part of.
        origin: what ran it.
    """

    outputs: Mapping[str, Array]
    queue_s: float
    invoke_s: float
    batch_rows: int
    origin: Origin


class Job(ABC):
    """One request in the queue. A front end's own kind says what becomes of its answer.

    Attributes:
        signature: a name the model has.
        inputs: checked tensors.
        rows: the first dimension that all inputs share; 1 when they share none.
        key: requests of equal key may share an invocation; None: never.
        deadline: `time.monotonic()` seconds; it fails then.
        is_over: it was answered, failed or withdrawn; nothing more happens to it.
    """

    __slots__ = (
        "alone",
        "attempts",
        "deadline",
        "enqueued_at",
        "inputs",
        "is_over",
        "key",
        "rows",
        "signature",
    )

    def __init__(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        *,
        rows: int,
        key: object,
        deadline: float,
    ) -> None:
        self.signature = signature
        self.inputs = inputs
        self.rows = rows
        self.key = key
        self.deadline = deadline
        self.enqueued_at = 0.0
        self.attempts = 0
        self.alone = False
        self.is_over = False

    @abstractmethod
    def answered(self, answer: Answer) -> None:
        """Take the answer. Called once, unless `failed` is; must not raise."""

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """Take the error. Called once, unless `answered` is; must not raise.

        Args:
            error: PredictionFailed (the model failed on this input), DeadlineExceeded, or
                WorkerCrashed (rule 2, for the second time).
        """


class AwaitedJob(Job):
    """A request that a coroutine waits for, in `future`."""

    __slots__ = ("future",)

    def __init__(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        *,
        rows: int,
        key: object,
        deadline: float,
    ) -> None:
        super().__init__(signature, inputs, rows=rows, key=key, deadline=deadline)
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def answered(self, answer: Answer) -> None:
        """Wake who waits."""
        if not self.future.done():
            self.future.set_result(answer)

    def failed(self, error: Exception) -> None:
        """Wake who waits."""
        if not self.future.done():
            self.future.set_exception(error)


def sharing_key(inputs: Mapping[str, Array]) -> object:
    """What `Job.key` is for a request whose rows may go into one invocation with others'."""
    return tuple([(name, inputs[name].shape[1:]) for name in sorted(inputs)])


class _Invocation:
    """What a worker's answer to one or several requests is given to; see `calls.Reply`."""

    __slots__ = ("_dispatcher", "_is_over", "jobs")

    def __init__(self, dispatcher: Dispatcher, jobs: list[Job]) -> None:
        self._dispatcher = dispatcher
        self._is_over = False
        self.jobs = jobs

    def done(self) -> bool:
        return self._is_over

    def cancel(self) -> None:
        self._is_over = True
        self._dispatcher.forget(self)

    def set_result(self, result: CallResult) -> None:
        self._is_over = True
        self._dispatcher.forget(self)
        self._dispatcher.deliver(self.jobs, result)

    def set_exception(self, error: Exception) -> None:
        self._is_over = True
        self._dispatcher.forget(self)
        self._dispatcher.settle(self.jobs, error)


class Dispatcher:
    """Hands waiting requests to a pool's free workers, several in one invocation where proven.

    Requests that arrive in one turn of the event loop are looked at together at its end, so that
    they can share an invocation though none of them waits.

    Not thread-safe: use it from the pool's event loop.
    """

    def __init__(
        self,
        pool: Workers,
        *,
        max_rows: int,
        max_delay_s: float,
        retry: bool,
        usual_s: Callable[[], float],
        patience_s: Callable[[], float],
        on_batch: Callable[[int, CallResult], None],
        on_fault: Callable[[], None],
    ) -> None:
        """Store only.

        Args:
            pool: its workers; `pump` is to be called when it has free slots.
            max_rows: rows of a shared invocation; 1 for none.
            max_delay_s: how long the first waiting request may wait for others, seconds.
            retry: whether rule 2 may try again: False for models that keep state.
            usual_s: how long invocations have taken lately; asked each time.
            patience_s: how long an invocation that nobody waits for may run; asked each time.
            on_batch: told of every invocation's rows and result.
            on_fault: told of every request that the model or its worker failed.
        """
        self._pool = pool
        self._max_rows = max_rows
        self._max_delay_s = max_delay_s
        self._retry = retry
        self._usual_s = usual_s
        self._patience_s = patience_s
        self._on_batch = on_batch
        self._on_fault = on_fault
        # In order of arrival; a dictionary, so that one whose client left is taken out at once.
        self._queue: OrderedDict[Job, None] = OrderedDict()
        self._running: set[_Invocation] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_at = math.inf
        self._is_pump_due = False
        self._loop = asyncio.get_running_loop()

    def submit(self, job: Job) -> None:
        """Queue one request. Whoever gives it up tells `withdraw`."""
        job.enqueued_at = time.monotonic()
        self._queue[job] = None
        if job.deadline < self._expiry_at:
            self._watch_deadlines(job.deadline)
        if not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_soon(self._on_turn)

    def withdraw(self, job: Job) -> None:
        """Nobody waits for this request any more: let its place and its tensors go.

        An invocation that nobody waits for is given up too.
        """
        if job.is_over:
            return
        job.is_over = True
        if job in self._queue:
            del self._queue[job]
            return
        for invocation in [i for i in self._running if all(j.is_over for j in i.jobs)]:
            self._pool.give_up(invocation, patience_s=self._patience_s())

    def pump(self) -> None:
        """Hand out what can be handed out now."""
        while self._queue and self._pool.free_slots > 0:
            head = next(iter(self._queue))
            if self._may_wait(head):
                return
            self._send(self._take(head))

    def fail_all(self, error: Exception) -> None:
        """Give every waiting request this error."""
        while self._queue:
            job, _ = self._queue.popitem(last=False)
            _fail(job, error)

    def _on_turn(self) -> None:
        self._is_pump_due = False
        self.pump()

    def _watch_deadlines(self, at: float) -> None:
        """One timer for the earliest deadline, which is not set and cleared for each request."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry_at = at
        self._expiry = self._loop.call_at(at, self._on_deadline)

    def _on_deadline(self) -> None:
        self._expiry, self._expiry_at = None, math.inf
        now = time.monotonic()
        waiting = [*self._queue, *(job for i in self._running for job in i.jobs)]
        for job in waiting:
            if job.deadline <= now and not job.is_over:
                self.withdraw(job)
                job.failed(DeadlineExceeded("the deadline passed before the answer was there"))
        earliest = min((job.deadline for job in waiting if not job.is_over), default=math.inf)
        if earliest < self._expiry_at:
            self._watch_deadlines(earliest)

    def _may_wait(self, head: Job) -> bool:
        """Whether the first request should wait for company; sets the timer that ends the wait."""
        if self._max_delay_s <= 0 or head.key is None or head.alone:
            return False
        due_in = head.enqueued_at + self._max_delay_s - time.monotonic()
        if due_in <= 0 or sum(job.rows for job in self._queue) >= self._max_rows:
            return False
        if self._timer is None:
            self._timer = self._loop.call_later(due_in, self._on_timer)
        return True

    def _on_timer(self) -> None:
        self._timer = None
        self.pump()

    def _take(self, head: Job) -> list[Job]:
        """The first waiting request and those behind it that share its invocation."""
        company = [head]
        if head.key is not None and not head.alone and len(self._queue) > 1:
            company = self._company(head)
        for job in company:
            del self._queue[job]
        return company

    def _company(self, head: Job) -> list[Job]:
        company: list[Job] = []
        for job in self._queue:
            if len(company) == _MAX_LOOKAHEAD:
                break
            if job.key == head.key and not job.alone:
                company.append(job)
        count = choose_batch(
            [job.rows for job in company],
            self._max_rows,
            free_slots=self._pool.free_slots,
            usual_s=self._usual_s(),
        )
        return company[:count]

    def _send(self, jobs: list[Job]) -> None:
        invocation = _Invocation(self, jobs)
        self._running.add(invocation)
        self._pool.send(jobs[0].signature, [job.inputs for job in jobs], invocation)

    def forget(self, invocation: _Invocation) -> None:
        """It is over."""
        self._running.discard(invocation)

    def deliver(self, jobs: list[Job], result: CallResult) -> None:
        """Give the requests of an invocation their rows of its result."""
        if len(jobs) == 1:
            job = jobs[0]
            self._on_batch(job.rows, result)
            _answer(job, result, result.outputs, job.rows)
            return
        rows = sum([job.rows for job in jobs])
        self._on_batch(rows, result)
        start = 0
        for job in jobs:
            end = start + job.rows
            _answer(job, result, {n: a[start:end] for n, a in result.outputs.items()}, rows)
            start = end

    def settle(self, jobs: list[Job], error: Exception) -> None:
        """Apply the rules above to requests whose invocation failed."""
        if not isinstance(error, AcceleratorError):
            for job in jobs:
                _fail(job, error)
            return
        not_begun = isinstance(error, WorkerLost) and not error.started
        again: list[Job] = []  # goes to the front of the queue, in its order
        for job in jobs:
            if job.is_over:
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
                self._on_fault()
                _fail(job, _final_error(error))
        for job in reversed(again):
            self._queue[job] = None
            self._queue.move_to_end(job, last=False)
        self.pump()

    def _may_retry(self, job: Job, error: AcceleratorError) -> bool:
        if isinstance(error, (InvokeFailed, CallTimedOut)):
            return False
        return self._retry and job.attempts == 0


def _answer(job: Job, result: CallResult, outputs: Mapping[str, Array], batch_rows: int) -> None:
    if not job.is_over:
        job.is_over = True
        queue_s = max(0.0, result.started_at - job.enqueued_at)
        job.answered(Answer(outputs, queue_s, result.invoke_s, batch_rows, result.origin))


def _fail(job: Job, error: Exception) -> None:
    if not job.is_over:
        job.is_over = True
        job.failed(error)


def _final_error(error: AcceleratorError) -> Exception:
    if isinstance(error, CallTimedOut):
        return DeadlineExceeded(f"the model's time limit passed: {error.reason}")
    if isinstance(error, WorkerLost):
        return WorkerCrashed(f"the model's worker died with this request: {error.reason}")
    return PredictionFailed(f"the model failed on this input: {error}")
