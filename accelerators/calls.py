"""What the two kinds of worker, process and thread, have in common."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from accelerators.base import Array, CallResult, ModelReport, Origin


class DeathReason(Enum):
    """Why a worker is replaced, or is not; the `reason` label of inferd_worker_restarts_total."""

    CRASH = "crash"  # it died by a signal or exited
    TIMEOUT = "timeout"  # a call outlived call_timeout_s and it was killed
    MEMORY = "memory"  # it ran out of the memory it may take
    RECYCLE = "recycle"  # it has served recycle_after_calls
    START = "start"  # a replacement did not start; another is tried later


@dataclass(frozen=True, slots=True)
class Loss:
    """How a worker ended that nobody asked to end.

    Attributes:
        detail: in plain words ("killed by SIGSEGV").
        final: no replacement would do better.
    """

    reason: DeathReason
    detail: str
    final: bool = False


class Reply(Protocol):
    """What is to become of one call's outcome: an `asyncio.Future`, or something lighter.

    It is settled once, on the event loop, when its worker has room for another call already.
    """

    def done(self) -> bool:
        """Whether it was settled or cancelled: nobody waits for the outcome."""

    def cancel(self) -> object:
        """Nobody waits for the outcome any more."""

    def set_result(self, result: CallResult) -> None:
        """The call was answered."""

    def set_exception(self, error: Exception) -> None:
        """The call has failed."""


class Worker(Protocol):
    """One interpreter somewhere, and the calls it has. For use on the event loop only.

    Attributes:
        pid: 0 for a thread.
        free: calls it would accept now.
        calls: how many it has accepted.
        origin: what its answers say of where they come from.
        lost: done when it ended unasked.
    """

    pid: int
    free: int
    calls: int
    origin: Origin
    lost: asyncio.Future[Loss]

    @property
    def busy(self) -> bool:
        """Whether it has calls."""
        ...

    async def start(self) -> ModelReport:
        """Load the model.

        Raises:
            ModelRefused: it cannot be served; nothing is left behind.
            WorkerUnavailable: there is no worker to be had for it now; nothing is left behind.
        """
        ...

    def call(self, place: int, columns: list[list[Array]], reply: Reply) -> None:
        """Hand a call over; `free` is not 0.

        Args:
            place: counts the report's signatures.
            columns: for each input of the signature its arrays, which are put one after another
                along their first dimension; a single one may have any shape. They are copied.
            reply: settled later; also at once, when they cannot be handed over.
        """
        ...

    def hurry(self, patience_s: float) -> None:
        """Somebody gave a call up: one that nobody waits for may run for so long and no longer."""
        ...

    async def close(self) -> None:
        """End it; calls it has get WorkerLost. Leaves nothing behind."""
        ...


async def run_to_end(task: asyncio.Task[None]) -> None:
    """Wait for a task that must not be cut short, also when the waiting one is cancelled."""
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
