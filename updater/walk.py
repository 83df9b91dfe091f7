"""Takes every model's steps, each at its time.

Rules:
1. A model's trouble is its own: it says what keeps it, and the others go on.
2. What has failed is left alone for longer each time (schedule.py), unless something has arrived
   meanwhile, another release is wished, or an operator asks. Before it is left alone, every place
   that may have its bundle is tried.
3. What only waits is looked at again soon, without a failure being counted.
4. Nobody acts on a wish that has grown old: before a candidate is switched to, and after a step
   that took long, wishes are read anew. A maintenance window may have closed meanwhile.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from updater.errors import UpdateError
from updater.install import Step
from updater.journal import Record
from updater.schedule import retry_pause_s, step_pause_s
from updater.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from updater.install import Installer
    from updater.journal import Journal
    from updater.wishes import Wished

_log = logging.getLogger(f"inferd.{__name__}")

_MOST_STEPS = 32
"""Of one model at a time: more than an update takes without a pause."""
_LONG_S = 5.0
"""Of rule 4."""
_NOTHING_S = 60.0
"""Until the next look when there is no model at all."""
_JUDGED = frozenset({State.TRYING, State.PROBATION})
_TIMED = _JUDGED | {State.WAIT_WINDOW}


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a model stands after its last step.

    Attributes:
        waiting_for: what keeps it; "" for nothing.
        failures: in a row, without anything having arrived.
        arrived_bytes: of its bundle, at the last failure.
        until: when the next step may be taken, monotonic seconds.
    """

    record: Record
    waiting_for: str = ""
    failures: int = 0
    arrived_bytes: int = 0
    until: float = 0.0

    @property
    def trouble(self) -> str:
        """What keeps it from what is wished, when that is not a matter of time alone."""
        is_time = self.record.state in _TIMED and not self.failures
        return "" if is_time else self.waiting_for


