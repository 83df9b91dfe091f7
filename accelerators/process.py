"""ProcessWorker: the daemon's end of one worker process.

Calls are answered in the order they were made, so the oldest open one is the one that runs. One
timer per worker watches that call; it is not set and cleared for each.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerators.base import CallResult
from accelerators.calls import DeathReason, Loss, run_to_end
from accelerators.channel import (
    EXIT_MEMORY,
    HEADER,
    MESSAGE_MAX,
    STAGES,
    TIMES,
    BadMessage,
    Kind,
    Lane,
    Slot,
    TooBig,
    create_memory,
    make_lanes,
)
from accelerators.errors import (
    CallTimedOut,
    InvokeFailed,
    LoadStage,
    ModelRefused,
    WorkerLost,
)
from accelerators.forkserver import ForkFailed
from accelerators.report import decode_report, encode_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerators.base import Array, LoadSpec, ModelReport
    from accelerators.forkserver import Child, Exit, ForkServer

_log = logging.getLogger(f"inferd.{__name__}")

# Calls per worker: one that runs and one that waits, so that the worker goes on at once.
SLOTS = 2

_BODY_AT = HEADER.size + TIMES.size
_LAST_WORDS_BYTES = 4096  # of the worker's stderr that are kept: one page, the least a pipe has
_LAST_WORD_MAX = 200  # characters of it that are shown
_EXIT_GRACE_S = 1.0  # for an idle worker to leave by itself
_KILL_GRACE_S = 5.0  # for the kernel to end a killed one; longer means it hangs in a device

# A crash with so much of its memory limit in use is a crash for want of memory.
_MEMORY_SHARE = 0.8

_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS")  # not SIGKILL: that is somebody's decision

_DOING = {
    LoadStage.READ: "while it read the file",
    LoadStage.PARSE: "while it parsed the file",
    LoadStage.ALLOCATE: "while it allocated the model",
    LoadStage.WARM: "during the first invocation",
    LoadStage.PROCESS: "before it began",
}


@dataclass(slots=True)
class _Call:
    answer: asyncio.Future[CallResult]
    place: int
    slot: int


class ProcessWorker:
    """One worker process. See `accelerators.calls.Worker`."""

    def __init__(
        self,
        spec: LoadSpec,
        forkserver: ForkServer,
        *,
        proven_batch: int,
        on_free: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._spec = spec
        self._forkserver = forkserver
        self._proven_batch = proven_batch
        self._on_free = on_free
        self.pid = 0
        self.free = 0
        self.calls = 0
        self.lost: asyncio.Future[Loss] = self._loop.create_future()
        self._child: Child | None = None
        self._channel: socket.socket | None = None
        self._stderr = -1
        self._slots: list[Slot] = []
        self._free_slots: list[int] = []
        self._open: deque[_Call] = deque()
        self._lanes: list[tuple[Lane, Lane]] = []
        self._output_names: list[tuple[str, ...]] = []
        self._loaded: asyncio.Future[ModelReport] = self._loop.create_future()
        self._stage = LoadStage.PROCESS
        self._loss: Loss | None = None
        self._running_since = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether it has calls."""
        return bool(self._open)

    async def start(self) -> ModelReport:
        """Fork, load, warm and probe.

        Raises:
            ModelRefused: it cannot be served; nothing is left behind.
        """
        try:
            return await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> ModelReport:
        try:
            await self._fork()
        except (ForkFailed, OSError) as exc:
            raise ModelRefused(LoadStage.PROCESS, f"no worker can be started: {exc}"[:500]) from exc
        order = HEADER.pack(Kind.LOAD, 0, 0, self._proven_batch) + encode_spec(self._spec)
        self._send(order)
        timeout_s = self._spec.load_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                report = await self._loaded
        except TimeoutError as exc:
            raise ModelRefused(
                LoadStage.PROCESS,
                f"the runtime did not come back within {timeout_s:g} s {_DOING[self._stage]}",
            ) from exc
        self._lanes = make_lanes(report)
        self._output_names = [
            tuple(spec.name for spec in signature.outputs) for signature in report.signatures
        ]
        self._free_slots = list(range(SLOTS))
        self.free = SLOTS
        return report

    async def _fork(self) -> None:
        limit_bytes = self._spec.memory_mib << 20
        self._slots = [Slot(create_memory("inferd-slot"), limit_bytes) for _ in range(SLOTS)]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        ours.setblocking(False)
        self._stderr, stderr = _last_words_pipe()
        try:
            fds = [theirs.fileno(), stderr, *(slot.fd for slot in self._slots)]
            self._child = await self._forkserver.fork(fds)
        finally:
            theirs.close()
            os.close(stderr)
        self.pid = self._child.pid
        self._child.exited.add_done_callback(self._on_exit)
        self._loop.add_reader(ours.fileno(), self._on_readable)

    def call(self, place: int, arrays: list[Array], answer: asyncio.Future[CallResult]) -> None:
        """Hand a call over; `free` is not 0. `place` counts the report's signatures."""
        number = self._free_slots[-1]
        slot = self._slots[number]
        try:
            body = self._lanes[place][0].put(slot, arrays)
        except TooBig as exc:
            answer.set_exception(InvokeFailed(str(exc)))
            return
        slot.mark_untouched()
        self._free_slots.pop()
        self.free -= 1
        self.calls += 1
        if not self._open:
            self._begin()
        self._open.append(_Call(answer, place, number))
        self._send(HEADER.pack(Kind.CALL, number, place, self.calls & 0xFFFFFFFF) + body)

    async def close(self) -> None:
        """End it; calls it has get WorkerLost. Leaves no process and no descriptor.

        Runs to its end, a few seconds at most, also when the caller is cancelled.
        """
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(), name="worker-close")
        await run_to_end(self._closing)

    async def _close(self) -> None:
        self.free = 0
        child, self._child = self._child, None
        if child is not None:
            child.exited.remove_done_callback(self._on_exit)
            idle = self._loaded.done() and not self._open and self._loss is None
            if not idle:
                child.kill()
        self._hang_up()
        self._fail_open("the worker was stopped")
        self._loaded.cancel()
        self.lost.cancel()
        if child is not None:
            await _end(child)
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1
        for slot in self._slots:
            slot.close()
        self._slots = []

    def _send(self, message: bytes) -> None:
        try:
            assert self._channel is not None  # noqa: S101 (it is there from fork to close)
            self._channel.send(message)
        except OSError:
            # It is dying: its end is reported by the fork server, with the reason.
            if self._child is not None:
                self._child.kill()

    def _begin(self) -> None:
        """A call has come to the head of the line: its time runs."""
        self._running_since = self._loop.time()
        if self._watch is None:
            self._watch = self._loop.call_at(
                self._running_since + self._spec.call_timeout_s, self._on_watch
            )

    def _on_watch(self) -> None:
        self._watch = None
        if not self._open or self._child is None:
            return
        due = self._running_since + self._spec.call_timeout_s
        if self._loop.time() < due:
            self._watch = self._loop.call_at(due, self._on_watch)
            return
        detail = f"a call took longer than {self._spec.call_timeout_s:g} s"
        self._child.kill()
        self._loss = Loss(DeathReason.TIMEOUT, detail)
        self.free = 0
        head = self._open.popleft()
        if not head.answer.done():
            head.answer.set_exception(CallTimedOut(detail, started=True))
        self._fail_open(detail, started=False)

    def _on_readable(self) -> None:
        assert self._channel is not None  # noqa: S101 (the reader is gone before it)
        try:
            message = self._channel.recv(MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._on_end_of_file()
            return
        try:
            self._on_message(message)
        except (ValueError, IndexError, struct.error) as exc:
            self._condemn(f"it sent nonsense: {exc}")

    def _on_message(self, message: bytes) -> None:
        kind, place, detail, number = HEADER.unpack_from(message)
        if kind == Kind.RESULT:
            self._on_result(place, message)
        elif kind == Kind.FAILED:
            self._on_failed(place, message)
        elif kind == Kind.STAGE:
            self._stage = STAGES[detail]
        elif kind == Kind.LOADED:
            self._settle_load(decode_report(self._slots[0].get_blob(number)))
        elif kind == Kind.REFUSED:
            reason = message[HEADER.size :].decode("utf-8", "replace")
            self._settle_load(ModelRefused(STAGES[detail], reason))
        else:
            raise BadMessage(f"unknown kind {kind}")

    def _on_result(self, number: int, message: bytes) -> None:
        call = self._take(number)
        answer = call.answer
        if not answer.done():
            arrays = self._lanes[call.place][1].get(self._slots[number], message[_BODY_AT:])
            names = self._output_names[call.place]
            outputs = {name: array.copy() for name, array in zip(names, arrays, strict=True)}
            invoke_s, started_at, finished_at = TIMES.unpack_from(message, HEADER.size)
            answer.set_result(CallResult(outputs, invoke_s, started_at, finished_at))
        self._release(number)

    def _on_failed(self, number: int, message: bytes) -> None:
        call = self._take(number)
        if not call.answer.done():
            text = message[_BODY_AT:].decode("utf-8", "replace")
            call.answer.set_exception(InvokeFailed(text))
        self._release(number)

    def _take(self, number: int) -> _Call:
        """The call that is answered now: always the oldest."""
        if not self._open or self._open[0].slot != number:
            raise BadMessage("an answer to a call that does not run")
        return self._open.popleft()

    def _release(self, number: int) -> None:
        if self._open:
            self._begin()
        self._free_slots.append(number)
        if self._loss is None:
            self.free += 1
            self._on_free()

    def _settle_load(self, outcome: ModelReport | ModelRefused) -> None:
        if self._loaded.done():
            return
        if isinstance(outcome, ModelRefused):
            self._loaded.set_exception(outcome)
        else:
            self._loaded.set_result(outcome)

    def _on_end_of_file(self) -> None:
        """The worker is dead or dying; how, the fork server will say."""
        self.free = 0
        self._hang_up()
        if self._child is not None:
            self._child.kill()

    def _condemn(self, detail: str) -> None:
        self._loss = Loss(DeathReason.CRASH, detail)
        self._on_end_of_file()

    def _hang_up(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._channel is not None:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None

    def _on_exit(self, exited: asyncio.Future[Exit]) -> None:
        """The process is gone: answer what is open, and say why."""
        self._read_the_rest()
        loss = self._loss or self._explain(exited.result())
        self._loss = loss
        self.free = 0
        self._settle_load(
            ModelRefused(LoadStage.PROCESS, f"the runtime was {loss.detail} {_DOING[self._stage]}")
        )
        self._fail_open(loss.detail)
        if not self.lost.done():
            self.lost.set_result(loss)

    def _read_the_rest(self) -> None:
        """Take the answers it sent before it died."""
        for _ in range(SLOTS + len(STAGES) + 2):
            if self._channel is None:
                return
            self._on_readable()
        self._hang_up()

    def _fail_open(self, detail: str, *, started: bool | None = None) -> None:
        """Every open call is lost; `started` is read from the slots unless given."""
        while self._open:
            call = self._open.popleft()
            begun = self._slots[call.slot].taken_up if started is None else started
            if not call.answer.done():
                call.answer.set_exception(WorkerLost(detail, started=begun))

    def _explain(self, exit_: Exit) -> Loss:
        words = _last_words(self._stderr)
        limit = f"the {self._spec.memory_mib} MiB it may take"
        status = exit_.status
        if status is None:
            return Loss(DeathReason.CRASH, "killed with the fork server")
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            if code == EXIT_MEMORY:
                return Loss(DeathReason.MEMORY, f"stopped: it needed more than {limit}")
            return Loss(DeathReason.CRASH, f"ended with exit code {code}{_quoted(words)}")
        name = _signal_name(os.WTERMSIG(status))
        full = exit_.peak_bytes > (self._spec.memory_mib << 20) * _MEMORY_SHARE
        if "bad_alloc" in words or (full and name in _CRASHES):
            detail = f"killed by {name}: it needed more than {limit}"
            return Loss(DeathReason.MEMORY, detail)
        return Loss(DeathReason.CRASH, f"killed by {name}{_quoted(words)}")


async def _end(child: Child) -> None:
    """Wait for a child whose channel is closed; kill it when it does not go by itself."""
    await asyncio.wait([child.exited], timeout=_EXIT_GRACE_S)
    if not child.exited.done():
        child.kill()
        await asyncio.wait([child.exited], timeout=_KILL_GRACE_S)
    child.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words_pipe() -> tuple[int, int]:
    """A pipe that keeps the first page written to it and drops the rest."""
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, _LAST_WORDS_BYTES)
    return ours, theirs


def _last_words(fd: int) -> str:
    """The last line a worker wrote to its stderr."""
    try:
        text = os.read(fd, _LAST_WORDS_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines()]
    useful = [line for line in lines if line and not line.startswith("INFO:")]
    shown = useful[-1][:_LAST_WORD_MAX] if useful else ""
    return "".join(c if c.isprintable() else "?" for c in shown)


def _quoted(words: str) -> str:
    return f" ({words})" if words else ""
