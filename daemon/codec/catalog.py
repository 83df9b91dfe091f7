"""Models and their states as JSON documents, for every front end. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from accelerators.base import TensorSpec
    from accelerators.placement import Trial
    from daemon.models.status import ModelStatus, VersionStatus


def describe_models(models: Iterable[ModelStatus]) -> dict[str, object]:
    """`{"models": [...]}`, one entry for every known model."""
    return {"models": [describe_model(model) for model in models]}


def describe_model(model: ModelStatus) -> dict[str, object]:
    """One model with all its versions, newest first."""
    return {
        "name": model.name,
        "description": model.description,
        "wanted": model.wanted,
        "labels": {label: str(version) for label, version in model.labels.items()},
        "versions": [_describe_version(version) for version in model.versions],
    }


def _describe_version(version: VersionStatus) -> dict[str, object]:
    """What a version is and does. Facts that only a loaded model tells are null or empty before."""
    report, profile = version.report, version.profile
    document: dict[str, object] = {
        "version": str(version.version),
        "state": version.state.value,
        "reason": version.reason,
        "device": None,
        "requested_device": None,
        "degraded": False,
        "input_kind": profile.input_kind.value if profile else None,
        "output_kind": profile.output_kind.value if profile else None,
        "inputs": [],
        "outputs": [],
        "signatures": {},
        "placement": [_describe_trial(trial) for trial in version.trials],
    }
    if report is None:
        return document
    signatures = {
        signature.name: {
            "inputs": _describe_tensors(signature.inputs),
            "outputs": _describe_tensors(signature.outputs),
        }
        for signature in report.signatures
    }
    default = report.signatures[0]
    document |= {
        "device": report.device,
        "requested_device": report.requested_device,
        "degraded": report.degraded,
        "inputs": _describe_tensors(default.inputs),
        "outputs": _describe_tensors(default.outputs),
        "signatures": signatures,
        "max_batch": report.max_batch,
        "memory_bytes": report.memory_bytes,
        "runtime": report.runtime,
        "digest": report.digest,
        "notes": [*report.notes, *(profile.notes if profile else ())],
    }
    if report.degraded:
        document["degraded_reason"] = report.degraded_reason
    return document


def _describe_trial(trial: Trial) -> dict[str, object]:
    """What is known of the model on one device; null for what was not measured."""
    coverage = trial.coverage
    return {
        "device": trial.device,
        "verdict": trial.verdict.value,
        "reason": trial.reason,
        "latency_ms": round(trial.latency_s * 1e3, 3) if trial.latency_s else None,
        "memory_bytes": trial.memory_bytes or None,
        "difference": trial.difference,
        "coverage": None
        if coverage is None
        else {
            "operators": coverage.operators,
            "claimed": coverage.claimed,
            "partitions": coverage.partitions,
            "taken": coverage.taken,
        },
    }


def _describe_tensors(specs: Iterable[TensorSpec]) -> list[dict[str, object]]:
    return [_describe_tensor(spec) for spec in specs]


def _describe_tensor(spec: TensorSpec) -> dict[str, object]:
    document: dict[str, object] = {
        "name": spec.name,
        "datatype": spec.datatype.value,
        "shape": spec.shape,
    }
    if spec.quantization is not None:
        document["quantization"] = {
            "scale": spec.quantization.scale,
            "zero_point": spec.quantization.zero_point,
        }
    return document
