"""What the updater says of itself: to the operator, and to the daemon. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from updater.state import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from updater.journal import Record

_MOST_TEXT = 500
_MOST_MODELS = 1000
_MOST_COUNTS = 4000
_MOST_ROLES = 64
"""What the daemon takes of each."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Where one model stands. What does not apply is "" or 0.

    Attributes:
        state: `State.value`.
        version: the candidate's.
        current_version: of the release that its link names.
        current, previous: sha256 of bundles.
        bytes, length: of the candidate's bundle: what is there, and in all.
        waiting_for: what keeps it.
        reason: of the last move.
        since: of the last move, wall clock seconds.
    """

    model: str
    state: str
    version: int
    current_version: int
    current: str
    previous: str
    bytes: int
    length: int
    waiting_for: str
    reason: str
    rollout_id: str
    serial: int
    since: float


@dataclass(frozen=True, slots=True)
class Status:
    """All of it.

    Attributes:
        source: of the metadata that is wished by.
        checked_at: of the last look that succeeded, wall clock seconds; 0 for none since the start.
        next_check_in_s: None when none is planned, or one is under way.
        is_busy: a look is asked for or under way, or steps are; what follows is to come still.
        problem: why the last look failed, or why nothing new is installed.
        clock_good: False when the system's clock is not believed.
        expires: by role of the trusted metadata, wall clock seconds.
        versions: the same, of its version.
    """

    device: str
    source: str
    checked_at: float
    next_check_in_s: float | None
    is_busy: bool
    problem: str
    clock_good: bool
    expires: Mapping[str, float]
    versions: Mapping[str, int]
    models: tuple[ModelStatus, ...]


def model_status(
    record: Record,
    *,
    current: str,
    current_version: int,
    arrived_bytes: int,
    waiting_for: str,
) -> ModelStatus:
    """Put together what is known of one model.

    Args:
        current: digest of what its link names; "" for none.
        arrived_bytes: of the candidate's bundle, while it is downloaded.
    """
    is_idle = record.state is State.IDLE
    length = 0 if is_idle else record.length
    is_arriving = record.state in {State.ASSIGNED, State.DOWNLOADING}
    return ModelStatus(
        model=record.model,
        state=record.state.value,
        version=0 if is_idle else record.version,
        current_version=current_version,
        current=current,
        previous=record.previous,
        bytes=min(arrived_bytes, length) if is_arriving else length,
        length=length,
        waiting_for=waiting_for,
        reason=record.reason,
        rollout_id=record.rollout_id,
        serial=record.serial,
        since=record.since,
    )


def status_document(status: Status) -> dict[str, object]:
    """As `GET /status` answers."""
    return asdict(status)


def daemon_document(status: Status, outcomes: Mapping[tuple[str, str], int]) -> dict[str, object]:
    """As the daemon takes it (`PUT /api/updates`), within its bounds.

    Args:
        outcomes: (model, "committed" | "rolled_back" | "rejected" | "refused") to how often.
    """
    counts = sorted(outcomes.items())[:_MOST_COUNTS]
    return {
        "models": [_model_document(model) for model in status.models[:_MOST_MODELS]],
        "counts": [
            {"model": model, "outcome": outcome, "count": count}
            for (model, outcome), count in counts
        ],
        "checked_at": status.checked_at,
        "problem": status.problem[:_MOST_TEXT],
        "expires": dict(sorted(status.expires.items())[:_MOST_ROLES]),
    }


def _model_document(model: ModelStatus) -> dict[str, object]:
    return {
        "model": model.model,
        "state": model.state.upper(),
        "version": model.version,
        "progress": model.bytes / model.length if model.length else 0.0,
        "reason": (model.waiting_for or model.reason)[:_MOST_TEXT],
    }
