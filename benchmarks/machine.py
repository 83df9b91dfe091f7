"""What machine a figure was measured on, and how busy it was."""

from __future__ import annotations

import datetime
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

BUSY_LOAD_PER_CPU = 0.5
"""Above this load average per processor, before the run, the machine counts as busy."""


BUSY_PERCENT = 15
"""Above this share of the processors, taken by others while our servers idle, it is busy too."""

_SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine's facts, and its one-minute load average before and after the run."""

    date: str
    processor: str
    cpus: int
    memory_gib: float
    system: str
    python: str
    load_before: float
    load_after: float = 0.0
    others_percent: float = 0.0
    """Median share of the processors that others took while our servers idled."""

    @property
    def was_busy(self) -> bool:
        """Whether something else ran on it, before or meanwhile."""
        return self.load_before > BUSY_LOAD_PER_CPU * self.cpus or (
            self.others_percent > BUSY_PERCENT
        )

    def describe(self) -> str:
        """When and on what, in a sentence."""
        return (
            f"{self.date}; {self.processor}, {self.cpus} CPUs, {self.memory_gib} GiB; "
            f"{self.system}; Python {self.python}."
        )

    def describe_load(self) -> str:
        """How busy it was, in a sentence."""
        busy = " The machine was BUSY: figures are not to be trusted." if self.was_busy else ""
        return (
            f"Load average {self.load_before:.2f} before and {self.load_after:.2f} after; "
            f"others took {self.others_percent:.0f} % of the processors.{busy}"
        )


def busy_percent() -> float:
    """The share of all processors that was in use during the next second."""
    idle_before, all_before = _ticks()
    time.sleep(_SAMPLE_S)
    idle_after, all_after = _ticks()
    return 100 * (1 - (idle_after - idle_before) / max(1, all_after - all_before))


def look_at_machine() -> Machine:
    """The facts as they are now."""
    return Machine(
        date=datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        processor=_processor(),
        cpus=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{_system()}, Linux {platform.release()}, {platform.machine()}",
        python=platform.python_version(),
        load_before=os.getloadavg()[0],
    )


def _ticks() -> tuple[int, int]:
    """Idle ticks and all ticks so far, of all processors. Source: proc(5), /proc/stat."""
    line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    user, nice, system, idle, wait, *rest = map(int, line.split()[1:9])
    return idle + wait, user + nice + system + idle + wait + sum(rest)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _system() -> str:
    release = platform.freedesktop_os_release()
    return release.get("PRETTY_NAME", "Linux")
