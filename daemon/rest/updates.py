"""What the updater asks of the daemon, over the unix socket; and what is known of updates.

The updater may have a release probed, tell that the disk holds another one now, ask how a version
does, say what it is at, and hand over what it has done for the fleet to hear. It cannot hand over
bytes of models or paths outside of the store. Nobody comes here by the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from daemon.errors import Forbidden, Malformed, NotKept, Unsupported
from daemon.rest.answers import json_response
from daemon.rest.body import read_body
from daemon.rest.connection import connection_of
from daemon.rest.updaterlink import tell_updater
from daemon.updates import read_events

if TYPE_CHECKING:
    from aiohttp import web

    from daemon.models.traffic import TrafficReport
    from daemon.probe import Verdict
    from daemon.rest.context import RestContext
    from daemon.rest.routes import Routes


def add_routes(routes: Routes, context: RestContext) -> None:
    """Serve /api/updates."""
    _add_what_the_updater_asks(routes, context)
    service = context.service

    async def traffic(request: web.Request) -> web.StreamResponse:
        return json_response(_describe_traffic(service.traffic(request.match_info["model"])))

    async def known(_request: web.Request) -> web.StreamResponse:
        return json_response(context.updates.document())

    async def refresh(_request: web.Request) -> web.StreamResponse:
        return json_response(await _wish(context, "refresh", {"origin": "http"}), status=202)

    async def rollback(request: web.Request) -> web.StreamResponse:
        name = service.model(request.match_info["model"]).name
        return json_response(await _wish(context, "rollback", {"model": name}), status=202)

    routes.get("/api/models/{model}/traffic", traffic)
    routes.get("/api/updates", known)
    routes.post("/api/updates/refresh", refresh)
    routes.post("/api/models/{model}/rollback", rollback)


def _add_what_the_updater_asks(routes: Routes, context: RestContext) -> None:
    service, updates = context.service, context.updates

    async def probe(request: web.Request) -> web.StreamResponse:
        document = await _local_document(request, context)
        folder = _release_folder(document.get("path"), context.store_dir)
        if context.prober is None:
            raise Forbidden("this daemon does not probe")
        return json_response(_describe_verdict(await context.prober.probe(folder)))

    async def activate(request: web.Request) -> web.StreamResponse:
        name = _text(await _local_document(request, context), "model")
        await service.activate(name)
        return json_response(_describe_traffic(service.traffic(name)))

    async def tell(request: web.Request) -> web.StreamResponse:
        context.metrics.updates(updates.adopt(await _local_document(request, context)))
        return json_response(updates.document())

    async def publish(request: web.Request) -> web.StreamResponse:
        events = read_events(await _local_document(request, context))
        if context.publish_events is None:
            raise NotKept("MQTT is off (mqtt.url), so there is nobody to tell events to")
        return json_response({"taken": await context.publish_events(events)})

    routes.post("/api/updates/probe", probe)
    routes.post("/api/updates/activate", activate)
    routes.add("PUT", "/api/updates", tell)
    routes.post("/api/updates/events", publish)


async def _wish(context: RestContext, verb: str, document: dict[str, Any]) -> dict[str, Any]:
    if context.updater_socket is None:
        raise Unsupported("this daemon was started without an updater")
    return await tell_updater(context.updater_socket, verb, document)


async def _local_document(request: web.Request, context: RestContext) -> dict[str, Any]:
    """The request's JSON object, when it came by the unix socket.

    Raises:
        Forbidden: it came by the network.
        Malformed: it is not a JSON object.
    """
    if not connection_of(request).is_local:
        raise Forbidden("only the updater may ask this, over the daemon's unix socket")
    try:
        document = orjson.loads(await read_body(request, context))
    except orjson.JSONDecodeError as exc:
        raise Malformed(f"the body is not JSON: {exc}") from exc
    if type(document) is not dict:
        raise Malformed("the body must be a JSON object")
    return document


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if type(value) is not str or not value:
        raise Malformed(f"'{key}' must be a string")
    return value


def _release_folder(raw_path: object, store_dir: Path | None) -> Path:
    """A folder in the store, links resolved.

    Raises:
        Malformed: it is something else.
    """
    if type(raw_path) is not str or store_dir is None:
        raise Malformed("'path' must be the path of a release in the store")
    try:
        folder = Path(raw_path).resolve(strict=True)
    except (OSError, ValueError) as exc:
        raise Malformed("'path' names nothing that is there") from exc
    if not folder.is_dir() or not folder.is_relative_to(store_dir.resolve()):
        raise Malformed(f"'path' must be a release in {store_dir}")
    return folder


def _describe_verdict(verdict: Verdict) -> dict[str, object]:
    return {
        "ok": verdict.ok,
        "reasons": verdict.reasons,
        "model": verdict.model,
        "version": verdict.version,
        "device": verdict.device,
        "latency_ms": round(verdict.latency_ms, 4),
        "memory_bytes": verdict.memory_bytes,
        "samples": verdict.samples,
        "seconds": round(verdict.seconds, 3),
    }


def _describe_traffic(report: TrafficReport) -> dict[str, object]:
    return {
        "model": report.model,
        "version": report.version,
        "release": report.release,
        "answered": report.answered,
        "faults": report.faults,
        "not_finite": report.not_finite,
        "worker_deaths": report.worker_deaths,
        "latency_ms": {"p50": report.p50_s * 1e3, "p95": report.p95_s * 1e3},
    }
