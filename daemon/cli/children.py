"""Programs that run beside a verb and end with it, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_STOP_TIMEOUT_S = 5.0

_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
parent, program = int(sys.argv[1]), sys.argv[2:]
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
if os.getppid() == parent:
    os.execv(program[0], program)
"""
"""Becomes a program that the kernel kills when its parent has died; nothing when it has already.

Source: prctl(2), PR_SET_PDEATHSIG, which outlives the exec."""


def start(
    command: Sequence[str], *, output: IO[bytes] | int, errors: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Start a program, by its path, from a thread that lives as long as it shall.

    It is in a session of its own: Ctrl-C is for the verb, which ends it when it is ready to.
    """
    dying_with_us = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
    return subprocess.Popen(  # noqa: S603 (the callers' own commands)
        [*dying_with_us, *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it: with SIGTERM, and where that does not help with SIGKILL."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
