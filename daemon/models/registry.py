"""ModelRegistry: brings what is served in line with what is wanted, one version at a time.

The order that loses no request: the new version is loaded and warmed first, then it takes the new
requests, then the old one finishes its own and is stopped. A version that cannot be loaded stays
listed with its reason, and the old one goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict

from daemon.errors import LabelNotFound, ModelNotFound, ModelUnavailable, VersionNotFound
from daemon.models.served import ServedVersion
from daemon.models.settings import Settings, choose_settings
from daemon.models.status import ModelStatus, VersionState, VersionStatistics, VersionStatus
from daemon.models.store import FoundModel, FoundVersion, scan
from daemon.models.versions import (
    default_version,
    labels_of,
    version_problems,
    wanted_versions,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Iterable

    from accelerators.forkserver import ForkServer
    from accelerators.hardware import Hardware
    from daemon.config import Config
    from daemon.metrics import Metrics
    from daemon.models.traffic import TrafficReport

_log = logging.getLogger(f"inferd.{__name__}")

_MAX_LOADS = max(1, os.cpu_count() or 1)
"""Models loaded side by side: more would only compete for the processors."""

_LONGEST_RETRY_S = 60.0
"""Between tries of a version for which no worker or device was to be had."""

_LONGEST_REQUEST_S = 3600.0
"""The most time that a client may give a request: what a replaced version is in the middle of is
not cut off, and each call that hangs in it still ends at the model's own limit."""


class _Model:
    """One model: the versions that answer, and those that are on their way or were refused."""

    def __init__(self, found: FoundModel) -> None:
        self.name = found.name
        self.found = found
        self.on_disk = True
        self.unloaded = False
        self.answering: dict[int, ServedVersion] = {}
        self.candidates: dict[int, ServedVersion] = {}
        self.retiring: set[ServedVersion] = set()
        self.default: ServedVersion | None = None

    @property
    def labels(self) -> dict[str, int]:
        return dict(self.found.entry.labels) if self.found.entry else {}

    @property
    def is_gone(self) -> bool:
        """Whether nothing of it is to be served, whatever lies on disk."""
        return self.unloaded or not self.on_disk or not self.found.versions

    @property
    def wanted(self) -> dict[int, FoundVersion]:
        """Versions that should answer: chosen among those that were not refused as they are.

        So the next older version takes the place of a newest one that cannot be loaded, at a cold
        start too.
        """
        if self.is_gone:
            return {}
        usable = {found.version: found for found in self.found.versions if not self._refused(found)}
        numbers = wanted_versions(usable.keys(), self.found.entry)
        return {number: usable[number] for number in sorted(numbers)}

    def _refused(self, found: FoundVersion) -> bool:
        candidate = self.candidates.get(found.version)
        return (
            candidate is not None
            and candidate.state is VersionState.UNAVAILABLE
            and candidate.found.stamp == found.stamp
            and not candidate.is_due
        )

    @property
    def all_served(self) -> tuple[ServedVersion, ...]:
        """Everything that may have workers."""
        return (*self.answering.values(), *self.candidates.values(), *self.retiring)

    def draining(self, version: int) -> ServedVersion | None:
        """The one of that number that finishes its last requests."""
        return next((served for served in self.retiring if served.version == version), None)

    def refresh_default(self) -> None:
        newest = default_version(self.answering)
        self.default = None if newest is None else self.answering[newest]

    @property
    def is_settled(self) -> bool:
        return not any(v.state is VersionState.LOADING for v in self.candidates.values())

    @property
    def hindrance(self) -> str:
        """Why what lies on disk could not be tried, which is not its own fault; "" when nothing."""
        if self.found.problem and not self.unloaded:
            return self.found.problem
        short = (each for each in self.candidates.values() if each.lacks_worker)
        return next((each.status.reason for each in short), "")

    @property
    def reason(self) -> str:
        """Why nothing answers, in one sentence."""
        if self.unloaded:
            return "it was unloaded by the operator"
        for number in sorted(self.candidates, reverse=True):
            status = self.candidates[number].status
            return status.reason or "it is being loaded"
        return self.found.problem or "no version of it is served"

    def status(self) -> ModelStatus:
        versions: dict[int, VersionStatus] = {}
        if self.unloaded:
            versions = {
                number: _unavailable(number, self.reason) for number in _numbers(self.found)
            }
        for served in self.retiring:
            versions[served.version] = served.status
        for served in self.candidates.values():
            versions[served.version] = served.status
        for served in self.answering.values():
            versions[served.version] = self._answering_status(served)
        newest_first = tuple(versions[number] for number in sorted(versions, reverse=True))
        if not newest_first and self.found.problem:
            newest_first = (_unavailable(1, self.found.problem),)
        description = self.default.found.tables.model.description if self.default else None
        if not description and self.default and self.default.target:
            description = self.default.target.report.metadata.description
        return ModelStatus(
            name=self.name,
            versions=newest_first,
            labels=labels_of(self.answering, self.found.entry),
            description=description or "",
            wanted=not self.unloaded,
            required=self._required,
        )

    @property
    def _required(self) -> tuple[int, ...]:
        """Versions the configuration names one by one."""
        entry = self.found.entry
        return entry.versions if entry and entry.version_policy == "specific" else ()

    def _answering_status(self, served: ServedVersion) -> VersionStatus:
        """Its own status, with what became of the file that should replace it."""
        status = served.status
        newer = self.candidates.get(served.version)
        if status.reason or (newer is None and not self.found.problem):
            return status
        if newer is None:
            reason = f"it answers on, but {self.found.problem}"
        elif not newer.status.reason:
            reason = "a changed file is being loaded"
        else:
            reason = f"a changed file was refused: {newer.status.reason}"
        return VersionStatus(
            version=status.version,
            state=status.state,
            reason=reason,
            report=status.report,
            profile=status.profile,
            trials=status.trials,
        )


