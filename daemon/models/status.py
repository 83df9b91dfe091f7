"""What a model's versions are doing, as every front end reports it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerators.base import ModelReport
    from accelerators.placement import Trial
    from daemon.pipeline.profiles import ModelProfile


class VersionState(Enum):
    """Where a version is in its life."""

    LOADING = "LOADING"  # a worker is being started, warmed or probed; it answers nothing yet
    READY = "READY"  # it answers
    UNLOADING = "UNLOADING"  # it finishes what it has and takes nothing new
    UNAVAILABLE = "UNAVAILABLE"  # it cannot answer; the reason says why


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version of one model.

    Attributes:
        reason: why it is UNAVAILABLE, or what READY hides ("worker restarting"); "" else.
        report, profile: None until it was loaded once.
        trials: what is known of each device it wishes for, the CPU first; () without such a wish.
    """

    version: int
    state: VersionState
    reason: str = ""
    report: ModelReport | None = None
    profile: ModelProfile | None = None
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model with all its versions, newest first; a model that cannot be served stays listed.

    Attributes:
        labels: version label to version number.
        description: from model.toml or metadata.
        wanted: False after an operator unloaded it: readiness does not wait for it.
        required: versions that the configuration names, each of which must answer.
    """

    name: str
    versions: tuple[VersionStatus, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    description: str = ""
    wanted: bool = True
    required: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether every wanted model answers.

    Attributes:
        reasons: per model of which something wanted does not answer: why, in one sentence. A model
            may be ready and have a reason, when an older version answers for a refused one.
    """

    ready: bool
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Tally:
    """How often, and for how long together, in nanoseconds."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """Counters of one version since it was loaded, in the terms of KServe's statistics extension.

    Attributes:
        inferences: rows answered. executions: invocations made.
        last_inference_ms: wall clock, milliseconds since 1970; 0 before the first.
        batches: rows per invocation to (compute_input, compute_infer, compute_output).
    """

    inferences: int = 0
    executions: int = 0
    last_inference_ms: int = 0
    success: Tally = Tally()
    fail: Tally = Tally()
    queue: Tally = Tally()
    compute_input: Tally = Tally()
    compute_infer: Tally = Tally()
    compute_output: Tally = Tally()
    batches: Mapping[int, tuple[Tally, Tally, Tally]] = field(default_factory=dict)
