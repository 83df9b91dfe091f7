"""The worker process: loads one model and answers calls until its daemon lets it go.

It is forked from the fork server, so the runtime is imported already. The operating system limits
its memory, and ends it when the fork server ends.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from accelerators import devicehost
from accelerators import engine as engines
from accelerators.base import ModelMetadata
from accelerators.channel import (
    EXIT_BUG,
    EXIT_DEVICE,
    EXIT_MEMORY,
    EXIT_OK,
    HEADER,
    MESSAGE_MAX,
    STAGES,
    TIMES,
    Kind,
    Slot,
    TooBig,
    make_lanes,
)
from accelerators.errors import InvokeFailed, LoadStage, ModelRefused
from accelerators.interpreter import DeviceFailure
from accelerators.looking import look_at
from accelerators.memorylimit import limit_memory
from accelerators.report import BYTES_MAX as REPORT_BYTES_MAX
from accelerators.report import decode_spec, encode_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerators.base import LoadSpec, ModelReport
    from accelerators.session import Session

_TEXT_MAX = 500  # bytes of a reason on the wire
_TITLE = "inferd-worker"  # at most 15 characters are kept by the kernel
_LOOK_TITLE = "inferd-look"
_HOST_TITLE = "inferd-device"
_LOOK_MEMORY_MIB = 1024  # far above what a driver takes to list its devices
_LOOK_THREADS = 32  # a driver's own, which count with their whole stacks
_OOM_SCORE_ADJ = 500  # -1000..1000: when memory is short, a worker goes before its daemon

# How long a worker looks for the next call before it sleeps. Waking it costs about 25 us, three
# times what a tiny model's call takes in all; looking this long pays where calls come thick and
# fast, and is not done where the last one did not come within the time. It covers one client that
# asks again as soon as it has its answer; longer, and several clients miss the processor.
# Measured 2026-11 on 2 cores, a digit model over HTTP: one client waits 87 us against 124 with 60.
_LOOK_S = 150e-6

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


@dataclass(frozen=True, slots=True)
class Handles:
    """The file descriptors a worker is born with."""

    socket: int
    stderr: int
    slots: tuple[int, ...]


def main(handles: Handles, parent_pid: int) -> int:
    """Be a worker. Returns the exit code."""
    channel = socket.socket(fileno=handles.socket)
    try:
        prepare_process(handles, parent_pid)
        return _work(channel, handles.slots, limit_memory)
    except MemoryError:
        return EXIT_MEMORY
    except (ConnectionError, BrokenPipeError):
        return EXIT_OK  # the daemon has let go
    except Exception:  # noqa: BLE001 (top of a process)
        traceback.print_exc()
        return EXIT_BUG
    finally:
        # Left to the end of the process: the daemon ends a worker whose socket is closed, and this
        # one's own exit code says more.
        channel.detach()


def prepare_process(handles: Handles, parent_pid: int) -> None:
    """Cut the ties to the fork server, and tie this process' life to it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(EXIT_OK)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.dup2(handles.stderr, 1)
    os.dup2(handles.stderr, 2)
    os.close(handles.stderr)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write("/proc/self/oom_score_adj", str(_OOM_SCORE_ADJ))
    _write("/proc/self/comm", _TITLE)


def _write(path: str, text: str) -> None:
    """For what is nice to have: a kernel without it is no reason to fail."""
    try:
        Path(path).write_text(text, "ascii")
    except OSError:
        return


def _work(
    channel: socket.socket, slot_fds: tuple[int, ...], limit_memory: Callable[[int, int], None]
) -> int:
    """Do what the first order says, to the end. Returns the exit code.

    Raises:
        MemoryError, ConnectionError: as they say; there is nothing more to do.
    """
    return _Worker(channel, slot_fds, limit_memory).work()


