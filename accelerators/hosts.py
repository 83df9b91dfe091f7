"""DeviceHosts: the daemon's end of the processes that have exclusive devices open.

A device that only one process may open at a time, such as an Edge TPU, has one process for all of
its models; see `accelerators.devicehost`. It starts with the first model and ends with the last.
What is lost by this: a crash, a hang or a kill there takes all models of that device along. Who was
to blame is told, so that the others are only started anew.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from accelerators.channel import HEADER, Kind
from accelerators.forkserver import Exit, ForkFailed
from accelerators.hostwire import FAILED, JOIN, JOINED, LEFT, TOLD, WORKER_NAME
from accelerators.lastwords import last_line, last_words_pipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerators.base import Device
    from accelerators.birthplace import Birthplace, WorkerProcess

_JOIN_TIMEOUT_S = 30.0  # loading a driver's library may hold up the process for some seconds
_LEAVE_TIMEOUT_S = 1.0  # for a process without models to end by itself
_KILL_GRACE_S = 5.0  # for the kernel to end a killed one; longer means it hangs in the device
_WORDS_BYTES = 16 << 10  # of its stderr that are kept: a crash is told in 1 to 2 KiB

# As faulthandler tells of a crash: a title, then the functions of the thread in which it was.
_CRASH_REPORT = "Fatal Python error:"
_CRASHED_WORKER = re.compile(" in " + WORKER_NAME.format(r"(\d+)") + "$", re.MULTILINE)


ValueT = TypeVar("ValueT")


class DeviceHosts:
    """The processes of all exclusive devices. Not thread-safe: use it from one event loop."""

    def __init__(self, forkserver: Birthplace) -> None:
        """Start nothing yet."""
        self._forkserver = forkserver
        self._rooms: dict[str, _Room] = {}

    def of(self, device: Device) -> Birthplace:
        """Where workers for this device are to be started: the fork server unless exclusive."""
        if not device.exclusive:
            return self._forkserver
        room = self._rooms.get(device.id)
        if room is None:
            room = self._rooms[device.id] = _Room(device.id, self._forkserver)
        return room

    @property
    def pids(self) -> dict[str, int]:
        """The process of each device that has one, by the device's id."""
        return {name: room.pid for name, room in self._rooms.items() if room.pid}

    async def stop(self) -> None:
        """End all of them for good, and with them every worker that is left."""
        for room in self._rooms.values():
            await room.stop()


class _Room:
    """One exclusive device: has one process at a time. See `Birthplace`."""

    def __init__(self, device_id: str, forkserver: Birthplace) -> None:
        self._device_id = device_id
        self._forkserver = forkserver
        self._host: _Host | None = None
        self._door = asyncio.Lock()  # whoever has it may start or replace the process
        self._is_stopped = False

    @property
    def pid(self) -> int:
        """Its process id; 0 while there is none."""
        return self._host.process.pid if self._host and not self._host.gone.done() else 0

    async def fork(self, fds: Sequence[int]) -> WorkerProcess:
        """Start a worker in the device's process, and that before it where there is none.

        Raises:
            ForkFailed: no process is to be had; or the last one had the device and does not end; or
                it does not answer.
        """
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                async with self._door:
                    host = await self._open()
                    request = host.join(fds)
                return await request
        except TimeoutError as exc:
            raise ForkFailed(f"the process of {self._device_id} does not answer") from exc

    async def stop(self) -> None:
        """End the process for good."""
        self._is_stopped = True
        async with self._door:
            if self._host is not None:
                await self._host.stop()
                self._host = None

    async def _open(self) -> _Host:
        """The process, alive.

        Raises:
            ForkFailed: none is to be had.
        """
        if self._is_stopped:
            raise ForkFailed("the processes of devices were stopped")
        if self._host is not None and not self._host.is_open:
            # The device is free only when its process is gone.
            await asyncio.wait([self._host.gone], timeout=_LEAVE_TIMEOUT_S + _KILL_GRACE_S)
            if not self._host.gone.done():
                raise ForkFailed(f"the process that had {self._device_id} does not end")
            self._host = None
        if self._host is None:
            self._host = await _start(self._forkserver)
        return self._host


async def _start(forkserver: Birthplace) -> _Host:
    """A process for a device.

    Raises:
        ForkFailed: none is to be had; nothing is left behind.
    """
    with contextlib.ExitStack() as undo:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs:
                ours.setblocking(False)
                words, their_words = last_words_pipe(_WORDS_BYTES)
                undo.callback(os.close, words)
                try:
                    process = await forkserver.fork([theirs.fileno(), their_words])
                finally:
                    os.close(their_words)
        except OSError as exc:
            raise ForkFailed(f"no process can be had for the device: {exc}") from exc
        undo.pop_all()
    return _Host(process, ours, words)


@dataclass(eq=False, slots=True)
class _Member:
    """One worker in the process, from the request on."""

    joined: asyncio.Future[_HostedWorker]
    exited: asyncio.Future[Exit]


