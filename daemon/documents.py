"""DocumentThread: large documents are read and written in one thread, off the event loop.

A parser in C gives nobody a turn until it is done, in whichever thread it runs. So each call is
bounded (`daemon.codec.jsontensors`: a document; `daemon.codec.pieces`: an answer), and only one
document is worked on at a time: the loop waits for at most one such call, however many clients
send large documents.
"""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from daemon.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")

HEAVY_BYTES = 64 * 1024
"""Documents from this size on belong into the thread: in the loop they take 1 ms and more; below
it the way to the thread and back costs more than it saves."""


class DocumentThread:
    """One thread for all large documents of a process, first come, first served."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="documents")

    async def run(self, work: Callable[[], _Result], *, is_heavy: bool, deadline: float) -> _Result:
        """The result of `work`, or what it raised.

        Args:
            work: bounded, and made of short calls.
            is_heavy: it belongs into the thread; else it is done at once, here.
            deadline: in `time.monotonic()` seconds. Heavy work that has not begun by then never
                runs.

        Raises:
            DeadlineExceeded: the documents before it, or its own, took too long.
        """
        if not is_heavy:
            return work()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                return await loop.run_in_executor(self._executor, _run_uncollected, work)
        except TimeoutError as exc:
            raise DeadlineExceeded(
                "the deadline passed while large documents were read or written"
            ) from exc

    def close(self) -> None:
        """Let the thread end; what has not begun never runs."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _run_uncollected(work: Callable[[], _Result]) -> _Result:
    """Without the collector of cycles, which would look at all lists of a document again and again.

    300,000 lists are parsed in 12 ms so, else in 130 ms (2 cores of x86-64, 2026-11), for which
    nobody else gets a turn. JSON holds no cycles.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return work()
    finally:
        if was_enabled:
            gc.enable()
