"""One run of `bench`: from a model to a report, in the order of the rules in `tuning.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerators.base import Isolation
from accelerators.forkserver import ForkServer
from accelerators.process import SLOTS
from daemon.cli.benchinputs import OPEN_SIZES, describe_inputs, random_rows, read_samples
from daemon.cli.benchreport import Report
from daemon.cli.machine import BUSY_PERCENT
from daemon.cli.measuring import LEAST_ANSWERS, WARM_SHARE, NotMeasured, Stand
from daemon.cli.outcome import CommandError
from daemon.cli.text import mebibytes, milliseconds
from daemon.cli.tuning import Goal, Outcome, Row, Setting, choose, pick
from daemon.cli.tuningsearch import (
    MOST_BATCHED,
    Space,
    batch_sizes,
    delays,
    memory_problem,
    most_settings,
    placements,
    usual_clients,
    why_left_out,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from daemon.cli.machine import Machine
    from daemon.cli.measuring import FirstLook, Inputs
    from daemon.cli.modelsource import Source
    from daemon.cli.tuning import Figures
    from daemon.pipeline.media import MediaLimits

_RESERVE_BYTES = 128 << 20
"""Memory that a setting must leave free: for the daemon, and for a version that takes over while
the one before it still runs."""
_SHORT_S = 0.5
"""Below this, the figures of one setting scatter by more than what settings differ in."""

_UNPROVEN = "the load has not shown that rows asked together are answered as they are alone"
_CHALLENGERS = 2
"""Settings that may show once more that they are better than the present one."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator asked for.

    Attributes:
        seconds: to count for each setting.
        clients: requests to keep under way; None leaves it to the goal.
        instances, threads, max_sizes: the only values to try; () leaves them to the rules.
    """

    goal: Goal
    seconds: float
    clients: int | None
    instances: tuple[int, ...]
    threads: tuple[int, ...]
    max_sizes: tuple[int, ...]


async def measure_model(
    source: Source, wish: Wish, limits: MediaLimits, machine: Machine, tell: Callable[[str], None]
) -> Report:
    """Measure what is worth measuring, and choose.

    Args:
        source: the model.
        wish: what was asked for.
        limits: what is still decoded of its samples.
        machine: as it was before.
        tell: told how long it will take, then of each setting; one line each.

    Raises:
        CommandError: the model cannot be served.
        AcceleratorError, OSError: there is no fork server to be had.
    """
    forkserver = ForkServer()
    await forkserver.start()
    try:
        stand = Stand(source, forkserver)
        first = await stand.look()
        inputs, asked = await _choose_inputs(source, limits, stand, first)
        search = _Search(stand, inputs, wish, _plan(source, wish, first, machine))
        tell(search.announce(source, first))
        await search.run(tell)
        return search.report(source, asked, first.report.digest)
    finally:
        await forkserver.stop()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known before the first setting is measured.

    Attributes:
        worker_bytes: proportional set size of one worker.
        most_bytes: that a worker should take at most (`[health] max_memory_mib`); 0 for no bound.
    """

    present: Setting
    space: Space
    machine: Machine
    worker_bytes: int
    most_bytes: int
    notes: tuple[str, ...]


def _plan(source: Source, wish: Wish, first: FirstLook, machine: Machine) -> _Plan:
    load, report = source.settings.load, first.report
    present = Setting(
        instances=1 if report.stateful else load.instances,
        threads=load.threads,
        max_size=report.max_batch,
        max_delay_ms=source.settings.max_delay_s * 1000,
    )
    clients = wish.clients or usual_clients(
        wish.goal,
        workers=max(machine.processors, present.instances, *wish.instances),
        calls=SLOTS,
        rows=max(wish.max_sizes or (MOST_BATCHED, present.max_size)) if first.can_batch else 1,
        queue=source.settings.queue,
    )
    space = Space(
        processors=machine.processors,
        clients=clients,
        batches=first.can_batch,
        stateful=report.stateful,
        instances=wish.instances,
        threads=wish.threads,
        max_sizes=wish.max_sizes if first.can_batch else (),
    )
    return _Plan(
        present=present,
        space=space,
        machine=machine,
        worker_bytes=first.memory_bytes,
        most_bytes=(source.found.tables.health.max_memory_mib or 0) << 20,
        notes=_notes(source, wish, first),
    )