@dataclass(frozen=True, slots=True)
class _HostedWorker:
    """A worker that is a thread. See `WorkerProcess`."""

    pid: int
    exited: asyncio.Future[Exit]
    host: _Host = field(repr=False)
    number: int

    @property
    def is_shared(self) -> bool:
        return True

    def kill(self) -> None:
        self.host.kill(self.number)

    def close(self) -> None:
        """Nothing here is its own."""


class _Host:
    """One process of a device and who lives there; ends it when nobody does any more.

    Attributes:
        gone: done when the process is.
    """

    def __init__(self, process: WorkerProcess, channel: socket.socket, words: int) -> None:
        """Take the three over."""
        self._loop = asyncio.get_running_loop()
        self.process = process
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._channel = channel
        self._words = words
        self._members: dict[int, _Member] = {}
        self._next_number = 0
        self._killer = 0  # number of the worker that was to be killed
        with contextlib.suppress(OSError):  # else it is dead, which is told below
            channel.send(HEADER.pack(Kind.HOST, 0, 0, 0))
        self._loop.add_reader(channel.fileno(), self._drain)
        process.exited.add_done_callback(self._on_exit)

    @property
    def is_open(self) -> bool:
        """Whether workers may still join."""
        return self._channel.fileno() >= 0 and not self._killer

    def join(self, fds: Sequence[int]) -> asyncio.Future[_HostedWorker]:
        """Ask for a worker.

        Raises:
            ForkFailed: the process cannot be asked.
        """
        with contextlib.suppress(OSError):  # so that there is room for what is said from now on
            os.read(self._words, _WORDS_BYTES)
        self._next_number = number = (self._next_number + 1) & 0xFFFFFFFF
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            self._channel.sendmsg([JOIN.pack(number)], rights)
        except OSError as exc:
            self._end_if_empty()
            raise ForkFailed(f"the device's process cannot be asked: {exc.strerror}") from exc
        member = _Member(self._loop.create_future(), self._loop.create_future())
        self._members[number] = member
        return member.joined

    def kill(self, number: int) -> None:
        """End the process for the sake of one worker, if that is still there."""
        self._drain()
        if number in self._members:
            # A process that dies closes its socket to us first: then nobody has to be to blame.
            if self._channel.fileno() >= 0:
                self._killer = self._killer or number
            self.process.kill()

    async def stop(self) -> None:
        """End the process and wait for it; whoever still lives there ends too."""
        if self.gone.done():
            return
        self._hang_up()
        self.process.kill()
        await asyncio.wait([self.gone], timeout=_KILL_GRACE_S)
        if not self.gone.done():  # it hangs in the device, and nobody can wait for it
            self._on_gone(Exit(None))

    def _drain(self) -> None:
        """Take everything that the process has told."""
        while self._channel.fileno() >= 0:
            try:
                message = self._channel.recv(TOLD.size)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if len(message) != TOLD.size:
                self._hang_up()
                self.process.kill()  # if it is not dead already, it is no good
                return
            self._on_told(*TOLD.unpack(message))

    def _on_told(self, what: int, number: int, status: int) -> None:
        member = self._members.get(number)
        if member is None:
            return
        if what == JOINED:
            worker = _HostedWorker(self.process.pid, member.exited, self, number)
            _settle(member.joined, worker)
        elif what == FAILED:
            del self._members[number]
            reason = f"no thread to be had in the device's process: {os.strerror(status)}"
            _settle(member.joined, ForkFailed(reason))
        elif what == LEFT:
            del self._members[number]
            _settle(member.exited, Exit(status))
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        """Without its socket the process ends, which frees the device."""
        if not self._members and self._channel.fileno() >= 0:
            self._hang_up()
            self._loop.call_later(_LEAVE_TIMEOUT_S, self._on_late)

    def _on_late(self) -> None:
        if not self.gone.done():
            self.process.kill()

    def _hang_up(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()

    def _on_exit(self, exited: asyncio.Future[Exit]) -> None:
        if not self.gone.done():
            self._drain()
            self._on_gone(exited.result())

    def _on_gone(self, exit_: Exit) -> None:
        """The process is gone, and with it all who lived there."""
        self._hang_up()
        text = self._last_text()
        culprit = self._culprit(text)
        words = last_line(text.partition(_CRASH_REPORT)[0])
        members, self._members = self._members, {}
        for number, member in members.items():
            peak_bytes = exit_.peak_bytes if len(members) == 1 else 0
            is_to_blame = number == culprit
            _settle(member.exited, Exit(exit_.status, peak_bytes, words, is_to_blame))
            _settle(member.joined, ForkFailed("the device's process ended"))
        os.close(self._words)
        self.process.close()
        self.gone.set_result(None)

    def _last_text(self) -> str:
        try:
            return os.read(self._words, _WORDS_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""

    def _culprit(self, text: str) -> int:
        """Number of the worker that brought the process down; 0 when not known."""
        if len(self._members) == 1:
            return next(iter(self._members))
        found = _CRASHED_WORKER.search(text.partition(_CRASH_REPORT)[2])
        return int(found[1]) if found else self._killer


def _settle(future: asyncio.Future[ValueT], outcome: ValueT | Exception) -> None:
    """Unless nobody waits any more, or it is settled."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
