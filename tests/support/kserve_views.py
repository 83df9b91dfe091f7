"""Builds what the codecs must know of a model, without loading one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerators.base import DataType, ModelMetadata, ModelReport, SignatureSpec, TensorSpec
from daemon.modelfile import InputTable, ModelTables
from daemon.pipeline.profiles import ModelProfile, build_profile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class View:
    """Has what `daemon.codec.kserve.ModelView` asks for."""

    model: str
    report: ModelReport
    profile: ModelProfile
    signatures: Mapping[str, SignatureSpec]


def tensor(
    name: str, datatype: DataType = DataType.FP32, shape: Sequence[int] = (1, 3)
) -> TensorSpec:
    """One input or output."""
    return TensorSpec(name, datatype, tuple(shape))


def make_view(
    inputs: Sequence[TensorSpec] = (),
    outputs: Sequence[TensorSpec] = (),
    *,
    max_batch: int = 1,
    labels: Sequence[str] = (),
    others: Sequence[SignatureSpec] = (),
    tables: ModelTables | None = None,
) -> View:
    """A model named `m` with these tensors in its default signature."""
    default = SignatureSpec(
        "serving_default", tuple(inputs or [tensor("x")]), tuple(outputs or [tensor("y")])
    )
    signatures = (default, *others)
    report = ModelReport(
        digest="0" * 64,
        runtime="litert 2.3.0",
        device="cpu",
        requested_device="cpu",
        degraded_reason="",
        signatures=signatures,
        metadata=ModelMetadata(),
        stateful=False,
        max_batch=max_batch,
        memory_bytes=1000,
        load_s=0.1,
        warm_s=0.1,
    )
    return View(
        "m",
        report,
        build_profile(tables or ModelTables(), report, tuple(labels)),
        {signature.name: signature for signature in signatures},
    )


def make_picture_view(*, max_batch: int = 1, rows: int = 1) -> View:
    """A classifier of 8x8 pictures."""
    return make_view(
        [tensor("image", DataType.UINT8, (rows, 8, 8, 3))],
        [tensor("scores", DataType.FP32, (rows, 4))],
        max_batch=max_batch,
        tables=ModelTables(input=InputTable(kind="image")),
    )
