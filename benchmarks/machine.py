"""What machine a figure was measured on, and how busy it was."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

BUSY_LOAD_PER_CPU = 0.5
"""Above this load average per processor, before the run, the machine counts as busy."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine's facts, and its one-minute load averages before and after the run."""

    date: str
    processor: str
    cpus: int
    memory_gib: float
    system: str
    python: str
    load_before: float
    load_after: float = 0.0

    @property
    def was_busy(self) -> bool:
        """Whether something else ran on it when the run began."""
        return self.load_before > BUSY_LOAD_PER_CPU * self.cpus

    def as_dict(self) -> dict[str, object]:
        """For the JSON file."""
        return {**asdict(self), "busy": self.was_busy}


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


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _system() -> str:
    release = platform.freedesktop_os_release()
    return release.get("PRETTY_NAME", "Linux")
