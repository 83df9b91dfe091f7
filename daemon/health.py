"""Facts about the models to one word: ready or not, with a reason for each that is not. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.models.status import ModelStatus, Readiness, VersionState

if TYPE_CHECKING:
    from collections.abc import Iterable


def judge_readiness(models: Iterable[ModelStatus]) -> Readiness:
    """Ready when every wanted model has a version that answers."""
    reasons = {
        model.name: _why_not(model) for model in models if model.wanted and not _answers(model)
    }
    return Readiness(ready=not reasons, reasons=reasons)


def _answers(model: ModelStatus) -> bool:
    return any(version.state is VersionState.READY for version in model.versions)


def _why_not(model: ModelStatus) -> str:
    for version in model.versions:
        if version.state is VersionState.LOADING:
            return f"version {version.version} is being loaded"
        if version.reason:
            return f"version {version.version}: {version.reason}"
    return "no version of it was found"
