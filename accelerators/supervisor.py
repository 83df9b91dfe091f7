"""WorkerPool: keeps the workers of one model version alive and hands them calls."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from accelerators.base import Array, CallResult, LoadSpec, ModelReport
    from accelerators.forkserver import ForkServer


class DeathReason(Enum):
    """Why a worker was replaced; the `reason` label of inferd_worker_restarts_total."""

    CRASH = "crash"  # it died by a signal or exited
    TIMEOUT = "timeout"  # a call outlived call_timeout_s and it was killed
    MEMORY = "memory"  # it ran out of the memory it may take
    RECYCLE = "recycle"  # it has served recycle_after_calls


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """Something happened to a worker that an operator wants to know.

    Attributes:
        pid: of the worker that is gone; 0 for a thread.
        reason, detail: why; detail in plain words ("killed by SIGSEGV").
        retry_in_s: how long until the replacement is tried; 0 at once.
    """

    pid: int
    reason: DeathReason
    detail: str
    retry_in_s: float


class WorkerPool:
    """The workers (or, for isolation = thread, the threads) of one model version.

    Not thread-safe: use it from the event loop it was started on.
    """

    def __init__(
        self,
        spec: LoadSpec,
        forkserver: ForkServer,
        *,
        on_capacity: Callable[[], None],
        on_event: Callable[[WorkerEvent], None],
    ) -> None:
        """Store only. `on_capacity` is called on the loop whenever `free_slots` may have grown."""
        raise NotImplementedError

    async def start(self) -> ModelReport:
        """Start, load, warm and probe; returns once every instance is ready.

        Raises:
            ModelRefused: the model cannot be served; nothing is left behind.
        """
        raise NotImplementedError

    @property
    def report(self) -> ModelReport:
        """What the workers found out; the newest worker's memory figure."""
        raise NotImplementedError

    @property
    def alive(self) -> int:
        """Workers that can take calls now."""
        raise NotImplementedError

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the living workers; () for threads."""
        raise NotImplementedError

    @property
    def failure(self) -> str:
        """Why no worker is alive, in plain words; "" while one is."""
        raise NotImplementedError

    @property
    def free_slots(self) -> int:
        """Calls that `call` would accept now."""
        raise NotImplementedError

    def call(self, signature: str, inputs: Mapping[str, Array]) -> asyncio.Future[CallResult]:
        """Hand a call to the least busy worker. Only while `free_slots` > 0 (else RuntimeError).

        The inputs are complete, in the right dtypes, with shapes the model was described with, and
        C-contiguous; they are copied before this returns. Cancelling the future does not stop the
        invocation, only drops its result.

        The future's exceptions:
            InvokeFailed: the model refused this input; the worker lives on.
            CallTimedOut: it ran for call_timeout_s; its worker was killed.
            WorkerLost: the worker died; `started` says whether it had begun this call.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop every worker; calls in flight get WorkerLost. Leaves no process, thread or file."""
        raise NotImplementedError
