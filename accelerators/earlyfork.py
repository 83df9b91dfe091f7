"""Forks the fork server off a process that has only begun: no thread, no event loop, no secret.

Parent and child then share the interpreter and NumPy in memory, page by page until one of them
writes there, and the child imports the runtime while its parent imports the rest.

Measured 2026-11 on 2 cores of x86-64 against a fork server that is a program of its own: 8 MB less,
ready 0.1 s sooner.

What the child must not have is taken away before it does anything: descriptors, the terminal, and
the environment of our settings and the service manager. Two things are left, and are harmless only
because it runs as the same user: it knows at which addresses the parent's libraries lie, and memory
that the parent had given back may hold what was in it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

_PRIVATE = ("INFERD_", "NOTIFY_SOCKET", "WATCHDOG_", "CREDENTIALS_DIRECTORY", "LISTEN_")
_EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h

# Places in /proc/PID/stat after the name: where the environment begins and ends in memory.
_ENV_START, _ENV_END = 47, 48


@dataclass(frozen=True, slots=True)
class Newborn:
    """A fork server that was forked early, and our end of the socket to it.

    A `ForkServer` takes it over; else whoever has it calls `end`.
    """

    pid: int
    channel: socket.socket

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait for its end, once."""
        os.waitpid(self.pid, 0)

    def end(self) -> None:
        """End it and leave nothing of it."""
        self.kill()
        self.channel.close()
        self.wait()


def fork_early() -> Newborn | None:
    """Fork the fork server off this process; None where this process has begun too much.

    To be called before the daemon's own modules are imported and its configuration is read: what is
    in memory by then is in both processes, and what comes later is not.

    Raises:
        OSError: no process or descriptor is to be had.
    """
    # NumPy's own pool of threads would make every fork a fork of a threaded process. Nothing here
    # multiplies matrices.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # What both sides need, and nothing else. Here and not above: the line before must be first.
    import accelerators.channel  # noqa: PLC0415
    import accelerators.report  # noqa: F401, PLC0415

    if sum(1 for _ in Path("/proc/self/task").iterdir()) > 1:
        return None
    gc.collect()
    gc.freeze()  # a collection in either process would copy every shared page
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        if pid == 0:
            _become_fork_server(theirs.fileno())
    return Newborn(pid, ours)


def public_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what a model has no business with: our settings and the service manager's."""
    return {key: value for key, value in environment.items() if not key.startswith(_PRIVATE)}


def _become_fork_server(fd: int) -> NoReturn:
    """The child's side of the fork: never comes back."""
    code = _EXIT_BUG
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        _forget_environment()
        # Here and not above: it brings in the runtime, which the parent is to do without.
        from accelerators import forkserver_main  # noqa: PLC0415

        forkserver_main.main(forkserver_main.move_low([fd])[0])
        code = 0
    except BaseException:  # noqa: BLE001 (top of a process)
        traceback.print_exc()
    finally:
        os._exit(code)


def _forget_environment() -> None:
    """Keep what is public, also in the memory that /proc/PID/environ shows."""
    kept = public_environment(os.environ)
    os.environ.clear()
    fields = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    start, end = int(fields[_ENV_START]), int(fields[_ENV_END])
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
    os.environ.update(kept)
