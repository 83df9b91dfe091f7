"""The native predict endpoints: any sensible body in, labels, boxes, masks or tensors out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from daemon.codec.native import (
    NO_OPTIONS,
    decode_predict,
    encode_predict,
    make_request,
    read_options,
)
from daemon.errors import Malformed, shorten
from daemon.rest.answers import json_bytes_response
from daemon.rest.body import read_body
from daemon.rest.headers import deadline_of, request_id_of
from daemon.tensors import Protocol

if TYPE_CHECKING:
    from aiohttp import web

    from daemon.rest.context import Call, RestContext
    from daemon.rest.routes import Routes

_MAX_VERSION = 2**63 - 1
_HEAVY_BYTES = 1024 * 1024
"""Bodies from this size on are decoded in a thread: JSON of 1 MiB takes some 10 ms, for which
nobody else would get an answer."""


def add_routes(routes: Routes, context: RestContext) -> None:
    """Serve predictions of the newest version, of a labelled one, and of a given one."""

    async def predict_newest(request: web.Request, call: Call) -> web.StreamResponse:
        return await _predict(request, call, context, None)

    async def predict_version(request: web.Request, call: Call) -> web.StreamResponse:
        version = read_version(request.match_info["version"])
        return await _predict(request, call, context, version)

    routes.predict("/api/models/{model}/predict", predict_newest, protocol=Protocol.NATIVE)
    routes.predict(
        "/api/models/{model}/versions/{version}/predict", predict_version, protocol=Protocol.NATIVE
    )


def read_version(raw_version: str) -> int:
    """A version number from a URL.

    Raises:
        Malformed: it is not a whole number, 1 to 2^63 - 1.
    """
    is_number = raw_version.isascii() and raw_version.isdigit() and len(raw_version) <= 19  # noqa: PLR2004 (digits of int64)
    version = int(raw_version) if is_number else 0
    if not 1 <= version <= _MAX_VERSION:
        raise Malformed(f"a version is a whole number from 1 on, not '{shorten(raw_version)}'")
    return version


async def _predict(
    request: web.Request, call: Call, context: RestContext, version: int | None
) -> web.StreamResponse:
    options = read_options(request.query.items()) if request.query_string else NO_OPTIONS
    if version is not None and options.label is not None:
        raise Malformed("name a version or a label, not both")
    name = request.match_info["model"]
    body = await read_body(request, context)
    service = context.service
    with service.lease(name, version=version, label=options.label) as target:
        call.model, call.version = target.model, target.version
        deadline = deadline_of(request, target)
        content_type = request.headers.get("Content-Type", "")
        if len(body) < _HEAVY_BYTES:
            decoded = decode_predict(body, content_type, target, options)
        else:
            decoded = await asyncio.to_thread(decode_predict, body, content_type, target, options)
        predict_request = make_request(
            decoded, options, deadline=deadline, request_id=request_id_of(request)
        )
        result = await service.predict(target, predict_request)
        return json_bytes_response(encode_predict(result, decoded.signature))
