"""Runs `inferctl` at a terminal of its own, as a person who answers questions."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from typing import TYPE_CHECKING

from support.inferctl import COMMAND, ENVIRONMENT, TIMEOUT_S

if TYPE_CHECKING:
    from pathlib import Path


def inferctl_at_terminal(*arguments: str | Path, answers: list[str]) -> tuple[int, str]:
    """Answer each question (what ends with ": "), then wait for the end.

    Returns:
        The exit code, and all that stood on the screen.
    """
    terminal, its_side = pty.openpty()
    try:
        process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *COMMAND, *map(str, arguments)],
            stdin=its_side,
            stdout=its_side,
            stderr=its_side,
            env=ENVIRONMENT,
        )
        os.close(its_side)
        with process:
            screen, left = b"", list(answers)
            while piece := _read(terminal):
                screen += piece
                if screen.endswith(b": ") and left:
                    os.write(terminal, left.pop(0).encode() + b"\n")
        return process.returncode, screen.decode()
    finally:
        os.close(terminal)


def _read(terminal: int) -> bytes:
    ready, _, _ = select.select([terminal], [], [], TIMEOUT_S)
    if not ready:
        raise TimeoutError("it says nothing more and does not end")
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO: the other side has ended
        return b""
