"""Brings one model to the release the fleet wishes, a step at a time.

The procedure; what is true is on disk before it is acted upon (`updater/moves.py`), so a start
after a cut at any line goes on with the step it finds:

1. IDLE: another release is wished, policy lets it in.
2. ASSIGNED: there is room, or room is made.
3. DOWNLOADING: its bytes arrive, are what was signed, open, and become a release in the store
   (`updater/intake.py`).
4. VERIFIED: the try is counted, the daemon tries it in a worker of its own.
5. PROBED, WAIT_WINDOW: until the device may change.
6. TRYING: the try is counted, the link is turned, the daemon serves it.
7. PROBATION: it answers real requests and is watched; the release before stays in the store.
8. COMMITTED: what nobody needs any more is removed.
9. ROLLING_BACK: the way back (`updater/wayback.py`).

Trouble that passes (network, daemon, space) leaves the step to be tried again and says so; nothing
here waits. A try that was cut short by a reboot, or by the daemon's death, is used up.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from updater import atomic, space
from updater.daemonlink import DaemonRefused
from updater.errors import (
    BundleRejected,
    DaemonUnavailable,
    Damaged,
    FetchFailed,
    NoSpace,
    NotAllowed,
    Refusal,
    TrustReason,
    Untrusted,
)
from updater.intake import Intake
from updater.lives import Lives
from updater.moves import Moves
from updater.policy import check
from updater.probation import Ruling
from updater.state import UNDER_TRIAL, Event, State
from updater.trial import Trial
from updater.wayback import WayBack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from updater.daemonlink import DaemonLink
    from updater.desired import Assignment
    from updater.history import History
    from updater.journal import Journal, Record
    from updater.policy import DeviceFacts
    from updater.quarantine import Quarantine
    from updater.store import Store
    from updater.target import Target
    from updater.transfers import Transfers

_log = logging.getLogger(f"inferd.{__name__}")

_LEAVING = frozenset({State.COMMITTED, State.ROLLING_BACK})
_ARRIVING = frozenset({State.ASSIGNED, State.DOWNLOADING})


@dataclass(frozen=True, slots=True)
class Wish:
    """What the fleet wishes of one model, as far as it is signed.

    Attributes:
        source: of the bundle's bytes: URL or folder.
        floor: least release counter.
        blocked: sha256 of bundles that must not be installed.
        versions: of the metadata that says so, by role.
    """

    assignment: Assignment
    target: Target
    source: str
    floor: int
    blocked: frozenset[str]
    versions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What one call of `Installer.step` has come to.

    Attributes:
        moved: the record changed; the next step may be taken at once.
        waiting_for: what keeps it, in words; "" when nothing does.
        retry_after_s: seconds a server asked to wait, else None.
        failed: it was tried; to try again at once would not help.
    """

    moved: bool
    waiting_for: str = ""
    retry_after_s: float | None = None
    failed: bool = False


_MOVED = Step(moved=True)
_AT_REST = Step(moved=False)


