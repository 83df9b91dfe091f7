"""What this machine is: architecture, runtime, memory, boot."""

from __future__ import annotations

import platform
import re
import time
from importlib import metadata
from pathlib import Path

from updater.policy import DeviceFacts

_DEBIAN_NAMES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "armhf",
    "armv6l": "armel",
    "i686": "i386",
}
RUNTIMES = {"ai-edge-litert": "litert", "tflite-runtime": "tflite"}
"""Distribution to what manifests call it; the first that is installed is the one in use."""
_MEMORY = re.compile(r"^MemTotal:\s+(\d{1,15}) kB$", re.MULTILINE)


def read_facts() -> DeviceFacts:
    """The facts that policy asks for. Nothing is imported for it: a runtime takes memory."""
    runtime, version = _runtime()
    return DeviceFacts(
        architecture=_DEBIAN_NAMES.get(platform.machine(), platform.machine()),
        runtime=runtime,
        runtime_version=version,
        memory_mib=_memory_mib(),
    )


def read_boot_id() -> str:
    """Names this boot of the machine.

    Raises:
        OSError: the kernel does not say.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def utc_offset_s(now: float) -> int:
    """Seconds that local time is ahead of UTC at that time; a changed zone is taken up.

    Args:
        now: wall clock, seconds.
    """
    time.tzset()
    return time.localtime(now).tm_gmtoff


def _runtime() -> tuple[str, str]:
    for distribution, name in RUNTIMES.items():
        try:
            return name, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "none", "0"


def _memory_mib() -> int | None:
    try:
        found = _MEMORY.search(Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found[1]) // 1024 if found else None
