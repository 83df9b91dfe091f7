"""How a version is to be run: `model.toml` first, then the daemon's `[defaults]`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerators.base import Isolation, LoadSpec
from accelerators.placement import Placement
from daemon.pipeline.media import MediaLimits

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.models.store import FoundVersion

_AUTOMATIC = 0
"""`LoadSpec.max_batch` that leaves the number of rows to the model's own shapes."""

_TOLERANCE = 0.05
"""Half precision stays below 1 % of an output's range, 8-bit models that a device reckons in reals
below 4 % (8 of 255 steps measured); wrong answers are off by tens of percent."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the service needs to run one version.

    Attributes:
        load: for the workers.
        placement: which devices may run it.
        queue: requests that may wait or run at a time.
        timeout_s: a request's time when it names none.
        max_delay_s: how long a request may wait to share an invocation.
        top_k: classes listed when neither request nor model.toml says.
        decode_threads: pictures and sounds decoded side by side, for all models together.
        media: what is still decoded.
    """

    load: LoadSpec
    placement: Placement
    queue: int
    timeout_s: float
    max_delay_s: float
    top_k: int
    decode_threads: int
    media: MediaLimits


def choose_settings(found: FoundVersion, config: Config) -> Settings:
    """Merge a model's own wishes with the daemon's defaults."""
    defaults, tables = config.defaults, found.tables
    placement = tables.placement
    limits = tables.limits
    batching = tables.batching
    timeout_s = (limits.timeout_ms or defaults.timeout_ms) / 1000
    load = LoadSpec(
        path=found.model_path,
        threads=placement.threads or defaults.threads,
        instances=placement.instances or defaults.instances,
        isolation=Isolation(placement.isolation or defaults.isolation),
        memory_mib=limits.memory_mib or defaults.memory_mib,
        call_timeout_s=timeout_s,
        load_timeout_s=defaults.load_timeout_ms / 1000,
        max_batch=batching.max_size or _AUTOMATIC,
        recycle_after_calls=defaults.recycle_after_calls,
    )
    wishes = Placement(
        accelerators=placement.accelerators or defaults.accelerators,
        required=bool(placement.required),
        tolerance=_TOLERANCE if placement.tolerance is None else placement.tolerance,
        cpu_model=found.cpu_model,
    )
    return Settings(
        load=load,
        placement=wishes,
        queue=limits.queue or defaults.queue,
        timeout_s=timeout_s,
        max_delay_s=(batching.max_delay_ms or 0.0) / 1000,
        top_k=defaults.top_k,
        decode_threads=config.media.decode_threads,
        media=MediaLimits(max_pixels=config.media.max_pixels, max_audio_s=config.media.max_audio_s),
    )
