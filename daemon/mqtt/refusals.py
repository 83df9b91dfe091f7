"""Errors as MQTT clients see them: one table from error class to code. Pure.

The codes are part of the contract (docs/mqtt.md): a class is looked up by itself, then by its
bases, so that a subclass needs its own line only when it differs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import orjson

from daemon import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.mqtt.messages import Publication

CODES: Mapping[type[errors.DaemonError], str] = {
    errors.DaemonError: "internal",
    errors.ConfigError: "internal",
    errors.RequestError: "bad_request",
    errors.Malformed: "malformed",
    errors.BadTensor: "bad_tensor",
    errors.UnsupportedMedia: "unsupported_media",
    errors.TooLarge: "too_large",
    errors.Unsupported: "unsupported",
    errors.Forbidden: "forbidden",
    errors.NotFound: "not_found",
    errors.ModelNotFound: "model_not_found",
    errors.VersionNotFound: "version_not_found",
    errors.LabelNotFound: "label_not_found",
    errors.SignatureNotFound: "signature_not_found",
    errors.TemporaryError: "unavailable",
    errors.ModelUnavailable: "unavailable",
    errors.Overloaded: "overloaded",
    errors.NotKept: "unavailable",
    errors.DeadlineExceeded: "deadline_exceeded",
    errors.PredictionFailed: "prediction_failed",
    errors.WorkerCrashed: "worker_crashed",
}

INTERNAL = "internal"


def code_of(error: errors.DaemonError) -> str:
    """The code in the refusal of a request that ended in this error."""
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def refusal(code: str, message: str, request_id: str) -> bytes:
    """The payload of a refusal."""
    return orjson.dumps({"error": {"code": code, "message": message}, "id": request_id})


def too_large_refusal(publication: Publication, limit_bytes: int | None) -> Publication:
    """What is sent in place of a result that the broker does not take.

    Args:
        publication: the result.
        limit_bytes: the broker's Maximum Packet Size; None when it has not said.
    """
    limit = "what the broker takes" if limit_bytes is None else f"the broker's {limit_bytes}"
    message = (
        f"the result has {len(publication.payload)} bytes, more than {limit}; "
        "ask for less (top_k, fewer outputs) or by HTTP"
    )
    code = CODES[errors.TooLarge]
    return replace(publication, payload=refusal(code, message, publication.request_id))
