"""Chores: work that goes on beside its owner, which waits for all of it at its own end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine

_log = logging.getLogger(f"inferd.{__name__}")


class Chores:
    """Tasks that are not forgotten. For use on the event loop only."""

    def __init__(self, name: str) -> None:
        """`name` is that of the tasks."""
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[object, object, None]) -> None:
        """Start one; should it fail, that is logged."""
        task = asyncio.create_task(work, name=self._name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def done(self) -> None:
        """Wait for all of them, also those that they begin."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task failed task=%s", self._name, exc_info=error)
