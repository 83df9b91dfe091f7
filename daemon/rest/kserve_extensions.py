"""Triton's repository, shared memory, trace and logging extensions, at `/v2`.

What is not offered is refused in Triton's words: shared memory, changing settings, model bytes.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from daemon.codec.jsontensors import parse_json
from daemon.codec.kserve_models import describe_repository
from daemon.documents import HEAVY_BYTES
from daemon.errors import Forbidden, Malformed, NotFound, Unsupported, shorten
from daemon.rest.answers import json_response
from daemon.rest.body import read_body
from daemon.rest.guard import Access
from daemon.rest.kserve_errors import kserve_error, load_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from daemon.rest.context import RestContext
    from daemon.rest.routes import Routes

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_SHARED_MEMORY = "/v2/{kind:(?:system|cuda)sharedmemory}"

_DOCUMENT_S = 30.0
"""For the body of a repository request to be read, in seconds."""

_TRACE_OFF = {
    "trace_level": ["OFF"],
    "trace_rate": "0",
    "trace_count": "0",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


def add_routes(routes: Routes, context: RestContext) -> None:
    """Serve the extensions."""
    _add_repository(routes, context)
    _add_shared_memory(routes)
    _add_settings(routes, context)


def _add_repository(routes: Routes, context: RestContext) -> None:
    service = context.service

    async def index(request: web.Request) -> web.Response:
        document = await _optional_object(request, context)
        only_ready = document.get("ready", False)
        if type(only_ready) is not bool:
            raise Malformed(
                "Unable to parse 'ready': attempt to access JSON non-boolean as boolean"
            )
        return json_response(describe_repository(service.models(), only_ready=only_ready))

    async def load(request: web.Request) -> web.Response:
        document = await _optional_object(request, context)
        _refuse_model_bytes(document.get("parameters"))
        await service.load(request.match_info["model"])
        return web.Response()

    async def unload(request: web.Request) -> web.Response:
        await _optional_object(request, context)
        await service.unload(request.match_info["model"])
        return web.Response()

    async def named(_request: web.Request) -> web.Response:
        raise Unsupported("'repository_name' specification is not supported")

    routes.post("/v2/repository/index", index, access=Access.READ, on_error=kserve_error)
    routes.post("/v2/repository/models/{model}/load", load, on_error=load_error)
    routes.post("/v2/repository/models/{model}/unload", unload, on_error=kserve_error)
    routes.post("/v2/repository/{repository}/index", named, on_error=kserve_error)
    for verb in ("load", "unload"):
        path = "/v2/repository/{repository}/models/{model}/" + verb
        routes.post(path, named, on_error=kserve_error)


def _refuse_model_bytes(parameters: object) -> None:
    """Models come signed, or from the operator's disk; never through this door."""
    if parameters is None:
        return
    if type(parameters) is not dict:
        raise Malformed("Unable to parse 'parameters': attempt to access JSON non-object as object")
    if any(name.startswith("file:") for name in parameters):
        raise Forbidden(
            "model files are not taken here: models come in signed bundles or from the "
            "operator's disk; load without 'file:' parameters"
        )
    if "config" in parameters:
        raise Unsupported(
            "a model's configuration is in its model.toml; load without the parameter 'config'"
        )


def _add_shared_memory(routes: Routes) -> None:
    async def status(_request: web.Request) -> web.Response:
        return json_response([])

    async def region_status(request: web.Request) -> web.Response:
        region = request.match_info["region"]
        raise NotFound(f"Unable to find shared memory region: '{shorten(region)}'", model="")

    async def register(_request: web.Request) -> web.Response:
        raise Unsupported("shared memory is not offered here; send tensors as binary data")

    async def unregister(_request: web.Request) -> web.Response:
        return web.Response()  # nothing is ever registered, so nothing is left to do

    _get(routes, _SHARED_MEMORY + "/status", status)
    _get(routes, _SHARED_MEMORY + "/region/{region}/status", region_status)
    for path, handler in (
        ("/region/{region}/register", register),
        ("/region/{region}/unregister", unregister),
        ("/unregister", unregister),
    ):
        routes.post(_SHARED_MEMORY + path, handler, on_error=kserve_error)


def _add_settings(routes: Routes, context: RestContext) -> None:
    async def log_settings(_request: web.Request) -> web.Response:
        return json_response(_log_settings())

    async def trace_settings(request: web.Request) -> web.Response:
        if "model" in request.match_info:
            context.service.model(request.match_info["model"])
        return json_response(_TRACE_OFF)

    async def fixed(_request: web.Request) -> web.Response:
        raise Unsupported(
            "this is set in the daemon's configuration file and cannot be changed here"
        )

    for path, handler in (
        ("/v2/logging", log_settings),
        ("/v2/trace/setting", trace_settings),
        ("/v2/models/{model}/trace/setting", trace_settings),
    ):
        _get(routes, path, handler)
        routes.post(path, fixed, on_error=kserve_error)


def _log_settings() -> dict[str, object]:
    level = logging.getLogger("inferd").getEffectiveLevel()
    return {
        "log_file": "",
        "log_info": level <= logging.INFO,
        "log_warning": level <= logging.WARNING,
        "log_error": level <= logging.ERROR,
        "log_verbose_level": int(level <= logging.DEBUG),
        "log_format": "default",
    }


async def _optional_object(request: web.Request, context: RestContext) -> dict[str, object]:
    """The body as a JSON object; an empty one stands for {}."""
    body = await read_body(request, context)
    if not body:
        return {}
    document = await context.documents.run(
        partial(parse_json, body),
        is_heavy=len(body) >= HEAVY_BYTES,
        deadline=time.monotonic() + _DOCUMENT_S,
    )
    if type(document) is not dict:
        raise Malformed("the body must be empty or a JSON object")
    return document


def _get(routes: Routes, path: str, handler: Handler) -> None:
    routes.get(path, handler, on_error=kserve_error)
