"""What the runtime and the drivers of GPUs and NPUs write to stderr.

They say there, and nowhere else, which device they took, which operators they refuse and why they
fail; some failures show nowhere else at all. A worker's stderr is a pipe to its daemon, of which
the worker reads here what it has written itself. What it does not come to read, since it died in
the driver, is left for the daemon: its last words.

Source: measured on LiteRT 2.3.0 with Dawn on Vulkan and with OpenVINO 2026.3.1.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from dataclasses import dataclass
from functools import cache

_STDERR = 2
_PIPE_BYTES = 64 << 10  # opening a model writes up to 8 KiB
_NAMES_MAX = 10  # operators that are named in one sentence

# How a message begins: "INFO: [gpu.cc:1] ...", "I0000 00:00:1795380942.74   11926 gpu.cc:1] ...".
_BEGIN = re.compile(
    r"^(?:(?P<word>INFO|WARNING|ERROR|FATAL): |(?P<letter>[IWEF])\d{4} [\d:.]+ +\d+ )"
    r"(?:\[?[\w./]+:\d+\] ?)?"
)
_BAD = frozenset({"ERROR", "FATAL", "E", "F"})
_PLACE = re.compile(r"^(?:└ )?(?:ERROR: )?\[[\w./]+:\d+\]$")
_THROWN = re.compile(r"Exception in compilation: |Exception from [\w./]+:\d+:?")
_ADAPTER = re.compile(r"Selected adapter: (?P<name>.*), arch=.*adapterType=(?P<type>.*)")
_REFUSES = "Following operations are not supported by GPU delegate:"
_REFUSED = re.compile(r"^(?P<name>[A-Z][A-Z0-9_]*(?: \w+)?): (?P<why>.*)$")
_FEATURE = re.compile(r"Vulkan (\S+)(?: feature)? required")
_PARTITIONED = re.compile(
    r"Partitioned subgraph<0>, selected (\d+) ops, from a total of (\d+) ops\. "
    r"resulted in (\d+) partitions"
)
_NUMBERED = re.compile(r"op type (\d+) is not supported")
_OPENVINO = re.compile(
    r"(?:Using Intel OpenVINO device: |Compiling partition \d+ for device )(\w+)"
)


class Unproven(Exception):
    """That a device has the whole model does not follow from what was written; says what lacks."""


class StderrPipe:
    """The end of this process' stderr from which the daemon would read, where that is a pipe."""

    def __init__(self) -> None:
        """Raises OSError where it is none, or its other end cannot be had."""
        if not stat.S_ISFIFO(os.fstat(_STDERR).st_mode):
            raise OSError("stderr is no pipe")
        self._fd = os.open(f"/proc/self/fd/{_STDERR}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # with less room, the end of long texts is lost
            fcntl.fcntl(_STDERR, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def take(self) -> str:
        """What was written since the last time; the daemon will not see it."""
        try:
            return os.read(self._fd, _PIPE_BYTES).decode("utf-8", "replace")
        except BlockingIOError:
            return ""


@cache
def stderr_pipe() -> StderrPipe:
    """The one of this process.

    Raises:
        OSError: stderr is not a pipe of its own.
    """
    return StderrPipe()


@dataclass(frozen=True, slots=True)
class Partitioning:
    """How a compiler has cut up the main graph: operators in all, those taken, and the pieces."""

    operators: int
    taken: int
    pieces: int


def errors(text: str) -> tuple[str, ...]:
    """The messages that tell of an error, each on one line, without where it was written."""
    found: list[list[str]] = []
    bad = False
    for line in text.splitlines():
        begin = _BEGIN.match(line)
        if begin:
            bad = (begin["word"] or begin["letter"]) in _BAD
            if bad:
                found.append([line[begin.end() :]])
        elif bad:
            found[-1].append(line)
    said = (" ".join(filter(None, map(_useful, lines))) for lines in found)
    return tuple(dict.fromkeys(filter(None, said)))


def _useful(line: str) -> str:
    """The line without what only helps the runtime's authors."""
    line = _THROWN.sub("", line.strip())
    if line.startswith(("at ", "===", "third_party/")) or _PLACE.match(line):
        return ""
    return line.removeprefix("└ ")


def adapter(text: str) -> str:
    """The GPU that was taken, as its driver calls it; "" when none was."""
    found = _ADAPTER.search(text)
    return found["name"].strip() if found else ""


def missing_features(text: str) -> tuple[str, ...]:
    """What the driver of a GPU lacks."""
    return tuple(dict.fromkeys(_FEATURE.findall(text)))


def operators_refused_by_gpu(text: str) -> str:
    """Which operators the GPU does not take and why, in one line; "" when none is named."""
    named: dict[str, None] = {}
    listing = False
    for line in text.splitlines():
        refused = _REFUSED.match(line) if listing else None
        if refused:
            why = refused["why"].strip().rstrip(".")
            named[f"{refused['name']} ({why})"] = None
        else:
            listing = line.endswith(_REFUSES)
    return _listed(list(named))


def operators_refused_by_npu(text: str) -> tuple[int, ...]:
    """The numbers of the operators that the NPU's compiler does not take."""
    return tuple(dict.fromkeys(int(number) for number in _NUMBERED.findall(text)))


def partitioning(text: str) -> Partitioning | None:
    """How the NPU's compiler has cut up the main graph; None when it has not come to it."""
    found = _PARTITIONED.search(text)
    if found is None:
        return None
    taken, operators, pieces = (int(number) for number in found.groups())
    return Partitioning(operators, taken, pieces)


def openvino_devices(text: str) -> frozenset[str]:
    """On which of OpenVINO's devices the pieces run, in lower case."""
    return frozenset(name.lower() for name in _OPENVINO.findall(text))


def _listed(names: list[str]) -> str:
    rest = len(names) - _NAMES_MAX
    return ", ".join(names[:_NAMES_MAX]) + (f" and {rest} more" if rest > 0 else "")
