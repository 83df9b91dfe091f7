"""What the updater says: what it is at, for status, metrics and MQTT; and what it has done. Pure.

The updater decides and acts in a process of its own. The daemon only repeats what it says, within
bounds, and shows nothing while it has said nothing.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from daemon.errors import Malformed

if TYPE_CHECKING:
    from collections.abc import Sequence

State = Literal[
    "IDLE",
    "ASSIGNED",
    "DOWNLOADING",
    "VERIFIED",
    "PROBED",
    "WAIT_WINDOW",
    "TRYING",
    "PROBATION",
    "COMMITTED",
    "ROLLING_BACK",
]
Outcome = Literal["committed", "rolled_back", "rejected", "refused"]

_Name = Annotated[str, Meta(min_length=1, max_length=128)]
_Text = Annotated[str, Meta(max_length=500)]
_Number = Annotated[int, Meta(ge=0)]


class ModelUpdate(Struct, frozen=True):
    """Where one model's update is.

    Attributes:
        version: that is being brought in; 0 when none is.
        progress: of the download, 0..1.
        reason: why it stands where it stands.
    """

    model: _Name
    state: State
    version: _Number = 0
    progress: Annotated[float, Meta(ge=0, le=1)] = 0.0
    reason: _Text = ""


class UpdateCount(Struct, frozen=True):
    """How often a model's updates have ended in one way."""

    model: _Name
    outcome: Outcome
    count: _Number


class UpdateReport(Struct, frozen=True):
    """Everything the updater says of itself.

    Attributes:
        checked_at: of the last look at the repository that succeeded, seconds since 1970; 0 never.
        problem: why the last look did not.
        expires: by role of the trusted metadata, seconds since 1970.
    """

    models: Annotated[tuple[ModelUpdate, ...], Meta(max_length=1000)] = ()
    counts: Annotated[tuple[UpdateCount, ...], Meta(max_length=4000)] = ()
    checked_at: Annotated[float, Meta(ge=0)] = 0.0
    problem: _Text = ""
    expires: Annotated[dict[_Name, float], Meta(max_length=64)] = {}


class UpdateEvent(Struct, frozen=True):
    """One line of the updater's history, which it wants told to the fleet.

    Attributes:
        sequence: its number in the history of this device.
        time: of the wall clock, seconds since 1970.
        event: what happened, in its own words.
    """

    sequence: Annotated[int, Meta(ge=1)]
    time: float
    event: dict[str, Any]


class _Events(Struct, frozen=True):
    events: Annotated[tuple[UpdateEvent, ...], Meta(min_length=1, max_length=100)]


def read_events(raw: object) -> tuple[UpdateEvent, ...]:
    """The events of `{"events": [...]}`, 1 to 100 of them, in the order of their numbers.

    Raises:
        Malformed: it is something else; the message names what.
    """
    try:
        events = msgspec.convert(raw, _Events).events
    except msgspec.ValidationError as exc:
        raise Malformed(f"not events of the updater: {exc}") from exc
    if any(later.sequence <= event.sequence for event, later in itertools.pairwise(events)):
        raise Malformed("'sequence' must grow from event to event")
    return events


def event_document(device_id: str, event: UpdateEvent) -> dict[str, Any]:
    """An event as the fleet hears it; what is ours to say goes before the updater's words."""
    ours = {"device": device_id, "sequence": event.sequence, "time": event.time}
    return ours | event.event | ours


class UpdateBoard:
    """Holds the last report.

    Attributes:
        report: None while the updater has said nothing.
    """

    def __init__(self) -> None:
        self.report: UpdateReport | None = None

    @property
    def core(self) -> UpdateReport | None:
        """The report without what may change from moment to moment: reasons and progress."""
        if self.report is None:
            return None
        models = tuple(
            ModelUpdate(model=update.model, state=update.state, version=update.version)
            for update in self.report.models
        )
        return msgspec.structs.replace(self.report, models=models)

    def adopt(self, raw: object) -> UpdateReport:
        """Take a report over.

        Raises:
            Malformed: it is none; the message names what is wrong with it.
        """
        try:
            report = msgspec.convert(raw, UpdateReport)
        except msgspec.ValidationError as exc:
            raise Malformed(f"not a report of the updater: {exc}") from exc
        _check_each_once("models", [update.model for update in report.models])
        _check_each_once("counts", [(count.model, count.outcome) for count in report.counts])
        self.report = report
        return report

    def document(self) -> dict[str, Any]:
        """The report as JSON's types, with `enabled`."""
        if self.report is None:
            return {"enabled": False}
        return {"enabled": True, **msgspec.to_builtins(self.report)}


def _check_each_once(member: str, keys: Sequence[object]) -> None:
    """Series that are there twice would spoil the whole of /metrics.

    Raises:
        Malformed: one is.
    """
    if len(set(keys)) < len(keys):
        raise Malformed(f"'{member}' speaks of the same thing twice")
