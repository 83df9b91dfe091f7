"""The one table from error to HTTP status, with what each protocol does differently.

A status is looked up by class, then by the class's bases, so that a subclass needs its own line
only when it differs. A test walks all subclasses of DaemonError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon import errors
from daemon.rest.answers import json_response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp import web

    StatusTable = Mapping[type[errors.DaemonError], int]
    ErrorAnswer = Callable[[errors.DaemonError], web.Response]
    """How a protocol words an error. It must not raise."""


class BodyTimedOut(errors.RequestError):
    """The body did not arrive in time; the connection is closed."""


class CrossSite(errors.Forbidden):
    """A web page of another site, or a foreign host name, tried to use this server."""


class Unauthenticated(errors.RequestError):
    """Nobody knows who asks: a token is missing, or is not known."""


class UpdaterUnavailable(errors.TemporaryError):
    """The updater does not answer."""


class UpdaterRefused(errors.RequestError):
    """The updater answers, and the answer is no."""


NATIVE: StatusTable = {
    errors.DaemonError: 500,
    errors.ConfigError: 500,
    errors.RequestError: 400,
    errors.Malformed: 400,
    errors.BadTensor: 422,
    errors.UnsupportedMedia: 415,
    errors.TooLarge: 413,
    errors.Unsupported: 501,
    errors.Forbidden: 403,
    CrossSite: 403,
    Unauthenticated: 401,
    BodyTimedOut: 408,
    UpdaterUnavailable: 503,
    UpdaterRefused: 409,
    errors.NotFound: 404,
    errors.ModelNotFound: 404,
    errors.VersionNotFound: 404,
    errors.LabelNotFound: 404,
    errors.SignatureNotFound: 404,
    errors.TemporaryError: 503,
    errors.ModelUnavailable: 503,
    errors.Overloaded: 503,
    errors.NotKept: 503,
    errors.DeadlineExceeded: 504,
    errors.PredictionFailed: 500,
    errors.WorkerCrashed: 500,
}

KSERVE: StatusTable = {
    **NATIVE,
    errors.BadTensor: 400,
    errors.UnsupportedMedia: 400,
    errors.SignatureNotFound: 400,
}
"""Triton's: INVALID_ARG 400, UNAVAILABLE 503, UNSUPPORTED 501."""

TFSERVING: StatusTable = {
    **NATIVE,
    errors.BadTensor: 400,
    errors.UnsupportedMedia: 400,
    errors.SignatureNotFound: 400,
    errors.LabelNotFound: 400,
}
"""INVALID_ARGUMENT 400, and an unknown label is one of those."""


def status_of(error: errors.DaemonError, table: StatusTable = NATIVE) -> int:
    """The HTTP status of an error under a protocol's table."""
    return next(table[cls] for cls in type(error).__mro__ if cls in table)


def error_headers(error: errors.DaemonError) -> dict[str, str] | None:
    """What a client needs to go on: when to ask again, or how to say who asks; None for nothing."""
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": 'Bearer realm="inferd"'}
    if isinstance(error, errors.Overloaded):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, errors.ModelUnavailable) and error.passes:
        return {"Retry-After": "1"}
    if isinstance(error, errors.NotKept):
        return {"Retry-After": "60"}
    return None


def error_response(error: errors.DaemonError, table: StatusTable = NATIVE) -> web.Response:
    """`{"error": message}` with the facts a program may branch on beside it."""
    body: dict[str, object] = {"error": str(error)}
    if isinstance(error, errors.NotFound | errors.ModelUnavailable):
        body["model"] = error.model
    if isinstance(error, errors.ModelUnavailable):
        body["reason"] = error.reason
    if isinstance(error, errors.Overloaded):
        body["reason"] = error.reason.value
    if isinstance(error, errors.TooLarge):
        body["limit"] = error.limit
        body["unit"] = error.unit
    return json_response(body, status=status_of(error, table), headers=error_headers(error))