class ModelRegistry:
    """Owns every served version, and the task that looks for changes on disk."""

    def __init__(
        self,
        config: Config,
        *,
        forkserver: ForkServer,
        metrics: Metrics,
        hardware: Hardware | None = None,
    ) -> None:
        """Store only; `start` begins."""
        self._config = config
        self._forkserver = forkserver
        self._metrics = metrics
        self._hardware = hardware
        self._models: dict[str, _Model] = {}
        self._seen: dict[tuple[str, int], object] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loads = asyncio.Semaphore(_MAX_LOADS)
        self._refreshing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._stopping = False
        self.has_looked = False
        """Whether the disk was looked at, so that what is wanted is known."""

    async def start(self) -> None:
        """Look at the disk once, begin to load what is wanted, and keep looking."""
        await self.refresh(trust_first_sight=True)
        self._spawn(self._watch(), "models-watch")

    def begin_stop(self) -> None:
        """Begin no load any more, and let nobody wait for one; what answers goes on."""
        self._stopping = True
        self._spawn(self._tell(), "models-stopping")

    async def stop(self, grace_s: float) -> None:
        """Let requests under way finish, for at most so many seconds, and stop every worker."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        served = [version for model in self._models.values() for version in model.all_served]
        await asyncio.gather(*(version.retire(grace_s) for version in served))

    async def reconfigure(self, config: Config) -> None:
        """Serve what another configuration wants."""
        self._config = config
        for model in self._models.values():
            self._forget_refusals(model, keep=())  # what was refused may fit the new limits
        await self.refresh(trust_first_sight=True)

    def find(self, name: str, version: int | None, label: str | None) -> ServedVersion:
        """The version that answers for (name, version, label) now.

        Raises:
            ModelNotFound, VersionNotFound, LabelNotFound: there is no such thing.
            ModelUnavailable: it is known and cannot answer now.
        """
        model = self._models.get(name)
        if model is None:
            raise ModelNotFound(name)
        if label is not None:
            labels = model.labels
            if label not in labels:
                raise LabelNotFound(name, label)
            version = labels[label]
        served = model.default if version is None else model.answering.get(version)
        if served is None:
            raise self._absent(model, version)
        if reason := served.down_reason:
            raise ModelUnavailable(name, reason, version=served.version, passes=True)
        return served

    def models(self) -> tuple[ModelStatus, ...]:
        """Every known model, by name."""
        return tuple(self._models[name].status() for name in sorted(self._models))

    def model(self, name: str) -> ModelStatus:
        """One model.

        Raises:
            ModelNotFound: it is not known.
        """
        return self._get(name).status()

    def statistics(self, name: str, version: int) -> VersionStatistics:
        """Counters of a loaded version.

        Raises:
            ModelNotFound, VersionNotFound: it is not known or was never loaded.
        """
        model = self._get(name)
        served = model.answering.get(version) or model.draining(version)
        if served is None:
            raise VersionNotFound(name, version)
        return served.counters.snapshot()

    def traffic(self, name: str, version: int | None) -> TrafficReport:
        """How a version that answers has done with real requests; the newest when not said.

        Raises:
            ModelNotFound, VersionNotFound, ModelUnavailable: it is not known or does not answer.
        """
        return self.find(name, version, None).traffic_report

    async def activate(self, name: str) -> None:
        """Serve what the disk holds for a name now, known or not; returns when that is settled.

        Raises:
            ModelNotFound: there is nothing of that name.
            ModelUnavailable: no version of it answers; or, with `passes`, this daemon could not try
                what is there: it lacks a worker, cannot read the disk, or is being stopped.
        """
        await self.refresh(trust_first_sight=True)
        await self.load(name)
        if hindrance := self._get(name).hindrance:
            raise ModelUnavailable(name, hindrance, passes=True)

    async def load(self, name: str) -> None:
        """Want a known model again, try what was refused again; returns when that is settled.

        Raises:
            ModelNotFound: it is not known.
            ModelUnavailable: no version of it answers.
        """
        self._get(name).unloaded = False
        self._forget_refusals(self._get(name), keep=())
        await self.refresh(trust_first_sight=True)
        model = self._get(name)
        async with self._changed:
            await self._changed.wait_for(lambda: model.is_settled or self._stopping)
        if self._stopping:
            raise ModelUnavailable(name, "the daemon is being stopped", passes=True)
        if model.default is None:
            raise ModelUnavailable(name, model.reason, passes=bool(model.hindrance))

    async def unload(self, name: str) -> None:
        """Drain and stop every version of a model.

        Raises:
            ModelNotFound: it is not known.
        """
        model = self._get(name)
        model.unloaded = True
        self._reconcile(model)
        async with self._changed:
            await self._changed.wait_for(
                lambda: not (model.answering or model.retiring) or self._stopping
            )

    async def settled(self) -> None:
        """Wait until every wanted version answers or was refused."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: all(model.is_settled for model in self._models.values())
            )

    async def refresh(self, *, trust_first_sight: bool = False) -> None:
        """Look at the disk and act on what is new.

        Args:
            trust_first_sight: take a changed file as it is; otherwise it must look the same twice,
                so that a file that is still being copied is not loaded.
        """
        async with self._refreshing:
            found = await asyncio.to_thread(scan, self._config)
            self._adopt(found, trust_first_sight=trust_first_sight)
            self.has_looked = True
            for model in list(self._models.values()):
                self._reconcile(model)
        await self._tell()

    def _get(self, name: str) -> _Model:
        if name not in self._models:
            raise ModelNotFound(name)
        return self._models[name]

    def _absent(self, model: _Model, version: int | None) -> Exception:
        passes = not model.is_settled
        if version is None:
            return ModelUnavailable(model.name, model.reason, passes=passes)
        other = model.candidates.get(version) or model.draining(version)
        if other is None and not (model.unloaded and self._is_found(model, version)):
            return VersionNotFound(model.name, version)
        reason = (other.status.reason if other else "") or model.reason
        return ModelUnavailable(model.name, reason, version=version, passes=passes)

    @staticmethod
    def _is_found(model: _Model, version: int) -> bool:
        return version in _numbers(model.found)

    def _adopt(self, found: Iterable[FoundModel], *, trust_first_sight: bool) -> None:
        """Take over what the disk shows, leaving out what may still be half written."""
        seen: dict[tuple[str, int], object] = {}
        names: set[str] = set()
        for model in found:
            names.add(model.name)
            steady: list[FoundVersion] = []
            for version in model.versions:
                key = (model.name, version.version)
                seen[key] = version.stamp
                if trust_first_sight or self._seen.get(key) == version.stamp:
                    steady.append(version)
                elif (before := self._adopted(model.name, version.version)) is not None:
                    steady.append(before)
            if len(steady) < len(model.versions):
                steady += self._vanished(model)
            known = self._models.get(model.name)
            if known is None:
                known = self._models[model.name] = _Model(model)
                self._metrics.know_model(model.name)
                _log_problems(model)
            if model.problem and not model.versions and known.answering:
                # Perhaps the disk or the process is short of something: what answers goes on.
                known.found = replace(known.found, problem=model.problem)
            else:
                known.found = replace(model, versions=tuple(steady))
            known.on_disk = True
        self._seen = seen
        for name, known in self._models.items():
            if name not in names:
                known.on_disk = False

    def _adopted(self, name: str, version: int) -> FoundVersion | None:
        model = self._models.get(name)
        if model is None:
            return None
        return next((v for v in model.found.versions if v.version == version), None)

    def _vanished(self, model: FoundModel) -> list[FoundVersion]:
        """Versions that were there before and have gone: perhaps one still half written follows.

        They are served on until it is known what does. An updater's link, for one, names another
        version from one moment to the next.
        """
        known = self._models.get(model.name)
        there = _numbers(model)
        return [v for v in known.found.versions if v.version not in there] if known else []

    @staticmethod
    def _forget_refusals(model: _Model, keep: Collection[int]) -> None:
        for number, candidate in list(model.candidates.items()):
            if candidate.state is VersionState.UNAVAILABLE and number not in keep:
                candidate.give_up()
                del model.candidates[number]

    def _reconcile(self, model: _Model) -> None:
        """Start what is missing, retire what is no longer wanted; never waits."""
        if self._stopping:
            return
        wanted = model.wanted
        for number, found in wanted.items():
            settings = choose_settings(found, self._config)
            latest = model.candidates.get(number) or model.answering.get(number)
            if latest is None or (
                latest.state is not VersionState.LOADING
                and (latest.is_due or _differs(latest, found, settings))
            ):
                self._begin(model, found, settings)
        self._forget_refusals(model, keep=() if model.is_gone else _numbers(model.found))
        replaced = bool(wanted) and all(number in model.answering for number in wanted)
        for number in list(model.answering):
            if number not in wanted and (replaced or model.is_gone):
                self._retire(model, model.answering.pop(number))
        model.refresh_default()
        if not (model.on_disk or model.answering or model.candidates or model.retiring):
            del self._models[model.name]
            self._metrics.forget_model(model.name)

    def _begin(self, model: _Model, found: FoundVersion, settings: Settings) -> None:
        before = model.candidates.get(found.version)
        is_retry = before is not None and before.is_due and not _differs(before, found, settings)
        candidate = ServedVersion(
            model.name,
            found,
            settings,
            forkserver=self._forkserver,
            metrics=self._metrics,
            hardware=self._hardware,
            **_of_retry(before if is_retry else None),
        )
        if before is not None:
            before.give_up()
        model.candidates[found.version] = candidate
        self._spawn(self._bring_up(model, candidate), f"load-{model.name}-{found.version}")

    async def _bring_up(self, model: _Model, candidate: ServedVersion) -> None:
        async with self._loads:
            await candidate.load()
        if candidate.state is VersionState.READY:
            del model.candidates[candidate.version]
            before = model.answering.pop(candidate.version, None)
            model.answering[candidate.version] = candidate
            model.refresh_default()
            if before is not None:
                self._retire(model, before)
        self._reconcile(model)
        await self._tell()

    def _retire(self, model: _Model, served: ServedVersion) -> None:
        model.retiring.add(served)
        self._spawn(self._wind_down(model, served), f"retire-{model.name}-{served.version}")

    async def _wind_down(self, model: _Model, served: ServedVersion) -> None:
        is_replaced = not model.is_gone  # and nobody waits for its end
        drain_s = _LONGEST_REQUEST_S if is_replaced else self._config.life.drain_timeout_s
        await served.retire(drain_s)
        model.retiring.discard(served)
        self._reconcile(model)
        await self._tell()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._config.models.poll_interval_s)
            try:
                await self.refresh()
            except Exception:  # noqa: BLE001 (top of a task: it must go on looking)
                _log.exception("looking for models failed; trying again")

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task failed task=%s", task.get_name(), exc_info=error)


def _numbers(found: FoundModel) -> tuple[int, ...]:
    return tuple(version.version for version in found.versions)


def _unavailable(number: int, reason: str) -> VersionStatus:
    return VersionStatus(version=number, state=VersionState.UNAVAILABLE, reason=reason)


def _log_problems(model: FoundModel) -> None:
    problems = version_problems(_numbers(model), model.entry)
    for problem in (model.problem, *problems) if model.problem else problems:
        _log.error("model has a problem model=%s problem=%s", model.name, problem)


class _Retry(TypedDict, total=False):
    refused_before: str
    retry_s: float


def _of_retry(before: ServedVersion | None) -> _Retry:
    """What a version is told of the try before, if it is tried again as it is."""
    if before is None:
        return {}
    retry_s = min(_LONGEST_RETRY_S, 2 * before.retry_s)
    return {"refused_before": before.status.reason, "retry_s": retry_s}


def _differs(served: ServedVersion, found: FoundVersion, settings: Settings) -> bool:
    return served.found.stamp != found.stamp or served.settings != settings
