"""ServedVersion: one version of one model, from its workers to its queue and its counters."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerators.agreement import all_finite
from accelerators.base import CPU
from accelerators.calls import DeathReason
from accelerators.errors import ModelRefused, WorkerUnavailable
from accelerators.placed import PlacedPool
from daemon.admission import Gate
from daemon.dispatch import Dispatcher
from daemon.errors import WorkerCrashed
from daemon.models.status import Tally, VersionState, VersionStatistics, VersionStatus
from daemon.models.traffic import Traffic
from daemon.pipeline.libraries import load_libraries
from daemon.pipeline.profiles import ModelProfile, build_profile
from daemon.samples import BadSample, sample_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from accelerators.base import Array, CallResult, ModelReport, SignatureSpec
    from accelerators.forkserver import ForkServer
    from accelerators.hardware import Hardware
    from accelerators.supervisor import WorkerEvent
    from daemon.metrics import Metrics
    from daemon.models.settings import Settings
    from daemon.models.store import FoundVersion
    from daemon.models.traffic import TrafficReport

_log = logging.getLogger(f"inferd.{__name__}")

_LEAST_PATIENCE_S = 1.0
_PATIENCE_FACTOR = 10
"""Ten times the usual time is no longer noise; below a second nothing is worth a new worker."""

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Under which an invocation is counted: not each number of rows, since clients may send any."""

_DEATHS = frozenset({DeathReason.CRASH, DeathReason.TIMEOUT, DeathReason.MEMORY})
"""Ends that speak against the model."""

_RETRY_S = 5.0
"""Between the first tries to load a model for which no worker or device was to be had."""

_RESTART_S = 2.0
"""A replacement that starts later than this is not waited for: the version counts as down.

Longer than the start of a worker (some 20 ms and the model's own load), shorter than a client's
patience.
"""


class Counters:
    """Running totals of one version, in the terms of KServe's statistics extension."""

    __slots__ = (
        "batches",
        "executions",
        "failure_s",
        "failures",
        "infer_s",
        "inferences",
        "input_s",
        "last_inference_s",
        "output_s",
        "queue_s",
        "success_s",
        "successes",
    )

    def __init__(self) -> None:
        self.inferences = 0
        self.executions = 0
        self.last_inference_s = 0.0  # since 1970
        self.successes = 0
        self.success_s = 0.0
        self.queue_s = 0.0
        self.input_s = 0.0
        self.infer_s = 0.0
        self.output_s = 0.0
        self.failures = 0
        self.failure_s = 0.0
        self.batches: dict[int, list[int]] = {}  # rows -> [count, input, infer, output ns]

    def add_success(  # noqa: PLR0917 (the stages in their order)
        self,
        rows: int,
        total_s: float,
        queue_s: float,
        input_s: float,
        infer_s: float,
        output_s: float,
    ) -> None:
        """Count one answered request; times in seconds."""
        self.inferences += rows
        self.last_inference_s = time.time()
        self.successes += 1
        self.success_s += total_s
        self.queue_s += queue_s
        self.input_s += input_s
        self.infer_s += infer_s
        self.output_s += output_s

    def add_failure(self, total_s: float) -> None:
        """Count one request that got no answer; seconds."""
        self.failures += 1
        self.failure_s += total_s

    def add_execution(self, rows: int, result: CallResult) -> None:
        """Count one invocation."""
        self.executions += 1
        size = _BATCH_SIZES[bisect_right(_BATCH_SIZES, rows) - 1]
        batch = self.batches.setdefault(size, [0, 0, 0, 0])
        batch[0] += 1
        batch[2] += int(result.invoke_s * 1e9)

    def snapshot(self) -> VersionStatistics:
        """An immutable copy."""
        count = self.successes  # every answered request went through every stage
        return VersionStatistics(
            inferences=self.inferences,
            executions=self.executions,
            last_inference_ms=int(self.last_inference_s * 1e3),
            success=_tally(count, self.success_s),
            fail=_tally(self.failures, self.failure_s),
            queue=_tally(count, self.queue_s),
            compute_input=_tally(count, self.input_s),
            compute_infer=_tally(count, self.infer_s),
            compute_output=_tally(count, self.output_s),
            batches={
                rows: (Tally(n, a), Tally(n, b), Tally(n, c))
                for rows, (n, a, b, c) in sorted(self.batches.items())
            },
        )


