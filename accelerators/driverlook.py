"""Asks a device's own driver about it, in a child process: drivers crash, and drivers hang."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

from accelerators.channel import EXIT_MEMORY, HEADER, MESSAGE_MAX, Kind
from accelerators.errors import AcceleratorError
from accelerators.forkserver import ForkFailed
from accelerators.lastwords import last_words, last_words_pipe, quoted, signal_name
from accelerators.looking import TEXT_MAX
from accelerators.report import BadReport, decode_device, encode_device

if TYPE_CHECKING:
    from accelerators.base import Device
    from accelerators.forkserver import Child, Exit, ForkServer

# To list its devices takes a driver some milliseconds, some seconds where it has to wake them from
# a cold disk. One that takes longer hangs.
LOOK_TIMEOUT_S = 20.0

_EXIT_GRACE_S = 1.0  # for a child that has answered to leave by itself
_KILL_GRACE_S = 5.0  # for the kernel to end a killed one; longer means it hangs in the device


class DriverStuck(AcceleratorError):
    """The process that asked a driver cannot be ended: another one would hang as well."""


async def ask_driver(
    device: Device, forkserver: ForkServer, *, timeout_s: float = LOOK_TIMEOUT_S
) -> Device:
    """The device with what only its driver knows, or with why the driver does not say it.

    Name, driver, options, problem and next step are taken from the answer; what tells the device
    from others is not.

    Raises:
        DriverStuck: its process hangs in the kernel, and is left there. Everything else that goes
            wrong is the device's problem.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(device, forkserver)
    except TimeoutError:
        return _failed(device, f"its driver hangs: no answer within {timeout_s:g} s")
    except (ForkFailed, OSError) as exc:
        problem = f"no process could be had to look at it: {exc}"
        return replace(device, problem=problem, next_step="free memory; it is looked at again")


async def _ask(device: Device, forkserver: ForkServer) -> Device:
    """As `ask_driver`.

    Raises:
        ForkFailed, OSError: no process or descriptor is to be had.
        DriverStuck: as `ask_driver`.
    """
    async with contextlib.AsyncExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        with theirs:
            ours.setblocking(False)
            stderr, their_stderr = last_words_pipe()
            stack.callback(os.close, stderr)
            try:
                child = await forkserver.fork([theirs.fileno(), their_stderr])
            finally:
                os.close(their_stderr)
        stack.push_async_callback(_end, child)
        ours.send(HEADER.pack(Kind.LOOK, 0, 0, 0) + encode_device(device))
        answer = await _receive(ours)
        if answer:
            await asyncio.wait([child.exited], timeout=_EXIT_GRACE_S)
        if len(answer) > HEADER.size:
            return _understand(device, answer)
        return _failed(device, _explain(await child.exited, last_words(stderr)))


async def _receive(channel: socket.socket) -> bytes:
    """The next message; b"" when there will be none."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(channel.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(channel.fileno())
    try:
        return channel.recv(MESSAGE_MAX)
    except ConnectionError:
        return b""


async def _end(child: Child) -> None:
    """Kill it, if it is still there, and give its descriptor back when it is gone.

    Raises:
        DriverStuck: it does not go.
    """
    child.exited.add_done_callback(lambda _: child.close())
    if not child.exited.done():
        child.kill()
        await asyncio.wait([child.exited], timeout=_KILL_GRACE_S)
    if not child.exited.done():
        raise DriverStuck(f"process {child.pid} hangs in the kernel and cannot be ended")


def _understand(device: Device, answer: bytes) -> Device:
    try:
        looked = decode_device(answer[HEADER.size :])
    except BadReport as exc:
        return _failed(device, f"its driver's process answers with nonsense: {exc}")
    return replace(
        device,
        name=_clean(looked.name),
        driver=_clean(looked.driver) or device.driver,
        options=looked.options,
        problem=_clean(looked.problem),
        next_step=_clean(looked.next_step),
    )


def _clean(text: str) -> str:
    """Short and printable, whatever a driver calls itself."""
    return "".join(c if c.isprintable() else "?" for c in text[:TEXT_MAX])


def _failed(device: Device, problem: str) -> Device:
    driver = device.library or device.driver or "its driver"
    return replace(
        device,
        problem=problem[:TEXT_MAX],
        next_step=f"update or reinstall {driver}; it is looked at again by itself",
    )


def _explain(exit_: Exit, words: str) -> str:
    status = exit_.status
    if status is None:
        return "it could not be looked at: the fork server died"
    if os.WIFSIGNALED(status):
        name = signal_name(os.WTERMSIG(status))
        return f"its driver crashed while it was looked at: killed by {name}{quoted(words)}"
    code = os.WEXITSTATUS(status)
    if code == EXIT_MEMORY:
        return "its driver needs too much memory while it is looked at"
    return f"its driver ended the process that looked at it, with exit code {code}{quoted(words)}"
