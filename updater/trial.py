"""A candidate's trial: its tries are counted, it is made to serve, and what it does is judged.

Rules:
1. A try ends with the machine, or with the daemon: by a reboot, by the daemon's death, or by its
   silence for too long. Each death counts, because whoever starts the daemon again has it load the
   candidate again.
2. A daemon that was stopped in good order has done nothing to the candidate, nor it to the daemon:
   once there again, it is asked to serve it before anything is judged.
3. Time is that of this boot, which nobody sets.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from updater.daemonlink import DaemonRefused
from updater.errors import BundleRejected, Damaged
from updater.manifest import MANIFEST_NAME, parse_manifest
from updater.probation import Judgement, Ruling, comparable_p95_ms, judge
from updater.state import UNDER_TRIAL, Event, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from updater.daemonlink import DaemonLink
    from updater.journal import Record
    from updater.lives import Lives
    from updater.probation import Traffic
    from updater.store import Store

_LOADED = UNDER_TRIAL | {State.VERIFIED}


class Trial:
    """All that it needs. Blocks."""

    def __init__(
        self,
        store: Store,
        daemon: DaemonLink,
        lives: Lives,
        *,
        boot_id: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """Store only."""
        self._store = store
        self._daemon = daemon
        self._lives = lives
        self._boot_id = boot_id
        self._clock = clock
        self._monotonic = monotonic

    def counted(self, record: Record, event: Event, reason: str = "") -> Record:
        """The record that counts one more try, to be saved before the candidate loads.

        Args:
            event: PROBE, TRY or RETRY, for which there is room.

        Raises:
            DaemonUnavailable: nobody is there to try it, so this is none.
            OSError: the daemon's mark cannot be read.
        """
        if event is Event.TRY or (event is Event.PROBE and not record.tries):
            before_p95_ms = comparable_p95_ms(self._daemon.traffic(record.model))
            self._lives.answered()
            record = dataclasses.replace(record, before_p95_ms=before_p95_ms)
        return record.tried(
            event,
            boot_id=self._boot_id,
            deaths=self._lives.deaths(),
            now=self._clock(),
            reason=reason,
        )

    def cut_short(self, record: Record) -> tuple[Event, str] | None:
        """What a reboot or the daemon's deaths since the try was counted make of it, and why.

        Raises:
            OSError: the daemon's mark cannot be read.
        """
        if record.state not in _LOADED or not record.tries:
            return None
        if record.boot_id != self._boot_id:
            again = record.after_restart(boot_id=self._boot_id)
            return again and (again, "the machine was restarted")
        deaths = self._lives.deaths_since(record.deaths)
        again = record.after_restart(boot_id=self._boot_id, deaths=deaths)
        return again and (again, "the daemon died while it had it loaded")

    def unanswered(self, record: Record) -> tuple[Event, str] | None:
        """The same of the daemon's silence; to be asked whenever it has not answered.

        Raises:
            OSError: the daemon's mark cannot be read.
        """
        if record.state not in UNDER_TRIAL or not self._lives.is_lost():
            return None
        self._lives.answered()  # this silence is counted, the next one begins
        again = record.after_restart(boot_id=self._boot_id, deaths=1)
        return again and (again, "the daemon did not come back from it")

    def begin(self, record: Record) -> Judgement:
        """Turn the link and have the daemon serve the candidate; WATCH when it does.

        Raises:
            DaemonUnavailable, OSError: later it may.
        """
        try:
            if self._store.current(record.model) != record.digest:
                self._store.activate(record.model, record.digest)
            return self._judge(record, self._daemon.activate(record.model), watched_s=0.0)
        except (DaemonRefused, Damaged, FileExistsError) as exc:
            return Judgement(Ruling.ROLL_BACK, str(exc))

    def watched(self, record: Record) -> Record:
        """The record of a candidate whose probation begins now."""
        return dataclasses.replace(record, watched_from=self._monotonic())

    def watch(self, record: Record) -> Judgement:
        """Judge what it has done until now.

        Raises:
            DaemonUnavailable, OSError: later it may.
        """
        watched_s = max(0.0, self._monotonic() - record.watched_from)
        try:
            serving = self._daemon.traffic(record.model)
            if serving is None or serving.release != record.digest:
                serving = self._daemon.activate(record.model)  # rule 2
            return self._judge(record, serving, watched_s=watched_s)
        except (DaemonRefused, Damaged) as exc:
            return Judgement(Ruling.ROLL_BACK, str(exc))

    def _judge(self, record: Record, serving: Traffic, *, watched_s: float) -> Judgement:
        self._lives.answered()
        if serving.release != record.digest:
            return Judgement(Ruling.ROLL_BACK, "the daemon does not serve it")
        manifest = self._store.release(record.model, record.digest) / MANIFEST_NAME
        try:
            limits = parse_manifest(manifest.read_bytes()).probation
        except (BundleRejected, FileNotFoundError) as exc:
            raise Damaged(manifest, str(exc)) from exc
        return judge(limits, serving, record.before_p95_ms, watched_s=watched_s)
