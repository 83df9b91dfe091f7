"""Errors as KServe v2 clients expect them, in Triton's words where they look for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.errors import (
    DaemonError,
    ModelNotFound,
    ModelUnavailable,
    VersionNotFound,
    shorten,
)
from daemon.rest.answers import json_response
from daemon.rest.errors import KSERVE, error_headers, status_of

if TYPE_CHECKING:
    from aiohttp import web


def kserve_error(error: DaemonError) -> web.Response:
    """An error as KServe v2 clients expect it, in Triton's words where they look for them."""
    return _refuse(error, _wording(error))


def load_error(error: DaemonError) -> web.Response:
    """An error of the repository's `load`, which begins with what did not come about."""
    if isinstance(error, ModelNotFound):
        return _refuse(error, f"failed to load '{shorten(error.model)}', no such model is here")
    if isinstance(error, ModelUnavailable):
        return _refuse(error, f"failed to load '{shorten(error.model)}': {error.reason}")
    return kserve_error(error)


def _refuse(error: DaemonError, message: str) -> web.Response:
    return json_response(
        {"error": message}, status=status_of(error, KSERVE), headers=error_headers(error)
    )


def _wording(error: DaemonError) -> str:
    if isinstance(error, ModelNotFound):
        return f"Request for unknown model: '{shorten(error.model)}' is not found"
    if isinstance(error, VersionNotFound):
        name = shorten(error.model)
        return f"Request for unknown model: '{name}' version {error.version} is not found"
    if isinstance(error, ModelUnavailable):
        name = shorten(error.model)
        if error.version is None:
            what = f"'{name}' has no available versions"
        else:
            what = f"'{name}' version {error.version} is not at ready state"
        return f"Request for unknown model: {what}: {error.reason}"
    return str(error)
