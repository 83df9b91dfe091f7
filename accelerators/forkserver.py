"""ForkServer: a small process that has the runtime imported and forks workers on request."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from accelerators.backoff import Backoff
from accelerators.earlyfork import public_environment
from accelerators.errors import AcceleratorError
from accelerators.forkwire import (
    ANSWER,
    EXITED,
    FAILED,
    FORK,
    FORKED,
    KILL,
    READY,
    REQUEST,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerators.earlyfork import Newborn

_log = logging.getLogger(f"inferd.{__name__}")

_READY_TIMEOUT_S = 60.0  # to import the runtime: a tenth of a second warm, many on a cold SD card
_FORK_TIMEOUT_S = 30.0  # waiting for a server that is being restarted included
_STOP_TIMEOUT_S = 5.0
_FD_SIZE = array.array("i").itemsize
_NO_DESCRIPTOR = os.strerror(errno.EMFILE)

# The child runs the very code of this package, installed or not: -I drops the working directory
# and the environment's paths, so the folder is named.
_ROOT = str(Path(__file__).resolve().parent.parent)
_PROGRAM = """
import sys
root = sys.argv.pop(1)
if root not in sys.path:
    sys.path.insert(0, root)
from accelerators.forkserver_main import main
main(int(sys.argv[1]))
"""


class ForkFailed(AcceleratorError):
    """No process could be had now; it may work later."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended.

    Attributes:
        status: as from `os.waitpid`; None when nobody could wait for it.
        peak_bytes: of resident memory; 0 when not known.
        words: what its process said last, where that is not on its own stderr; "" else.
        is_to_blame: whether it is its own end; not so where it shared its process with others, and
            another one, or nobody that is known, brought the process down.
    """

    status: int | None
    peak_bytes: int = 0
    words: str = ""
    is_to_blame: bool = True


@dataclass(frozen=True, slots=True)
class Child:
    """A forked process. Whoever asked for it calls `close` after its end.

    Attributes:
        exited: done when it is gone.
    """

    pid: int
    pidfd: int
    exited: asyncio.Future[Exit]

    @property
    def is_shared(self) -> bool:
        """Whether others live in its process: no."""
        return False

    def kill(self) -> None:
        """End it at once. Does nothing when it is gone; a failure is logged, not raised."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        except OSError as exc:
            _log.error("worker cannot be killed pid=%d reason=%s", self.pid, exc.strerror)

    def close(self) -> None:
        """Give its descriptor back."""
        os.close(self.pidfd)


class ForkServer:
    """Owns the fork server process; one for the whole daemon, restarted when it dies.

    Not thread-safe: use it from the event loop it was started on.
    """

    def __init__(self, newborn: Newborn | None = None) -> None:
        """Take `newborn` over; without one, and after its death, the process is a program's."""
        self._newborn = newborn
        self._server: _Server | None = None
        self._failure = ""  # why the last attempt to start one failed
        self._settled = asyncio.Event()  # there is a server, or a failure
        self._keeper: asyncio.Task[None] | None = None
        self._is_stopped = False

    @property
    def pid(self) -> int:
        """Its process id; 0 while there is none."""
        return self._server.process.pid if self._server else 0

    async def start(self) -> None:
        """Start the process; returns once it is ready to fork.

        Without this, the first `fork` starts it.

        Raises:
            ForkFailed: it does not start.
        """
        newborn, self._newborn = self._newborn, None
        self._server = await _until_ready(lambda: _adopt(newborn) if newborn else _spawn())
        self._settled.set()
        self._begin_to_keep()

    async def stop(self) -> None:
        """End it for good, and with it every worker that is left."""
        self._is_stopped = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        self._settled.clear()
        if self._newborn is not None:  # nobody has needed it
            newborn, self._newborn = self._newborn, None
            newborn.end()
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop()

    async def fork(self, fds: Sequence[int]) -> Child:
        """Fork a worker that gets copies of `fds`.

        Raises:
            ForkFailed: no process, memory or descriptor is to be had; or the server has died and
                does not start again so far, or was stopped.
        """
        if self._is_stopped:
            raise ForkFailed("the fork server was stopped")
        self._begin_to_keep()
        try:
            async with asyncio.timeout(_FORK_TIMEOUT_S):
                while True:
                    await self._settled.wait()
                    if self._failure:
                        raise ForkFailed(self._failure)
                    if self._server is not None and not self._server.gone.done():
                        return await self._server.fork(fds)
                    await asyncio.sleep(0)
        except TimeoutError as exc:
            raise ForkFailed("the fork server does not answer") from exc

    def _begin_to_keep(self) -> None:
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="forkserver-keeper")

    async def _keep(self) -> None:
        """Start a server when there is none yet, and a new one whenever the present one dies."""
        backoff = Backoff()
        born = time.monotonic()
        is_first = self._server is None
        while True:
            if self._server is not None:
                await asyncio.wait([self._server.gone])
                self._settled.clear()
                server, self._server = self._server, None
                await server.stop()
                _log.warning("fork server died, starting another")
            if not is_first:
                await asyncio.sleep(backoff.delay_s(time.monotonic() - born))
            is_first = False
            born = time.monotonic()
            try:
                self._server = await _until_ready(_spawn)
            except ForkFailed as exc:
                self._failure = str(exc)
                _log.error("fork server does not start reason=%s", exc)
            else:
                self._failure = ""
            self._settled.set()