def _notes(source: Source, wish: Wish, first: FirstLook) -> tuple[str, ...]:
    load, report = source.settings.load, first.report
    notes = []
    if report.stateful:
        notes.append("the model keeps state between calls: it has one instance and no batches")
    elif load.max_batch > 1 and report.max_batch == 1:
        notes.append(f"batching.max_size = {load.max_batch} has no effect: {_UNPROVEN}")
    elif not first.can_batch and (load.max_batch != 1 or wish.max_sizes):
        notes.append(f"no batches: {_UNPROVEN}")
    if load.isolation is Isolation.THREAD:
        notes.append('measured in worker processes, though isolation is "thread"')
    if wish.seconds < _SHORT_S:
        notes.append(f"{wish.seconds:g} s a setting is short: the figures scatter")
    return tuple(notes)


async def _choose_inputs(
    source: Source, limits: MediaLimits, stand: Stand, first: FirstLook
) -> tuple[Sequence[Inputs], str]:
    """What the model is asked, and that in words.

    Raises:
        CommandError: it answers nothing that is known here.
    """
    folder = source.found.folder
    if folder is not None and (samples := read_samples(folder, first.profile, limits)):
        count = f"{len(samples)} sample{'s' if len(samples) > 1 else ''} of its folder"
        return samples, f"{count}, {describe_inputs(samples[0])}"
    reason = ""
    for size in OPEN_SIZES:
        rows = random_rows(first.report.signatures[0], size)
        reason = await stand.why_refused(rows[0])
        if not reason:
            return rows, f"random numbers, {describe_inputs(rows[0])}"
    raise CommandError(f"the model does not answer random numbers: {reason}")


