"""How much private memory a process of ours may take, kept by the operating system."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

# A thread's stack counts as its whole size against the limit, though little of it is ever used.
STACK_BYTES = 8 << 20


def limit_memory(memory_mib: int, threads: int) -> None:
    """Let this process take so much private memory beyond what it has now, for good."""
    limit = _data_bytes() + _allowance(memory_mib, threads)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class SharedLimit:
    """The limit of a process with several models: what they may take adds up.

    It grows with each model that joins, and stays where it was when one leaves: of what a model
    takes, not everything comes back, and those that stay are not to pay for it. So it is never more
    than the models that were there at one time may take. It is a soft limit, as it has to grow: a
    model that takes over its process can lift it, which one in a process of its own cannot.
    """

    def __init__(self) -> None:
        """The process has no model yet."""
        self._base = self._limit = _data_bytes()
        self._allowed = 0
        self._lock = threading.Lock()

    def join(self, memory_mib: int, threads: int) -> int:
        """Allow for one model more; returns what `leave` takes back."""
        allowance = _allowance(memory_mib, threads) + STACK_BYTES  # its own thread's
        with self._lock:
            self._allowed += allowance
            self._limit = max(self._limit, self._base + self._allowed)
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (self._limit, hard))
        return allowance

    def leave(self, allowance: int) -> None:
        """A model is gone: the next one may take its part."""
        with self._lock:
            self._allowed -= allowance


def _allowance(memory_mib: int, threads: int) -> int:
    return (memory_mib << 20) + (threads - 1) * STACK_BYTES


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
