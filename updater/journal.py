"""The journal: where the update of each model stands, on disk before it is acted upon.

One file per model, replaced as a whole. What is true at each crash point of `save`:
1. Before the rename: the record that was there before. Nothing has been done yet that only the
   new one knows of, because nobody acts before `save` has returned.
2. After the rename, before the folder is synced: this one or the one before.
3. After `save` has returned: this one, whatever happens.

A file that is damaged counts as no record: the model is IDLE, and the link says what is current.
`recover` puts it aside and names it; the history knows the last moves of that model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from updater import atomic
from updater.documents import plain, read_document, set_aside, write_document
from updater.errors import Damaged, NoSpace
from updater.names import SHA256, check_model
from updater.state import Event, State, advance, after_restart, has_room

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SUFFIX = ".json"
_MAX_RECORD_BYTES = 64 * 1024  # its five texts from outside are 6 KB each at most, escaped
_MAX_MODELS = 1000  # far more than a box can serve; whoever assigns more fills no disk

_Count = Annotated[int, Meta(ge=0)]
_Digest = Annotated[str, Meta(pattern=rf"\A({SHA256})?\Z")]


@dataclass(frozen=True, slots=True)
class Record:
    """One model's update. What is not known in a state is "", or 0.

    Attributes:
        model: its name.
        event: the last move; None when there was none.
        rollout_id, serial: of the desired state that this update carries out.
        version: the candidate's, 1 or more.
        digest: sha256 of the candidate's bundle, hex. In IDLE: of the last candidate.
        length: bytes of the bundle.
        target: the bundle's TUF target path.
        signed_by: the role whose metadata lists it.
        metadata: the versions of all metadata that this was decided by, for people.
        previous: digest of the release to go back to; "" when there was none.
        tries: how often the candidate has been about to load: to be probed, until TRY; then to
            serve. 0 to `MAX_TRIES`.
        boot_id: of the boot in which the last try was counted.
        deaths: of the daemon, as it counted them then (`updater/lives.py`).
        before_p95_ms: of the release before, to compare with; 0 when too little is known of it.
        watched_from: beginning of the probation, monotonic seconds of that boot.
        transitions: moves of this serial, 0 to `MAX_TRANSITIONS`.
        since: of the last move, wall seconds.
        reason: of the last move, for people; at most 1000 characters.
    """

    model: str
    state: State = State.IDLE
    event: Event | None = None
    rollout_id: str = ""
    serial: _Count = 0
    version: _Count = 0
    digest: _Digest = ""
    length: _Count = 0
    target: str = ""
    signed_by: str = ""
    metadata: str = ""
    previous: _Digest = ""
    tries: _Count = 0
    boot_id: str = ""
    deaths: _Count = 0
    before_p95_ms: float = 0.0
    watched_from: float = 0.0
    transitions: _Count = 0
    since: float = 0.0
    reason: str = ""

    @property
    def needed(self) -> frozenset[str]:
        """Digests of the releases that this update may still want, next to the current one."""
        candidate = "" if self.state is State.IDLE else self.digest
        return frozenset({candidate, self.previous} - {""})

    def may(self, event: Event) -> bool:
        """Whether the bound on moves leaves room for this one; if not, turn back."""
        return has_room(event, self.transitions)

    def assigned(
        self,
        *,
        rollout_id: str,
        serial: int,
        version: int,
        digest: str,
        length: int,
        target: str,
        previous: str,
        now: float,
        signed_by: str = "",
        metadata: str = "",
    ) -> Record:
        """The record of a new update. The same serial again goes on counting its moves.

        Raises:
            RuntimeError: an update is under way, or this serial has no moves left.
        """
        same = (rollout_id, serial) == (self.rollout_id, self.serial)
        fresh = Record(
            model=self.model,
            state=self.state,
            rollout_id=rollout_id,
            serial=serial,
            version=version,
            digest=digest,
            length=length,
            target=target,
            signed_by=plain(signed_by),
            metadata=plain(metadata),
            previous=previous,
            transitions=self.transitions if same else 0,
        )
        return fresh.moved(Event.ASSIGN, now=now)

    def moved(self, event: Event, *, now: float, reason: str = "") -> Record:
        """The record after an event; `save` it before acting.

        Raises:
            RuntimeError: the event cannot happen in this state, or there is no room for it.
        """
        if not self.may(event):
            raise RuntimeError(f"{self.model}: {self.transitions} moves, no room for {event.name}")
        return dataclasses.replace(
            self,
            state=advance(self.state, event),
            event=event,
            transitions=self.transitions + 1,
            since=now,
            reason=plain(reason),
        )

    def tried(
        self, event: Event, *, boot_id: str, deaths: int, now: float, reason: str = ""
    ) -> Record:
        """The record that counts one more try; it must be saved before the candidate loads.

        Args:
            event: PROBE, TRY or RETRY. Probes are counted by themselves.
            boot_id: of this boot.
            deaths: of the daemon, as it counts them.

        Raises:
            RuntimeError: as for `moved`.
        """
        moved = self.moved(event, now=now, reason=reason)
        tries = 1 if event is Event.TRY else self.tries + 1
        return dataclasses.replace(moved, tries=tries, boot_id=boot_id, deaths=deaths)

    def recalled(self, *, now: float, reason: str) -> Record:
        """The record of an operator's way back. His word begins a new count when none is left.

        Raises:
            RuntimeError: as for `moved`.
        """
        has_left = self.may(Event.ASSIGN) or self.state is not State.IDLE
        counting = self if has_left else dataclasses.replace(self, transitions=0)
        return counting.moved(Event.ROLL_BACK, now=now, reason=reason)

    def after_restart(self, *, boot_id: str, deaths: int = 0) -> Event | None:
        """What a start of the updater, or the daemon's death, makes of this update.

        Args:
            deaths: of the daemon since the try was counted. Each one after the first has used up
                a try as well: whoever started it again has loaded the candidate again.

        Returns:
            PROBE, RETRY or ROLL_BACK, to be saved before anything else; None to go on.
        """
        interrupted = deaths > 0 or boot_id != self.boot_id
        tries = self.tries + max(deaths - 1, 0)
        return after_restart(self.state, tries=tries, interrupted=interrupted)


class Journal:
    """The records of all models, a file each.

    Args:
        folder: made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, model: str) -> Record:
        """The record of a model; IDLE when there is none, or, with the reason, a damaged one.

        Raises:
            OSError: the disk cannot be read.
        """
        try:
            return self._read(check_model(model))
        except Damaged as exc:
            return Record(model, reason=f"the journal was damaged: {exc.problem}")

    def save(self, record: Record) -> None:
        """Put a record on disk. Act on it only when this has returned.

        Raises:
            NoSpace: the journal has as many models as it takes; `forget` one.
            OSError: the disk refused; the record before is there.
        """
        path = self._path(record.model)
        models = self._models()
        if record.model not in models and len(models) >= _MAX_MODELS:
            raise NoSpace(f"the journal holds {_MAX_MODELS} models", needed_bytes=1, free_bytes=0)
        if not self._folder.is_dir():
            atomic.make_folder(self._folder)
        write_document(path, record, max_bytes=_MAX_RECORD_BYTES)

    def forget(self, model: str) -> None:
        """Drop the record of a model that is not on this device any more.

        Raises:
            OSError: the disk refused.
        """
        atomic.remove(self._path(model))

    def records(self) -> tuple[Record, ...]:
        """Every model's record, by name; damaged ones as `load` gives them.

        Raises:
            OSError: the disk cannot be read.
        """
        return tuple(self.load(model) for model in self._models())

    def recover(self) -> Mapping[str, str]:
        """At the start: remove what cut-off writes left, put damaged records aside, sync the rest.

        Syncing matters after a kill: a record that can be read may not be durable yet.

        Returns:
            What was wrong with the record of which model. Empty the second time.

        Raises:
            OSError: the disk refused.
        """
        damaged: dict[str, str] = {}
        atomic.make_folder(self._folder)
        for path in atomic.leftovers(self._folder):
            atomic.remove(path)
        for model in self._models():
            try:
                self._read(model)
            except Damaged as exc:
                set_aside(self._path(model))
                damaged[model] = exc.problem
        atomic.sync_tree(self._folder)
        return damaged

    def _models(self) -> tuple[str, ...]:
        if not self._folder.is_dir():
            return ()
        files = (path for path in self._folder.iterdir() if path.suffix == _SUFFIX)
        return tuple(sorted(path.stem for path in files if _is_model(path.stem)))

    def _path(self, model: str) -> Path:
        return self._folder / f"{check_model(model)}{_SUFFIX}"

    def _read(self, model: str) -> Record:
        path = self._path(model)
        record = read_document(path, Record, max_bytes=_MAX_RECORD_BYTES)
        if record is not None and record.model != model:
            raise Damaged(path, f"the record of another model, {record.model[:100]!r}")
        return record or Record(model)


def _is_model(name: str) -> bool:
    try:
        check_model(name)
    except ValueError:
        return False
    return True
