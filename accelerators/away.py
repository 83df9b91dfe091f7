"""Away: a pool on a device other than the CPU, and its turn there."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from accelerators.errors import WorkerLost
from accelerators.turns import FreeTurn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from accelerators.base import Array, CallResult, Device
    from accelerators.calls import Reply
    from accelerators.supervisor import WorkerPool
    from accelerators.turns import Turns


class Away:
    """See above. For use on the event loop only.

    Attributes:
        pool: to be set before `start`.
        since: when it was made, monotonic seconds.
        failures: calls in a row that have failed; its user's to count.
    """

    pool: WorkerPool

    def __init__(
        self, device: Device, turns: Turns, on_capacity: Callable[[WorkerPool], None]
    ) -> None:
        """Take a place in the device's line; `close` gives it back.

        Args:
            on_capacity: told of the pool when calls may be sent.
        """
        self.device = device
        self.since = time.monotonic()
        self.failures = 0
        # One that several processes may have open serves them side by side: turns would only hurt.
        self.turn = turns.join(device.id, self._on_turn) if device.exclusive else FreeTurn()
        self._on_capacity = on_capacity
        self._next: Callable[[], None] | None = None  # a call of `call` that waits for its turn
        self._slots = 0
        self._under_way = 0

    async def start(self) -> None:
        """Start the pool.

        Raises:
            ModelRefused, WorkerUnavailable: as it does; nothing is left behind.
        """
        try:
            await self.pool.start()
        except BaseException:
            self.turn.leave()
            raise
        self._slots = self.pool.free_slots

    async def close(self) -> None:
        """Stop the pool, and be in nobody's way; calls in flight get WorkerLost."""
        self.turn.leave()
        await self.pool.stop()

    def send(self, signature: str, rows: Sequence[Mapping[str, Array]], reply: Reply) -> None:
        """Hand a call over, right after `turn.ask` has said that it may be."""
        self._under_way += 1
        self.turn.sent()
        self.pool.send(signature, rows, reply)
        self._tell_line()  # one that cannot be handed over is over at once

    def call(self, signature: str, inputs: Mapping[str, Array]) -> asyncio.Future[CallResult]:
        """Send one call when it is our turn; for one who makes one call after the other."""
        reply: asyncio.Future[CallResult] = asyncio.get_running_loop().create_future()

        def send() -> None:
            if self.pool.free_slots:
                self.send(signature, (inputs,), reply)
            else:  # its process died between two calls, perhaps of another model's
                reply.set_exception(WorkerLost(self.pool.failure, started=False))

        if self.turn.ask():
            send()
        else:
            self._next = send
        return reply

    def on_pool_capacity(self) -> None:
        """The pool has room: tell the line of every call that is over, answered or given up."""
        self._tell_line()
        self._on_capacity(self.pool)

    def _tell_line(self) -> None:
        under_way = max(0, self._slots - self.pool.free_slots)
        while self._under_way > under_way:
            self._under_way -= 1
            self.turn.done()

    def _on_turn(self) -> None:
        if self._next is not None:
            send, self._next = self._next, None
            send()
        else:
            self._on_capacity(self.pool)
