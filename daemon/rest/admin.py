"""What is served, on what, in which state; and the operator's load and unload."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from typing import TYPE_CHECKING

from daemon.codec.catalog import describe_model, describe_models
from daemon.codec.devices import describe_devices
from daemon.rest.answers import json_response

if TYPE_CHECKING:
    from aiohttp import web

    from daemon.rest.context import RestContext
    from daemon.rest.routes import Routes


def add_routes(routes: Routes, context: RestContext) -> None:
    """Serve /api/models, /api/status, /api/devices and the administration of models."""
    service = context.service

    async def models(_request: web.Request) -> web.StreamResponse:
        return json_response(describe_models(service.models()))

    async def model(request: web.Request) -> web.StreamResponse:
        return json_response(describe_model(service.model(request.match_info["model"])))

    async def status(_request: web.Request) -> web.StreamResponse:
        return json_response(_describe_status(context))

    async def devices(_request: web.Request) -> web.StreamResponse:
        here = await context.inventory.refresh()
        losses = context.inventory.losses()
        return json_response(describe_devices(here, service.models(), losses, _cpu_facts()))

    async def load(request: web.Request) -> web.StreamResponse:
        name = request.match_info["model"]
        await service.load(name)
        return json_response(describe_model(service.model(name)))

    async def unload(request: web.Request) -> web.StreamResponse:
        name = request.match_info["model"]
        await service.unload(name)
        return json_response(describe_model(service.model(name)))

    routes.get("/api/models", models)
    routes.get("/api/models/{model}", model)
    routes.get("/api/status", status)
    routes.get("/api/devices", devices)
    routes.post("/api/models/{model}/load", load)
    routes.post("/api/models/{model}/unload", unload)


def _describe_status(context: RestContext) -> dict[str, object]:
    service = context.service
    readiness = service.readiness()
    models = service.models()
    states = Counter(version.state.value for model in models for version in model.versions)
    return {
        "device": context.device_id,
        "version": context.version,
        "uptime_s": round(time.monotonic() - context.started_at, 3),
        "ready": readiness.ready,
        "reasons": dict(readiness.reasons),
        "models": len(models),
        "versions": dict(states),
        "updates": context.updates.document(),
        **context.status(),
    }


def _cpu_facts() -> dict[str, object]:
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "usable_cores": len(os.sched_getaffinity(0)),
    }
