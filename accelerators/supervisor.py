"""WorkerPool: keeps the workers of one model version alive and hands them calls."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from accelerators.backoff import LONGEST_AFTER_SERVING_S, Backoff
from accelerators.base import Isolation, Origin
from accelerators.calls import DeathReason
from accelerators.errors import LoadStage, ModelRefused, WorkerUnavailable
from accelerators.process import ProcessWorker
from accelerators.thread import ThreadWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from accelerators.base import Array, CallResult, LoadSpec, ModelReport
    from accelerators.birthplace import Birthplace
    from accelerators.calls import Loss, Reply, Worker

__all__ = ["DeathReason", "WorkerEvent", "WorkerPool"]

_log = logging.getLogger(f"inferd.{__name__}")


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """Something happened to a worker that an operator wants to know.

    Attributes:
        pid: of the worker that is gone; 0 for a thread, and for a replacement that does not start.
        reason, detail: why; detail in plain words ("killed by SIGSEGV").
        retry_in_s: how long until the replacement is tried, for START once more; 0 at once,
            infinity never.
    """

    pid: int
    reason: DeathReason
    detail: str
    retry_in_s: float


@dataclass(eq=False, slots=True)
class _Seat:
    """A worker's place, which keeps the history of those who had it."""

    worker: Worker
    born: float = 0.0  # monotonic
    retry_at: float = 0.0  # monotonic; of the next or latest try to fill it
    recycle_at: int = 0  # calls
    worn: asyncio.Event = field(default_factory=asyncio.Event)
    backoff: Backoff = field(default_factory=Backoff)


