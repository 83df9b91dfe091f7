"""`/`: a short plain page for people: models, devices, and where to look further."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterable

    from accelerators.base import Device
    from daemon.models.status import ModelStatus, Readiness
    from daemon.rest.context import RestContext
    from daemon.rest.routes import Routes

_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;margin:2rem;max-width:60rem}"
    "table{border-collapse:collapse}"
    "td,th{border:1px solid #999;padding:.3rem .6rem;text-align:left}"
)
_LINKS = (
    ("/api/models", "models"),
    ("/api/status", "status"),
    ("/api/devices", "devices"),
    ("/readyz", "readiness"),
    ("/metrics", "metrics"),
    ("/openapi.json", "API description"),
)


def add_routes(routes: Routes, context: RestContext) -> None:
    """Serve the page."""

    async def page(_request: web.Request) -> web.StreamResponse:
        text = _render(
            context.device_id,
            context.version,
            context.service.readiness(),
            context.service.models(),
            context.inventory.known(),
        )
        return web.Response(body=text.encode(), headers=_HEADERS)

    routes.get("/", page)


def _render(
    device_id: str,
    version: str,
    readiness: Readiness,
    models: Iterable[ModelStatus],
    devices: Iterable[Device],
) -> str:
    links = " · ".join(f'<a href="{href}">{text}</a>' for href, text in _LINKS)
    rows = "".join(_render_rows(model) for model in models)
    device_rows = "".join(_render_device(device) for device in devices)
    state = "ready" if readiness.ready else "not ready"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>inferd on {escape(device_id)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(device_id)}</h1><p>inferd {escape(version)}, {state}</p><p>{links}</p>"
        "<table><tr><th>model<th>version<th>state<th>device<th>takes<th>gives<th>why</tr>"
        f"{rows}</table>"
        "<h2>Devices</h2>"
        "<table><tr><th>device<th>state<th>name<th>driver<th>why<th>next step</tr>"
        f"{device_rows}</table></html>\n"
    )


def _render_device(device: Device) -> str:
    state = "up" if device.up else "down"
    cells = (device.id, state, device.name, device.driver, device.problem, device.next_step)
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>"


def _render_rows(model: ModelStatus) -> str:
    name = f'<a href="/api/models/{quote(model.name, safe="")}">{escape(model.name)}</a>'
    rows = []
    for version in model.versions:
        report, profile = version.report, version.profile
        cells = (
            str(version.version),
            version.state.value,
            report.device if report else "",
            profile.input_kind.value if profile else "",
            profile.output_kind.value if profile else "",
            version.reason,
        )
        rows.append(f"<tr><td>{name}" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>")
    return "".join(rows)
