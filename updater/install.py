"""Brings one model to the release the fleet wishes, a step at a time.

The procedure; what is true is on disk before it is acted upon (`updater/journal.py`), so a start
after a cut at any line goes on with the step it finds:

1. IDLE: another release is wished, policy lets it in.
2. ASSIGNED: there is room, or room is made.
3. DOWNLOADING: its bytes arrive, are what was signed, open, and become a release in the store.
4. VERIFIED: the daemon tries it in a worker of its own.
5. PROBED, WAIT_WINDOW: until the device may change.
6. TRYING: the try is counted, the link is turned, the daemon serves it.
7. PROBATION: it answers real requests and is watched; the release before stays in the store.
8. COMMITTED: what nobody needs any more is removed.
9. ROLLING_BACK: the bundle goes into quarantine, the link is turned back, the daemon serves what it
   served before.

Trouble that passes (network, daemon, space) leaves the step to be tried again and says so; nothing
here waits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from updater import atomic, space
from updater.bundle import open_bundle
from updater.daemonlink import DaemonRefused
from updater.errors import (
    BundleRejected,
    DaemonUnavailable,
    Damaged,
    FetchFailed,
    NoSpace,
    NotAllowed,
    TrustReason,
    Untrusted,
)
from updater.fetch import fetch
from updater.manifest import MANIFEST_NAME, parse_manifest
from updater.policy import check
from updater.probation import Ruling, comparable_p95_ms, judge
from updater.state import Event, State
from updater.target import disagreement, facts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from updater.daemonlink import DaemonLink
    from updater.desired import Assignment
    from updater.fetch import Limits
    from updater.history import Fact, History
    from updater.journal import Journal, Record
    from updater.manifest import Probation
    from updater.policy import DeviceFacts
    from updater.quarantine import Quarantine
    from updater.store import Store
    from updater.target import Target

_log = logging.getLogger(f"inferd.{__name__}")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the fleet wishes of one model, as far as it is signed.

    Attributes:
        source: of the bundle's bytes: URL or folder.
        floor: least release counter.
        blocked: sha256 of bundles that must not be installed.
    """

    assignment: Assignment
    target: Target
    source: str
    floor: int
    blocked: frozenset[str]


