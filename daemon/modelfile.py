"""`model.toml`: what a model's file cannot say of itself. Pure: text in, tables or problems out.

Every key may be absent: the metadata packed in the TFLite file speaks next, then shape and dtype,
then the daemon's `[defaults]`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=128)]
Channels = float | Annotated[tuple[float, ...], Field(min_length=1, max_length=4)]
"""One number for every channel, or one for each."""


class Table(BaseModel):
    """A TOML table: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class ModelTable(Table):
    """`[model]`: who it is. Name defaults to the folder's or the file's stem, version to 1."""

    name: Name | None = None
    version: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    description: Annotated[str, Field(max_length=2000)] | None = None


class InputTable(Table):
    """`[input]`: how a picture or a sound becomes the input tensor.

    `mean` and `std` speak of the model's real values: real = (pixel - mean) / std, pixels 0..255.
    """

    kind: Literal["image", "audio", "tensor"] | None = None
    resize: Literal["stretch", "letterbox", "crop"] | None = None
    color: Literal["rgb", "bgr", "gray"] | None = None
    mean: Channels | None = None
    std: Channels | None = None
    sample_rate_hz: Annotated[int, Field(ge=1000, le=384000)] | None = None


class OutputTable(Table):
    """`[output]`: what the output tensors mean."""

    kind: Literal["classification", "detection", "segmentation", "tensor"] | None = None
    labels: str | tuple[str, ...] | None = None
    """A file name beside model.toml, or the labels themselves; default: labels.txt beside it."""
    top_k: Annotated[int, Field(ge=1, le=10000)] | None = None
    threshold: float | None = None
    box_order: Literal["ymin_xmin_ymax_xmax", "xmin_ymin_xmax_ymax"] | None = None


class PlacementTable(Table):
    """`[placement]`: what should run it."""

    accelerators: Annotated[tuple[Name, ...], Field(min_length=1, max_length=8)] | None = None
    threads: Annotated[int, Field(ge=1, le=64)] | None = None
    instances: Annotated[int, Field(ge=1, le=64)] | None = None
    isolation: Literal["process", "thread"] | None = None


class LimitsTable(Table):
    """`[limits]`: what it may take."""

    queue: Annotated[int, Field(ge=1, le=100000)] | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=3600000)] | None = None
    memory_mib: Annotated[int, Field(ge=16, le=1048576)] | None = None


class BatchingTable(Table):
    """`[batching]`: whether waiting requests may share one invocation."""

    max_size: Annotated[int, Field(ge=1, le=256)] | None = None
    max_delay_ms: Annotated[float, Field(ge=0, le=1000)] | None = None


class HealthSample(Table):
    """`[[health.samples]]`: an input with its expected answer."""

    input: Name
    label: str | None = None
    min_score: float | None = None
    outputs: dict[str, Name] | None = None
    """Output name to a .npy file beside the input, with the expected tensor."""
    tolerance: Annotated[float, Field(ge=0)] | None = None


class HealthTable(Table):
    """`[health]`: when a candidate of this model counts as healthy."""

    samples: tuple[HealthSample, ...] = ()
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    max_memory_mib: Annotated[int, Field(gt=0)] | None = None


class ModelTables(Table):
    """A whole `model.toml`; an empty one is valid."""

    model: ModelTable = ModelTable()
    input: InputTable = InputTable()
    output: OutputTable = OutputTable()
    placement: PlacementTable = PlacementTable()
    limits: LimitsTable = LimitsTable()
    batching: BatchingTable = BatchingTable()
    health: HealthTable = HealthTable()
