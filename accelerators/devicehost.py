"""The process of a device that only one process may open: each of its models is a thread here.

A thread does what a worker process does, on the same sockets and slots. The process ends when its
daemon's end of the socket closes, whatever its threads do.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import faulthandler
import gc
import os
import socket
import threading
import traceback
from types import FunctionType
from typing import TYPE_CHECKING

from accelerators.channel import EXIT_BUG, EXIT_MEMORY, EXIT_OK
from accelerators.hostwire import FAILED, JOIN, JOINED, LEFT, TOLD, WORKER_NAME
from accelerators.memorylimit import SharedLimit

if TYPE_CHECKING:
    from collections.abc import Callable

    # What a worker does: its socket, its slots, and how its memory is limited; its exit code.
    Work = Callable[[socket.socket, tuple[int, ...], Callable[[int, int], None]], int]

_FDS_MAX = 16
_FD_SIZE = array.array("i").itemsize
_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BLOCK_BYTES = 1 << 20  # below what models take at once, above what is taken in every call
_WORDS_MAX = 4096  # bytes of a traceback: what the daemon's pipe holds


def serve(channel: socket.socket, work: Work) -> int:
    """Take models in until the other end closes. Returns the exit code, which ends the threads."""
    # When it crashes, its last words tell which worker's thread it was: the others' models are not
    # to blame. On a descriptor of its own, as another file may be number 2 while a driver talks.
    faulthandler.enable(os.dup(2), all_threads=False)
    _give_large_blocks_back()
    host = _Host(channel, work)
    while host.take_in():
        pass
    return EXIT_OK


class _Host:
    def __init__(self, channel: socket.socket, work: Work) -> None:
        self._channel = channel
        self._work = work
        self._limit = SharedLimit()

    def take_in(self) -> bool:
        """Give one worker its thread. False when the daemon is gone."""
        message, ancillary, flags, _ = self._channel.recvmsg(
            64, socket.CMSG_SPACE(_FDS_MAX * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
        )
        if not message:
            return False
        (number,) = JOIN.unpack(message)
        fds = [fd for _, _, data in ancillary for fd in _descriptors(data)]
        problem = errno.EMFILE  # there was no room here for all of the descriptors
        if not flags & socket.MSG_CTRUNC:
            problem = self._start(number, fds)
        if problem:
            for fd in fds:
                os.close(fd)
            self._tell(FAILED, number, problem)
        return True

    def _start(self, number: int, fds: list[int]) -> int:
        """Start a thread, which has `fds` from then on; returns 0, or the errno when there is none.

        It is a daemon thread: this process ends without waiting for it.
        """
        thread = threading.Thread(target=_live_as(number), args=(self, number, fds), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # as Python says that the system has none
            return errno.EAGAIN
        return 0

    def be_worker(self, number: int, fds: list[int]) -> None:
        """All that a worker does, from its first order to its end. In its thread."""
        self._tell(JOINED, number, 0)
        channel = socket.socket(fileno=fds[0])
        code = self._run(channel, fds[1], tuple(fds[2:]))
        gc.collect()  # whatever of the model hangs in a cycle, and with it the device
        # First its end, then its socket's: else the daemon takes it for a crash.
        self._tell(LEFT, number, code << 8)
        channel.close()
        for fd in fds[1:]:
            os.close(fd)

    def _run(self, channel: socket.socket, stderr: int, slots: tuple[int, ...]) -> int:
        allowances: list[int] = []

        def limit_memory(memory_mib: int, threads: int) -> None:
            allowances.append(self._limit.join(memory_mib, threads))

        try:
            return self._work(channel, slots, limit_memory)
        except MemoryError:
            return EXIT_MEMORY
        except ConnectionError:
            return EXIT_OK  # the daemon has let go
        except Exception:  # noqa: BLE001 (top of a thread)
            with contextlib.suppress(OSError):
                os.write(stderr, traceback.format_exc().encode("utf-8", "replace")[-_WORDS_MAX:])
            return EXIT_BUG
        finally:
            for allowance in allowances:
                self._limit.leave(allowance)

    def _tell(self, what: int, number: int, status: int) -> None:
        with contextlib.suppress(ConnectionError):  # this process is about to end
            self._channel.send(TOLD.pack(what, number, status))


def _give_large_blocks_back() -> None:
    """Have a model's memory returned when it leaves, though the process lives on.

    The C library keeps large blocks for next time once it has seen one of their size come and go.
    A threshold that is set stays where it is. Source: mallopt(3).
    """
    with contextlib.suppress(AttributeError):  # a C library that does not know it
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _live(host: _Host, number: int, fds: list[int]) -> None:
    host.be_worker(number, fds)


def _live_as(number: int) -> FunctionType:
    """`_live` by a worker's name, which a crash's list of functions then shows."""
    name = WORKER_NAME.format(number)
    return FunctionType(_live.__code__.replace(co_name=name, co_qualname=name), globals(), name)


def _descriptors(data: bytes) -> array.array[int]:
    found = array.array("i")
    found.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return found
