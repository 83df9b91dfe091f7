"""ThreadWorker: one interpreter in a thread of the daemon, for tiny models that are trusted.

A crash of the model is a crash of the daemon, and a call that hangs cannot be ended: its caller is
told, the thread is left behind and takes no more calls.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from accelerators.base import CallResult, Origin
from accelerators.calls import DeathReason, Loss, run_to_end
from accelerators.errors import (
    CallTimedOut,
    InvokeFailed,
    LoadStage,
    ModelRefused,
    WorkerLost,
    WorkerUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerators.base import Array, LoadSpec, ModelReport
    from accelerators.calls import Reply

_log = logging.getLogger(f"inferd.{__name__}")

SLOTS = 2  # as in a process: one runs, one waits
_EXIT_GRACE_S = 1.0  # for a call in the thread to end


@dataclass(slots=True)
class _Call:
    reply: Reply
    place: int
    arrays: list[Array]
    taken_up: bool = False


class ThreadWorker:
    """One thread with an interpreter. See `accelerators.calls.Worker`."""

    def __init__(self, spec: LoadSpec, *, proven_batch: int, on_free: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._spec = spec
        self._proven_batch = proven_batch
        self._on_free = on_free
        self.pid = 0
        self.free = 0
        self.calls = 0
        self.origin = Origin(spec.device.id, spec.device.id)
        self.lost: asyncio.Future[Loss] = self._loop.create_future()
        self._loaded: asyncio.Future[ModelReport] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._open: deque[_Call] = deque()
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._running_since = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        # A daemon thread: one that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="inferd-model", daemon=True)

    @property
    def busy(self) -> bool:
        """Whether it has calls."""
        return bool(self._open)

    async def start(self) -> ModelReport:
        """Load, warm and probe in the thread.

        Raises:
            ModelRefused: it cannot be served.
            WorkerUnavailable: there is no thread to be had for it now.
        """
        try:
            self._thread.start()
        except RuntimeError as exc:
            raise WorkerUnavailable(f"no worker can be started: {exc}") from exc
        timeout_s = self._spec.load_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                report = await asyncio.shield(self._loaded)
        except TimeoutError as exc:
            await self.close()
            raise ModelRefused(
                LoadStage.PROCESS,
                f"the runtime did not come back within {timeout_s:g} s; its thread is left behind",
            ) from exc
        except BaseException:
            await self.close()
            raise
        self.free = SLOTS
        return report

    def hurry(self, patience_s: float) -> None:
        """Nothing: a thread cannot be stopped."""

    def call(self, place: int, columns: list[list[Array]], reply: Reply) -> None:
        """Hand a call over; see `accelerators.calls.Worker`."""
        self.free -= 1
        self.calls += 1
        call = _Call(
            reply, place, [np.concatenate(c) if len(c) > 1 else c[0].copy() for c in columns]
        )
        if not self._open:
            self._begin()
        self._open.append(call)
        self._queue.put(call)

    async def close(self) -> None:
        """End the thread; calls it has get WorkerLost. One that hangs is left behind."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(), name="worker-close")
        await run_to_end(self._closing)

    async def _close(self) -> None:
        self.free = 0
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._loaded.cancel()
        self.lost.cancel()
        if self._thread.is_alive():
            self._queue.put(None)
            await asyncio.wait([self._ended], timeout=_EXIT_GRACE_S)
        if self._ended.done():
            self._thread.join()
        self._fail_open("the worker was stopped")

    def _begin(self) -> None:
        self._running_since = self._loop.time()
        if self._watch is None:
            due = self._running_since + self._spec.call_timeout_s
            self._watch = self._loop.call_at(due, self._on_watch)

    def _on_watch(self) -> None:
        self._watch = None
        if not self._open:
            return
        due = self._running_since + self._spec.call_timeout_s
        if self._loop.time() < due:
            self._watch = self._loop.call_at(due, self._on_watch)
            return
        detail = f"a call took longer than {self._spec.call_timeout_s:g} s"
        self.free = 0
        head = self._open.popleft()
        if not head.reply.done():
            head.reply.set_exception(CallTimedOut(detail, started=True))
        self._fail_open(detail)
        if not self.lost.done():
            left = f"{detail}; its thread cannot be ended and is left behind"
            self.lost.set_result(Loss(DeathReason.TIMEOUT, left, final=True))

    def _on_gone(self, reason: DeathReason, detail: str) -> None:
        self.free = 0
        self._fail_open(detail)
        if not self.lost.done():
            self.lost.set_result(Loss(reason, detail))

    def _fail_open(self, detail: str) -> None:
        while self._open:
            call = self._open.popleft()
            if not call.reply.done():
                call.reply.set_exception(WorkerLost(detail, started=call.taken_up))

    def _on_answer(self, call: _Call, outcome: CallResult | InvokeFailed) -> None:
        if not self._open or self._open[0] is not call:
            return  # it was given up
        self._open.popleft()
        if self._open:
            self._begin()
        self.free += 1  # first: settling may bring the next call
        if not call.reply.done():
            if isinstance(outcome, InvokeFailed):
                call.reply.set_exception(outcome)
            else:
                call.reply.set_result(outcome)
        self._on_free()

    # From here on in the thread.

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return  # the loop is closed: the thread was left behind, nobody listens

    def _work(self) -> None:
        try:
            self._load_and_serve()
        except Exception:  # noqa: BLE001 (top of a thread)
            _log.exception("model thread failed path=%s", self._spec.path)
            refusal = ModelRefused(LoadStage.PROCESS, "its thread failed; see the log")
            self._tell(_settle, self._loaded, refusal)
            self._tell(self._on_gone, DeathReason.CRASH, "its thread failed; see the log")
        self._tell(_settle, self._ended, None)

    def _load_and_serve(self) -> None:
        # The one place where the daemon's process imports the runtime, and only for this isolation.
        from accelerators import engine as engines  # noqa: PLC0415

        try:
            session, report = engines.load(
                self._spec, proven_batch=self._proven_batch, on_stage=lambda _: None
            )
        except ModelRefused as exc:
            self._tell(_settle, self._loaded, exc)
        except MemoryError:
            refusal = ModelRefused(LoadStage.PROCESS, "there is no memory left for it")
            self._tell(_settle, self._loaded, refusal)
        else:
            self._tell(_settle, self._loaded, report)
            names = [tuple(spec.name for spec in s.outputs) for s in report.signatures]
            self._serve(session.run, names)
            session.close()

    def _serve(
        self,
        run: Callable[[int, list[Array]], tuple[list[Array], float]],
        names: list[tuple[str, ...]],
    ) -> None:
        while (call := self._queue.get()) is not None:
            call.taken_up = True
            begin = time.monotonic()
            outcome: CallResult | InvokeFailed
            try:
                arrays, invoke_s = run(call.place, call.arrays)
                outputs = {
                    name: array.copy()
                    for name, array in zip(names[call.place], arrays, strict=True)
                }
                del arrays  # views into the runtime, which must not live when it runs again
                outcome = CallResult(outputs, invoke_s, begin, time.monotonic(), self.origin)
            except InvokeFailed as exc:
                outcome = exc
            except MemoryError as exc:
                self._tell(self._on_gone, DeathReason.MEMORY, f"ended: {exc}")
                return
            self._tell(self._on_answer, call, outcome)


def _settle(future: asyncio.Future[object], outcome: object) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