@dataclass(frozen=True, slots=True)
class Step:
    """What one call of `Installer.step` has come to.

    Attributes:
        moved: the record changed; the next step may be taken at once.
        waiting_for: what keeps it, in words; "" when nothing does.
        retry_after_s: seconds a server asked to wait, else None.
    """

    moved: bool
    waiting_for: str = ""
    retry_after_s: float | None = None


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
        limits: Limits,
        boot_id: str,
        clock: Callable[[], float],
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        """Store only.

        Args:
            staging: folder of part files.
            boot_id: of this boot of the machine.
            clock: wall clock, seconds.
            on_progress: told model, bytes there, bytes in all.
        """
        self._staging = staging
        self._journal = journal
        self._store = store
        self._quarantine = quarantine
        self._history = history
        self._daemon = daemon
        self._device = device
        self._limits = limits
        self._boot_id = boot_id
        self._clock = clock
        self._on_progress = on_progress
        self._before_p95_ms: dict[str, float] = {}

    def recover(self) -> None:
        """At the start: put the disk in order, and count a try that was cut short.

        Raises:
            OSError: the disk refused.
        """
        atomic.make_folder(self._staging)
        for model, problem in self._journal.recover().items():
            self._note(model, "journal damaged", reason=problem)
        self._history.recover()
        self._quarantine.recover()
        self._store.sweep()
        for record in self._journal.records():
            event = record.after_restart(boot_id=self._boot_id, daemon_died=False)
            if event is not None:
                self._interrupted(record, event, "the machine was restarted")

    def daemon_died(self, model: str) -> None:
        """The daemon has ended while this model's candidate served: one try is used up.

        Raises:
            OSError: the disk refused.
        """
        record = self._journal.load(model)
        event = record.after_restart(boot_id=self._boot_id, daemon_died=True)
        if event is not None:
            self._interrupted(record, event, "the daemon ended while it served the candidate")

    def step(self, model: str, wish: Wish | None) -> Step:
        """Take the next step of a model's update, if there is one.

        Args:
            wish: None when the fleet wishes nothing of this model.

        Raises:
            OSError: the disk refused; nothing is lost, try again later.
        """
        record = self._journal.load(model)
        if (event := _overtaken(record, wish)) is not None:
            return self._move(record, event, "the fleet wishes another release now")
        try:
            return self._step(record, wish)
        except (FetchFailed, NoSpace, DaemonUnavailable) as exc:
            retry_after_s = exc.retry_after_s if isinstance(exc, FetchFailed) else None
            return Step(moved=False, waiting_for=str(exc), retry_after_s=retry_after_s)

    def roll_back(self, model: str, reason: str) -> bool:
        """Turn back now, by an operator's word; False when there is nothing to turn back to.

        Raises:
            OSError: the disk refused.
        """
        record = self._journal.load(model)
        if not record.previous or record.previous == self._store.current(model):
            return False
        if record.state is State.ROLLING_BACK or not record.may(Event.ROLL_BACK):
            return False
        self._move(record, Event.ROLL_BACK, reason)
        return True

    def _step(self, record: Record, wish: Wish | None) -> Step:
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
        return steps[record.state](record, wish)

    # 1.

    def _begin(self, record: Record, wish: Wish | None) -> Step:
        if wish is None or wish.target.sha256 == self._store.current(record.model):
            return _AT_REST
        target, assignment = wish.target, wish.assignment
        quarantined = frozenset(case.digest for case in self._quarantine.entries())
        try:
            check(
                target,
                self._device,
                floor=wish.floor,
                blocked=wish.blocked,
                quarantined=quarantined,
            )
        except NotAllowed as refused:
            return Step(moved=False, waiting_for=str(refused))
        same = (record.rollout_id, record.serial) == (assignment.rollout_id, assignment.serial)
        if same and not record.may(Event.ASSIGN):
            return Step(moved=False, waiting_for="this rollout has failed too often here")
        fresh = record.assigned(
            rollout_id=assignment.rollout_id,
            serial=assignment.serial,
            version=assignment.version,
            digest=target.sha256,
            length=target.length,
            target=target.path,
            previous=self._store.current(record.model) or "",
            now=self._clock(),
        )
        self._save(fresh, "assigned", signed_by=target.role)
        return _MOVED

    # 2.

    def _make_room(self, record: Record, _wish: Wish | None) -> Step:
        part = self._part(record)
        keep = self._needed() | {record.digest}
        removals = space.choose_removals(
            self._store.held(),
            keep=keep,
            disk=(disk := space.look(self._staging)),
            needed=space.needed_bytes(record.length, allocated_bytes=space.allocated_bytes(part)),
            reserve=space.reserve_bytes(disk.total_bytes),
        )
        for release in removals:
            self._store.discard(release.model, release.digest)
            self._note(release.model, "release removed for room", digest=release.digest)
        return self._move(record, Event.FETCH)

    # 3.

    def _bring_in(self, record: Record, wish: Wish | None) -> Step:
        if wish is None:
            return Step(moved=False, waiting_for="the fleet's metadata")
        target, part = wish.target, self._part(record)
        try:
            fetch(
                wish.source,
                target.location,
                part,
                length=target.length,
                sha256=target.sha256,
                limits=self._limits,
                on_progress=lambda there, length: self._on_progress(record.model, there, length),
            )
            self._open(part, target)
        except Untrusted as exc:
            if exc.reason is not TrustReason.MISMATCH:
                raise
            # Not the bundle's fault: whoever serves it sends something else. Never quarantined.
            return Step(moved=False, waiting_for=str(exc))
        except (BundleRejected, Damaged) as exc:
            atomic.remove(part)
            return self._move(record, Event.ROLL_BACK, str(exc))
        atomic.remove(part)
        return self._move(record, Event.PUBLISH)

    def _open(self, part: Path, target: Target) -> None:
        """Make the bundle a release.

        Raises:
            BundleRejected, Damaged: it is not what it must be.
        """
        staged = self._store.incoming(target.sha256)
        manifest = open_bundle(part, staged, limit_bytes=target.length)
        if problem := disagreement(target.facts, facts_of(manifest)):
            raise BundleRejected(f"its manifest is not what was signed: {problem}")
        self._store.publish(staged, manifest.name, target.sha256)

    # 4.

    def _probe(self, record: Record, _wish: Wish | None) -> Step:
        try:
            verdict = self._daemon.probe(self._store.release(record.model, record.digest))
        except DaemonRefused as exc:
            return Step(moved=False, waiting_for=f"the daemon does not probe: {exc}")
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
        before = self._daemon.traffic(record.model)
        self._before_p95_ms[record.model] = comparable_p95_ms(before)
        counted = record.tried(Event.TRY, boot_id=self._boot_id, now=self._clock())
        self._save(counted, "try begins")
        return _MOVED

    def _try(self, record: Record, _wish: Wish | None) -> Step:
        try:
            self._store.activate(record.model, record.digest)
            serving = self._daemon.activate(record.model)
        except (DaemonRefused, Damaged, FileExistsError) as exc:
            return self._move(record, Event.ROLL_BACK, str(exc))
        if serving.release != record.digest:
            return self._move(record, Event.ROLL_BACK, "the daemon did not take it up")
        return self._move(record, Event.WATCH)

    # 7.

    def _watch(self, record: Record, _wish: Wish | None) -> Step:
        serving = self._daemon.traffic(record.model)
        if serving is None or serving.release != record.digest:
            return self._move(record, Event.ROLL_BACK, "the daemon does not serve it any more")
        judgement = judge(
            self._limits_of(record),
            serving,
            self._before_p95_ms.get(record.model, 0.0),
            watched_s=max(0.0, self._clock() - record.since),
        )
        match judgement.ruling:
            case Ruling.COMMIT:
                return self._move(record, Event.COMMIT, judgement.reason)
            case Ruling.ROLL_BACK:
                return self._move(record, Event.ROLL_BACK, judgement.reason)
            case Ruling.WATCH:
                return Step(moved=False, waiting_for="its probation")

    # 8.

    def _clean_up(self, record: Record, _wish: Wish | None) -> Step:
        keep = self._needed()
        for digest in self._store.collect(keep):
            self._note(record.model, "release removed", digest=digest)
        return self._move(record, Event.DONE)

    # 9.

    def _turn_back(self, record: Record, _wish: Wish | None) -> Step:
        now = self._clock()
        if self._quarantine.find(record.digest, runtime=self._device.runtime_version) is None:
            self._quarantine.add(
                record.digest,
                runtime=self._device.runtime_version,
                model=record.model,
                version=record.version,
                reason=record.reason,
                now=now,
            )
        if self._store.current(record.model) == record.digest:
            if record.previous:
                self._store.activate(record.model, record.previous)
            else:
                self._store.deactivate(record.model)
        try:
            self._daemon.activate(record.model)
        except DaemonRefused as exc:
            _log.warning("nothing serves after the way back model=%s reason=%s", record.model, exc)
        except DaemonUnavailable as exc:
            # The link is turned: whenever the daemon starts, it starts with what was before.
            _log.warning("the daemon is not there to turn back model=%s: %s", record.model, exc)
        return self._move(record, Event.DONE, record.reason)

    def _interrupted(self, record: Record, event: Event, reason: str) -> None:
        if event is Event.RETRY and record.may(event):
            retried = record.tried(event, boot_id=self._boot_id, now=self._clock(), reason=reason)
            self._save(retried, "try begins again", reason=reason)
        else:
            self._move(record, Event.ROLL_BACK, reason)

    def _move(self, record: Record, event: Event, reason: str = "") -> Step:
        if not record.may(event):
            event, reason = Event.ROLL_BACK, "this rollout has moved too often"
        self._save(
            record.moved(event, now=self._clock(), reason=reason), event.value, reason=reason
        )
        return _MOVED

    def _save(self, record: Record, what: str, **facts: Fact) -> None:
        """The record first; then the history, which tells what was done."""
        self._journal.save(record)
        self._note(
            record.model,
            what,
            state=record.state.value,
            version=record.version,
            digest=record.digest,
            rollout_id=record.rollout_id,
            serial=record.serial,
            **facts,
        )

    def _note(self, model: str, what: str, **facts: Fact) -> None:
        event: Mapping[str, Fact] = {"model": model, "event": what, **facts}
        self._history.append(event, now=self._clock())
        _log.info("update %s", " ".join(f"{key}={value}" for key, value in event.items()))

    def _part(self, record: Record) -> Path:
        return self._staging / f"{record.digest}.part"

    def _needed(self) -> frozenset[str]:
        """Digests that some model's update may still want."""
        return frozenset().union(*(record.needed for record in self._journal.records()))

    def _limits_of(self, record: Record) -> Probation:
        release = self._store.release(record.model, record.digest)
        return parse_manifest((release / MANIFEST_NAME).read_bytes()).probation


def _overtaken(record: Record, wish: Wish | None) -> Event | None:
    """How to leave an update that the fleet does not wish any more; None to go on.

    One that answers already is judged to its end, unless it is blocked: nothing is known against
    it, and what is wished instead is installed after it.
    """
    if wish is None or record.state in {State.IDLE, State.ROLLING_BACK, State.COMMITTED}:
        return None
    if record.state in {State.TRYING, State.PROBATION}:
        return Event.ROLL_BACK if record.digest in wish.blocked else None
    is_wished = wish.target.sha256 == record.digest and record.digest not in wish.blocked
    return None if is_wished else Event.ABANDON
