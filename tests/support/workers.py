"""The real worker processes of this test: stopped for a while, so that requests pile up."""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator


def worker_processes() -> list[psutil.Process]:
    """Every worker below this process."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.name() == "inferd-worker"]


@contextmanager
def paused_workers() -> Iterator[None]:
    """No worker makes any progress until the block ends."""
    workers = worker_processes()
    assert workers
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            # One that stood still for a call that nobody waited for has been replaced.
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(signal.SIGCONT)
