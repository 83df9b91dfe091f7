"""Home: the CPU's pool of one model version, started when it is needed, stopped when it is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from accelerators.base import CPU
from accelerators.chores import Chores
from accelerators.supervisor import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerators.base import LoadSpec
    from accelerators.forkserver import ForkServer
    from accelerators.supervisor import WorkerEvent

_SPARE_S = 30.0
"""How long a pool is kept that was asked for a second opinion: the next question may follow."""


class Home:
    """See above. For use on the event loop only.

    Attributes:
        pool: the one that runs; None while there is none.
    """

    def __init__(
        self,
        spec: LoadSpec,
        forkserver: ForkServer,
        *,
        on_capacity: Callable[[WorkerPool], None],
        on_event: Callable[[WorkerEvent], None],
        is_serving: Callable[[WorkerPool], bool],
    ) -> None:
        """Store only.

        Args:
            on_capacity: told which pool has room; else as `WorkerPool`'s.
            is_serving: whether a pool is more than a spare.
        """
        self.pool: WorkerPool | None = None
        self._spec = replace(spec, device=CPU)
        self._forkserver = forkserver
        self._on_capacity = on_capacity
        self._on_event = on_event
        self._is_serving = is_serving
        self._starting: asyncio.Task[WorkerPool] | None = None
        self._spare_timer: asyncio.TimerHandle | None = None
        self._chores = Chores("home")

    async def ready(self) -> WorkerPool:
        """The pool, started when it does not run; several may wait for it.

        Raises:
            ModelRefused, WorkerUnavailable: it cannot be had.
        """
        if self.pool is not None:
            return self.pool
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="home-start")
        return await asyncio.shield(self._starting)

    def spare(self) -> None:
        """Keep it for a while though it does not serve."""
        if self._spare_timer is not None:
            self._spare_timer.cancel()
        loop = asyncio.get_running_loop()
        self._spare_timer = loop.call_later(_SPARE_S, self._on_spare)

    def release(self) -> None:
        """It serves no more: let it answer what it has, then stop it, unless it is spared."""
        if self.pool is not None and self._spare_timer is None:
            pool, self.pool = self.pool, None
            self._chores.begin(wind_down(pool, self._spec.call_timeout_s))

    async def stop(self) -> None:
        """Stop it now; calls it has get WorkerLost."""
        self._forget_timer()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        pool, self.pool = self.pool, None
        if pool is not None:
            await pool.stop()
        await self._chores.done()

    async def _start(self) -> WorkerPool:
        try:
            pool = WorkerPool(
                self._spec,
                self._forkserver,
                on_capacity=lambda: self._on_capacity(pool),
                on_event=self._on_event,
            )
            await pool.start()
            self.pool = pool
            return pool
        finally:
            self._starting = None

    def _on_spare(self) -> None:
        self._spare_timer = None
        if self.pool is not None and not self._is_serving(self.pool):
            self.release()

    def _forget_timer(self) -> None:
        if self._spare_timer is not None:
            self._spare_timer.cancel()
            self._spare_timer = None


async def wind_down(pool: WorkerPool, patience_s: float) -> None:
    """Stop a pool that gets no calls any more, when it has answered those it has."""
    await pool.drain(patience_s)
    await pool.stop()
