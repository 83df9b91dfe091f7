"""Alive, ready, metrics: what supervisors and monitors ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from daemon.rest.answers import json_response
from daemon.rest.guard import Access

if TYPE_CHECKING:
    from daemon.rest.context import RestContext
    from daemon.rest.routes import Routes


def add_routes(routes: Routes, context: RestContext) -> None:
    """Serve /healthz, /readyz and the metrics."""

    async def healthz(_request: web.Request) -> web.StreamResponse:
        return json_response({"status": "ok"})

    async def readyz(_request: web.Request) -> web.StreamResponse:
        readiness = context.service.readiness()
        document = {"ready": readiness.ready, "reasons": dict(readiness.reasons)}
        return json_response(document, status=200 if readiness.ready else 503)

    async def metrics(_request: web.Request) -> web.StreamResponse:
        await context.inventory.refresh(())  # it may be that nobody watches the devices
        body, content_type = context.metrics.render()
        return web.Response(body=body, headers={"Content-Type": content_type})

    routes.get("/healthz", healthz, access=Access.OPEN)
    routes.get("/readyz", readyz, access=Access.OPEN)
    routes.get("/metrics", metrics)
    routes.get("/monitoring/prometheus/metrics", metrics)
