"""The native predict endpoints: any sensible body in, labels, boxes, masks or tensors out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from daemon.codec.native import (
    NO_OPTIONS,
    decode_predict,
    encode_predict,
    is_document,
    make_request,
    read_options,
)
from daemon.codec.pieces import is_heavy_answer
from daemon.documents import HEAVY_BYTES
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
    service, documents = context.service, context.documents
    with service.lease(name, version=version, label=options.label) as target:
        call.model, call.version = target.model, target.version
        deadline = deadline_of(request, target)
        content_type = request.headers.get("Content-Type", "")
        decoded = await documents.run(
            partial(decode_predict, body, content_type, target, options),
            is_heavy=len(body) >= HEAVY_BYTES and is_document(body, content_type),
            deadline=deadline,
        )
        predict_request = make_request(
            decoded, options, deadline=deadline, request_id=request_id_of(request)
        )
        result = await service.predict(target, predict_request)
        answer = await documents.run(
            partial(encode_predict, result, decoded.signature),
            is_heavy=is_heavy_answer(result.outputs.values()),
            deadline=deadline,
        )
        return json_bytes_response(answer)
