"""Facts about the models to one word: ready or not, with a reason for each that is not. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.models.status import ModelStatus, Readiness, VersionState

if TYPE_CHECKING:
    from collections.abc import Iterable


def judge_readiness(models: Iterable[ModelStatus], *, has_looked: bool = True) -> Readiness:
    """Ready when every wanted model answers, in each version that the configuration names.

    Args:
        models: that are known.
        has_looked: whether the disk was looked at; before that nobody knows what is wanted.
    """
    wanted = [model for model in models if model.wanted]
    reasons = {model.name: reason for model in wanted if (reason := _complaint(model))}
    return Readiness(ready=has_looked and all(map(_answers, wanted)), reasons=reasons)


def _answers(model: ModelStatus) -> bool:
    return bool(_ready(model)) and _ready(model).issuperset(model.required)


def _ready(model: ModelStatus) -> set[int]:
    return {v.version for v in model.versions if v.state is VersionState.READY}


def _complaint(model: ModelStatus) -> str:
    """Why not all of it answers; "" when it does. A version on its way matters if none answers."""
    for version in model.versions:
        if version.state is VersionState.UNAVAILABLE:
            return f"version {version.version}: {version.reason}"
    if _answers(model):
        return ""
    for version in model.versions:
        if version.state is VersionState.LOADING:
            return f"version {version.version} is being loaded"
    missing = sorted(set(model.required) - _ready(model))
    if missing:
        return f"not found: version {', '.join(map(str, missing))}"
    return "no version of it was found"
