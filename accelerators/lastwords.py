"""What a child process said last on its stderr, and what ended it, for a person to read."""

from __future__ import annotations

import fcntl
import os
import re
import signal

_BYTES = 4096  # of stderr that are kept: one page, the least a pipe has
_BYTES_MAX = 64 << 10  # of a child that has made its pipe larger: drivers of GPUs have much to say
_SHOWN_CHARACTERS = 200

# What runs well, and the frames of a stack that is printed after what went wrong.
_USELESS = re.compile(r"INFO: |[IW]\d{4} |@ +0x|\*\*\*")
_PREFIX = re.compile(r"^[EF]\d{4} [\d:.]+ +\d+ [\w./]+:\d+\] ")


def last_words_pipe(kept_bytes: int = _BYTES) -> tuple[int, int]:
    """A pipe that keeps what is written to it first and drops the rest: ours and the child's end.

    Raises:
        OSError: no descriptor is to be had; nothing is left behind.
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, kept_bytes)
    except OSError:
        os.close(ours)
        os.close(theirs)
        raise
    return ours, theirs


def last_words(fd: int) -> str:
    """The last line that is there, printable; "" when there is none."""
    try:
        text = os.read(fd, _BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
    return last_line(text)


def last_line(text: str) -> str:
    """The last line of a text that says something, printable; "" when there is none."""
    lines = [line.strip() for line in text.splitlines()]
    useful = [line for line in lines if line and not _USELESS.match(line)]
    shown = _PREFIX.sub("", useful[-1])[:_SHOWN_CHARACTERS] if useful else ""
    return "".join(c if c.isprintable() else "?" for c in shown)


def quoted(words: str) -> str:
    """As an addition to a sentence; "" stays so."""
    return f" ({words})" if words else ""


def signal_name(number: int) -> str:
    """SIGSEGV and the like."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
