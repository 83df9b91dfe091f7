"""What the updater is at, as it told last; for status, metrics and MQTT. Pure.

The updater decides and acts in a process of its own. The daemon only repeats what it says, within
bounds, and shows nothing while it has said nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from daemon.errors import Malformed

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


class UpdateBoard:
    """Holds the last report.

    Attributes:
        report: None while the updater has said nothing.
    """

    def __init__(self) -> None:
        self.report: UpdateReport | None = None

    def adopt(self, raw: object) -> UpdateReport:
        """Take a report over.

        Raises:
            Malformed: it is none; the message names what is wrong with it.
        """
        try:
            report = msgspec.convert(raw, UpdateReport)
        except msgspec.ValidationError as exc:
            raise Malformed(f"not a report of the updater: {exc}") from exc
        self.report = report
        return report

    def document(self) -> dict[str, Any]:
        """The report as JSON's types, with `enabled`."""
        if self.report is None:
            return {"enabled": False}
        return {"enabled": True, **msgspec.to_builtins(self.report)}
