"""PlacedPool: the workers of one model version, on the best device there is at any time.

The CPU's pool is at home here: it is the reference for every device and what is left when one
fails. The life of a version that wishes for more than the CPU:
1. The home pool starts, and answers a few inputs whose answers are remembered.
2. Each device it may have is examined (accelerators/examination.py), `decide` chooses, the winner's
   pool takes over, and the home pool goes once it has answered what it has. Whoever waits for the
   start waits for this too, but no longer than `_PATIENCE_S`: then the CPU serves meanwhile.
3. A device is left at once when its worker dies or is killed for a call that hangs, when a call
   fails that the CPU can answer, when answers hold NaN again and again, and when it is gone. Calls
   it had go back to the front of the queue, home starts again, and the device is examined anew: at
   once when it comes back, else after a while that grows.
A call that fails on a device is put to the CPU before the device is blamed: an input that no
device can take is the input's fault.

A model that keeps state between calls stays on the CPU: no other device could take the state over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from accelerators.agreement import all_finite
from accelerators.away import Away
from accelerators.base import CPU, Isolation, Origin
from accelerators.calls import DeathReason
from accelerators.chores import Chores
from accelerators.errors import (
    AcceleratorError,
    CallTimedOut,
    InvokeFailed,
    LoadStage,
    ModelRefused,
    WorkerLost,
    WorkerUnavailable,
)
from accelerators.examination import Reference, make_reference
from accelerators.home import Home, wind_down
from accelerators.placement import Decision, Placement, Trial
from accelerators.registry import KINDS
from accelerators.supervisor import WorkerEvent, WorkerPool
from accelerators.tryouts import Tryouts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from accelerators.base import Array, CallResult, Device, LoadSpec, ModelReport
    from accelerators.calls import Reply
    from accelerators.forkserver import ForkServer
    from accelerators.hardware import Hardware

    Samples = Callable[[ModelReport], Awaitable[Sequence[Mapping[str, Array]]]]
    """Inputs of the default signature that the model's publisher has chosen."""

_log = logging.getLogger(f"inferd.{__name__}")

_PATIENCE_S = 20.0
"""How long a start waits for devices: most open in a second, one that compiles takes a minute."""

_NAN_MOST = 3
"""Answers with NaN one after another, for good inputs, before a device is left."""

_HOME_AGAIN_S = 1.0
_DEFECT_AGAIN_S = 30.0

_DEVICES_MATTER = frozenset({LoadStage.ALLOCATE, LoadStage.WARM})
"""How far a file came that the CPU has refused and another device may run: it is a model, and the
CPU lacks an operator of it."""

_REASON_MAX = 500


