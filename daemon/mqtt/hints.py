"""Hints that there may be updates: passed on to the updater, at most one a second.

A hint carries nothing but itself: what there is, the updater finds out by what is signed. One that
cannot be passed on is dropped, since an updater that starts looks anyway.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from daemon.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(f"inferd.{__name__}")

_LEAST_S = 1.0
"""Between two that are passed on, however many come."""


class Hints:
    """Passes hints on, in a task of its own.

    Args:
        pass_on: tells the updater; bounded. Raises a DaemonError when it cannot.
    """

    def __init__(self, pass_on: Callable[[], Awaitable[object]]) -> None:
        self._pass_on = pass_on
        self._came = asyncio.Event()
        self._is_heard = True
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to pass on."""
        self._task = asyncio.create_task(self._run(), name="mqtt-hints")

    async def stop(self) -> None:
        """Drop what has not been passed on."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def came(self) -> None:
        """There was one; never waits."""
        self._came.set()

    async def _run(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            try:
                await self._pass_on()
            except DaemonError as error:
                if self._is_heard:
                    _log.warning("a hint at updates reached nobody cause=%s", error)
                self._is_heard = False
            except Exception:  # noqa: BLE001 (top of a task: the next hint may fare better)
                _log.exception("a hint at updates was not passed on")
            else:
                self._is_heard = True
            await asyncio.sleep(_LEAST_S)
