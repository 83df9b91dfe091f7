"""Probe: would this release serve well here? Asked before it answers anybody.

The candidate is loaded into workers of its own, by the same rules as any model, answers its health
samples, and is stopped. A model that crashes, hangs, leaks or answers wrongly does so here. It gets
a process in any case: one that wishes a thread of the daemon has yet to show that it kills nobody.

What must hold, in this order:
1. It loads: the file, its tables, its labels.
2. It answers every health sample as it must (`daemon/samples.py`). Without samples it must answer
   zeros at least, and with finite numbers.
3. It is as fast as `[health] max_latency_ms` says: the median over its own samples.
4. It takes no more memory than `[health] max_memory_mib` says.

One probe at a time; each has a bounded number of calls and each call its deadline.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry

from accelerators.base import Isolation
from daemon.errors import DaemonError, ModelUnavailable
from daemon.metrics import Metrics
from daemon.models.served import ServedVersion
from daemon.models.settings import choose_settings
from daemon.models.status import VersionState
from daemon.models.store import look_at_release
from daemon.samples import BadSample, Sample, judge, load_samples
from daemon.tensors import PredictRequest, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from accelerators.base import Array, SignatureSpec
    from accelerators.forkserver import ForkServer
    from accelerators.hardware import Hardware
    from daemon.config import Config
    from daemon.modelfile import HealthTable
    from daemon.models.served import Target
    from daemon.service import InferenceService

_ROUNDS = 5
"""How often each sample is asked, so that one slow call does not decide."""
_ZEROS = "zeros"
_STOP_S = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe found.

    Attributes:
        reasons: what is wrong, most telling first; () when it would serve well.
        model, version: as its tables say.
        device: that it ran on; "" when it did not load.
        latency_ms: median over its samples; 0 when none was answered.
        memory_bytes: of its worker.
        samples: how many were run.
        seconds: the whole probe took.
    """

    reasons: tuple[str, ...]
    model: str = ""
    version: int = 0
    device: str = ""
    latency_ms: float = 0.0
    memory_bytes: int = 0
    samples: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """It would serve well."""
        return not self.reasons


class Prober:
    """Runs probes for one daemon."""

    def __init__(
        self,
        config: Config,
        forkserver: ForkServer,
        service: InferenceService,
        hardware: Hardware | None = None,
    ) -> None:
        """Store only."""
        self._config = config
        self._forkserver = forkserver
        self._hardware = hardware
        self._service = service
        self._one = asyncio.Lock()

    async def probe(self, folder: Path) -> Verdict:
        """Try the release in a folder. What is wrong with it is in the verdict.

        Raises:
            ModelUnavailable: it could not be tried, for want of a worker; later it may.
        """
        async with self._one:
            began = time.monotonic()
            verdict = await self._probe(folder)
            return replace(verdict, seconds=time.monotonic() - began)

    async def _probe(self, folder: Path) -> Verdict:
        name, found = await asyncio.to_thread(look_at_release, folder)
        if found is None:
            return Verdict((f"no model in {folder}",))
        settings = choose_settings(found, self._config)
        served = ServedVersion(
            name,
            found,
            replace(settings, load=replace(settings.load, isolation=Isolation.PROCESS)),
            forkserver=self._forkserver,
            metrics=Metrics(CollectorRegistry()),  # what it does here is no business of the box's
            hardware=self._hardware,
        )
        await served.load()
        try:
            if served.lacks_worker:
                raise ModelUnavailable(name, served.status.reason, passes=True)
            if served.state is not VersionState.READY or served.target is None:
                return Verdict((served.status.reason,), name, found.version)
            return await self._ask(served.target, folder, found.tables.health)
        finally:
            await served.retire(_STOP_S)

    async def _ask(self, target: Target, folder: Path, table: HealthTable) -> Verdict:
        report = target.report
        reasons: list[str] = []
        try:
            samples = await asyncio.to_thread(
                load_samples, folder, table, target.default_signature, target.profile
            )
        except BadSample as bad:
            samples = ()
            reasons.append(f"health sample {bad}")
        if not samples and not reasons:
            samples = (Sample(_ZEROS, _zeros(target.default_signature)),)
        latencies: list[float] = []
        for sample in samples:
            problem = await self._run(target, sample, latencies)
            if problem:
                reasons.append(f"health sample {sample.name}: {problem}")
        latency_ms = statistics.median(latencies) * 1e3 if latencies else 0.0
        if table.max_latency_ms is not None and latency_ms > table.max_latency_ms:
            reasons.append(f"takes {latency_ms:.1f} ms, allowed are {table.max_latency_ms:g} ms")
        memory_mib = report.memory_bytes / (1 << 20)
        if table.max_memory_mib is not None and memory_mib > table.max_memory_mib:
            reasons.append(f"takes {memory_mib:.0f} MiB, allowed are {table.max_memory_mib} MiB")
        return Verdict(
            reasons=tuple(reasons),
            model=target.model,
            version=target.version,
            device=report.device,
            latency_ms=latency_ms,
            memory_bytes=report.memory_bytes,
            samples=len(samples),
        )

    async def _run(self, target: Target, sample: Sample, latencies: list[float]) -> str:
        """Ask one sample a few times; what is wrong, "" when nothing is."""
        for _ in range(_ROUNDS):
            request = PredictRequest(
                inputs=sample.inputs,
                deadline=time.monotonic() + target.timeout_s,
                request_id=f"probe-{sample.name}"[:128],
                protocol=Protocol.NATIVE,
                want_meaning=sample.label is not None,
                want_outputs=True,
            )
            try:
                result = await self._service.predict(target, request)
            except DaemonError as error:
                return str(error)
            latencies.append(result.timing.invoke)
            if problem := judge(sample, result):
                return problem
        return ""


def _zeros(signature: SignatureSpec) -> dict[str, Array]:
    """The smallest input the model takes."""
    return {
        spec.name: np.full(
            tuple(max(1, size) for size in spec.shape),
            b"" if spec.datatype.dtype == object else 0,
            spec.datatype.dtype,
        )
        for spec in signature.inputs
    }