async def _until_ready(start: Callable[[], _Server]) -> _Server:
    """A server that is ready.

    Raises:
        ForkFailed: it does not start; nothing is left behind.
    """
    try:
        server = start()
    except OSError as exc:
        raise ForkFailed(f"the fork server cannot be started: {exc}") from exc
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            await asyncio.wait([server.ready, server.gone], return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError as exc:
        await server.stop()
        raise ForkFailed("the fork server was not ready in time") from exc
    except BaseException:
        await server.stop()
        raise
    if not server.ready.done():
        await server.stop()
        raise ForkFailed("the fork server ended before it was ready")
    return server


def _adopt(newborn: Newborn) -> _Server:
    """Take over one that was forked early.

    Raises:
        OSError: no descriptor is to be had; nothing is left behind.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(newborn.end)
        # It was born before we asked for as many descriptors as may be had.
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(newborn.pid, resource.RLIMIT_NOFILE, descriptors)
        server = _Server(newborn, os.pidfd_open(newborn.pid), newborn.channel)
        undo.pop_all()
    return server


def _spawn() -> _Server:
    """Start the process as a program.

    Raises:
        OSError: no process or descriptor is to be had; nothing is left behind.
    """
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(ours.close)
        with theirs:
            process = subprocess.Popen(  # noqa: S603 (our own program; a few ms)
                [sys.executable, "-I", "-c", _PROGRAM, _ROOT, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # numpy's own thread pool would make every fork a fork of a threaded process.
                env={**public_environment(os.environ), "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
        undo.callback(process.wait)
        undo.callback(process.kill)
        # Now rather than when it is to be stopped: then there might be no descriptor left.
        pidfd = os.pidfd_open(process.pid)
        undo.callback(os.close, pidfd)
        server = _Server(process, pidfd, ours)
        undo.pop_all()
    return server


class _Process(Protocol):
    """What `subprocess.Popen` and `Newborn` have in common."""

    @property
    def pid(self) -> int: ...

    def kill(self) -> None: ...

    def wait(self) -> object: ...


class _Server:
    """One life of the fork server process."""

    def __init__(self, process: _Process, pidfd: int, channel: socket.socket) -> None:
        """Take the three over; `stop` gives them back."""
        self._loop = asyncio.get_running_loop()
        self.process = process
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._pidfd = pidfd
        self._channel = channel
        self._next_number = 0
        self._requests: dict[int, asyncio.Future[Child]] = {}
        self._children: dict[int, asyncio.Future[Exit]] = {}
        channel.setblocking(False)
        self._loop.add_reader(channel.fileno(), self._on_readable)
        self._loop.add_reader(pidfd, self._on_ended)

    async def fork(self, fds: Sequence[int]) -> Child:
        """Ask for a child.

        Raises:
            ForkFailed: it cannot be had.
        """
        self._next_number += 1
        number = self._next_number & 0xFFFFFFFF
        request: asyncio.Future[Child] = self._loop.create_future()
        self._requests[number] = request
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            self._channel.sendmsg([REQUEST.pack(FORK, number)], rights)
        except OSError as exc:
            del self._requests[number]
            raise ForkFailed(f"the fork server cannot be asked: {exc.strerror}") from exc
        return await request

    async def stop(self) -> None:
        """End the process and wait for it; its children end too."""
        self._hang_up()
        try:
            await asyncio.wait([self._ended], timeout=_STOP_TIMEOUT_S)
        finally:
            self.process.kill()  # does nothing when it has ended
            self.process.wait()
            self._on_ended()

    def _on_ended(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)

    def _hang_up(self) -> None:
        """Close the socket, which ends the process; nobody can wait for its children any more."""
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
        for request in self._requests.values():
            if not request.done():
                request.set_exception(ForkFailed("the fork server ended"))
        self._requests.clear()
        for exited in self._children.values():
            if not exited.done():
                exited.set_result(Exit(None))
        self._children.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    def _on_readable(self) -> None:
        try:
            message, ancillary, _, _ = self._channel.recvmsg(
                ANSWER.size, socket.CMSG_SPACE(_FD_SIZE), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            message, ancillary = b"", []
        fds = _descriptors(ancillary)
        if len(message) == ANSWER.size:
            self._on_answer(message, fds)
        else:
            self._hang_up()
        for fd in fds:  # whatever nobody has taken
            os.close(fd)

    def _on_answer(self, message: bytes, fds: array.array[int]) -> None:
        what, number, pid, status, peak_kib = ANSWER.unpack(message)
        if what == READY:
            self.ready.set_result(None)
        elif what == FORKED:
            self._on_forked(number, pid, fds)
        elif what == FAILED:
            request = self._requests.pop(number)
            if not request.done():
                request.set_exception(ForkFailed(f"no process to be had: {os.strerror(status)}"))
        elif what == EXITED:
            exited = self._children.pop(pid, None)
            if exited is not None and not exited.done():
                exited.set_result(Exit(status, peak_kib * 1024))

    def _on_forked(self, number: int, pid: int, fds: array.array[int]) -> None:
        request = self._requests.pop(number)
        if not fds:  # the kernel drops it when we have no room for one more descriptor
            self._kill(pid)
            if not request.done():
                request.set_exception(ForkFailed(f"no process to be had: {_NO_DESCRIPTOR}"))
            return
        exited: asyncio.Future[Exit] = self._loop.create_future()
        self._children[pid] = exited
        child = Child(pid, fds.pop(0), exited)
        if request.done():  # whoever asked has gone away
            child.kill()
            child.close()
        else:
            request.set_result(child)

    def _kill(self, pid: int) -> None:
        """Have the server end a child for which there is no descriptor here."""
        try:
            self._channel.send(REQUEST.pack(KILL, pid))
        except OSError as exc:
            # It ends by itself when it sees that the other end of its socket is closed.
            _log.error("fork server cannot be asked to kill pid=%d reason=%s", pid, exc.strerror)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> array.array[int]:
    found = array.array("i")
    for _, _, data in ancillary:
        found.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return found
