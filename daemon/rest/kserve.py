"""KServe v2 with Triton's binary, configuration and statistics extensions, at `/v2`.

Deviations from Triton, on purpose: a body over the limit is 413, a passed deadline 504, a negative
dimension 400 (Triton: 400, 503 and 500). Content-Type never decides anything.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from accelerators.base import DataType
from daemon.codec.kserve import HEADER_LENGTH, decode_infer, parse_header_length
from daemon.codec.kserve_answers import encode_infer, written_arrays
from daemon.codec.kserve_models import (
    describe_config,
    describe_model,
    describe_server,
    describe_statistics,
)
from daemon.codec.pieces import is_heavy_answer
from daemon.documents import HEAVY_BYTES
from daemon.errors import VersionNotFound, shorten
from daemon.models.status import VersionState
from daemon.rest.answers import bytes_response, json_response
from daemon.rest.body import read_body
from daemon.rest.compression import MIN_BYTES, choose_coding, compress
from daemon.rest.connection import connection_of
from daemon.rest.guard import Access
from daemon.rest.headers import (
    MAX_ID_CHARACTERS,
    deadline_of,
    origin_headers,
    request_id_of,
    timeout_of,
)
from daemon.rest.kserve_errors import kserve_error
from daemon.rest.kserve_express import MAX_JSON_BYTES, InferPlan
from daemon.tensors import PredictRequest, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from daemon.codec.kserve import InferCall
    from daemon.models.served import Target
    from daemon.models.status import ModelStatus, VersionStatus
    from daemon.rest.context import Call, RestContext
    from daemon.rest.routes import Routes
    from daemon.tensors import PredictResult

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MODEL = "/v2/models/{model}"
# Digits of an int64; whatever else stands there is an unknown path, as in Triton.
_VERSION = _MODEL + "/versions/{version:[0-9]{1,19}}"


def add_routes(routes: Routes, context: RestContext) -> None:
    """Serve what describes the server and its models, and inference."""
    _add_health(routes, context)
    _add_statistics(routes, context)  # before the models: /v2/models/stats names none
    _add_models(routes, context)
    _add_inference(routes, context)


def _add_health(routes: Routes, context: RestContext) -> None:
    server = describe_server(context.version)

    async def live(_request: web.Request) -> web.Response:
        return web.Response()

    async def ready(_request: web.Request) -> web.Response:
        return web.Response(status=200 if context.service.readiness().ready else 400)

    async def metadata(_request: web.Request) -> web.Response:
        return json_response(server)

    for path, handler in (("/v2/health/live", live), ("/v2/health/ready", ready)):
        routes.get(path, handler, access=Access.OPEN, on_error=kserve_error)
    _get(routes, "/v2", metadata)
    _get(routes, "/v2/", metadata)


def _add_models(routes: Routes, context: RestContext) -> None:
    service = context.service

    async def list_models(_request: web.Request) -> web.Response:
        return json_response({"models": [model.name for model in service.models()]})

    async def metadata(request: web.Request) -> web.Response:
        with service.lease(_name(request), version=_version(request)) as target:
            versions = _ready_versions(service.model(target.model))
            signature = target.default_signature
            return json_response(describe_model(target.model, versions, target.report, signature))

    async def config(request: web.Request) -> web.Response:
        with service.lease(_name(request), version=_version(request)) as target:
            versions = _ready_versions(service.model(target.model))
            return json_response(
                describe_config(target.model, versions, target.report, target.signatures)
            )

    async def ready(request: web.Request) -> web.Response:
        if _is_ready(service.model(_name(request)), _version(request)):
            return web.Response()
        return json_response({"error": "Model version not ready"}, status=400)

    _get(routes, "/v2/models", list_models)
    for path in (_MODEL, _VERSION):
        _get(routes, path, metadata)
        _get(routes, path + "/ready", ready)
        _get(routes, path + "/config", config)


def _is_ready(model: ModelStatus, version: int | None) -> bool:
    answering = _ready_versions(model)
    if version is None:
        return bool(answering)
    if all(known.version != version for known in model.versions):
        raise VersionNotFound(model.name, version)
    return version in answering


def _add_statistics(routes: Routes, context: RestContext) -> None:
    service = context.service

    async def of_model(request: web.Request) -> web.Response:
        model, version = service.model(_name(request)), _version(request)
        versions = tuple(known for known in model.versions if version in (None, known.version))
        if version is not None and not versions:
            raise VersionNotFound(model.name, version)
        return json_response({"model_stats": list(_statistics(context, model, versions))})

    async def of_all(_request: web.Request) -> web.Response:
        entries = [
            entry
            for model in service.models()
            for entry in _statistics(context, model, model.versions)
        ]
        return json_response({"model_stats": entries})

    _get(routes, "/v2/models/stats", of_all)
    for path in (_MODEL, _VERSION):
        _get(routes, path + "/stats", of_model)


def _statistics(
    context: RestContext,
    model: ModelStatus,
    versions: tuple[VersionStatus, ...] | list[VersionStatus],
) -> Iterator[dict[str, object]]:
    """Entries of the versions that were loaded once, oldest first."""
    for version in reversed(versions):
        if version.report is None:
            continue
        counters = context.service.statistics(model.name, version.version)
        yield describe_statistics(
            model.name, version.version, counters, version.report.memory_bytes
        )


def _add_inference(routes: Routes, context: RestContext) -> None:
    async def infer(request: web.Request, call: Call) -> web.StreamResponse:
        return await _infer(request, call, context)

    for path in (_MODEL, _VERSION):
        routes.predict(path + "/infer", infer, protocol=Protocol.KSERVE, on_error=kserve_error)


async def _infer(request: web.Request, call: Call, context: RestContext) -> web.Response:
    body = await read_body(request, context)
    json_bytes = parse_header_length(request.headers.get(HEADER_LENGTH), len(body))
    service, documents = context.service, context.documents
    with service.lease(_name(request), version=_version(request)) as target:
        call.model, call.version = target.model, target.version
        deadline = deadline_of(request, target)
        decoded = await documents.run(
            partial(decode_infer, body, json_bytes, target),
            is_heavy=len(body) >= HEAVY_BYTES and _is_heavy(len(body), json_bytes, target),
            deadline=deadline,
        )
        if decoded.timeout_us:
            deadline = min(deadline, time.monotonic() + decoded.timeout_us / 1e6)
        result = await service.predict(
            target,
            PredictRequest(
                inputs=decoded.inputs,
                deadline=deadline,
                request_id=_request_id(decoded, request),
                protocol=Protocol.KSERVE,
                signature=decoded.signature.name,
                outputs=decoded.output_names,
            ),
        )
        details = _details(result) if decoded.parameters.get("inferd_details") is True else None
        answer, answer_json_bytes = await documents.run(
            partial(encode_infer, decoded, result, target.profile.labels, details),
            is_heavy=is_heavy_answer(written_arrays(decoded, result)),
            deadline=deadline,
        )
    response = await _respond(request, result, answer, answer_json_bytes)
    _remember(request, context, json_bytes)
    return response


def _remember(request: web.Request, context: RestContext, json_bytes: int | None) -> None:
    """Let requests with this very head take the express lane from now on, where it can take them.

    Which tensors it takes depends on the JSON, and is looked at for each; here only on the head.
    """
    headers = request.headers
    if json_bytes is None or json_bytes > MAX_JSON_BYTES or "Content-Encoding" in headers:
        return
    if choose_coding(headers.get("Accept-Encoding")) is not None:
        return
    plan = InferPlan(
        context,
        _name(request),
        _version(request),
        json_bytes=json_bytes,
        timeout_s=timeout_of(request),
    )
    connection_of(request).learn(request, plan)


def _is_heavy(body_bytes: int, json_bytes: int | None, target: Target) -> bool:
    """Whether decoding costs time per element; numbers after the JSON are only looked at."""
    if (body_bytes if json_bytes is None else json_bytes) >= HEAVY_BYTES:
        return True
    return any(
        spec.datatype is DataType.BYTES
        for signature in target.signatures.values()
        for spec in signature.inputs
    )


def _request_id(decoded: InferCall, request: web.Request) -> str:
    if decoded.request_id:
        return shorten(decoded.request_id, MAX_ID_CHARACTERS)
    return request_id_of(request)


def _details(result: PredictResult) -> Mapping[str, object]:
    """What produced the answer and where the time went, for the parameter `inferd_details`."""
    timing = result.timing
    return {
        "device": result.device,
        "requested_device": result.requested_device,
        "degraded": result.degraded,
        "queue_ms": timing.queue * 1e3,
        "preprocess_ms": timing.preprocess * 1e3,
        "invoke_ms": timing.invoke * 1e3,
        "postprocess_ms": timing.postprocess * 1e3,
        "total_ms": timing.total * 1e3,
    }


async def _respond(
    request: web.Request, result: PredictResult, body: bytes, json_bytes: int | None
) -> web.Response:
    """The answer; its header length counts the JSON before it is compressed."""
    headers = {"Content-Type": "application/json"}
    if json_bytes is not None:
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(json_bytes)}
    headers |= origin_headers(result)
    coding = choose_coding(request.headers.get("Accept-Encoding"))
    if coding is not None and len(body) >= MIN_BYTES:
        body = await compress(body, coding)
        headers["Content-Encoding"] = coding
    return bytes_response(body, headers)


def _ready_versions(model: ModelStatus) -> set[int]:
    return {known.version for known in model.versions if known.state is VersionState.READY}


def _name(request: web.Request) -> str:
    return request.match_info["model"]


def _version(request: web.Request) -> int | None:
    raw_version = request.match_info.get("version")
    return None if raw_version is None else int(raw_version)


def _get(routes: Routes, path: str, handler: Handler) -> None:
    routes.get(path, handler, on_error=kserve_error)
