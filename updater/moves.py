"""Writes each move of an update down: the record first, which is acted upon, then the history.

Rules:
1. What the history tells of a move follows from the record alone. So a line that is missing,
   because power was lost or the disk was full between the two, can be told later, and is: at the
   next start, or before the next move.
2. No move forward is made while a line is missing. A full disk therefore stops an update; it goes
   on when there is room again.
3. No try begins without the room that the way back takes (`space.hold_ballast`); that room is given
   to the way back, and to nothing else. What the history still lacks then does not hold it up.
4. Notes tell what is no move. Without room they go to the log alone.
5. A refusal is noted once, not at each look.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from updater import atomic, space
from updater.documents import plain
from updater.state import UNDER_TRIAL, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from updater.history import Chain, Fact, History, Line
    from updater.journal import Journal, Record

_log = logging.getLogger(f"inferd.{__name__}")

_WORDS = {Event.ASSIGN: "assigned", Event.TRY: "try begins", Event.RETRY: "try begins again"}
_REFUSED, _DAMAGED = "refused", "history damaged"
_LOOK_BACK = 5000
"""Lines that are read at a start: more than are written in a month of updates."""
_MAX_REFUSALS = 1000
"""More than a device meets; forgotten ones are noted again."""


def told(record: Record) -> dict[str, Fact]:
    """What the history says of a record's last move; there was one."""
    event = record.event
    if event is None:
        raise RuntimeError(f"{record.model} has not moved yet")
    facts: dict[str, Fact] = {
        "model": record.model,
        "event": _WORDS.get(event, event.value),
        "state": record.state.value,
        "version": record.version,
        "digest": record.digest,
        "rollout_id": record.rollout_id,
        "serial": record.serial,
        "transition": record.transitions,
    }
    if event is Event.ASSIGN:
        facts |= {
            "target": record.target,
            "length": record.length,
            "signed_by": record.signed_by,
            "metadata": record.metadata,
            "previous": record.previous,
        }
    if event in {Event.PROBE, Event.TRY, Event.RETRY}:
        facts["tries"] = record.tries
    if record.reason:
        facts["reason"] = record.reason
    return {key: plain(fact) if isinstance(fact, str) else fact for key, fact in facts.items()}


class Moves:
    """The journal and the history as one."""

    def __init__(
        self, journal: Journal, history: History, ballast: Path, clock: Callable[[], float]
    ) -> None:
        """Store only.

        Args:
            ballast: folder of the files that keep room for the way back, one for each try.
            clock: wall clock, seconds.
        """
        self._journal = journal
        self._history = history
        self._ballast = ballast
        self._clock = clock
        self._untold: dict[str, list[dict[str, Fact]]] = {}
        self._refusals: dict[tuple[str, str, str], None] = {}

    def recover(self) -> None:
        """At the start: put both in order, and tell what the history lacks.

        Raises:
            OSError: the disk refused otherwise than for want of room.
        """
        atomic.make_folder(self._ballast)
        damaged = self._journal.recover()
        chain = self._history.recover()
        lines = self._history.read(limit=_LOOK_BACK)
        for model, problem in damaged.items():
            self.note(model, "journal damaged", reason=problem)
        self._note_break(chain, lines)
        self._refusals = dict.fromkeys(
            (str(event["model"]), str(event.get("digest")), str(event.get("reason")))
            for event in (line.event for line in lines)
            if event.get("event") == _REFUSED
        )
        for record in self._journal.records():
            if record.event is not None and _is_missing(record, lines):
                self._untold[record.model] = [told(record)]
            if record.state not in UNDER_TRIAL:
                space.drop_ballast(self._ballast / record.model)
        for model in tuple(self._untold):
            self._tell_if_possible(model)

    def save(self, record: Record) -> None:
        """Put a record on disk, then into the history. Act on it only when this has returned.

        Raises:
            NoSpace: of a TRY, there is no room for the way back.
            OSError: the disk refused, and the record before is there; or the history lacks a line
                yet, and nothing can be done before that.
        """
        model = record.model
        ballast = self._ballast / model
        match record.event:
            case Event.TRY:
                self._tell(model)
                space.hold_ballast(ballast)
            case Event.ROLL_BACK:
                space.drop_ballast(ballast)
                self._tell_if_possible(model)
            case _:
                self._tell(model)
        self._journal.save(record)
        event = told(record)
        self._untold.setdefault(model, []).append(event)
        level = logging.WARNING if record.event is Event.ROLL_BACK else logging.INFO
        _log.log(level, "update %s", _facts(event))
        self._tell_if_possible(model)
        if record.event is Event.DONE:
            space.drop_ballast(ballast)

    def note(self, model: str, what: str, **facts: Fact) -> None:
        """Tell something that is no move; for want of room in the log alone.

        Args:
            model: "" for all.

        Raises:
            OSError: the disk refused otherwise.
        """
        event: dict[str, Fact] = {"model": model, "event": what, **facts}
        _log.info("update %s", _facts(event))
        try:
            self._history.append(event, now=self._clock())
        except OSError as exc:
            if not space.is_full(exc):
                raise
            _log.warning("no room for a line of the history %s", _facts(event))

    def refuse(self, model: str, *, version: int, digest: str, reason: str) -> bool:
        """Note that policy lets a bundle not in; whether it had not been noted before.

        Raises:
            OSError: as for `note`.
        """
        refusal = (model, digest, plain(reason))
        if refusal in self._refusals:
            return False
        if len(self._refusals) >= _MAX_REFUSALS:
            del self._refusals[next(iter(self._refusals))]
        self._refusals[refusal] = None
        self.note(model, _REFUSED, version=version, digest=digest, reason=reason)
        return True

    def _note_break(self, chain: Chain, lines: tuple[Line, ...]) -> None:
        """A break stays in the history for ever; it is noted once."""
        if chain.broken is None:
            return
        broken = chain.broken
        reason = plain(f"{broken.file}, line {broken.line}: {broken.problem}")
        noted = {line.event.get("reason") for line in lines if line.event.get("event") == _DAMAGED}
        if reason not in noted:
            self.note("", _DAMAGED, reason=reason)

    def _tell(self, model: str) -> None:
        """Add the lines that are missing.

        Raises:
            OSError: the disk refused.
        """
        untold = self._untold.get(model, [])
        while untold:
            self._history.append(untold[0], now=self._clock())
            del untold[0]
        self._untold.pop(model, None)

    def _tell_if_possible(self, model: str) -> None:
        try:
            self._tell(model)
        except OSError as exc:
            if not space.is_full(exc):
                raise
            _log.warning("no room for the history model=%s lines=%d", model, len(self._untold))


def _is_missing(record: Record, lines: tuple[Line, ...]) -> bool:
    """Whether the history lacks the record's last move."""
    last = next((line for line in reversed(lines) if _is_move(line, record.model)), None)
    if last is not None:
        return last.event != told(record)
    # Its line may be older than all that were read, and is then long there.
    return not lines or lines[0].sequence == 1 or record.since >= lines[0].time


def _is_move(line: Line, model: str) -> bool:
    return line.event.get("model") == model and "transition" in line.event


def _facts(event: Mapping[str, Fact]) -> str:
    return " ".join(f"{key}={value}" for key, value in event.items())
