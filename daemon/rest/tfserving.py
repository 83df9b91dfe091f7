"""TF Serving's REST API under /v1/: predict, classify, regress, status and metadata.

Paths are matched as TF Serving matches them: without regard to case, on the path as it was sent, so
that a name may hold an encoded slash or colon; a path or verb that matches nothing is malformed.

Source: TF Serving, model_servers/http_rest_api_util.cc and http_rest_api_handler.cc; where we
differ is in docs/tfserving.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import hdrs, web

from daemon.codec.pieces import is_heavy_answer
from daemon.codec.tfserving import decode_predict, encode_predict, refuse_examples
from daemon.codec.tfserving_documents import encode_metadata, encode_status
from daemon.documents import HEAVY_BYTES
from daemon.errors import (
    DaemonError,
    LabelNotFound,
    Malformed,
    ModelNotFound,
    NotFound,
    VersionNotFound,
    shorten,
)
from daemon.pipeline.profiles import InputKind
from daemon.rest.answers import json_bytes_response, json_response
from daemon.rest.body import read_body
from daemon.rest.errors import TFSERVING, error_headers, status_of
from daemon.rest.guard import Access
from daemon.rest.headers import deadline_of, origin_headers, request_id_of
from daemon.tensors import PredictRequest, Protocol

if TYPE_CHECKING:
    from daemon.models.served import Target
    from daemon.models.status import ModelStatus, VersionStatus
    from daemon.rest.context import Call, RestContext
    from daemon.rest.routes import Routes

_WHICH = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_FLAGS = re.IGNORECASE | re.ASCII
_CALL_PATH = re.compile(
    rf"/v1/models/(?P<model>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)", _FLAGS
)
_MODEL_PATH = re.compile(
    rf"/v1/models(?:/(?P<model>[^/:]+))?{_WHICH}(?P<metadata>/metadata)?", _FLAGS
)

# Versions are int64 in TF Serving's messages.
_MAX_VERSION = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Address:
    """What a path names.

    Attributes:
        model: "" for none.
        version: None for the newest; TF Serving has no version 0, but ovmsclient sends it for that.
        method: "predict", "classify", "regress", "metadata" or "" for status.
    """

    model: str
    version: int | None
    label: str | None
    method: str


def add_routes(routes: Routes, context: RestContext) -> None:
    """Serve every path below /v1/ that no earlier route serves."""

    async def call(request: web.Request, counted: Call) -> web.StreamResponse:
        address = _parse(_CALL_PATH, request)
        body = await read_body(request, context)
        with context.service.lease(
            address.model, version=address.version, label=address.label
        ) as target:
            counted.model, counted.version = target.model, target.version
            deadline = deadline_of(request, target)
            if address.method != "predict":
                await context.documents.run(
                    partial(refuse_examples, address.method, body, target.signatures),
                    is_heavy=len(body) >= HEAVY_BYTES,
                    deadline=deadline,
                )
            return await _predict(request, context, target, body, deadline)

    async def look(request: web.Request) -> web.StreamResponse:
        if request.method == hdrs.METH_OPTIONS:
            return _answer_options(request)
        if request.method != hdrs.METH_GET:
            raise _malformed(request)
        address = _parse(_MODEL_PATH, request)
        if not address.model:
            raise Malformed("Missing model name in request.")
        if address.method == "metadata":
            return _answer_metadata(context, address)
        return _answer_status(context, address)

    for prefix in ("/v1", "/V1"):
        path = prefix + "/{path:(?s:.*)}"  # a name may hold any character, a newline too
        routes.predict(
            path,
            call,
            protocol=Protocol.TFSERVING,
            model_of=partial(_model_named_by, _CALL_PATH),
            on_error=_answer_error,
        )
        routes.add(
            hdrs.METH_ANY,
            path,
            look,
            access=Access.READ,
            model_of=partial(_model_named_by, _MODEL_PATH),
            on_error=_answer_error,
        )


async def _predict(
    request: web.Request, context: RestContext, target: Target, body: bytes, deadline: float
) -> web.Response:
    takes_media = target.profile.input_kind is not InputKind.TENSOR
    decoded = await context.documents.run(
        partial(decode_predict, body, target.signatures, takes_media=takes_media),
        is_heavy=len(body) >= HEAVY_BYTES,
        deadline=deadline,
    )
    result = await context.service.predict(
        target,
        PredictRequest(
            inputs=decoded.inputs,
            signature=decoded.signature.name,
            deadline=deadline,
            request_id=request_id_of(request),
            protocol=Protocol.TFSERVING,
        ),
    )
    answer = await context.documents.run(
        partial(encode_predict, decoded.layout, result.outputs),
        is_heavy=is_heavy_answer(result.outputs.values()),
        deadline=deadline,
    )
    return json_bytes_response(answer, headers=origin_headers(result))


def _answer_metadata(context: RestContext, address: _Address) -> web.Response:
    with context.service.lease(
        address.model, version=address.version, label=address.label
    ) as target:
        return json_bytes_response(encode_metadata(target.model, target.version, target.signatures))


def _answer_status(context: RestContext, address: _Address) -> web.Response:
    try:
        model = context.service.model(address.model)
    except ModelNotFound as exc:
        message = f"Could not find any versions of model {shorten(address.model)}"
        raise NotFound(message, model=address.model) from exc
    return json_bytes_response(encode_status(_versions_asked_for(model, address)))


def _versions_asked_for(model: ModelStatus, address: _Address) -> tuple[VersionStatus, ...]:
    version = address.version
    if address.label is not None:
        version = model.labels.get(address.label)
        if version is None:
            raise LabelNotFound(model.name, address.label)
    if version is None:
        return model.versions
    found = tuple(status for status in model.versions if status.version == version)
    if not found:
        message = f"Could not find version {version} of model {shorten(model.name)}"
        raise NotFound(message, model=model.name)
    return found


def _answer_options(request: web.Request) -> web.Response:
    """As TF Serving without its CORS option: a page's preflight is answered, and grants nothing."""
    if not request.headers.get(hdrs.ORIGIN, "").startswith(("http://", "https://")):
        raise _malformed(request)
    return json_bytes_response(b"")


