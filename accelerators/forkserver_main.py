"""The fork server process: imports the runtime once, makes no interpreter, and forks workers.

It is one thread, so that a fork copies nothing half-done. It ends when its daemon's end of the
socket closes, and its workers end with it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import gc
import os
import select
import signal
import socket
from pathlib import Path
from typing import NoReturn

from accelerators import worker
from accelerators.channel import EXIT_BUG
from accelerators.forkwire import ANSWER, EXITED, FAILED, FORKED, KILL, READY, REQUEST
from accelerators.runtime import preload
from accelerators.startpages import give_back_start_pages

FDS_MAX = 16
_FD_SIZE = array.array("i").itemsize
_TITLE = "inferd-forksrv"  # at most 15 characters are kept by the kernel


def main(fd: int) -> None:
    """Serve fork requests on the socket `fd` until its other end closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A service manager signals the whole group; when to end is the daemon's decision.
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # else it has the name of the program it came from
        Path("/proc/self/comm").write_text(_TITLE, "ascii")
    preload()
    give_back_start_pages()  # it will wait now, and hardly run
    gc.collect()
    gc.freeze()  # a collection in a worker would otherwise copy every shared page
    with socket.socket(fileno=fd) as channel:
        try:
            _Server(channel).serve()
        except (ConnectionError, BrokenPipeError):
            return


class _Server:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._children: dict[int, int] = {}  # pidfd -> pid
        self._poll = select.poll()

    def serve(self) -> None:
        self._poll.register(self._channel, select.POLLIN)
        self._channel.send(ANSWER.pack(READY, 0, os.getpid(), 0, 0))
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    self._reap(fd)
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        """Do what one request asks for. False when the daemon is gone."""
        message, ancillary, flags, _ = self._channel.recvmsg(
            64, socket.CMSG_SPACE(FDS_MAX * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
        )
        if not message:
            return False
        what, number = REQUEST.unpack(message)
        if what == KILL:
            self._kill(number)
            return True
        fds = [fd for _, _, data in ancillary for fd in _descriptors(data)]
        problem = errno.EMFILE  # there was no room here for all of the descriptors
        if not flags & socket.MSG_CTRUNC:
            problem = self._fork(number, fds)
        for fd in fds:
            os.close(fd)
        if problem:
            self._channel.send(ANSWER.pack(FAILED, number, 0, problem, 0))
        return True

    def _fork(self, number: int, fds: list[int]) -> int:
        """Fork a worker and tell the daemon; returns 0, or the errno when there is none."""
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as exc:
            return exc.errno or errno.EAGAIN
        if pid == 0:
            _become_worker(fds, parent)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as exc:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return exc.errno or errno.EMFILE
        self._children[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))]
        try:
            self._channel.sendmsg([ANSWER.pack(FORKED, number, pid, 0, 0)], rights)
        except OSError as exc:
            self._kill(pid)  # its end is told as every other's, to nobody who knows it
            return exc.errno or errno.EPIPE
        return 0

    def _kill(self, pid: int) -> None:
        """End a child; its end is told as every other's."""
        for pidfd, child in self._children.items():
            if child == pid:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        self._channel.send(ANSWER.pack(EXITED, 0, pid, status, usage.ru_maxrss))


def _become_worker(fds: list[int], parent: int) -> NoReturn:
    """The child's side of the fork: never comes back."""
    code = EXIT_BUG
    try:
        kept = move_low(fds)
        code = worker.main(worker.Handles(kept[0], kept[1], tuple(kept[2:])), parent)
    finally:
        os._exit(code)


def move_low(fds: list[int]) -> list[int]:
    """Move the descriptors to 3, 4, ... and close all others above 2."""
    # First out of the way of the low numbers, then down.
    end = 3 + len(fds)
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, end) for fd in fds]
    for place, fd in enumerate(spare):
        os.dup2(fd, 3 + place, inheritable=False)
    for fd in [int(link.name) for link in Path("/proc/self/fd").iterdir()]:
        if fd >= end:
            with contextlib.suppress(OSError):  # the listing's own is gone already
                os.close(fd)
    return list(range(3, end))


def _descriptors(data: bytes) -> array.array[int]:
    found = array.array("i")
    found.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return found
