"""The retained state document: versions, devices, health, updates, in less than 8 KB. Pure.

Brokers of the large clouds bound such documents at 8 KB, so a long one is cut: first its reasons,
then updates that rest, then what is at the end of its lists; `truncated` says so, and HTTP's
`/api/models` and `/api/updates` have all of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerators.base import Device
    from daemon.models.status import ModelStatus, Readiness, VersionStatus
    from daemon.updates import ModelUpdate, UpdateReport

MAX_STATE_BYTES = 8000

REASONS_INTERVAL_S = 60.0
"""A download's progress is for whoever looks, not for the whole fleet each second."""

_MAX_UPDATES_BYTES = MAX_STATE_BYTES // 3
"""Of a document that is cut: what is served is more to be told than what comes."""
_SHORT_REASON_CHARS = 60
_MAX_DEVICES = 8
"""Of a document that is cut."""


class StateNews:
    """Which states are worth publishing.

    Rules:
    1. One that says what the last one said is not.
    2. One in which nothing else is new than why updates stand where they stand, which may be the
       progress of a download, is not within `REASONS_INTERVAL_S` of the last one.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nothing was published: the next state is news."""
        self._state = self._core = b""
        self._at = -math.inf

    def is_news(self, state: bytes, make_core: Callable[[], bytes], *, now: float) -> bool:
        """Whether to publish this state; it then counts as the last one.

        Args:
            make_core: gives the same state without reasons and progress of updates.
            now: monotonic seconds.
        """
        if state == self._state:
            return False
        core = make_core()
        if core == self._core and now - self._at < REASONS_INTERVAL_S:
            return False
        self._state, self._core, self._at = state, core, now
        return True


def state_document(
    device_id: str,
    version: str,
    models: Sequence[ModelStatus],
    readiness: Readiness,
    updates: UpdateReport | None = None,
    *,
    devices: Sequence[Device] = (),
) -> bytes:
    """The JSON to publish; equal facts give equal bytes.

    Args:
        version: of this program.
        updates: what the updater said last; None when it has said nothing.
        devices: that an operator expects.
    """
    document: dict[str, object] = {
        "device": device_id,
        "version": version,
        "ready": readiness.ready,
        "reasons": dict(sorted(readiness.reasons.items())),
        "devices": [_device(device) for device in devices],
        "models": [_model(status) for status in models],
        "updates": None if updates is None else _updates(updates),
        "truncated": False,
    }
    raw = orjson.dumps(document)
    if len(raw) < MAX_STATE_BYTES:
        return raw
    document["devices"] = [_device(each, _SHORT_REASON_CHARS) for each in devices[:_MAX_DEVICES]]
    return _cut(document, models, updates)


def _cut(
    document: dict[str, object], models: Sequence[ModelStatus], updates: UpdateReport | None
) -> bytes:
    document["truncated"] = True
    document["reasons"] = {}
    document["updates"] = None if updates is None else _cut_updates(updates)
    summaries = [_model(status, _SHORT_REASON_CHARS) for status in models]
    while True:
        document["models"] = summaries
        raw = orjson.dumps(document)
        if len(raw) < MAX_STATE_BYTES or not summaries:
            return raw
        excess = 1 - MAX_STATE_BYTES / len(raw)
        del summaries[-max(1, int(len(summaries) * excess)) :]


def _device(device: Device, most_chars: int | None = None) -> dict[str, object]:
    return {
        "id": device.id,
        "kind": device.kind,
        "up": device.up,
        "problem": device.problem[:most_chars],
        "next_step": device.next_step[:most_chars],
    }


def _model(status: ModelStatus, reason_chars: int | None = None) -> dict[str, object]:
    return {
        "name": status.name,
        "wanted": status.wanted,
        "labels": dict(status.labels),
        "versions": [_version(version, reason_chars) for version in status.versions],
    }


def _version(status: VersionStatus, reason_chars: int | None) -> dict[str, object]:
    report = status.report
    return {
        "version": str(status.version),
        "state": status.state.value,
        "reason": status.reason if reason_chars is None else status.reason[:reason_chars],
        "device": None if report is None else report.device,
        "requested_device": None if report is None else report.requested_device,
        "degraded": False if report is None else report.degraded,
    }


def _updates(report: UpdateReport) -> dict[str, object]:
    return {
        "problem": report.problem,
        "models": [_update(update) for update in sorted(report.models, key=_by_model)],
    }


def _cut_updates(report: UpdateReport) -> dict[str, object]:
    short = _SHORT_REASON_CHARS
    busy = sorted((update for update in report.models if update.state != "IDLE"), key=_by_model)
    summaries = [_update(update, short) for update in busy]
    while summaries and len(orjson.dumps(summaries)) > _MAX_UPDATES_BYTES:
        del summaries[-max(1, len(summaries) // 8) :]
    return {"problem": report.problem[:short], "models": summaries}


def _update(update: ModelUpdate, reason_chars: int | None = None) -> dict[str, object]:
    return {
        "model": update.model,
        "state": update.state,
        "version": update.version,
        "reason": update.reason if reason_chars is None else update.reason[:reason_chars],
    }


def _by_model(update: ModelUpdate) -> str:
    return update.model