class Walk:
    """Where each model stands. One thread walks; any may look at `stands`.

    Attributes:
        stands: by model; replaced as a whole.
    """

    def __init__(
        self,
        installer: Installer,
        journal: Journal,
        *,
        staging: Path,
        interval_s: float,
        on_change: Callable[[], None],
    ) -> None:
        """Store only.

        Args:
            staging: folder of part files.
            interval_s: between two looks; what the network keeps is not tried less often.
            on_change: told when a model stands elsewhere, or waits for something else.
        """
        self._installer = installer
        self._journal = journal
        self._staging = staging
        self._interval_s = interval_s
        self._on_change = on_change
        self._wished: Mapping[str, Wished] = {}
        self.stands: Mapping[str, Stand] = {}

    def recover(self) -> None:
        """At the start: put the disk in order.

        Raises:
            OSError: the disk refused.
        """
        self._installer.recover()
        self.stands = {record.model: Stand(record) for record in self._journal.records()}

    def go(
        self, wished: Mapping[str, Wished], *, now: float, interrupted: Callable[[], bool]
    ) -> float:
        """Let every model go on that may.

        Args:
            now: wall clock, seconds, that windows are judged by.
            interrupted: something else is to be done first.

        Returns:
            Seconds until the next one may.

        Raises:
            OSError: the disk cannot be read.
        """
        self._adopt(wished)
        old_at = time.monotonic() + _LONG_S

        def is_over() -> bool:
            return interrupted() or time.monotonic() > old_at

        for model in sorted({*self.stands, *wished}):
            stand = self.stands.get(model, Stand(Record(model)))
            if stand.until <= time.monotonic() and not is_over():
                self._go_on(model, wished.get(model), now, is_over)
        due = min((stand.until for stand in self.stands.values()), default=None)
        return _NOTHING_S if due is None else max(0.0, due - time.monotonic())

    def forgive(self) -> None:
        """Let every model try again now."""
        self.stands = {model: _unhindered(stand) for model, stand in self.stands.items()}

    def roll_back(self, model: str) -> bool:
        """Turn back by an operator's word (`Installer.roll_back`).

        Raises:
            OSError: the disk refused.
        """
        has_turned = self._installer.roll_back(model, "an operator says so")
        self._put(Stand(self._journal.load(model)))
        return has_turned

    def arrived_bytes(self, record: Record) -> int:
        """How much of a candidate's bundle is there, while it is downloaded."""
        try:
            return (self._staging / f"{record.digest}.part").stat().st_size
        except OSError:
            return 0

    @property
    def is_arriving(self) -> bool:
        """Whether a download is under way that has not failed."""
        return any(
            stand.record.state is State.DOWNLOADING and not stand.failures
            for stand in self.stands.values()
        )

    def _adopt(self, wished: Mapping[str, Wished]) -> None:
        """Where something else is wished now, what was before keeps nobody waiting."""
        changed = {
            model
            for model in wished.keys() | self._wished.keys()
            if _digest(wished.get(model)) != _digest(self._wished.get(model))
        }
        self._wished = wished
        if changed:
            self.stands = {
                model: _unhindered(stand) if model in changed else stand
                for model, stand in self.stands.items()
                if stand.record.digest or model in wished
            }

    def _go_on(
        self, model: str, wished: Wished | None, now: float, is_over: Callable[[], bool]
    ) -> None:
        """Take one model's steps until it waits for something."""
        for _ in range(_MOST_STEPS):
            step = self._step(model, wished)
            stand = self._stand_after(step, self._journal.load(model), wished, now)
            self._put(stand)
            if not step.moved or is_over() or stand.record.state is State.WAIT_WINDOW:
                return

    def _step(self, model: str, wished: Wished | None) -> Step:
        try:
            stand = self.stands.get(model)
            place = stand.failures if stand else 0
            step = self._installer.step(model, wished.wish_from(place) if wished else None)
        except (OSError, UpdateError) as exc:
            step = Step(moved=False, waiting_for=str(exc), failed=True)
        except Exception as exc:  # noqa: BLE001 - the top of a model's step: the others go on
            _log.exception("a step failed through a fault of this program model=%s", model)
            return Step(moved=False, waiting_for=f"a fault of this program: {exc}", failed=True)
        if step.failed:
            _log.warning("a step failed model=%s cause=%s", model, step.waiting_for)
        return step

    def _stand_after(self, step: Step, record: Record, wished: Wished | None, now: float) -> Stand:
        monotonic = time.monotonic()
        before = self.stands.get(record.model, Stand(record))
        if step.moved:
            return Stand(record)
        if not step.failed:
            pause = step_pause_s(record.state, opens_in_s=wished.opens_at - now if wished else 0.0)
            reason = _reason(record, step, wished)
            return replace(before, record=record, waiting_for=reason, until=monotonic + pause)
        arrived = self.arrived_bytes(record)
        failures = before.failures if arrived <= before.arrived_bytes else 0
        is_last, rounds = _is_last_place(record, wished, failures)
        pause = (
            0.0
            if not is_last
            else retry_pause_s(
                record.state,
                rounds,
                interval_s=self._interval_s,
                jitter=random.random(),  # noqa: S311 (it spreads load, it hides nothing)
            )
        )
        return Stand(
            record=record,
            waiting_for=step.waiting_for,
            failures=failures + 1,
            arrived_bytes=arrived,
            until=monotonic + max(pause, step.retry_after_s or 0.0),
        )

    def _put(self, stand: Stand) -> None:
        before = self.stands.get(stand.record.model)
        self.stands = {**self.stands, stand.record.model: stand}
        if before is None or (before.record, before.waiting_for) != (
            stand.record,
            stand.waiting_for,
        ):
            self._on_change()


def _is_last_place(record: Record, wished: Wished | None, failures: int) -> tuple[bool, int]:
    """Whether no other place is left to be tried, and how often all of them were before."""
    count = len(wished.places) if wished and record.state is State.DOWNLOADING else 1
    return (failures + 1) % count == 0, failures // count


def _unhindered(stand: Stand) -> Stand:
    return Stand(stand.record, stand.waiting_for)


def _digest(wished: Wished | None) -> tuple[str, str]:
    """What tells two wishes apart: the bundle, or why there is none."""
    if wished is None:
        return "", ""
    return (wished.wish.target.sha256 if wished.wish else ""), wished.reason


def _reason(record: Record, step: Step, wished: Wished | None) -> str:
    """What keeps it: what is wrong with the wish comes first, unless a candidate is judged."""
    if wished is None or not wished.reason or record.state in _JUDGED:
        return step.waiting_for
    return wished.reason
