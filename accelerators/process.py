"""ProcessWorker: the daemon's end of one worker process.

Calls are answered in the order they were made, so the oldest open one is the one that runs. One
timer per worker watches that call; it is not set and cleared for each.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerators.base import CallResult, Origin
from accelerators.calls import DeathReason, Loss, run_to_end
from accelerators.channel import (
    EXIT_DEVICE,
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
    WorkerUnavailable,
)
from accelerators.forkserver import ForkFailed
from accelerators.lastwords import last_words, last_words_pipe, quoted, signal_name
from accelerators.registry import KINDS
from accelerators.report import BadReport, decode_report, encode_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerators.base import Array, LoadSpec, ModelReport
    from accelerators.birthplace import Birthplace, WorkerProcess
    from accelerators.calls import Reply
    from accelerators.forkserver import Exit

_log = logging.getLogger(f"inferd.{__name__}")

# Calls per worker: one that runs and one that waits, so that the worker goes on at once.
SLOTS = 2

_BODY_AT = HEADER.size + TIMES.size
_EXIT_GRACE_S = 1.0  # for an idle worker to leave by itself
_SHARED_GRACE_S = 5.0  # for one that shares its process to end its call first, as a kill ends all
_KILL_GRACE_S = 5.0  # for the kernel to end a killed one; longer means it hangs in a device

# Bytes of a slot that are kept for the next call. What a larger call took, up to the whole memory
# limit per slot, goes back a while after it; not at once, as taking it anew costs about as much as
# filling it, and large calls come in rows.
_SLOT_KEEP_BYTES = 4 << 20  # a picture of 640 x 480 as float32 fits
_TRIM_AFTER_S = 2.0

# A report from this size on, thousands of labels, is decoded beside the loop, not on it: 1 MiB of
# labels takes 5 ms.
_LARGE_REPORT_BYTES = 256 << 10

_REASON_MAX = 500  # characters, as the errors promise

# A crash with so much of its memory limit in use is a crash for want of memory.
_MEMORY_SHARE = 0.8

# Not SIGKILL: that is somebody's decision.
_CRASHES = ("killed by SIGSEGV", "killed by SIGABRT", "killed by SIGBUS")

_DOING = {
    LoadStage.READ: "while it read the file",
    LoadStage.PARSE: "while it parsed the file",
    LoadStage.OPEN: "while it opened the device",
    LoadStage.ALLOCATE: "while it allocated the model",
    LoadStage.WARM: "during the first invocation",
    LoadStage.PROCESS: "before it began",
}


@dataclass(slots=True)
class _Call:
    reply: Reply
    place: int
    slot: int


class ProcessWorker:
    """One worker process. See `accelerators.calls.Worker`."""

    def __init__(
        self,
        spec: LoadSpec,
        forkserver: Birthplace,
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
        self.origin = Origin(spec.device.id, spec.device.id)
        self.lost: asyncio.Future[Loss] = self._loop.create_future()
        self._child: WorkerProcess | None = None
        self._channel: socket.socket | None = None
        self._stderr = -1
        self._slots: list[Slot] = []
        self._free_slots: list[int] = []
        self._open: deque[_Call] = deque()
        self._lanes: list[tuple[Lane, Lane]] = []
        self._output_names: list[tuple[str, ...]] = []
        self._loaded: asyncio.Future[bytes] = self._loop.create_future()  # the report
        self._stage = LoadStage.PROCESS
        self._loss: Loss | None = None
        self._running_since = 0.0
        self._patience_s = math.inf
        self._watch: asyncio.TimerHandle | None = None
        self._trim: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether it has calls."""
        return bool(self._open)

    async def start(self) -> ModelReport:
        """Fork, load, warm and probe.

        Raises:
            ModelRefused: it cannot be served; nothing is left behind.
            WorkerUnavailable: there is no worker to be had for it now; nothing is left behind.
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
            raise _unavailable(f"no worker can be started: {exc}") from exc
        order = HEADER.pack(Kind.LOAD, 0, 0, self._proven_batch) + encode_spec(self._spec)
        self._send(order)
        timeout_s = self._spec.load_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                data = await self._loaded
        except TimeoutError as exc:
            doing = _DOING[self._stage]
            reason = f"the runtime did not come back within {timeout_s:g} s {doing}"
            if self._stage is LoadStage.PROCESS:
                raise _unavailable(reason) from exc
            raise ModelRefused(LoadStage.PROCESS, reason) from exc
        report = await self._decode(data)
        self._lanes = make_lanes(report)
        self._output_names = [
            tuple(spec.name for spec in signature.outputs) for signature in report.signatures
        ]
        self._free_slots = list(range(SLOTS))
        if self._channel is not None:  # else it has died since: `lost` tells
            self.free = SLOTS
        return report

    async def _decode(self, data: bytes) -> ModelReport:
        try:
            if len(data) < _LARGE_REPORT_BYTES:
                return decode_report(data)
            return await asyncio.to_thread(decode_report, data)
        except BadReport as exc:
            self._condemn(f"it sent nonsense: {exc}")
            reason = f"its worker sent nonsense: {exc}"[:_REASON_MAX]
            raise ModelRefused(LoadStage.PROCESS, reason) from exc

    async def _fork(self) -> None:
        """Get a process and the ways to talk to it; what there is when this fails, `close` ends.

        Raises:
            ForkFailed, OSError: no process, memory or descriptor is to be had.
        """
        limit_bytes = self._spec.memory_mib << 20
        for _ in range(SLOTS):
            self._slots.append(_new_slot(limit_bytes))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        with theirs:
            ours.setblocking(False)
            self._stderr, stderr = last_words_pipe()
            try:
                fds = [theirs.fileno(), stderr, *(slot.fd for slot in self._slots)]
                self._child = await self._forkserver.fork(fds)
            finally:
                os.close(stderr)
        self.pid = self._child.pid
        self._child.exited.add_done_callback(self._on_exit)
        self._loop.add_reader(ours.fileno(), self._on_readable)

    def call(self, place: int, columns: list[list[Array]], reply: Reply) -> None:
        """Hand a call over; see `accelerators.calls.Worker`."""
        number = self._free_slots[-1]
        slot = self._slots[number]
        try:
            body = self._lanes[place][0].put(slot, columns)
        except (TooBig, OSError) as exc:
            self._trim_later()  # of several tensors some may lie there
            reply.set_exception(InvokeFailed(f"its inputs cannot be handed over: {exc}"))
            return
        slot.mark_untouched()
        self._free_slots.pop()
        self.free -= 1
        self.calls += 1
        if not self._open:
            self._begin()
        self._open.append(_Call(reply, place, number))
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
            if not idle and not child.is_shared:
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

    def hurry(self, patience_s: float) -> None:
        """Somebody gave a call up: one that nobody waits for may run for so long and no longer."""
        self._patience_s = patience_s
        if self._open and self._watch is not None:
            self._watch.cancel()
            self._on_watch()

    def _on_watch(self) -> None:
        self._watch = None
        if not self._open or self._child is None:
            return
        limit_s, what = self._spec.call_timeout_s, "a call"
        if self._open[0].reply.done() and self._patience_s < limit_s:
            limit_s, what = self._patience_s, "a call that nobody waited for any more"
        due = self._running_since + limit_s
        if self._loop.time() < due:
            self._watch = self._loop.call_at(due, self._on_watch)
            return
        detail = f"{what} took longer than {limit_s:g} s"
        self._loss = Loss(DeathReason.TIMEOUT, detail)
        self.free = 0
        head = self._open[0]
        # One that another model in its process has kept from running is lost like those behind it.
        if self._slots[head.slot].taken_up or not self._child.is_shared:
            self._open.popleft()
            if not head.reply.done():
                head.reply.set_exception(CallTimedOut(detail, started=True))
        self._fail_open(detail, started=False)
        self._child.kill()
        # Without waiting for its end: one that hangs in a device may not have any.
        if not self.lost.done():
            self.lost.set_result(self._loss)

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
            self._on_report(number)
        elif kind == Kind.REFUSED:
            reason = message[HEADER.size :].decode("utf-8", "replace")
            self._settle_load(ModelRefused(STAGES[detail], reason))
        else:
            raise BadMessage(f"unknown kind {kind}")

    def _on_report(self, length: int) -> None:
        try:
            self._settle_load(self._slots[0].get_blob(length))
        except OSError as exc:
            self._settle_load(_unavailable(f"the worker's report cannot be read: {exc}"))

    def _on_result(self, number: int, message: bytes) -> None:
        call = self._take(number)
        reply = call.reply
        if reply.done():
            self._trim_later()  # nobody looks how large the result is
            self._release(number)
        else:
            outcome = self._read_result(call, message)
            self._release(number)  # first: settling may bring the next call
            if isinstance(outcome, InvokeFailed):
                self._trim_later()
                reply.set_exception(outcome)
            else:
                reply.set_result(outcome)
        self._tell_free()

    def _read_result(self, call: _Call, message: bytes) -> CallResult | InvokeFailed:
        try:
            arrays = self._lanes[call.place][1].get(self._slots[call.slot], message[_BODY_AT:])
        except OSError as exc:
            return InvokeFailed(f"its result cannot be read: {exc}")
        names = self._output_names[call.place]
        outputs = {name: array.copy() for name, array in zip(names, arrays, strict=True)}
        invoke_s, started_at, finished_at = TIMES.unpack_from(message, HEADER.size)
        return CallResult(outputs, invoke_s, started_at, finished_at, self.origin)

    def _on_failed(self, number: int, message: bytes) -> None:
        call = self._take(number)
        self._trim_later()  # of several results some may lie there
        self._release(number)
        if not call.reply.done():
            text = message[_BODY_AT:].decode("utf-8", "replace")
            call.reply.set_exception(InvokeFailed(text))
        self._tell_free()

    def _take(self, number: int) -> _Call:
        """The call that is answered now: always the oldest."""
        if not self._open or self._open[0].slot != number:
            raise BadMessage("an answer to a call that does not run")
        return self._open.popleft()

    def _release(self, number: int) -> None:
        if self._open:
            self._begin()
            if self._open[0].reply.done():
                self.hurry(self._patience_s)
        self._free_slots.append(number)
        if self._slots[number].size > _SLOT_KEEP_BYTES:
            self._trim_later()
        if self._loss is None:
            self.free += 1

    def _tell_free(self) -> None:
        if self._loss is None:
            self._on_free()

    def _trim_later(self) -> None:
        if self._trim is None:
            self._trim = self._loop.call_later(_TRIM_AFTER_S, self._on_trim)

    def _on_trim(self) -> None:
        """Trim the slots without a call; the others' turn comes after their call."""
        self._trim = None
        try:
            for number in self._free_slots:
                self._slots[number].trim(_SLOT_KEEP_BYTES)
        except OSError as exc:
            _log.warning("worker keeps its memory pid=%d reason=%s", self.pid, exc.strerror)

    def _settle_load(self, outcome: bytes | ModelRefused | WorkerUnavailable) -> None:
        if self._loaded.done():
            return
        if isinstance(outcome, bytes):
            self._loaded.set_result(outcome)
        else:
            self._loaded.set_exception(outcome)

    def _on_end_of_file(self) -> None:
        """The worker is dead or dying; how, the fork server will say."""
        self.free = 0
        self._hang_up()
        if self._child is not None:
            self._child.kill()

    def _condemn(self, detail: str) -> None:
        self._loss = self._loss or Loss(DeathReason.CRASH, detail)
        self._on_end_of_file()

    def _hang_up(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._trim is not None:
            self._trim.cancel()
            self._trim = None
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
        self._settle_load(self._judge(loss, exited.result()))
        self._fail_open(loss.detail)
        if not self.lost.done():
            self.lost.set_result(loss)

    def _judge(self, loss: Loss, exit_: Exit) -> ModelRefused | WorkerUnavailable:
        """What the end of a worker says of the model it loads."""
        reason = f"the runtime was {loss.detail} {_DOING[self._stage]}"
        if self._stage is LoadStage.OPEN and loss.reason is DeathReason.CRASH and exit_.is_to_blame:
            hint = KINDS[self._spec.device.kind].crash_hint
            reason += f"; {hint}" if hint else ""
        reason = reason[:_REASON_MAX]
        unborn = self._stage is LoadStage.PROCESS and loss.reason is not DeathReason.MEMORY
        # Before it saw the model, with the fork server, or for the sake of another model.
        if unborn or exit_.status is None or not exit_.is_to_blame:
            return _unavailable(reason)
        return ModelRefused(LoadStage.PROCESS, reason)

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
            if not call.reply.done():
                call.reply.set_exception(WorkerLost(detail, started=begun))

    def _explain(self, exit_: Exit) -> Loss:
        status = exit_.status
        if status is None:
            return Loss(DeathReason.CRASH, "killed with the fork server")
        how, words = _ending(status), exit_.words or last_words(self._stderr)
        if not exit_.is_to_blame:
            detail = f"ended with the process that it shared: {how}{quoted(words)}"
            return Loss(DeathReason.CRASH, detail)
        limit = f"it needed more than the {self._spec.memory_mib} MiB it may take"
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_MEMORY:
            return Loss(DeathReason.MEMORY, f"stopped: {limit}")
        full = exit_.peak_bytes > (self._spec.memory_mib << 20) * _MEMORY_SHARE
        if os.WIFSIGNALED(status) and ("bad_alloc" in words or (full and how in _CRASHES)):
            return Loss(DeathReason.MEMORY, f"{how}: {limit}")
        return Loss(DeathReason.CRASH, f"{how}{quoted(words)}")


def _ending(status: int) -> str:
    if os.WIFEXITED(status):
        code = os.WEXITSTATUS(status)
        if code == EXIT_DEVICE:
            return "stopped: its device failed"
        return f"ended with exit code {code}"
    return f"killed by {signal_name(os.WTERMSIG(status))}"


async def _end(child: WorkerProcess) -> None:
    """Wait for a child whose channel is closed; kill it when it does not go by itself."""
    grace_s = _SHARED_GRACE_S if child.is_shared else _EXIT_GRACE_S
    await asyncio.wait([child.exited], timeout=grace_s)
    if not child.exited.done():
        child.kill()
        await asyncio.wait([child.exited], timeout=_KILL_GRACE_S)
    child.close()


def _unavailable(reason: str) -> WorkerUnavailable:
    return WorkerUnavailable(reason[:_REASON_MAX])


def _new_slot(limit_bytes: int) -> Slot:
    fd = create_memory("inferd-slot")
    try:
        return Slot(fd, limit_bytes)
    except OSError:
        os.close(fd)
        raise
