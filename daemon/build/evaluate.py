"""Runs model folders in workers of the daemon's own, as a device will, and tells what came of it.

A folder is loaded by the rules by which any model is served; a model that crashes, hangs or takes
too much memory ends its worker, not the build. One folder runs at a time.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import CollectorRegistry

from accelerators.base import Isolation
from accelerators.errors import AcceleratorError
from accelerators.forkserver import ForkServer
from daemon.build.errors import CannotBuild, NotServable
from daemon.build.rows import read_rows
from daemon.errors import DaemonError
from daemon.logs import ROOT_LOGGER
from daemon.metrics import Metrics
from daemon.models.registry import ModelRegistry
from daemon.models.served import ServedVersion
from daemon.models.settings import choose_settings
from daemon.models.store import look_at_release
from daemon.pipeline.media import MediaLimits
from daemon.probe import Prober
from daemon.service import InferenceService
from daemon.tensors import PredictRequest, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from accelerators.base import ModelReport, SignatureSpec
    from daemon.build.rows import Row
    from daemon.config import Config
    from daemon.models.served import Target
    from daemon.pipeline.profiles import ModelProfile
    from daemon.probe import Verdict
    from daemon.tensors import PredictResult

    OnAnswer = Callable[[int, PredictResult], None]
    """Told of each row's number and its answer."""

LEAST_CALLS = 20
"""For a latency: fewer rows are asked again until there are so many calls."""

_NO_WORKER = "no worker can be started to try the model"
_STOP_S = 1.0
_TOP_K = 2  # the best class and the next: how sure the model is


@dataclass(frozen=True, slots=True)
class Look:
    """What a worker found out about a model.

    Attributes:
        signature: the default one.
    """

    report: ModelReport
    profile: ModelProfile

    @property
    def signature(self) -> SignatureSpec:
        """The default one."""
        return self.report.signatures[0]


@contextmanager
def evaluating(config: Config) -> Iterator[Evaluator]:
    """Workers for model folders until the block ends. What they would log is in the errors.

    Raises:
        CannotBuild: no worker is to be had on this machine.
    """
    log = logging.getLogger(ROOT_LOGGER)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            forkserver = ForkServer()
            try:
                runner.run(forkserver.start())
            except OSError as exc:
                raise CannotBuild(f"{_NO_WORKER}: {exc}") from exc
            try:
                yield Evaluator(runner, forkserver, config)
            finally:
                runner.run(forkserver.stop())
    except AcceleratorError as exc:
        raise CannotBuild(f"{_NO_WORKER}: {exc}") from exc
    finally:
        log.setLevel(level)


class Evaluator:
    """Runs one folder after the other."""

    def __init__(self, runner: asyncio.Runner, forkserver: ForkServer, config: Config) -> None:
        """Store only."""
        self._runner = runner
        self._forkserver = forkserver
        self._config = config
        self.media_limits = MediaLimits(
            max_pixels=config.media.max_pixels, max_audio_s=config.media.max_audio_s
        )

    def look(self, folder: Path) -> Look:
        """Load the model of a folder, and say what it is.

        Raises:
            NotServable: it cannot be served.
        """
        return self._runner.run(self._look(folder))

    def run(self, folder: Path, rows: Path, on_answer: OnAnswer, *, every: int = 1) -> float:
        """Ask a folder's model the rows of a file, one at a time.

        Args:
            every: 2 for each second row only, and so on; the first is asked in any case.

        Returns:
            The median time of an invocation, in milliseconds.

        Raises:
            NotServable: it cannot be served, or does not answer; says at which row.
        """
        return self._runner.run(self._run(folder, rows, on_answer, every))

    def probe(self, folder: Path) -> Verdict:
        """Whether a device would take it: its health samples and its limits."""
        return self._runner.run(self._probe(folder))

    async def _look(self, folder: Path) -> Look:
        async with self._loaded(folder) as target:
            return Look(target.report, target.profile)

    async def _run(self, folder: Path, rows: Path, on_answer: OnAnswer, every: int) -> float:
        times_s: list[float] = []

        def numbered() -> Iterator[tuple[int, Row]]:
            return islice(enumerate(read_rows(rows)), 0, None, every)

        async with self._service() as service, self._loaded(folder) as target:
            for number, row in numbered():
                result = await _ask(service, target, row, number)
                times_s.append(result.timing.invoke)
                on_answer(number, result)
            while 0 < len(times_s) < LEAST_CALLS:
                for number, row in numbered():
                    result = await _ask(service, target, row, number)
                    times_s.append(result.timing.invoke)
        return 1000 * statistics.median(times_s) if times_s else 0.0

    async def _probe(self, folder: Path) -> Verdict:
        async with self._service() as service:
            return await Prober(self._config, self._forkserver, service).probe(folder)

    @asynccontextmanager
    async def _service(self) -> AsyncIterator[InferenceService]:
        metrics = Metrics(CollectorRegistry())
        with ThreadPoolExecutor(1) as executor:
            yield InferenceService(
                ModelRegistry(self._config, forkserver=self._forkserver, metrics=metrics),
                metrics=metrics,
                media_limits=self.media_limits,
                media_executor=executor,
            )

    @asynccontextmanager
    async def _loaded(self, folder: Path) -> AsyncIterator[Target]:
        name, found = await asyncio.to_thread(look_at_release, folder)
        if found is None:
            raise NotServable(f"no model in {folder}")
        settings = choose_settings(found, self._config)
        served = ServedVersion(
            name,
            found,
            replace(settings, load=replace(settings.load, isolation=Isolation.PROCESS)),
            forkserver=self._forkserver,
            metrics=Metrics(CollectorRegistry()),
        )
        await served.load()
        try:
            if served.target is None:
                raise NotServable(f"the daemon cannot serve it: {served.status.reason}")
            yield served.target
        finally:
            await served.retire(_STOP_S)


async def _ask(service: InferenceService, target: Target, row: Row, number: int) -> PredictResult:
    request = PredictRequest(
        inputs=row,
        deadline=time.monotonic() + target.timeout_s,
        request_id=f"row-{number}",
        protocol=Protocol.NATIVE,
        want_meaning=True,
        want_outputs=True,
        top_k=_TOP_K,
    )
    try:
        return await service.predict(target, request)
    except DaemonError as exc:
        raise NotServable(f"the model does not answer item {number}: {exc}") from exc
