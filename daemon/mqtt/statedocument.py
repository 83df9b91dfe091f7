"""The retained state document: versions, devices and health, in less than 8 KB. Pure.

Brokers of the large clouds bound such documents at 8 KB, so a long one is cut: first its reasons,
then the models at its end; `truncated` says so, and HTTP's `/api/models` has all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.models.status import ModelStatus, Readiness, VersionStatus

MAX_STATE_BYTES = 8000

_SHORT_REASON_CHARS = 60


def state_document(
    device_id: str, version: str, models: Sequence[ModelStatus], readiness: Readiness
) -> bytes:
    """The JSON to publish; equal facts give equal bytes.

    Args:
        version: of this program.
    """
    document: dict[str, object] = {
        "device": device_id,
        "version": version,
        "ready": readiness.ready,
        "reasons": dict(sorted(readiness.reasons.items())),
        "models": [_model(status) for status in models],
        "truncated": False,
    }
    raw = orjson.dumps(document)
    if len(raw) < MAX_STATE_BYTES:
        return raw
    return _cut(document, models)


def _cut(document: dict[str, object], models: Sequence[ModelStatus]) -> bytes:
    document["truncated"] = True
    document["reasons"] = {}
    summaries = [_model(status, _SHORT_REASON_CHARS) for status in models]
    while True:
        document["models"] = summaries
        raw = orjson.dumps(document)
        if len(raw) < MAX_STATE_BYTES or not summaries:
            return raw
        excess = 1 - MAX_STATE_BYTES / len(raw)
        del summaries[-max(1, int(len(summaries) * excess)) :]


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