def _patience_s(report: ModelReport, gate: Gate) -> float:
    """How long an invocation may run that nobody waits for: far longer than any good one does."""
    if report.stateful:
        return math.inf
    return max(_LEAST_PATIENCE_S, _PATIENCE_FACTOR * gate.invoking.mean_s)


def _tally(count: int, seconds: float) -> Tally:
    return Tally(count, int(seconds * 1e9))


@dataclass(frozen=True, slots=True)
class Target:
    """A version that answers, as requests see it.

    Attributes:
        workers: its own; `send` is the dispatcher's.
        max_batch: rows of the default signature that share a call, on every device.
        signatures: by name, at least one; the first is the default.
        timeout_s: the time a request may take when it names no deadline.
        gate, dispatcher, counters: its queue and what is counted of it; the service's own.
    """

    model: str
    version: int
    workers: PlacedPool
    max_batch: int
    profile: ModelProfile
    signatures: Mapping[str, SignatureSpec]
    timeout_s: float
    gate: Gate
    dispatcher: Dispatcher
    counters: Counters

    @property
    def report(self) -> ModelReport:
        """The model, and what runs it now."""
        return self.workers.report

    @property
    def default_signature(self) -> SignatureSpec:
        """The signature a request gets that names none."""
        return next(iter(self.signatures.values()))


