"""An update in small: the real disk layer, driven the way an installer drives it.

No network, no daemon: versions are made on the spot, and the caller says which of them are good.
What is done is written down first, and what has returned is promised (see `support.powercut`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from support.powercut import stopped_before
from support.releases import MODEL, digest_of, unpack

from updater import atomic
from updater.history import Chain, History
from updater.journal import Journal, Record
from updater.quarantine import Quarantine
from updater.space import drop_ballast, hold_ballast
from updater.state import Event, State
from updater.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BROKEN = 3
"""The version that fails its probation."""

NOW = 1_000_000.0


def no_promise(_fact: object) -> None:
    """Nobody is told."""


class DiskBox:
    """A device's disk below one folder.

    Args:
        boot_id: another one after each loss of power.
        promise: is told what is durable.
    """

    def __init__(
        self,
        root: Path,
        *,
        boot_id: str = "boot-1",
        promise: Callable[[tuple[str, object]], None] = no_promise,
    ) -> None:
        self.state = root / "state"
        self.journal = Journal(self.state / "journal")
        self.history = History(self.state / "history.jsonl", max_bytes=2500, max_files=50)
        self.quarantine = Quarantine(self.state / "quarantine.json")
        self.store = Store(root / "store", root / "models")
        self._ballast = self.state / "ballast"
        self._boot_id = boot_id
        self._promise = promise

    @property
    def current(self) -> str | None:
        """The digest of what is served."""
        return self.store.current(MODEL)

    @property
    def record(self) -> Record:
        """Where the update stands."""
        return self.journal.load(MODEL)

    def start(self) -> dict[str, object]:
        """What a start of the updater does first; returns what was found damaged."""
        atomic.make_folder(self.state)
        for path in atomic.leftovers(self.state):
            atomic.remove(path)
        damaged: dict[str, object] = dict(self.journal.recover())
        problem = self.quarantine.recover()
        if problem:
            damaged["quarantine"] = problem
        self.store.sweep()
        assert self.history.recover().broken is None
        self._catch_up()
        record = self.record
        event = record.after_restart(boot_id=self._boot_id)
        if event is Event.RETRY:
            self._retry(record)
        elif event:
            self._give_up("tried twice")
        return damaged

    def update(self, version: int) -> None:
        """Go on until the version is served, or rolled back and in quarantine."""
        while self._goes_on(version):
            self._steps[self.record.state](self, version)

    def check(self) -> Chain:
        """Read everything; fails where anything is not as it must be."""
        if self.current is not None:
            self.store.verify(MODEL, self.current)
        chain = self.history.verify()
        assert chain.broken is None, chain
        return chain

    def _goes_on(self, version: int) -> bool:
        refused = self.quarantine.find(digest_of(version)) is not None
        served = self.current == digest_of(version)
        return self.record.state is not State.IDLE or not (refused or served)

    def _assign(self, version: int) -> None:
        self._save(
            self.record.assigned(
                rollout_id="spring",
                serial=version,
                version=version,
                digest=digest_of(version),
                length=1000,
                target=f"{MODEL}/{MODEL}-{version}.bundle",
                previous=self.current or "",
                now=NOW,
            )
        )

    def _fetch(self, _version: int) -> None:
        self._move(Event.FETCH)

    def _publish(self, _version: int) -> None:
        record = self.record
        staged = self.store.incoming(record.digest)
        unpack(staged, record.version)
        self.store.publish(staged, MODEL, record.digest)
        self._promise(("published", record.digest))
        self._move(Event.PUBLISH)

    def _probe(self, _version: int) -> None:
        self._move(Event.PROBED)

    def _await_window(self, _version: int) -> None:
        self._move(Event.AWAIT_WINDOW)

    def _try(self, _version: int) -> None:
        hold_ballast(self._ballast)
        self._save(self.record.tried(Event.TRY, boot_id=self._boot_id, deaths=0, now=NOW))

    def _retry(self, record: Record) -> None:
        try:
            self._save(record.tried(Event.RETRY, boot_id=self._boot_id, deaths=0, now=NOW))
        except OSError:
            self._give_up("a try that cannot be counted is none")

    def _give_up(self, reason: str) -> None:
        drop_ballast(self._ballast)
        self._save(self.record.moved(Event.ROLL_BACK, now=NOW, reason=reason))

    def _activate(self, _version: int) -> None:
        self._switch(self.record.digest)
        self._move(Event.WATCH)

    def _judge(self, _version: int) -> None:
        if self.record.version == BROKEN:
            self._give_up("wrong answers")
        else:
            self._move(Event.COMMIT)

    def _settle(self, _version: int) -> None:
        drop_ballast(self._ballast)
        gone = self.store.collect(self.record.needed)
        self._promise(("collected", gone))
        self._move(Event.DONE)

    def _roll_back(self, _version: int) -> None:
        record = self.record
        drop_ballast(self._ballast)
        if self.quarantine.find(record.digest) is None:
            self.quarantine.add(
                record.digest,
                runtime="2.3.1",
                model=MODEL,
                version=record.version,
                reason=record.reason,
                now=NOW,
            )
        self._promise(("quarantined", record.digest))
        if record.previous:
            self._switch(record.previous)
        else:
            self.store.deactivate(MODEL)
            self._promise(("current", None))
        self.store.collect({record.previous} - {""})
        self._move(Event.DONE)

    def _switch(self, digest: str) -> None:
        self.store.activate(MODEL, digest)
        self._promise(("current", digest))

    def _move(self, event: Event) -> None:
        self._save(self.record.moved(event, now=NOW))

    def _save(self, record: Record) -> None:
        self.journal.save(record)
        self._promise(("record", record))
        self._note(record)

    def _note(self, record: Record) -> None:
        try:
            line = self.history.append(_event_of(record), now=NOW)
        except OSError:
            drop_ballast(self._ballast)  # what it is for: to get back, and to say so
            line = self.history.append(_event_of(record), now=NOW)
        self._promise(("history", line.sequence))

    def _catch_up(self) -> None:
        """Power lost between record and history: the history gets its line now."""
        record = self.record
        lines = self.history.read(limit=1)
        if record.transitions and (not lines or lines[0].event != _event_of(record)):
            self._note(record)

    _steps: ClassVar[dict[State, Callable[[DiskBox, int], None]]] = {
        State.IDLE: _assign,
        State.ASSIGNED: _fetch,
        State.DOWNLOADING: _publish,
        State.VERIFIED: _probe,
        State.PROBED: _await_window,
        State.WAIT_WINDOW: _try,
        State.TRYING: _activate,
        State.PROBATION: _judge,
        State.COMMITTED: _settle,
        State.ROLLING_BACK: _roll_back,
    }


def prepare(root: Path, promise: Callable[[object], None] = no_promise) -> None:
    """A device that serves version 1."""
    box = DiskBox(root, promise=promise)
    box.start()
    box.update(1)


def update_to_two(root: Path, promise: Callable[[object], None] = no_promise) -> None:
    """A good version arrives."""
    DiskBox(root, promise=promise).update(2)


def try_the_broken(root: Path, promise: Callable[[object], None] = no_promise) -> None:
    """A broken version arrives, is rolled back and put in quarantine."""
    DiskBox(root, promise=promise).update(BROKEN)


def start(root: Path) -> None:
    """What happens when the updater starts again in the same boot."""
    DiskBox(root).start()


def start_after_boot(root: Path, promise: Callable[[object], None] = no_promise) -> None:
    """What happens after the power has come back."""
    DiskBox(root, boot_id="boot-2", promise=promise).start()


def stop_and_start_everywhere(root: Path, promise: Callable[[object], None]) -> None:
    """In ROOT/0, ROOT/1 and so on, stop an update before its step 0, 1 and so on; start again."""
    for step in range(len(list(root.iterdir()))):
        stopped_before(step, update_to_two, root / str(step))
        DiskBox(root / str(step)).start()
        promise(("started", step))


def snapshot(root: Path) -> dict[str, object]:
    """Every file, link and folder with its content and mode."""
    return dict(_entries(root, root))


def _entries(root: Path, folder: Path) -> Iterator[tuple[str, object]]:
    for path in sorted(folder.iterdir()):
        name = str(path.relative_to(root))
        if path.is_symlink():
            yield name, ("link", str(path.readlink()))
        elif path.is_dir():
            yield name, ("folder", path.stat().st_mode)
            yield from _entries(root, path)
        else:
            yield name, ("file", path.stat().st_mode, path.read_bytes())


def _event_of(record: Record) -> dict[str, str | int | float | bool | None]:
    return {
        "model": record.model,
        "serial": record.serial,
        "transition": record.transitions,
        "state": record.state.value,
        "version": record.version,
        "digest": record.digest,
        "reason": record.reason,
    }