class _Search:
    """The rows so far, and what comes next."""

    def __init__(self, stand: Stand, inputs: Sequence[Inputs], wish: Wish, plan: _Plan) -> None:
        self._stand = stand
        self._inputs = inputs
        self._wish = wish
        self._plan = plan
        self._worker_bytes = plan.worker_bytes
        self._rows: dict[Setting, Row] = {}

    def announce(self, source: Source, first: FirstLook) -> str:
        """What is to come, and how long it takes unless much of it can be left out."""
        settings = most_settings(self._plan.space, self._plan.present, self._wish.goal)
        slow_s = LEAST_ANSWERS * first.report.warm_s
        each_s = max((1 + WARM_SHARE) * self._wish.seconds, slow_s)
        again = [self._plan.present, *settings[1:][-_CHALLENGERS:]]
        about_s = sum(each_s + first.load_s * each.instances for each in [*settings, *again])
        count = f"{len(settings)} settings" if len(settings) > 1 else "1 setting"
        return (
            f"measuring {source.name}: at most {count} of {self._wish.seconds:g} s each, and the "
            f"best ones again: about {_duration(about_s)}"
        )

    async def run(self, tell: Callable[[str], None]) -> None:
        """Measure setting after setting, then the present one and the best one once more."""
        present, space, goal = self._plan.present, self._plan.space, self._wish.goal
        await self._try(present, tell)
        for setting in placements(space, present):
            await self._try(setting, tell)
        for setting in batch_sizes(space, self._leader):
            await self._try(setting, tell)
        for setting in delays(self._leader, goal):
            await self._try(setting, tell)
        await self._challenge(tell)

    async def _challenge(self, tell: Callable[[str], None]) -> None:
        """Measure the present setting and the best one again, one right after the other.

        The best of many looks better than it is, and the first one measured worse: a processor that
        slept is slow at first. The later figures count.
        """
        present = self._plan.present
        again = {present}
        while len(again) <= _CHALLENGERS:
            choice = choose(self._all, present, self._wish.goal)
            if choice is None or choice.setting in again:
                return
            if len(again) == 1:
                tell("again:")
                await self._measure(present, tell)
            await self._measure(choice.setting, tell)
            again.add(choice.setting)

    def report(self, source: Source, asked: str, digest: str) -> Report:
        """What was found."""
        return Report(
            model=source.name,
            version=source.found.version,
            path=str(source.found.model_path),
            digest=digest,
            goal=self._wish.goal,
            asked=asked,
            clients=self._plan.space.clients,
            seconds=self._wish.seconds,
            machine=self._plan.machine,
            present=self._plan.present,
            rows=tuple(self._all),
            choice=choose(self._all, self._plan.present, self._wish.goal),
            notes=(*self._plan.notes, *self._disturbances),
        )

    @property
    def _disturbances(self) -> tuple[str, ...]:
        most = max((row.figures.others_percent for row in self._all if row.figures), default=0.0)
        if most <= BUSY_PERCENT:
            return ()
        told = f"BUSY: others took up to {most:.0f} % of the processors meanwhile"
        return (f"{told}; measure again when they do not, before you trust the figures",)

    @property
    def _all(self) -> list[Row]:
        return list(self._rows.values())

    @property
    def _leader(self) -> Setting:
        """Where the search goes on from."""
        picked = pick(self._all, self._wish.goal)
        return picked.setting if picked else self._plan.present

    async def _try(self, setting: Setting, tell: Callable[[str], None]) -> None:
        """Measure a setting that is new, fits and can win; else keep the reason."""
        if setting in self._rows:
            return
        reason = why_left_out(setting, self._all, self._wish.goal, self._plan.space)
        if reason:
            self._rows[setting] = Row(setting, Outcome.LEFT_OUT, reason=reason)
            return
        await self._measure(setting, tell)

    async def _measure(self, setting: Setting, tell: Callable[[str], None]) -> None:
        """Measure a setting, or once more, and tell of it."""
        row = await self._row(setting)
        self._rows[setting] = row
        figures = row.figures
        if figures is None:
            tell(f"  {setting}: {row.outcome.value}: {row.reason}")
            return
        p50, rate = milliseconds(figures.p50_ms), f"{figures.rows_per_s:,.0f} rows/s"
        told = f"  {setting}: p50 {p50}, {rate}, {mebibytes(figures.memory_bytes)}"
        busy = f"; BUSY: others took {figures.others_percent:.0f} %"
        tell(f"{told}{busy if figures.others_percent > BUSY_PERCENT else ''}")

    async def _row(self, setting: Setting) -> Row:
        problem = memory_problem(
            setting,
            worker_bytes=self._worker_bytes,
            available_bytes=self._plan.machine.available_bytes,
            reserve_bytes=_RESERVE_BYTES,
        )
        if problem:
            return Row(setting, Outcome.MEMORY, reason=problem)
        try:
            figures = await self._figures(setting)
        except NotMeasured as exc:
            return Row(setting, exc.outcome, reason=exc.reason)
        worker_bytes = figures.memory_bytes // setting.instances
        self._worker_bytes = max(self._worker_bytes, worker_bytes)
        if 0 < self._plan.most_bytes < worker_bytes:
            taken, most = mebibytes(worker_bytes), mebibytes(self._plan.most_bytes)
            reason = f"a worker takes {taken}, and health.max_memory_mib is {most}"
            return Row(setting, Outcome.MEMORY, reason=reason)
        return Row(setting, Outcome.MEASURED, figures)

    async def _figures(self, setting: Setting) -> Figures:
        """Measure; once more where others disturbed that, and the less disturbed one counts."""
        clients, seconds = self._plan.space.clients, self._wish.seconds
        first = await self._stand.measure(setting, self._inputs, clients, seconds)
        if first.others_percent <= BUSY_PERCENT:
            return first
        second = await self._stand.measure(setting, self._inputs, clients, seconds)
        return min(first, second, key=lambda figures: figures.others_percent)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"  # noqa: PLR2004 (two digits)