class Installer:
    """All that the steps need. Blocks; one thread at a time."""

    def __init__(
        self,
        *,
        staging: Path,
        journal: Journal,
        store: Store,
        quarantine: Quarantine,
        history: History,
        daemon: DaemonLink,
        device: DeviceFacts,
        transfers: Transfers,
        lives: Path,
        ballast: Path,
        boot_id: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        daemon_grace_s: float = 60.0,
    ) -> None:
        """Store only.

        Args:
            staging: folder of part files, in the folder of all that the updater keeps.
            lives: the daemon's mark (`updater/lives.py`).
            ballast: folder of files that keep room for the way back.
            boot_id: of this boot of the machine.
            clock: wall clock, seconds; for records.
            monotonic: seconds of this boot; for waiting.
            daemon_grace_s: how long the daemon may be silent while a candidate is tried.
        """
        self._folder = staging.parent
        self._journal = journal
        self._store = store
        self._quarantine = quarantine
        self._daemon = daemon
        self._device = device
        self._clock = clock
        self._trial = Trial(
            store,
            daemon,
            Lives(lives, grace_s=daemon_grace_s, now=monotonic),
            boot_id=boot_id,
            clock=clock,
            monotonic=monotonic,
        )
        self._intake = Intake(staging, store, transfers)
        self._moves = Moves(journal, history, ballast, clock)
        self._way_back = WayBack(self._moves, store, quarantine, daemon, clock)
        self._outcomes: dict[tuple[str, str], int] = {}

    @property
    def outcomes(self) -> Mapping[tuple[str, str], int]:
        """How often updates have ended, since the start, by model and how.

        "committed"; "rolled_back"; "rejected", before anything was switched; "refused" by policy,
        counted once.
        """
        return self._outcomes

    def learn(self, device: DeviceFacts) -> None:
        """What policy goes by from now on."""
        self._device = device

    def recover(self) -> None:
        """At the start: put the disk in order, count a try that was cut short, turn back links.

        Done before the daemon starts, a candidate that has used up its tries is not loaded again.

        Raises:
            OSError: the disk refused otherwise than for want of room.
        """
        for path in atomic.leftovers(self._folder):
            atomic.remove(path)
        damaged = self._quarantine.recover()
        self._moves.recover()
        if damaged is not None:
            self._moves.note("", "quarantine damaged", reason=damaged)
        self._intake.recover()
        self._drop_parts()
        for record in self._journal.records():
            try:
                self._resume(record)
            except OSError as exc:
                if not space.is_full(exc):
                    raise
                _log.warning("no room to go on with, until later model=%s: %s", record.model, exc)

    def step(self, model: str, wish: Wish | None) -> Step:
        """Take the next step of a model's update, if there is one.

        Args:
            wish: None when the fleet wishes nothing of this model.

        Raises:
            OSError: the disk refused; nothing is lost, try again later.
        """
        record = self._journal.load(model)
        # Whatever a release that may be serving needs is not put off.
        failed = record.state not in UNDER_TRIAL | _LEAVING
        try:
            return self._next(record, wish)
        except (NoSpace, DaemonUnavailable) as exc:
            return Step(moved=False, waiting_for=str(exc), failed=failed)
        except FetchFailed as exc:
            return Step(False, str(exc), retry_after_s=exc.retry_after_s, failed=failed)
        except OSError as exc:
            if not space.is_full(exc):
                raise
            return Step(moved=False, waiting_for=f"room on the disk: {exc}", failed=failed)

    def roll_back(self, model: str, reason: str) -> bool:
        """Turn back now, by an operator's word; False when there is nothing to turn back to.

        Raises:
            OSError: the disk refused.
        """
        record = self._journal.load(model)
        if record.state is State.COMMITTED:
            self._clean_up(record, None)
            record = self._journal.load(model)
        if not self._can_turn_back(record):
            return False
        reason = f"rolled back by an operator: {reason}"
        self._save(record, record.recalled(now=self._clock(), reason=reason))
        return True

    def _can_turn_back(self, record: Record) -> bool:
        if not record.previous or record.state not in {State.IDLE, *UNDER_TRIAL}:
            return False
        if record.state is State.IDLE and self._store.current(record.model) != record.digest:
            return False
        try:
            self._store.verify(record.model, record.previous)
        except Damaged as exc:
            _log.warning("the release before is damaged model=%s: %s", record.model, exc)
            return False
        return True

    def _resume(self, record: Record) -> None:
        if (ended := self._trial.cut_short(record)) is not None:
            self._try_again(record, *ended)
            record = self._journal.load(record.model)
        if record.state is State.ROLLING_BACK:
            self._way_back.turn_link(record)

    def _next(self, record: Record, wish: Wish | None) -> Step:
        if (left := _overtaken(record, wish)) is not None:
            step = self._move(record, *left)
            self._drop_parts()
            self._store.collect(self._needed())
            return step
        if (ended := self._trial.cut_short(record)) is not None:
            return self._try_again(record, *ended)
        steps: dict[State, Callable[[Record, Wish | None], Step]] = {
            State.IDLE: self._begin,
            State.ASSIGNED: self._make_room,
            State.DOWNLOADING: self._bring_in,
            State.VERIFIED: self._probe,
            State.PROBED: self._prepare,
            State.WAIT_WINDOW: self._await_window,
            State.TRYING: self._try,
            State.PROBATION: self._watch,
            State.COMMITTED: self._clean_up,
            State.ROLLING_BACK: self._turn_back,
        }
        try:
            return steps[record.state](record, wish)
        except DaemonUnavailable:
            if (ended := self._trial.unanswered(record)) is None:
                raise
            return self._try_again(record, *ended)

    # 1.

    def _begin(self, record: Record, wish: Wish | None) -> Step:
        if wish is None or wish.target.sha256 == self._store.current(record.model):
            return _AT_REST
        target, assignment = wish.target, wish.assignment
        if problem := self._objection(wish):
            return self._refuse(record, target, problem)
        same = (record.rollout_id, record.serial) == (assignment.rollout_id, assignment.serial)
        if same and not record.may(Event.ASSIGN):
            return self._refuse(record, target, "this rollout has failed too often here")
        fresh = record.assigned(
            rollout_id=assignment.rollout_id,
            serial=assignment.serial,
            version=assignment.version,
            digest=target.sha256,
            length=target.length,
            target=target.path,
            signed_by=target.role,
            metadata=", ".join(
                f"{role} {number}" for role, number in sorted(wish.versions.items())
            ),
            previous=self._store.current(record.model) or "",
            now=self._clock(),
        )
        self._save(record, fresh)
        return _MOVED

    def _objection(self, wish: Wish) -> str:
        """Why policy does not let it in; "" when it does."""
        case = self._quarantine.find(wish.target.sha256, runtime=self._device.runtime_version)
        try:
            check(
                wish.target,
                self._device,
                floor=wish.floor,
                blocked=wish.blocked,
                quarantined={case.digest} if case else (),
            )
        except NotAllowed as refused:
            if case is not None and refused.refusal is Refusal.QUARANTINED:
                return f"{refused}: {case.reason}"
            return str(refused)
        return ""

    def _refuse(self, record: Record, target: Target, reason: str) -> Step:
        version, digest = target.facts.version, target.sha256
        if self._moves.refuse(record.model, version=version, digest=digest, reason=reason):
            self._count_outcome(record.model, "refused")
        return Step(moved=False, waiting_for=reason)

    # 2.

    def _make_room(self, record: Record, _wish: Wish | None) -> Step:
        self._drop_parts()
        removed = self._intake.make_room(
            record.model, record.digest, record.length, keep=self._needed()
        )
        for release in removed:
            self._moves.note(release.model, "release removed for room", digest=release.digest)
        return self._move(record, Event.FETCH)

    # 3.

    def _bring_in(self, record: Record, wish: Wish | None) -> Step:
        if wish is None:
            return Step(moved=False, waiting_for="the fleet's metadata")
        try:
            arriving = self._intake.bring_in(wish.target, wish.source)
        except Untrusted as exc:
            if exc.reason is not TrustReason.MISMATCH:
                raise
            # Not the bundle's fault: whoever serves it sends something else. Never quarantined.
            return Step(moved=False, waiting_for=str(exc), failed=True)
        except (BundleRejected, Damaged) as exc:
            step = self._move(record, Event.ROLL_BACK, str(exc))
        else:
            if arriving:
                return Step(moved=False, waiting_for=arriving)
            step = self._move(record, Event.PUBLISH)
        self._drop_parts()
        return step

    # 4.

    def _probe(self, record: Record, _wish: Wish | None) -> Step:
        if not record.tries:
            return self._count_try(record, Event.PROBE)
        try:
            verdict = self._daemon.probe(self._store.release(record.model, record.digest))
        except DaemonRefused as exc:
            waiting_for = f"the daemon does not probe: {exc}"
            return Step(moved=False, waiting_for=waiting_for, failed=True)
        if verdict.reasons:
            return self._move(record, Event.ROLL_BACK, "; ".join(verdict.reasons))
        if (verdict.model, verdict.version) != (record.model, record.version):
            found = f"{verdict.model} version {verdict.version}"
            return self._move(record, Event.ROLL_BACK, f"it serves itself as {found}")
        return self._move(record, Event.PROBED)

    # 5. and 6.

    def _prepare(self, record: Record, _wish: Wish | None) -> Step:
        return self._move(record, Event.AWAIT_WINDOW)

    def _await_window(self, record: Record, wish: Wish | None) -> Step:
        if wish is None or not wish.assignment.window_open:
            return Step(moved=False, waiting_for="a maintenance window")
        return self._count_try(record, Event.TRY)

    def _try(self, record: Record, _wish: Wish | None) -> Step:
        judgement = self._trial.begin(record)
        if judgement.ruling is Ruling.ROLL_BACK:
            return self._move(record, Event.ROLL_BACK, judgement.reason)
        return self._move(self._trial.watched(record), Event.WATCH)

    # 7.

    def _watch(self, record: Record, _wish: Wish | None) -> Step:
        judgement = self._trial.watch(record)
        match judgement.ruling:
            case Ruling.COMMIT:
                return self._move(record, Event.COMMIT, judgement.reason)
            case Ruling.ROLL_BACK:
                return self._move(record, Event.ROLL_BACK, judgement.reason)
            case Ruling.WATCH:
                return Step(moved=False, waiting_for="its probation")

    # 8. and 9.

    def _clean_up(self, record: Record, _wish: Wish | None) -> Step:
        for digest in self._store.collect(self._needed()):
            self._moves.note(record.model, "release removed", digest=digest)
        return self._move(record, Event.DONE)

    def _turn_back(self, record: Record, _wish: Wish | None) -> Step:
        reason = self._way_back.take(record, self._device.runtime_version)
        for digest in self._store.collect(self._needed() - {record.digest}):
            self._moves.note(record.model, "release removed", digest=digest)
        return self._move(record, Event.DONE, reason)

    # Tries.

    def _try_again(self, record: Record, event: Event, reason: str) -> Step:
        """After a try that was cut short: PROBE or RETRY, or ROLL_BACK when it was the last."""
        if event is Event.ROLL_BACK:
            return self._move(record, event, reason)
        try:
            return self._count_try(record, event, reason)
        except OSError as exc:
            if record.state not in UNDER_TRIAL:
                raise
            # It may not be loaded uncounted, and the link may lead to it already.
            return self._move(record, Event.ROLL_BACK, f"{reason}; no try can be counted: {exc}")

    def _count_try(self, record: Record, event: Event, reason: str = "") -> Step:
        if not record.may(event):
            return self._move(record, event)
        self._save(record, self._trial.counted(record, event, reason))
        return _MOVED

    # Moves.

    def _move(self, record: Record, event: Event, reason: str = "") -> Step:
        if not record.may(event):
            event, reason = Event.ROLL_BACK, "this rollout has moved too often"
        self._save(record, record.moved(event, now=self._clock(), reason=reason))
        return _MOVED

    def _save(self, before: Record, record: Record) -> None:
        self._moves.save(record)
        if record.event is Event.COMMIT:
            self._count_outcome(record.model, "committed")
        elif record.event is Event.ROLL_BACK:
            was_switched = before.state in {State.IDLE, *UNDER_TRIAL}
            self._count_outcome(record.model, "rolled_back" if was_switched else "rejected")

    def _count_outcome(self, model: str, outcome: str) -> None:
        self._outcomes[model, outcome] = self._outcomes.get((model, outcome), 0) + 1

    # The disk.

    def _drop_parts(self) -> None:
        records = self._journal.records()
        self._intake.keep({record.digest for record in records if record.state in _ARRIVING})

    def _needed(self) -> frozenset[str]:
        """Digests that some model's update may still want."""
        return frozenset().union(*(record.needed for record in self._journal.records()))


def _overtaken(record: Record, wish: Wish | None) -> tuple[Event, str] | None:
    """How to leave an update that the fleet does not wish any more; None to go on.

    One that answers already is judged to its end, unless it is blocked: nothing is known against
    it, and what is wished instead is installed after it.
    """
    if wish is None or record.state in {State.IDLE, *_LEAVING}:
        return None
    is_blocked = record.digest in wish.blocked
    if record.state in UNDER_TRIAL:
        return (Event.ROLL_BACK, "the fleet blocks it now") if is_blocked else None
    if wish.target.sha256 != record.digest:
        return Event.ABANDON, "the fleet wishes another release now"
    if is_blocked:
        return Event.ABANDON, "the fleet blocks it now"
    if wish.target.facts.release_counter < wish.floor:
        return Event.ABANDON, f"it is below the signed floor now, which is {wish.floor}"
    return None
