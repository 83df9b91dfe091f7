"""What the machine has, how busy it is, and what processes take of its memory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli.doctor import MEMORY_INFO, available_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BUSY_PERCENT = 15
"""Share of the processors from which on others disturb what is measured."""
_SAMPLE_S = 0.5
_TICKS = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine at one moment.

    Attributes:
        processors: that this process may use.
        available_bytes: of memory.
        busy_percent: share of all processors that was in use, 0..100.
        load_average: of the last minute.
    """

    processors: int
    available_bytes: int
    busy_percent: float
    load_average: float

    @property
    def is_busy(self) -> bool:
        """Whether others disturb what is measured on it."""
        return self.busy_percent > BUSY_PERCENT


def look_at_machine() -> Machine:
    """The machine as it is now. Takes half a second, in which it should do nothing for us."""
    idle_before, all_before = _ticks()
    time.sleep(_SAMPLE_S)
    idle_after, all_after = _ticks()
    idle_share = (idle_after - idle_before) / max(1, all_after - all_before)
    return Machine(
        processors=len(os.sched_getaffinity(0)),
        available_bytes=available_memory_bytes(MEMORY_INFO.read_text("ascii")),
        busy_percent=100 * (1 - min(1.0, idle_share)),
        load_average=os.getloadavg()[0],
    )


class Disturbance:
    """What other programs take of the processors while some processes of ours are at work."""

    def __init__(self, pids: Sequence[int]) -> None:
        """Begin to look; this process is one of ours too."""
        self._pids = (*pids, os.getpid())
        self._own = self._own_ticks()
        self._idle, self._all = _ticks()

    def percent(self) -> float:
        """Share of all processors since the beginning, 0..100; of less than a second, rough."""
        idle, everything = _ticks()
        own = self._own_ticks() - self._own
        passed = max(1, everything - self._all)
        return 100 * max(0, passed - (idle - self._idle) - own) / passed

    def _own_ticks(self) -> int:
        return sum(_process_ticks(pid) for pid in self._pids)


def memory_of(pids: Iterable[int]) -> int:
    """Bytes of memory that these processes take: shared pages count by their share in them."""
    return sum(_proportional_kib(pid) for pid in pids) * 1024


def _proportional_kib(pid: int) -> int:
    """0 for a process that is gone. Source: proc(5), smaps_rollup."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:
        return 0
    found = [line.split() for line in rollup.splitlines() if line.startswith("Pss:")]
    return int(found[0][1]) if found else 0


def _process_ticks(pid: int) -> int:
    """Ticks in use by all threads so far; 0 when it is gone. Source: proc(5), /proc/PID/stat."""
    try:
        # The second field is a name in brackets, which may hold anything.
        _, _, fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(") ")
    except OSError:
        return 0
    user, system = fields.split()[11:13]
    return int(user) + int(system)


def _ticks() -> tuple[int, int]:
    """Idle ticks and all ticks so far, of all processors. Source: proc(5), /proc/stat."""
    line = _TICKS.read_text("ascii").splitlines()[0]
    user, nice, system, idle, wait, *rest = map(int, line.split()[1:9])
    return idle + wait, user + nice + system + idle + wait + sum(rest)