class PlacedPool:
    """See above; to its user it is a `WorkerPool`. Use it from the event loop it was started on."""

    def __init__(
        self,
        spec: LoadSpec,
        placement: Placement,
        forkserver: ForkServer,
        *,
        hardware: Hardware | None,
        samples: Samples | None,
        on_capacity: Callable[[], None],
        on_event: Callable[[WorkerEvent], None],
        on_move: Callable[[], None],
    ) -> None:
        """Store only.

        Args:
            spec: for the CPU; other devices get the same limits.
            hardware: what is here; None for nothing but the CPU.
            samples: asked once, when devices are to be examined.
            on_capacity, on_event: as `WorkerPool`'s.
            on_move: `report` says another device, or another reason, than before.
        """
        self._spec = spec
        self._placement = placement
        self._forkserver = forkserver
        self._hardware = hardware
        self._samples = samples
        self._on_capacity = on_capacity
        self._on_event = on_event
        self._on_move = on_move
        self._report: ModelReport | None = None
        self._home = Home(
            replace(spec, path=placement.cpu_model or spec.path),
            forkserver,
            on_capacity=self._on_pool_capacity,
            on_event=on_event,
            is_serving=lambda pool: pool is self._current or self._current is None,
        )
        self._home_refusal = ""
        self._away: Away | None = None
        self._current: WorkerPool | None = None
        self._reference: Reference | None = None
        self._tryouts: Tryouts | None = None
        self._failure = "not started"
        self._not_finite = 0
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._chores = Chores("placement")
        self._unsubscribe: Callable[[], None] | None = None
        self._is_stopped = False
        self._asking = asyncio.Lock()  # home, for a second opinion
        self._newest: _Errand | None = None  # of the device's answers

    async def start(self) -> ModelReport:
        """Start, examine and choose; returns once something can take calls.

        Raises:
            ModelRefused: the model cannot be served; nothing is left behind.
            WorkerUnavailable: not now, for want of a worker or a device; nothing is left behind.
        """
        self._loop = asyncio.get_running_loop()
        try:
            return await self._start()
        except BaseException:
            await self.stop()
            raise

    @property
    def report(self) -> ModelReport:
        """The model, and what runs it now."""
        if self._current is not None and not self._placement.needs_devices:
            return self._current.report  # with its newest worker's memory
        if self._report is None:
            raise RuntimeError("the pool was not started")
        return self._report

    @property
    def trials(self) -> tuple[Trial, ...]:
        """What is known of each device that was considered, the CPU first."""
        return self._tryouts.trials if self._tryouts else ()

    @property
    def alive(self) -> int:
        """Workers that can take calls now."""
        return self._current.alive if self._current else 0

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the living workers."""
        return self._current.pids if self._current else ()

    @property
    def failure(self) -> str:
        """Why no worker is alive, in plain words; "" while one is."""
        return self._current.failure if self._current else self._failure

    @property
    def free_slots(self) -> int:
        """Calls that `send` would accept now. To ask is to wish for a device's turn."""
        pool = self._current
        if pool is None:
            return 0
        free = pool.free_slots
        away = self._away
        if free and away is not None and pool is away.pool and not away.turn.ask():
            return 0
        return free

    def call(self, signature: str, inputs: Mapping[str, Array]) -> asyncio.Future[CallResult]:
        """`send` one request's inputs, with a future for the outcome."""
        reply: asyncio.Future[CallResult] = self._loop.create_future()
        self.send(signature, (inputs,), reply)
        return reply

    def send(self, signature: str, rows: Sequence[Mapping[str, Array]], reply: Reply) -> None:
        """Hand a call over. Only while `free_slots` > 0 (else RuntimeError).

        See `WorkerPool.send`. A call whose device fails gets WorkerLost with `started` False: it
        can be sent again at once, and will reach something else.
        """
        pool, away = self._current, self._away
        if pool is None:
            raise RuntimeError("call without a free slot")
        if away is None or pool is not away.pool:
            pool.send(signature, rows, reply)
            return
        away.send(signature, rows, _Errand(self, away, signature, rows, reply))

    def give_up(self, reply: Reply, *, patience_s: float) -> None:
        """Nobody waits for a call any more; see `WorkerPool.give_up`."""
        for pool in {self._current, self._home.pool}:
            if pool is not None:
                pool.give_up(reply, patience_s=patience_s)

    def answered(self, origin: Origin, *, is_finite: bool) -> None:
        """An answer of `origin` was seen, and whether it is free of NaN and infinity."""
        if self._away is None or origin.device != self._away.device.id:
            return
        self._not_finite = 0 if is_finite else self._not_finite + 1
        if self._not_finite >= _NAN_MOST and self._newest is not None:
            self._not_finite = 0
            self._chores.begin(self._ask_about_nan(self._newest))

    async def stop(self) -> None:
        """Stop every worker; calls in flight get WorkerLost. Leaves no process, thread or file."""
        self._is_stopped = True
        self._failure = "stopped"
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        away, self._away, self._current = self._away, None, None
        if away is not None:
            await away.close()
        await self._home.stop()
        await self._chores.done()

    # The start.

    async def _start(self) -> ModelReport:
        if not self._placement.needs_devices:
            return await self._start_plain()
        if not self._placement.allows_cpu:
            await self._check_presence()
        try:
            await self._home.ready()
        except ModelRefused as refused:
            if refused.stage not in _DEVICES_MATTER:
                raise
            self._home_refusal = refused.reason
        if self._home.pool is not None and (problem := await self._learn(self._home.pool)):
            return self._stay(problem)
        if self._hardware is None:
            return self._stay("no device but the CPU can be used by this program")
        self._tryouts = await self._make_tryouts(self._hardware)
        self._unsubscribe = self._hardware.inventory.subscribe(
            self._on_devices, self._placement.accelerators
        )
        self._keeper = asyncio.create_task(self._keep(), name="placement-keeper")
        patience_s = _PATIENCE_S if self._may_stay_home else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._settled.wait()
        if self._current is None and self._may_stay_home:
            await self._serve_at_home()
        if self._current is None:
            raise self._unplaceable()
        return self.report

    async def _check_presence(self) -> None:
        """Spare the CPU's work where no device is here that is required.

        Raises:
            WorkerUnavailable: none is.
        """
        if self._hardware is None:
            return  # `_stay` says so
        inventory, wishes = self._hardware.inventory, self._placement.accelerators
        await inventory.refresh(wishes)
        devices = [device for wish in wishes for device in inventory.of_kind(wish)]
        if not any(device.up for device in devices):
            problems = "; ".join(f"{device.id}: {device.problem}" for device in devices)
            text = f"placement.required asks for {', '.join(wishes)}; {problems}"
            raise WorkerUnavailable(text[:_REASON_MAX])

    async def _start_plain(self) -> ModelReport:
        """With the CPU for its only wish, a version has one pool and nothing else."""
        self._current = await self._home.ready()
        self._report = self._current.report
        return self._report

    def _stay(self, reason: str) -> ModelReport:
        """Only the CPU can be had, for good.

        Raises:
            ModelRefused: that was not allowed, or it cannot run the model.
        """
        wishes = ", ".join(self._placement.accelerators)
        home = self._home.pool
        if home is None:
            raise ModelRefused(LoadStage.ALLOCATE, f"{self._home_refusal}; {reason}"[:_REASON_MAX])
        if not self._placement.allows_cpu:
            text = f"placement.required asks for {wishes}: {reason}"
            raise ModelRefused(LoadStage.ALLOCATE, text[:_REASON_MAX])
        missed = self._placement.accelerators[0] != "cpu"
        self._serve(home, Decision(CPU.id, reason if missed else ""))
        return self.report

    async def _make_tryouts(self, hardware: Hardware) -> Tryouts:
        digest = self._report.digest if self._report else ""
        if self._placement.cpu_model is not None or not digest:
            digest = await asyncio.to_thread(_digest_of, self._spec.path)
        tryouts = Tryouts(
            self._placement,
            hardware,
            self._open,
            digest=digest,
            report=self._report,
            reference=self._reference,
            time_limit_s=self._spec.load_timeout_s,
        )
        if self._home_refusal:
            tryouts.refuse_cpu(self._home_refusal)
        if self._report is not None:
            self._report = replace(self._report, digest=digest)  # also while its twin answers
        return tryouts

    def _unplaceable(self) -> AcceleratorError:
        """Why it cannot run anywhere; for good, or until a device comes."""
        reasons = [self._tryouts_made.decide().degraded_reason]
        if self._home_refusal and self._home_refusal not in reasons[0]:
            reasons.insert(0, self._home_refusal)
        elif not self._placement.allows_cpu:
            wishes = ", ".join(self._placement.accelerators)
            reasons.insert(0, f"placement.required asks for {wishes}")
        text = "; ".join(reason for reason in reasons if reason)[:_REASON_MAX]
        if self._tryouts_made.may_pass:
            return WorkerUnavailable(text)
        return ModelRefused(LoadStage.ALLOCATE, text)

    async def _learn(self, home: WorkerPool) -> str:
        """What the CPU answers, to compare devices with; or why no device can be used."""
        report = self._report = home.report
        if report.stateful:
            return "it keeps state between calls, which no device could take over"
        samples = await self._samples(report) if self._samples else ()
        try:
            self._reference = await make_reference(home, samples)
        except AcceleratorError as exc:
            return f"the CPU could not answer what devices are to be compared with: {exc}"
        if not self._reference.cases:
            return "the CPU refuses every input that could be invented to compare devices with"
        return ""

    # Home.

    @property
    def _may_stay_home(self) -> bool:
        return self._placement.allows_cpu and not self._home_refusal

    async def _serve_at_home(self) -> None:
        """Let the CPU take the calls until a device does.

        Raises:
            ModelRefused, WorkerUnavailable: it cannot be had.
        """
        home = await self._home.ready()
        if self._current is None:  # else a device was quicker
            self._serve(home, Decision(CPU.id, self._tryouts_made.decide().degraded_reason))

    async def _return_home(self) -> None:
        """Start the CPU's pool, however long it takes, unless a device is quicker."""
        while self._current is None and not self._is_stopped:
            try:
                await self._serve_at_home()
            except (ModelRefused, WorkerUnavailable) as exc:
                # Also when it was refused: it has run here before, and may again.
                self._tell_down(exc.reason)
                _log.warning("model is without a worker for now reason=%s", exc.reason)
                await asyncio.sleep(_HOME_AGAIN_S)

    # Choosing.

    async def _keep(self) -> None:
        """Keep the model where it is best, until this task is cancelled."""
        tryouts, inventory = self._tryouts_made, self._hardware_given.inventory
        await inventory.refresh(self._placement.accelerators)
        while True:
            self._wake.clear()
            again_s = None
            begun = time.monotonic()
            try:
                await self._place()
            except WorkerUnavailable as exc:
                _log.warning("model cannot be moved for now reason=%s", exc.reason)
                again_s = _HOME_AGAIN_S
            except Exception:  # noqa: BLE001 (a defect must not leave it where it is for ever)
                _log.exception("placing a model failed; trying again")
                again_s = _DEFECT_AGAIN_S
            self._settled.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(again_s or tryouts.due_in_s(begun)):
                    await self._wake.wait()

    async def _place(self) -> None:
        """Examine what is due, and move to where it is best.

        Raises:
            WorkerUnavailable: the CPU's worker is not to be had now.
        """
        candidates: dict[str, Away] = {}
        try:
            serving = self._away.device.id if self._away else ""
            await self._tryouts_made.examine(serving, candidates)
            while not await self._move(self._tryouts_made.decide(), candidates):
                pass
        finally:
            for candidate in candidates.values():
                await candidate.close()

    async def _move(self, decision: Decision, candidates: dict[str, Away]) -> bool:
        """Be where it was decided; False when that has failed and is to be decided anew.

        Raises:
            WorkerUnavailable: the CPU's worker cannot be had now.
        """
        away = self._away
        if not decision.device:
            if self._current is None:
                self._failure = decision.degraded_reason
            return True
        if decision.device == CPU.id:
            try:
                home = await self._home.ready()
            except ModelRefused as exc:  # it has run here before, and may again
                raise WorkerUnavailable(exc.reason) from exc
            self._let_go(away)
            self._serve(home, decision)
            return True
        if away is not None and decision.device == away.device.id:
            self._serve(away.pool, decision)
            return True
        candidate = candidates.pop(decision.device, None)
        candidate = candidate or await self._tryouts_made.reopen(decision.device)
        if candidate is None:
            return False
        if not candidate.pool.alive:  # it has died while others were examined
            self._tryouts_made.failed(decision.device, candidate.pool.failure, lived_s=0.0)
            self._chores.begin(candidate.close())
            return False
        self._let_go(self._away)
        self._away = candidate
        self._not_finite = 0
        if self._report is None:
            self._report = candidate.pool.report
        self._serve(candidate.pool, decision)
        return True

    def _let_go(self, away: Away | None) -> None:
        """Be no longer on a device that is well, and let it finish what it has."""
        if away is None or away is not self._away:
            return
        self._away = None
        away.turn.leave()
        self._chores.begin(wind_down(away.pool, self._spec.call_timeout_s))

    async def _open(self, device: Device) -> Away:
        """A started pool on a device.

        Raises:
            ModelRefused, WorkerUnavailable: it takes no model, or not this one, or not now.
        """
        hardware = self._hardware_given
        spec = replace(
            self._spec,
            device=device,
            isolation=Isolation.PROCESS,
            instances=1 if device.exclusive else self._spec.instances,
            memory_mib=self._spec.memory_mib + KINDS[device.kind].memory_mib,
        )
        away = Away(device, hardware.turns, self._on_pool_capacity)
        away.pool = WorkerPool(
            spec,
            hardware.hosts.of(device),
            on_capacity=away.on_pool_capacity,
            on_event=partial(self._on_away_event, away),
        )
        await away.start()
        return away

    # Serving.

    def _serve(self, pool: WorkerPool, decision: Decision) -> None:
        """From now on this pool takes the calls."""
        before, self._current = self._current, pool
        self._failure = ""
        requested = self._placement.accelerators[0]
        origin = Origin(decision.device, requested, bool(decision.degraded_reason))
        if pool.origin != origin:
            pool.origin = origin
        assert self._report is not None  # noqa: S101 (something has started)
        report = replace(
            self._report,
            device=decision.device,
            requested_device=requested,
            degraded_reason=decision.degraded_reason,
            runtime=pool.report.runtime,
            memory_bytes=pool.report.memory_bytes,
            coverage=pool.report.coverage,
        )
        has_moved = report != self._report or before is not pool
        self._report = report
        if pool is not self._home.pool:
            self._home.release()
        if has_moved:
            _log.info(
                "model placed device=%s requested_device=%s reason=%s",
                decision.device,
                requested,
                decision.degraded_reason or "as wished",
            )
            self._on_move()
        self._on_capacity()

    def _leave(self, away: Away, reason: str) -> None:
        """A device has failed or is gone: be away no more. What it had is sent again."""
        if away is not self._away:
            return
        device_id = away.device.id
        _log.warning("device left device=%s reason=%s", device_id, reason)
        self._away = self._newest = None
        if self._current is away.pool:
            self._current = None
        lived_s = time.monotonic() - away.since
        self._tryouts_made.failed(device_id, reason, lived_s=lived_s)
        self._failure = f"{device_id} was left: {reason}"
        self._chores.begin(away.close())
        self._wake.set()
        if self._may_stay_home:
            self._chores.begin(self._return_home())
        else:
            self._tell_down(self._failure)

    def _tell_down(self, reason: str) -> None:
        """Nothing serves, and nobody knows for how long."""
        self._failure = reason
        self._on_event(WorkerEvent(0, DeathReason.START, reason, math.inf))

    def _on_devices(self, changed: frozenset[str]) -> None:
        """Devices came, went, or have another problem."""
        away = self._away
        if away is not None and away.device.id in changed:
            inventory = self._hardware_given.inventory
            here = [d for d in inventory.devices() if d.id == away.device.id]
            if not here or not here[0].up:
                self._leave(away, here[0].problem if here else "it is gone")
        self._tryouts_made.changed(changed)
        self._wake.set()

    def _on_pool_capacity(self, pool: WorkerPool) -> None:
        if pool is self._current:
            self._on_capacity()

    def _on_away_event(self, away: Away, event: WorkerEvent) -> None:
        if away is not self._away:
            return  # on trial, or left already: the trial tells
        if event.reason is not DeathReason.RECYCLE:
            self._leave(away, f"its worker was {event.detail}")
            soon_s = 0.0 if self._may_stay_home else math.inf
            event = replace(event, retry_in_s=soon_s)
        self._on_event(event)

    # Calls that fail on a device.

    def note_newest(self, errand: _Errand) -> None:
        """A device has answered; for `_Errand`."""
        self._newest = errand

    def failed_away(self, errand: _Errand, error: Exception) -> None:
        """A call has failed on a device; for `_Errand`."""
        if isinstance(error, InvokeFailed):
            if errand.away is not self._away:
                error = WorkerLost("the device was left", started=False)
            elif not self._home_refusal:
                self._chores.begin(self._ask_home(errand, error))
                return
            else:
                self._count_failure(errand.away, error)
        elif isinstance(error, WorkerLost) and not isinstance(error, CallTimedOut):
            error = WorkerLost(error.reason, started=False)
        errand.settle(error)

    async def _ask_home(self, errand: _Errand, error: InvokeFailed) -> None:
        """Whether a call that failed on the device is the input's fault."""
        try:
            result = await self._second_opinion(errand)
        except InvokeFailed as same:
            errand.settle(same)
        except AcceleratorError as exc:
            self._leave(errand.away, f"a call failed: {error}")
            errand.settle(WorkerLost(getattr(exc, "reason", str(exc)), started=False))
        except asyncio.CancelledError:
            errand.settle(WorkerLost("the model was stopped", started=False))
            raise
        else:
            self._leave(errand.away, f"a call failed that the CPU has answered: {error}")
            errand.settle(result if self._placement.allows_cpu else error)

    async def _ask_about_nan(self, errand: _Errand) -> None:
        """Whether NaN in the device's answers is the input's fault, or the model's way."""
        is_finite = True
        if not self._home_refusal:
            with contextlib.suppress(AcceleratorError):
                is_finite = all_finite((await self._second_opinion(errand)).outputs)
        if is_finite:
            self._leave(errand.away, f"{_NAN_MOST} answers in a row held NaN or infinity")

    async def _second_opinion(self, errand: _Errand) -> CallResult:
        """The CPU's answer to a call.

        Raises:
            InvokeFailed: it refuses the call too.
            ModelRefused, WorkerUnavailable, WorkerLost: it cannot be asked.
        """
        async with self._asking:  # one at a time, so that there is room
            home = await self._home.ready()
            if errand.away is not self._away or not home.free_slots:
                raise WorkerLost("the device was left", started=False)
            self._home.spare()
            home.origin = Origin(CPU.id, self._placement.accelerators[0], degraded=True)
            opinion: asyncio.Future[CallResult] = self._loop.create_future()
            home.send(errand.signature, errand.rows, opinion)
            return await opinion

    def _count_failure(self, away: Away, error: InvokeFailed) -> None:
        """Where the CPU may not be asked, several failures in a row speak against the device."""
        away.failures += 1
        if away.failures >= _NAN_MOST:
            self._leave(away, f"{away.failures} calls in a row failed: {error}")

    @property
    def _tryouts_made(self) -> Tryouts:
        if self._tryouts is None:
            raise RuntimeError("no device was wished for")
        return self._tryouts

    @property
    def _hardware_given(self) -> Hardware:
        if self._hardware is None:
            raise RuntimeError("no device is here")
        return self._hardware


@dataclass(slots=True, eq=False)
class _Errand:
    """One call on a device, and what becomes of it; see `accelerators.calls.Reply`."""

    pool: PlacedPool
    away: Away
    signature: str
    rows: Sequence[Mapping[str, Array]]
    reply: Reply

    def done(self) -> bool:
        return self.reply.done()

    def cancel(self) -> object:
        return self.reply.cancel()

    def set_result(self, result: CallResult) -> None:
        self.away.failures = 0
        self.pool.note_newest(self)
        self.reply.set_result(result)

    def set_exception(self, error: Exception) -> None:
        self.pool.failed_away(self, error)

    def settle(self, outcome: CallResult | Exception) -> None:
        """Tell who waits, if anybody does."""
        if self.reply.done():
            return
        if isinstance(outcome, Exception):
            self.reply.set_exception(outcome)
        else:
            self.reply.set_result(outcome)


def _digest_of(path: Path) -> str:
    """Of the file; "" when it cannot be read, which the load says better."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
