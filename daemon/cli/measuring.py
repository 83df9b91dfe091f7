"""Runs a model as the daemon runs it, under a steady load, and measures what comes of it.

The version that is loaded, its workers and the queue in front of them are the daemon's own. What is
left out does not depend on the settings: HTTP, MQTT, and making tensors of pictures and sounds.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from accelerators.base import Isolation
from accelerators.calls import DeathReason
from daemon.cli.machine import Disturbance, memory_of
from daemon.cli.outcome import CommandError
from daemon.cli.tuning import Figures, Outcome, Setting
from daemon.dispatch import Job, sharing_key
from daemon.metrics import Metrics
from daemon.models.served import ServedVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from accelerators.base import Array, ModelReport
    from accelerators.forkserver import ForkServer
    from daemon.cli.modelsource import Source
    from daemon.dispatch import Answer
    from daemon.models.served import Target
    from daemon.models.settings import Settings
    from daemon.pipeline.profiles import ModelProfile

    Inputs = Mapping[str, Array]
    """A request's tensors by name, one row each."""

LEAST_ANSWERS = 10
"""A setting that has given fewer is measured for longer: fewer have no median worth the name."""
LONGEST_S = 60.0
"""For how much longer at most; a model of more than six seconds a call has other troubles."""
WARM_SHARE = 0.2
"""Of the time that is counted: for how long the load goes on before it."""

_OVER_LIMIT = "may take"
"""In every reason of a worker that ran into its memory limit."""
_STOP_S = 1.0
"""For a version to stop; nobody holds it, so there is nothing to wait for."""