def _parse(pattern: re.Pattern[str], request: web.Request) -> _Address:
    address = _parse_path(pattern, request.rel_url.raw_path)
    if address is None:
        raise _malformed(request)
    return address


def _model_named_by(pattern: re.Pattern[str], request: web.Request) -> str | None:
    address = _parse_path(pattern, request.rel_url.raw_path)
    return address.model or None if address else None


@lru_cache(maxsize=256)
def _parse_path(pattern: re.Pattern[str], path: str) -> _Address | None:
    match = pattern.fullmatch(path)
    if match is None:
        return None
    found = match.groupdict()
    label = found["label"]
    method = found.get("method") or ("metadata" if found.get("metadata") else "")
    return _Address(
        model=unquote(found["model"] or ""),
        version=_to_version(found["version"]),
        label=None if label is None else unquote(label),
        method=method.lower(),
    )


def _to_version(digits: str | None) -> int | None:
    if digits is None:
        return None
    significant = digits.lstrip("0")
    too_long = len(significant) > len(str(_MAX_VERSION))
    if too_long or int(significant or "0") > _MAX_VERSION:
        raise Malformed(f"Failed to convert version: {shorten(digits)} to numeric.")
    return int(significant) if significant else None


def _malformed(request: web.Request) -> Malformed:
    return Malformed(
        f"Malformed request: {shorten(request.method)} {shorten(request.rel_url.raw_path, 300)}"
    )


def _answer_error(error: DaemonError) -> web.Response:
    message = _word(error).encode("utf-8", "backslashreplace").decode()
    return json_response(
        {"error": message}, status=status_of(error, TFSERVING), headers=error_headers(error)
    )


def _word(error: DaemonError) -> str:
    """TF Serving's words, where clients look for them."""
    match error:
        case VersionNotFound():
            return f"Servable not found for request: Specific({error.model}, {error.version})"
        case LabelNotFound():
            return f"Unrecognized servable version label: {error.label}"
        case ModelNotFound():
            return f"Servable not found for request: Latest({error.model})"
        case _:
            return str(error)