class _Worker:
    def __init__(
        self,
        channel: socket.socket,
        slot_fds: tuple[int, ...],
        limit_memory: Callable[[int, int], None],
    ) -> None:
        self._channel = channel
        self._slot_fds = slot_fds
        self._limit_memory = limit_memory

    def work(self) -> int:
        order = self._channel.recv(MESSAGE_MAX)
        if not order:
            return EXIT_OK
        kind, _, _, proven_batch = HEADER.unpack_from(order)
        if kind == Kind.LOOK:
            return self._look(order[HEADER.size :])
        if kind == Kind.HOST:
            return self._host()
        spec = decode_spec(order[HEADER.size :])
        self._limit_memory(spec.memory_mib, spec.threads)
        slots = [Slot(fd, spec.memory_mib << 20) for fd in self._slot_fds]
        loaded = self._load(spec, proven_batch)
        if loaded is None:
            return EXIT_OK
        session, report = loaded
        data = _encoded(report)
        slots[0].put_blob(data)
        self._channel.send(HEADER.pack(Kind.LOADED, 0, 0, len(data)))
        return _serve(self._channel, session, report, slots)

    def _look(self, order: bytes) -> int:
        """Look at a device instead of loading a model."""
        _write("/proc/self/comm", _LOOK_TITLE)
        self._limit_memory(_LOOK_MEMORY_MIB, _LOOK_THREADS)
        self._channel.send(HEADER.pack(Kind.LOOKED, 0, 0, 0) + look_at(order))
        return EXIT_OK

    def _host(self) -> int:
        """Be the process of a device, with a worker in each of its threads."""
        _write("/proc/self/comm", _HOST_TITLE)
        return devicehost.serve(self._channel, _work)

    def _load(self, spec: LoadSpec, proven_batch: int) -> tuple[Session, ModelReport] | None:
        reached = LoadStage.READ

        def on_stage(stage: LoadStage) -> None:
            nonlocal reached
            reached = stage
            self._channel.send(HEADER.pack(Kind.STAGE, 0, STAGES.index(stage), 0))

        try:
            return engines.load(spec, proven_batch=proven_batch, on_stage=on_stage)
        except ModelRefused as exc:
            self._refuse(exc.stage, exc.reason)
        except MemoryError as exc:
            text = f"it needs more than the {spec.memory_mib} MiB of memory it may take {exc}"
            self._refuse(reached, text.strip())
        return None

    def _refuse(self, stage: LoadStage, reason: str) -> None:
        header = HEADER.pack(Kind.REFUSED, 0, STAGES.index(stage), 0)
        self._channel.send(header + _text(reason))


def _encoded(report: ModelReport) -> bytes:
    data = encode_report(report)
    if len(data) <= REPORT_BYTES_MAX:
        return data
    note = f"its metadata is not used: it takes {len(data)} bytes, more than {REPORT_BYTES_MAX}"
    return encode_report(replace(report, metadata=ModelMetadata(), notes=(*report.notes, note)))


def _serve(channel: socket.socket, session: Session, report: ModelReport, slots: list[Slot]) -> int:
    """Answer calls in their order until the other end is closed."""
    lanes = make_lanes(report)
    unpack, size = HEADER.unpack_from, HEADER.size
    monotonic, run = time.monotonic, session.run
    done = 0.0
    waited = _LOOK_S
    while True:
        message = channel.recv(MESSAGE_MAX) if waited >= _LOOK_S else _look(channel, done + _LOOK_S)
        begin = monotonic()
        waited = begin - done
        if not message:
            return EXIT_OK
        _, place, signature, call = unpack(message)
        slot = slots[place]
        slot.mark_taken_up()
        into, out = lanes[signature]
        try:
            outputs, invoke_s = run(signature, into.get(slot, message[size:]))
            body = out.put(slot, [(output,) for output in outputs])
            del outputs  # views into the runtime, which must not live when it runs again
        except (InvokeFailed, TooBig) as exc:
            done = monotonic()
            header = HEADER.pack(Kind.FAILED, place, signature, call)
            channel.send(header + TIMES.pack(0.0, begin, done) + _text(str(exc)))
            continue
        except MemoryError as exc:
            text = f"the call needs more memory than the model may take: {exc}"
            header = HEADER.pack(Kind.FAILED, place, signature, call)
            channel.send(header + TIMES.pack(0.0, begin, monotonic()) + _text(text))
            return EXIT_MEMORY  # a new process has all its memory; this one may be in shreds
        except DeviceFailure as exc:
            text = f"the device failed, and the model cannot be set up on it again: {exc}"
            header = HEADER.pack(Kind.FAILED, place, signature, call)
            channel.send(header + TIMES.pack(0.0, begin, monotonic()) + _text(text))
            return EXIT_DEVICE
        done = monotonic()
        header = HEADER.pack(Kind.RESULT, place, signature, call)
        channel.send(header + TIMES.pack(invoke_s, begin, done) + body)


def _look(channel: socket.socket, until: float) -> bytes:
    """The next message; found without sleeping when it comes before `until` (monotonic)."""
    while True:
        try:
            return channel.recv(MESSAGE_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if time.monotonic() > until:
                return channel.recv(MESSAGE_MAX)
        os.sched_yield()  # with one core, who sends the message needs it


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:_TEXT_MAX]
