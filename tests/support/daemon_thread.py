"""Runs the real daemon in a thread with its own event loop, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from support.daemon import START_TIMEOUT_S, RunningDaemon, running_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


@contextmanager
def daemon_in_thread(
    models: Sequence[Path | Mapping[str, object]], /, **options: Any
) -> Iterator[RunningDaemon]:
    """Serve these models until the block ends; options as for `running_daemon`."""
    started: Future[tuple[RunningDaemon, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        ended = asyncio.Event()
        async with running_daemon(models, **options) as daemon:
            started.set_result((daemon, asyncio.get_running_loop(), ended))
            await ended.wait()

    def main() -> None:
        try:
            asyncio.run(run())
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)

    thread = threading.Thread(target=main, name="daemon")
    thread.start()
    daemon, loop, ended = started.result(START_TIMEOUT_S)
    try:
        yield daemon
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(START_TIMEOUT_S)
