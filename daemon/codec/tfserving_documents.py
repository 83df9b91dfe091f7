"""TF Serving's status and metadata answers. Pure.

Source: TF Serving, apis/get_model_status.proto and get_model_metadata.proto as JSON: numbers of 64
bits are strings, and the doubled "signature_def" is real.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from accelerators.base import DataType
from daemon.codec.tfserving import PREDICT_METHOD
from daemon.models.status import VersionState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from accelerators.base import SignatureSpec, TensorSpec
    from daemon.models.status import VersionStatus

_STATES = {
    VersionState.LOADING: "LOADING",
    VersionState.READY: "AVAILABLE",
    VersionState.UNLOADING: "UNLOADING",
    VersionState.UNAVAILABLE: "END",
}

_DTYPES = {
    DataType.BOOL: "DT_BOOL",
    DataType.UINT8: "DT_UINT8",
    DataType.UINT16: "DT_UINT16",
    DataType.UINT32: "DT_UINT32",
    DataType.UINT64: "DT_UINT64",
    DataType.INT8: "DT_INT8",
    DataType.INT16: "DT_INT16",
    DataType.INT32: "DT_INT32",
    DataType.INT64: "DT_INT64",
    DataType.FP16: "DT_HALF",
    DataType.FP32: "DT_FLOAT",
    DataType.FP64: "DT_DOUBLE",
    DataType.BYTES: "DT_STRING",
}


def encode_status(versions: Iterable[VersionStatus]) -> bytes:
    """Write the answer to a status request: these versions, in this order."""
    entries = [
        {
            "version": str(status.version),
            "state": _STATES[status.state],
            "status": _health(status),
        }
        for status in versions
    ]
    return _pretty({"model_version_status": entries})


def encode_metadata(model: str, version: int, signatures: Mapping[str, SignatureSpec]) -> bytes:
    """Write the answer to a metadata request."""
    definitions = {name: _signature_def(spec) for name, spec in signatures.items()}
    return _pretty(
        {
            "model_spec": {"name": model, "signature_name": "", "version": str(version)},
            "metadata": {"signature_def": {"signature_def": definitions}},
        }
    )


def _health(status: VersionStatus) -> dict[str, str]:
    if status.state is VersionState.UNAVAILABLE:
        return {"error_code": "UNAVAILABLE", "error_message": status.reason}
    return {"error_code": "OK", "error_message": ""}


def _signature_def(signature: SignatureSpec) -> dict[str, object]:
    return {
        "inputs": {spec.name: _tensor_info(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in signature.outputs},
        "method_name": PREDICT_METHOD,
        "defaults": {},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, object]:
    return {
        "dtype": _DTYPES[spec.datatype],
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in spec.shape],
            "unknown_rank": False,
        },
        "name": spec.name if ":" in spec.name else f"{spec.name}:0",
    }


def _pretty(document: object) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)
