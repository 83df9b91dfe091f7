"""Models as KServe v2 describes them: metadata, configuration, statistics, repository index. Pure.

Every function returns what its JSON says, ready for `orjson`.

Source: the Open Inference Protocol's REST text; Triton's extension_model_configuration.md,
extension_statistics.md and extension_model_repository.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerators.base import DataType
from daemon.models.status import VersionState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from accelerators.base import ModelReport, SignatureSpec, TensorSpec
    from daemon.models.status import ModelStatus, Tally, VersionStatistics

PLATFORM = "tflite"

EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""Only what is offered: clients act on this list."""


def describe_server(version: str) -> dict[str, object]:
    """The answer to `GET /v2`."""
    return {"name": "inferd", "version": version, "extensions": EXTENSIONS}


def describe_model(
    name: str, versions: Iterable[int], report: ModelReport, signature: SignatureSpec
) -> dict[str, object]:
    """Model metadata.

    Args:
        name: of the model.
        versions: those that answer.
        report, signature: of the version that was asked for; its default signature.
    """
    rows = _max_batch_size(report, signature)
    return {
        "name": name,
        "versions": [str(version) for version in sorted(versions)],
        "platform": PLATFORM,
        "inputs": [_describe_tensor(spec, rows) for spec in signature.inputs],
        "outputs": [_describe_tensor(spec, rows) for spec in signature.outputs],
    }


def describe_config(
    name: str,
    versions: Iterable[int],
    report: ModelReport,
    signatures: Mapping[str, SignatureSpec],
) -> dict[str, object]:
    """Triton's ModelConfig, with the members that mean something here.

    `max_batch_size` is what the probe at load has proven, 0 where it proved nothing; dims lack the
    first dimension where it is more than 0.
    """
    signature = next(iter(signatures.values()))
    rows = _max_batch_size(report, signature)
    config: dict[str, object] = {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "runtime": report.runtime,
        "version_policy": {"specific": {"versions": sorted(versions)}},
        "max_batch_size": rows,
        "input": [_configure_input(spec, rows) for spec in signature.inputs],
        "output": [_configure_output(spec, rows) for spec in signature.outputs],
        "default_model_filename": "model.tflite",
        "parameters": {
            "device": {"string_value": report.device},
            "requested_device": {"string_value": report.requested_device},
            "signatures": {"string_value": ",".join(signatures)},
        },
    }
    if rows:
        config["dynamic_batching"] = {}
    return config


def describe_statistics(
    name: str, version: int, statistics: VersionStatistics, memory_bytes: int
) -> dict[str, object]:
    """One entry of `model_stats`."""
    return {
        "name": name,
        "version": str(version),
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.inferences,
        "execution_count": statistics.executions,
        "inference_stats": {
            "success": _duration(statistics.success),
            "fail": _duration(statistics.fail),
            "queue": _duration(statistics.queue),
            "compute_input": _duration(statistics.compute_input),
            "compute_infer": _duration(statistics.compute_infer),
            "compute_output": _duration(statistics.compute_output),
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(inputs),
                "compute_infer": _duration(infer),
                "compute_output": _duration(outputs),
            }
            for rows, (inputs, infer, outputs) in statistics.batches.items()
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": memory_bytes}],
    }


def describe_repository(
    models: Sequence[ModelStatus], *, only_ready: bool
) -> list[dict[str, object]]:
    """The repository index: every version of every model, by name and version."""
    return [entry for model in models for entry in _index_model(model, only_ready=only_ready)]


def _index_model(model: ModelStatus, *, only_ready: bool) -> Iterator[dict[str, object]]:
    if not model.versions and not only_ready:
        reason = "no version was found" if model.wanted else "unloaded"
        yield {"name": model.name, "state": VersionState.UNAVAILABLE.value, "reason": reason}
    for version in sorted(model.versions, key=lambda version: version.version):
        if version.state is VersionState.READY or not only_ready:
            yield {
                "name": model.name,
                "version": str(version.version),
                "state": version.state.value,
                "reason": version.reason,
            }


def _max_batch_size(report: ModelReport, signature: SignatureSpec) -> int:
    """Triton's `max_batch_size`: 0 unless the first dimension of every tensor counts rows."""
    tensors = (*signature.inputs, *signature.outputs)
    all_have_rows = all(spec.shape and spec.shape[0] in (-1, 1) for spec in tensors)
    return report.max_batch if report.max_batch > 1 and all_have_rows else 0


def _describe_tensor(spec: TensorSpec, rows: int) -> dict[str, object]:
    shape = (-1, *spec.shape[1:]) if rows else spec.shape
    return {"name": spec.name, "datatype": spec.datatype.value, "shape": shape}


def _configure_input(spec: TensorSpec, rows: int) -> dict[str, object]:
    return {**_configure_output(spec, rows), "format": "FORMAT_NONE", "optional": False}


def _configure_output(spec: TensorSpec, rows: int) -> dict[str, object]:
    is_text = spec.datatype is DataType.BYTES
    return {
        "name": spec.name,
        "data_type": "TYPE_STRING" if is_text else f"TYPE_{spec.datatype.value}",
        "dims": spec.shape[1:] if rows else spec.shape,
    }


def _duration(tally: Tally) -> dict[str, int]:
    return {"count": tally.count, "ns": tally.ns}