class ServedVersion:
    """One version: LOADING, then READY or UNAVAILABLE, and UNLOADING at its end."""

    def __init__(
        self,
        model: str,
        found: FoundVersion,
        settings: Settings,
        *,
        forkserver: ForkServer,
        metrics: Metrics,
        hardware: Hardware | None = None,
        refused_before: str = "",
        retry_s: float = _RETRY_S,
    ) -> None:
        """Store only; `load` starts it.

        Args:
            hardware: devices it may wish for; None for the CPU alone.
            refused_before: why the last try had failed, which is what is shown until this one has
                succeeded, or failed for another reason.
            retry_s: how long to wait for a worker or a device before the next try.
        """
        self.model = model
        self.version = found.version
        self.found = found
        self.settings = settings
        self.counters = Counters()
        self.traffic = Traffic()
        self.state = VersionState.LOADING
        self.target: Target | None = None
        self._reason = ""
        self._refused_before = refused_before
        self._hardware = hardware
        self._end_wish: Callable[[], None] | None = None
        self.retry_s = retry_s
        self._retry_at = math.inf
        self._metrics = metrics
        self._holders = 0
        self._let_go = asyncio.Event()
        self._let_go.set()
        self._down_since_event = False
        self._pool = PlacedPool(
            settings.load,
            settings.placement,
            forkserver,
            hardware=hardware,
            samples=self._read_samples,
            on_capacity=self._on_capacity,
            on_event=self._on_worker_event,
            on_move=self._on_move,
        )

    async def load(self) -> None:
        """Start the workers; the outcome is in `state` and `status`. Raises nothing."""
        try:
            await self._load()
        except Exception:  # noqa: BLE001 (a defect must not leave the model LOADING for ever)
            _log.exception("loading failed model=%s version=%d", self.model, self.version)
            await self._pool.stop()
            self._refuse("loading it failed for a reason that only the log tells")

    async def _load(self) -> None:
        if self.found.problem:
            self._refuse(self.found.problem)
            return
        started = time.monotonic()
        try:
            report = await self._pool.start()
            profile = build_profile(
                self.found.tables,
                report,
                self.found.label_lines,
                default_top_k=self.settings.top_k,
            )
            await asyncio.to_thread(load_libraries, profile)
        except ModelRefused as refused:
            self._refuse(refused.reason)
            return
        except WorkerUnavailable as shortage:
            self._retry_at = time.monotonic() + self.retry_s
            self._wait_for_device()
            self._refuse(f"{shortage.reason}; it is tried again")
            return
        except ValueError as contradiction:
            await self._pool.stop()
            self._refuse(f"model.toml does not fit the model: {contradiction}")
            return
        self.target = self._assemble(report, profile)
        self.state = VersionState.READY
        report = self._pool.report  # it may have moved meanwhile
        self._publish(report)
        for note in (*report.notes, *profile.notes):
            _log.warning(
                "model has a note model=%s version=%d note=%s", self.model, self.version, note
            )
        _log.info(
            "model ready model=%s version=%d device=%s requested_device=%s input=%s output=%s "
            "max_batch=%d seconds=%.3f",
            self.model,
            self.version,
            report.device,
            report.requested_device,
            profile.input_kind.value,
            profile.output_kind.value,
            report.max_batch,
            time.monotonic() - started,
        )

    def _assemble(self, report: ModelReport, profile: ModelProfile) -> Target:
        instances = 1 if report.stateful else self.settings.load.instances
        gate = Gate(
            limit=self.settings.queue, decoders=self.settings.decode_threads, workers=instances
        )
        gate.invoking.observe(report.warm_s)
        dispatcher = Dispatcher(
            self._pool,
            max_rows=report.max_batch,
            max_delay_s=self.settings.max_delay_s,
            retry=not report.stateful,
            usual_s=lambda: gate.invoking.mean_s,
            patience_s=lambda: _patience_s(report, gate),
            on_batch=self._on_batch,
            on_fault=self._on_fault,
        )
        return Target(
            model=self.model,
            version=self.version,
            workers=self._pool,
            max_batch=report.max_batch,
            profile=profile,
            signatures={signature.name: signature for signature in report.signatures},
            timeout_s=self.settings.timeout_s,
            gate=gate,
            dispatcher=dispatcher,
            counters=self.counters,
        )

    def _wait_for_device(self) -> None:
        """Be tried again as soon as something changes with the devices it wishes for."""
        placement = self.settings.placement
        if self._hardware is not None and placement.needs_devices and self._end_wish is None:
            self._end_wish = self._hardware.inventory.subscribe(
                self._on_devices, placement.accelerators
            )

    def _on_devices(self, _changed: frozenset[str]) -> None:
        self._retry_at = min(self._retry_at, time.monotonic())

    def give_up(self) -> None:
        """It is not to be tried again: wish for no device any more."""
        if self._end_wish is not None:
            self._end_wish()
            self._end_wish = None

    @property
    def lacks_worker(self) -> bool:
        """Whether it was refused for want of a worker, which says nothing of the model."""
        return self.state is VersionState.UNAVAILABLE and self._retry_at < math.inf

    @property
    def is_due(self) -> bool:
        """Whether it was refused for want of a worker, and is to be tried again now."""
        return self.lacks_worker and time.monotonic() >= self._retry_at

    @property
    def down_reason(self) -> str:
        """Why a loaded version cannot answer now; "" when it can or will within moments."""
        if self._down_since_event and self._pool.alive == 0:
            return self._pool.failure
        return ""

    @property
    def status(self) -> VersionStatus:
        """As the front ends report it."""
        state, reason = self.state, self._reason
        down = self.down_reason
        if state is VersionState.READY and down:
            state, reason = VersionState.UNAVAILABLE, down
        if state is VersionState.LOADING and self._refused_before:
            state, reason = VersionState.UNAVAILABLE, self._refused_before
        target = self.target
        return VersionStatus(
            version=self.version,
            state=state,
            reason=reason,
            report=self._pool.report if target else None,
            profile=target.profile if target else None,
            trials=self._pool.trials,
        )

    @property
    def traffic_report(self) -> TrafficReport:
        """How it has done with real requests."""
        folder = self.found.folder
        return self.traffic.report(self.model, self.version, folder.name if folder else "")

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of its workers."""
        return self._pool.pids

    def hold(self) -> None:
        """Keep it from being stopped until `let_go`."""
        self._holders += 1
        self._let_go.clear()

    def let_go(self) -> None:
        """End one `hold`."""
        self._holders -= 1
        if self._holders == 0:
            self._let_go.set()

    async def retire(self, drain_timeout_s: float) -> None:
        """Let requests under way finish, for at most so many seconds, then stop the workers."""
        self.give_up()
        self.state = VersionState.UNLOADING
        try:
            await asyncio.wait_for(self._let_go.wait(), drain_timeout_s)
        except TimeoutError:
            _log.warning(
                "model stopped with requests under way model=%s version=%d requests=%d",
                self.model,
                self.version,
                self._holders,
            )
        await self._pool.stop()
        if self.target is not None:
            self.target.dispatcher.fail_all(WorkerCrashed("the model was stopped"))
            self._metrics.unwatch_queue(self.model, self)
            self._metrics.forget_version(self.model, self.version)
        _log.info("model stopped model=%s version=%d", self.model, self.version)

    def _refuse(self, reason: str) -> None:
        self.state = VersionState.UNAVAILABLE
        self._reason = reason
        if reason != self._refused_before:
            _log.error(
                "model refused model=%s version=%d reason=%s", self.model, self.version, reason
            )

    def _publish(self, report: ModelReport, *, moved: bool = False) -> None:
        self._metrics.set_model_info(
            self.model,
            self.version,
            report.device,
            report.requested_device,
            report.degraded,
            report.runtime,
            moved=moved,
        )
        self._metrics.set_model_memory(self.model, report.memory_bytes)
        if self.target is not None and not moved:
            gate = self.target.gate
            self._metrics.watch_queue(self.model, self, lambda: gate.pending)

    def _on_capacity(self) -> None:
        if self._down_since_event and self._pool.alive:
            self._down_since_event = False
        if self.target is not None:
            self.target.dispatcher.pump()

    def _on_batch(self, rows: int, result: CallResult) -> None:
        self.counters.add_execution(rows, result)
        self._metrics.batch(self.model, rows)
        is_finite = all_finite(result.outputs)
        self.traffic.invoked(rows, result.invoke_s, is_finite=is_finite)
        if result.origin.device != CPU.id:
            self._pool.answered(result.origin, is_finite=is_finite)
        if self.target is not None:
            self.target.gate.invoking.observe(result.finished_at - result.started_at)

    def _on_move(self) -> None:
        """Another device runs it, or for another reason."""
        if self.state is not VersionState.READY:
            return  # the load tells
        self._publish(self._pool.report, moved=True)

    async def _read_samples(self, report: ModelReport) -> tuple[Mapping[str, Array], ...]:
        """Inputs of the health samples; a sample that cannot be read is the probe's to tell."""
        found = self.found
        if found.folder is None or not found.tables.health.samples:
            return ()
        try:
            profile = build_profile(
                found.tables, report, found.label_lines, default_top_k=self.settings.top_k
            )
            await asyncio.to_thread(load_libraries, profile)
            return await asyncio.to_thread(
                sample_inputs,
                found.folder,
                found.tables.health,
                report.signatures[0],
                profile,
                self.settings.media,
            )
        except (BadSample, ValueError):
            return ()

    def _on_fault(self) -> None:
        self.traffic.faults += 1

    def _on_worker_event(self, event: WorkerEvent) -> None:
        _log.warning(
            "worker replaced model=%s version=%d pid=%d reason=%s detail=%s retry_in_s=%.2f",
            self.model,
            self.version,
            event.pid,
            event.reason.value,
            event.detail,
            event.retry_in_s,
        )
        self._metrics.worker_restart(self.model, event.reason.value)
        if event.reason in _DEATHS:
            self.traffic.worker_deaths += 1
        soon = event.reason is not DeathReason.START and event.retry_in_s <= _RESTART_S
        if soon or self._pool.alive:
            return
        self._down_since_event = True
        if self.target is not None:
            self.target.dispatcher.fail_all(WorkerCrashed(self.down_reason))
