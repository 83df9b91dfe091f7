"""This process with hardly any file descriptors left, as after a flood of connections."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_STANDARD = 3  # stdin, stdout and stderr are open: below this number there is never room
_ROOM = 512  # above what a test has open


@contextmanager
def no_descriptors() -> Iterator[None]:
    """None can be opened until the block ends, whatever is closed meanwhile."""
    with _limit(_STANDARD):
        yield


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """So many more can be opened until the block ends."""
    with _limit(_ROOM):
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            for fd in held[len(held) - free :]:
                os.close(fd)
        del held[len(held) - free :]
        try:
            yield
        finally:
            for fd in held:
                os.close(fd)


@contextmanager
def _limit(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
