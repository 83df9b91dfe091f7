"""Waits, with a bound, until something holds that no event tells of."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 20
_LOOK_EVERY_S = 0.01


async def eventually(holds: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Return when `holds()` is true, while the event loop runs on."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"did not hold within {timeout_s} s"
        await asyncio.sleep(_LOOK_EVERY_S)


def eventually_true(holds: Callable[[], object], timeout_s: float = 60) -> None:
    """The same where no event loop runs; what refuses a connection does not hold yet."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError):
            if holds():
                return
        assert time.monotonic() < deadline, f"did not hold within {timeout_s} s"
        time.sleep(0.05)