class WorkerPool:
    """The workers (or, for isolation = thread, the threads) of one model version.

    Not thread-safe: use it from the event loop it was started on.

    A stateful model has one worker, which is never recycled: both would lose or mix its state. A
    thread cannot be killed: when a call in one hangs, the call gets CallTimedOut, the thread is
    left alone and the pool has failed for good.
    """

    def __init__(
        self,
        spec: LoadSpec,
        forkserver: Birthplace,
        *,
        on_capacity: Callable[[], None],
        on_event: Callable[[WorkerEvent], None],
    ) -> None:
        """Store only. `on_capacity` is called on the loop whenever `free_slots` may have grown."""
        self._spec = spec
        self._forkserver = forkserver
        self._on_capacity = on_capacity
        self._on_event = on_event
        self._report: ModelReport | None = None
        self._places: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._ready: list[Worker] = []
        self._seats: list[_Seat] = []
        self._retiring: dict[Worker, asyncio.Future[None]] = {}  # done when they are idle
        self._keepers: list[asyncio.Task[None]] = []
        self._failure = "not started"
        self._recycle_after = 0  # calls; 0 never
        self._origin = Origin(spec.device.id, spec.device.id)
        self._idle: asyncio.Future[None] | None = None  # what `drain` waits for

    async def start(self) -> ModelReport:
        """Start, load, warm and probe; returns once every instance is ready.

        Raises:
            ModelRefused: the model cannot be served; nothing is left behind.
            WorkerUnavailable: not enough workers are to be had for it now, try again later; nothing
                is left behind.
        """
        self._loop = asyncio.get_running_loop()
        workers: list[Worker] = []
        try:
            first, report = await self._start_worker()
            workers.append(first)
            self._adopt(report)
            while len(workers) < (1 if report.stateful else self._spec.instances):
                worker, _ = await self._start_worker()
                workers.append(worker)
        except BaseException:
            for worker in workers:
                await worker.close()
            raise
        self._seats = [_Seat(worker) for worker in workers]
        for seat in self._seats:
            self._install(seat)
        self._keepers = [
            asyncio.create_task(self._keep(seat), name=f"worker-keeper-{number}")
            for number, seat in enumerate(self._seats)
        ]
        return self.report

    @property
    def report(self) -> ModelReport:
        """What the workers found out; the newest worker's memory figure."""
        if self._report is None:
            raise RuntimeError("the pool was not started")
        return self._report

    @property
    def alive(self) -> int:
        """Workers that can take calls now."""
        return len(self._ready)

    @property
    def origin(self) -> Origin:
        """What the answers say of where they come from; from now on, when it is set."""
        return self._origin

    @origin.setter
    def origin(self, origin: Origin) -> None:
        self._origin = origin
        for worker in (*self._ready, *self._retiring):
            worker.origin = origin

    @property
    def busy(self) -> bool:
        """Whether a worker has calls."""
        return any(worker.busy for worker in (*self._ready, *self._retiring))

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the living workers; () for threads."""
        return tuple(worker.pid for worker in self._ready if worker.pid)

    @property
    def failure(self) -> str:
        """Why no worker is alive, in plain words; "" while one is."""
        return "" if self._ready else self._failure

    @property
    def retry_at(self) -> float | None:
        """When the next worker is tried (monotonic seconds) while none is alive; None otherwise.

        In the past while a try is under way; infinity when there will be none.
        """
        if self._ready:
            return None
        return min((seat.retry_at for seat in self._seats), default=None)

    @property
    def free_slots(self) -> int:
        """Calls that `call` would accept now."""
        free = 0
        for worker in self._ready:
            free += worker.free
        return free

    def call(self, signature: str, inputs: Mapping[str, Array]) -> asyncio.Future[CallResult]:
        """`send` one request's inputs, with a future for the outcome."""
        reply: asyncio.Future[CallResult] = self._loop.create_future()
        self.send(signature, (inputs,), reply)
        return reply

    def send(self, signature: str, rows: Sequence[Mapping[str, Array]], reply: Reply) -> None:
        """Hand a call to the least busy worker. Only while `free_slots` > 0 (else RuntimeError).

        Args:
            signature: a name from the report.
            rows: the inputs of one request, or of several whose rows go into one invocation.
                Complete, in the right dtypes, with shapes the model was described with, and
                C-contiguous; they are copied before this returns.
            reply: cancelling it drops the result; `give_up` says how long the invocation may go on.

        The reply's exceptions:
            InvokeFailed: the model refused this input; the worker lives on.
            CallTimedOut: it ran for call_timeout_s; its worker was killed.
            WorkerLost: the worker died; `started` says whether it had begun this call.
        """
        place, names = self._places[signature]
        chosen: Worker | None = None
        most = 0
        for worker in self._ready:
            if worker.free > most:
                chosen, most = worker, worker.free
        if chosen is None:
            raise RuntimeError("call without a free slot")
        chosen.call(place, [[inputs[name] for inputs in rows] for name in names], reply)

    def give_up(self, reply: Reply, *, patience_s: float) -> None:
        """Nobody waits for a call any more.

        Its result is dropped. When it has run for `patience_s` it is taken for hung, and its worker
        is replaced, so that those who wait behind it need not wait for `call_timeout_s`.
        """
        reply.cancel()
        for worker in self._ready:
            worker.hurry(patience_s)

    async def drain(self, patience_s: float) -> None:
        """Wait until no worker has calls, for at most so many seconds. Send none meanwhile."""
        self._idle = self._loop.create_future()
        if self.busy:
            await asyncio.wait([self._idle], timeout=patience_s)

    async def stop(self) -> None:
        """Stop every worker; calls in flight get WorkerLost. Leaves no process, thread or file."""
        self._failure = "stopped"
        for keeper in self._keepers:
            keeper.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        for seat in self._seats:  # a task that is cancelled before its first step closes nothing
            self._dismiss(seat.worker)
            await seat.worker.close()
        self._keepers = []
        self._seats = []

    def _adopt(self, report: ModelReport) -> None:
        self._report = report
        self._places = {
            signature.name: (place, tuple(spec.name for spec in signature.inputs))
            for place, signature in enumerate(report.signatures)
        }
        recyclable = not report.stateful and self._spec.isolation is Isolation.PROCESS
        self._recycle_after = self._spec.recycle_after_calls if recyclable else 0

    async def _start_worker(self) -> tuple[Worker, ModelReport]:
        """A worker that serves what the first one reported.

        Raises:
            ModelRefused: it cannot serve the model, or found another file than the first.
            WorkerUnavailable: there is none to be had now.
        """
        known = self._report
        worker: Worker
        if self._spec.isolation is Isolation.THREAD:
            worker = ThreadWorker(
                self._spec,
                proven_batch=known.max_batch if known else 0,
                on_free=self._on_free,
            )
        else:
            worker = ProcessWorker(
                self._spec,
                self._forkserver,
                proven_batch=known.max_batch if known else 0,
                on_free=self._on_free,
            )
        report = await worker.start()
        worker.origin = self._origin
        if known is None:
            return worker, report
        if (report.digest, report.signatures) != (known.digest, known.signatures):
            await worker.close()
            raise ModelRefused(
                LoadStage.READ, "the file is another one than when this version was loaded"
            )
        self._report = replace(known, memory_bytes=report.memory_bytes)
        return worker, report

    def _on_free(self) -> None:
        if self._recycle_after:
            for seat in self._seats:
                if seat.worker.calls >= seat.recycle_at:
                    seat.worn.set()
        for worker, idle in self._retiring.items():
            if not worker.busy and not idle.done():
                idle.set_result(None)
        if self._idle is not None and not self._idle.done() and not self.busy:
            self._idle.set_result(None)
        self._on_capacity()

    async def _keep(self, seat: _Seat) -> None:
        """Replace the seat's worker whenever it ends or is worn, until this task is cancelled."""
        try:
            while True:
                await self._keep_once(seat)
        except Exception:  # noqa: BLE001 (top of a task)
            self._failure = "its supervision failed; see the log"
            seat.retry_at = math.inf
            _log.exception("worker supervision failed pid=%d", seat.worker.pid)
        finally:
            self._dismiss(seat.worker)
            await seat.worker.close()

    async def _keep_once(self, seat: _Seat) -> None:
        worker = seat.worker
        worn = asyncio.create_task(seat.worn.wait(), name="worker-worn")
        ends: list[asyncio.Future[Any]] = [worker.lost, worn]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            worn.cancel()
        if worker.lost.done():
            self._dismiss(worker)
            loss = worker.lost.result()
            delay_s = self._tell_lost(seat, loss)  # first: the end of one that hangs takes seconds
            await worker.close()
            seat.worker = await self._replace(seat, loss, delay_s)
            self._install(seat)
        else:
            await self._recycle(seat)

    def _tell_lost(self, seat: _Seat, loss: Loss) -> float:
        """Tell of a worker's end; seconds until it is to be replaced."""
        self._failure = f"its worker was {loss.detail} and is being restarted"
        delay_s = _delay_s(loss, seat.backoff, time.monotonic() - seat.born)
        if loss.final:
            self._failure, delay_s = loss.detail, math.inf
        seat.retry_at = time.monotonic() + delay_s
        self._on_event(WorkerEvent(seat.worker.pid, loss.reason, loss.detail, delay_s))
        return delay_s

    async def _replace(self, seat: _Seat, loss: Loss, delay_s: float) -> Worker:
        """Another worker for one that was lost, however long it takes."""
        if loss.final:
            await asyncio.Event().wait()  # for good: until the pool is stopped
        while True:
            await asyncio.sleep(delay_s)
            try:
                return (await self._start_worker())[0]
            except (ModelRefused, WorkerUnavailable) as exc:
                reason = exc.reason
            delay_s = seat.backoff.delay_s(0.0)
            seat.retry_at = time.monotonic() + delay_s
            self._failure = (
                f"its worker was {loss.detail} and its replacement does not start: {reason}"
            )
            self._on_event(WorkerEvent(0, DeathReason.START, reason, delay_s))

    async def _recycle(self, seat: _Seat) -> None:
        """Start another worker, and only then let the worn one finish and go."""
        old = seat.worker
        seat.worn.clear()
        seat.recycle_at = old.calls + self._recycle_after  # should the new one not start
        try:
            seat.worker = (await self._start_worker())[0]
        except (ModelRefused, WorkerUnavailable) as exc:
            _log.warning("worker is not recycled pid=%d reason=%s", old.pid, exc)
            return
        self._install(seat)
        self._dismiss(old)
        idle = self._retiring[old] = self._loop.create_future()
        try:
            if old.busy:
                ends: list[asyncio.Future[Any]] = [idle, old.lost]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if old.lost.done():
                loss = old.lost.result()
                self._on_event(WorkerEvent(old.pid, loss.reason, loss.detail, 0.0))
            else:
                detail = f"has served {old.calls} calls"
                self._on_event(WorkerEvent(old.pid, DeathReason.RECYCLE, detail, 0.0))
        finally:
            del self._retiring[old]
            await old.close()

    def _install(self, seat: _Seat) -> None:
        seat.born = time.monotonic()
        seat.recycle_at = self._recycle_after
        self._ready.append(seat.worker)
        self._on_capacity()

    def _dismiss(self, worker: Worker) -> None:
        if worker in self._ready:
            self._ready.remove(worker)


def _delay_s(loss: Loss, backoff: Backoff, lived_s: float) -> float:
    """Seconds before a worker that had loaded is replaced.

    A hang has taken its whole time limit: that is brake enough, and clients are waiting.
    """
    if loss.reason is DeathReason.TIMEOUT:
        return 0.0
    return backoff.delay_s(lived_s, longest_s=LONGEST_AFTER_SERVING_S)