class NotMeasured(Exception):
    """A setting has no figures.

    Attributes:
        outcome: what kind of trouble it had.
        reason: for the operator.
    """

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What one worker alone shows of a model.

    Attributes:
        report, profile: of a load with the present batch size.
        can_batch: whether rows of several requests may share an invocation.
        load_s: from the order to the report.
        memory_bytes: proportional set size of the worker.
    """

    report: ModelReport
    profile: ModelProfile
    can_batch: bool
    load_s: float
    memory_bytes: int


class Stand:
    """Where the settings of one model are tried, one after the other."""

    def __init__(self, source: Source, forkserver: ForkServer) -> None:
        """Store only. `source` says how the daemon would run the model now."""
        self._source = source
        self._forkserver = forkserver

    async def look(self) -> FirstLook:
        """Load the model in one worker.

        Raises:
            CommandError: it cannot be served.
        """
        load = self._source.settings.load
        present = Setting(1, load.threads, load.max_batch)
        began = time.monotonic()
        try:
            target, memory_bytes = await self._load_one(present)
            load_s = time.monotonic() - began
            report = target.report
            can_batch = report.max_batch > 1
            if not can_batch and not report.stateful:
                target_of_two, _ = await self._load_one(replace(present, max_size=2))
                can_batch = target_of_two.report.max_batch > 1
        except NotMeasured as exc:
            raise CommandError(f"the model cannot be served: {exc.reason}") from exc
        return FirstLook(report, target.profile, can_batch, load_s, memory_bytes)

    async def why_refused(self, inputs: Inputs) -> str:
        """Ask once with these inputs; "" when the model answers, else its reason."""
        present = Setting(1, self._source.settings.load.threads, 1)
        try:
            await self._measure(present, [inputs], 1, seconds=0.0, least=1)
        except NotMeasured as exc:
            return exc.reason
        return ""

    async def measure(
        self, setting: Setting, inputs: Sequence[Inputs], clients: int, seconds: float
    ) -> Figures:
        """Keep so many requests under way, and count the answers.

        Args:
            setting: how the model is run.
            inputs: asked in turn; at least one.
            clients: requests under way.
            seconds: for how long is counted; longer when few answers come.

        Raises:
            NotMeasured: it does not load, or does not go on answering.
        """
        return await self._measure(setting, inputs, clients, seconds=seconds, least=LEAST_ANSWERS)

    async def _measure(
        self,
        setting: Setting,
        inputs: Sequence[Inputs],
        clients: int,
        *,
        seconds: float,
        least: int,
    ) -> Figures:
        run = self._run(setting)
        try:
            target = await run.start()
            if target.report.max_batch < setting.max_size:
                raise NotMeasured(
                    Outcome.UNPROVEN,
                    f"{setting.max_size} rows at once were not shown to be answered as one by one",
                )
            run.load(target, inputs, clients)
            return await run.count(seconds, least)
        finally:
            await run.stop()

    async def _load_one(self, setting: Setting) -> tuple[Target, int]:
        """Load it and stop it; gives what it was, and the memory it took in bytes."""
        run = self._run(setting)
        try:
            return await run.start(), run.memory_bytes
        finally:
            await run.stop()

    def _run(self, setting: Setting) -> _Run:
        settings = self._source.settings
        load = replace(
            settings.load,
            instances=setting.instances,
            threads=setting.threads,
            max_batch=setting.max_size,
            # In processes whatever it says: a crash of the model must not end the measurement.
            isolation=Isolation.PROCESS,
            recycle_after_calls=0,
        )
        delay_s = setting.max_delay_ms / 1000
        changed = replace(settings, load=load, max_delay_s=delay_s)
        return _Run(self._source, changed, self._forkserver)


class _Run:
    """One setting under load: the version in question, and the requests under way."""

    def __init__(self, source: Source, settings: Settings, forkserver: ForkServer) -> None:
        self._settings = settings
        self._served = ServedVersion(
            source.name,
            source.found,
            settings,
            forkserver=forkserver,
            metrics=_Watch(self._on_death),
        )
        self._inputs: Iterator[Inputs] = iter(())
        self._latencies_s: list[float] = []
        self._wanted = 0  # answers; `_enough` is done when they are there
        loop = asyncio.get_running_loop()
        self._enough: asyncio.Future[None] = loop.create_future()
        self._trouble: asyncio.Future[NotMeasured] = loop.create_future()
        self._is_over = False

    @property
    def memory_bytes(self) -> int:
        """Proportional set size of its workers."""
        return memory_of(self._served.pids)

    async def start(self) -> Target:
        """Start every worker.

        Raises:
            NotMeasured: the model is refused.
        """
        await self._served.load()
        target = self._served.target
        if target is None:
            reason = self._served.status.reason
            raise NotMeasured(_outcome(reason), reason)
        return target

    def load(self, target: Target, inputs: Sequence[Inputs], clients: int) -> None:
        """Set so many requests under way; each answer is followed by another request."""
        self._inputs = cycle(inputs)
        for _ in range(clients):
            self._ask(target)

    async def count(self, seconds: float, least: int) -> Figures:
        """Count for so long, and until there are `least` answers.

        Raises:
            NotMeasured: a request or a worker failed, or answers came too slowly.
        """
        await self._wait(WARM_SHARE * seconds, 1)
        self._latencies_s = []
        others = Disturbance(self._served.pids)
        began = time.monotonic()
        await self._wait(seconds, least)
        elapsed_s = time.monotonic() - began
        ordered = sorted(self._latencies_s)
        return Figures(
            p50_ms=1000 * _percentile(ordered, 50),
            p99_ms=1000 * _percentile(ordered, 99),
            rows_per_s=len(ordered) / elapsed_s,
            memory_bytes=self.memory_bytes,
            answers=len(ordered),
            others_percent=others.percent(),
        )

    async def stop(self) -> None:
        """End the requests and the workers."""
        self._is_over = True
        await self._served.retire(_STOP_S)

    def on_answer(self, request: _Request) -> None:
        """Count an answer, and ask for the next."""
        if self._is_over:
            return
        self._latencies_s.append(time.monotonic() - request.enqueued_at)
        if len(self._latencies_s) == self._wanted and not self._enough.done():
            self._enough.set_result(None)
        self._ask(request.target)

    def on_failure(self, reason: str) -> None:
        """The first failure ends the run: figures of a model that fails mean nothing."""
        if not (self._is_over or self._trouble.done()):
            self._trouble.set_result(NotMeasured(_outcome(reason), reason))

    async def _wait(self, seconds: float, least: int) -> None:
        """Let the load go on for so long, and longer until there are `least` answers."""
        self._wanted = least
        self._enough = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._trouble], timeout=seconds)
        if len(self._latencies_s) < least:
            ends: list[asyncio.Future[object]] = [self._trouble, self._enough]  # type: ignore[list-item] # of either kind
            await asyncio.wait(ends, timeout=LONGEST_S, return_when=asyncio.FIRST_COMPLETED)
        if self._trouble.done():
            raise self._trouble.result()
        if (found := len(self._latencies_s)) < least:
            told = f"{found} of {least} answers in {seconds + LONGEST_S:.0f} s"
            raise NotMeasured(Outcome.FAILED, told)

    def _ask(self, target: Target) -> None:
        target.dispatcher.submit(_Request(self, target, next(self._inputs)))

    def _on_death(self, reason: DeathReason) -> None:
        load = self._settings.load
        words = {
            DeathReason.MEMORY: f"needed more than the {load.memory_mib} MiB it {_OVER_LIMIT}",
            DeathReason.TIMEOUT: f"was killed, as a call took more than {load.call_timeout_s:g} s",
        }
        self.on_failure(f"a worker {words.get(reason, 'died under load')}")


class _Request(Job):
    """A request of one row."""

    __slots__ = ("_run", "target")

    def __init__(self, run: _Run, target: Target, inputs: Inputs) -> None:
        key = sharing_key(inputs) if target.report.max_batch > 1 else None
        signature = target.default_signature.name
        super().__init__(signature, inputs, rows=1, key=key, deadline=math.inf)
        self._run = run
        self.target = target

    def answered(self, answer: Answer) -> None:  # noqa: ARG002 (what it says is not looked at)
        """Count it."""
        self._run.on_answer(self)

    def failed(self, error: Exception) -> None:
        """End the run."""
        self._run.on_failure(str(error))


class _Watch(Metrics):
    """The version's metrics. One of them is looked at: a retry would hide that a worker died."""

    def __init__(self, on_death: Callable[[DeathReason], None]) -> None:
        super().__init__(CollectorRegistry())
        self._on_death = on_death

    def worker_restart(self, model: str, reason: str) -> None:
        """A worker has died."""
        super().worker_restart(model, reason)
        self._on_death(DeathReason(reason))


def _outcome(reason: str) -> Outcome:
    return Outcome.MEMORY if _OVER_LIMIT in reason else Outcome.FAILED


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """By nearest rank."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
