"""`/openapi.json`: the native API as an OpenAPI 3.1 document.

TF Serving's and KServe's paths are not in it: their own projects define them. A test holds the
document and the router together, and schemathesis plays it against the running server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import orjson

from accelerators.base import DataType
from accelerators.placement import Verdict
from daemon.codec.native import MAX_OUTPUTS, MAX_TOP_K
from daemon.models.status import VersionState
from daemon.pipeline.profiles import InputKind, OutputKind
from daemon.rest.answers import json_bytes_response
from daemon.rest.headers import MAX_TIMEOUT_MS, TIMEOUT_HEADER
from daemon.updates import State

if TYPE_CHECKING:
    from enum import Enum

    from aiohttp import web

    from daemon.rest.context import RestContext
    from daemon.rest.routes import Routes

    Document = dict[str, Any]

_BINARY: Document = {"type": "string", "format": "binary", "minLength": 1}
_STRING: Document = {"type": "string"}
_BOOLEAN: Document = {"type": "boolean"}
_NUMBER: Document = {"type": "number"}
_COUNT: Document = {"type": "integer", "minimum": 0}
_WISH: Document = {"202": {"description": "The updater has taken the wish down."}}


def add_routes(routes: Routes, context: RestContext) -> None:
    """Serve the document; it never changes while the server runs."""
    body = orjson.dumps(build_document(context.version))

    async def openapi(_request: web.Request) -> web.StreamResponse:
        return json_bytes_response(body)

    routes.get("/openapi.json", openapi)


def build_document(version: str) -> Document:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "inferd",
            "version": version,
            "description": "Predictions of the models on this appliance. Errors are "
            '{"error": "..."} with the status that fits.',
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _prediction_paths() | _model_paths() | _plain_paths(),
        "components": {"schemas": _schemas(), "responses": _responses()},
    }


def _prediction_paths() -> Document:
    label = _query("label", _STRING | {"minLength": 1}, "The version that has this label.")
    newest = _predict_operation("predict", "Predict with the newest version.")
    newest["parameters"] = [_model_parameter(), *newest["parameters"], label]
    chosen = _predict_operation("predictVersion", "Predict with one version.")
    chosen["parameters"] = [_model_parameter(), _version_parameter(), *chosen["parameters"]]
    return {
        "/api/models/{model}/predict": {"post": newest},
        "/api/models/{model}/versions/{version}/predict": {"post": chosen},
    }


def _predict_operation(name: str, summary: str) -> Document:
    return {
        "operationId": name,
        "summary": summary,
        "description": "Content decides what the body is; the Content-Type breaks ties.",
        "tags": ["predictions"],
        "parameters": [
            _query(
                "top_k",
                {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K},
                "At most so many classes or boxes.",
            ),
            _query("threshold", _NUMBER, "Least score listed."),
            _query("signature", _STRING | {"minLength": 1}, "For raw bodies; JSON names its own."),
            _query(
                "outputs",
                {
                    "type": "array",
                    "items": _STRING | {"minLength": 1},
                    "maxItems": MAX_OUTPUTS,
                },
                "Raw outputs wanted; may be repeated.",
            ),
            {
                "name": TIMEOUT_HEADER,
                "in": "header",
                "description": "Time the answer may take, in milliseconds, once the body is here.",
                "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
            },
            {
                "name": "X-Request-Id",
                "in": "header",
                "description": "Comes back as `id`; other characters than letters, digits and "
                "._:/+=@- become _, and what is over 128 characters is cut off.",
                "schema": _STRING,
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("Inference")},
                "application/octet-stream": {"schema": _BINARY},
                "image/jpeg": {"schema": _BINARY},
                "image/png": {"schema": _BINARY},
                "image/webp": {"schema": _BINARY},
                "image/bmp": {"schema": _BINARY},
                "image/gif": {"schema": _BINARY},
                "audio/wav": {"schema": _BINARY},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"file": _BINARY},
                        "required": ["file"],
                    }
                },
            },
        },
        "responses": {
            "200": _json("The answer.", "Prediction"),
            **_errors(400, 403, 404, 408, 413, 415, 422, 500, 501, 503, 504),
        },
    }


def _model_paths() -> Document:
    model = [_model_parameter()]
    return {
        "/api/models": {
            "get": _operation("listModels", "Every known model.", "Models", tag="models")
        },
        "/api/models/{model}": {
            "get": _operation(
                "getModel", "One model.", "Model", _errors(404), tag="models", parameters=model
            )
        },
        "/api/models/{model}/load": {
            "post": _operation(
                "loadModel",
                "Serve a known model again; answers when it is ready.",
                "Model",
                _errors(404, 503),
                tag="administration",
                parameters=model,
            )
        },
        "/api/models/{model}/unload": {
            "post": _operation(
                "unloadModel",
                "Finish what it has and stop it, until it is loaded or the daemon restarts.",
                "Model",
                _errors(404, 503),
                tag="administration",
                parameters=model,
            )
        },
        "/api/models/{model}/rollback": {
            "post": _operation(
                "rollbackModel",
                "Ask the updater to go back to the release before.",
                None,
                _WISH | _errors(404, 409, 501, 503),
                tag="administration",
                parameters=model,
            )
        },
        "/api/models/{model}/traffic": {
            "get": _operation(
                "getTraffic",
                "How the newest version has done with real requests.",
                "Traffic",
                _errors(404, 503),
                tag="models",
                parameters=model,
            )
        },
        "/api/updates": {
            "get": _operation("getUpdates", "What the updater is at.", "Updates"),
            "put": _operation(
                "tellUpdates",
                "The updater tells what it is at; over the unix socket only.",
                "Updates",
                _errors(400, 403, 408, 413, 415),
                tag="updater",
            ),
        },
        "/api/updates/probe": {
            "post": _operation(
                "probeRelease",
                "Would a release in the store serve well here? Over the unix socket only.",
                "Verdict",
                _errors(400, 403, 408, 413, 415),
                tag="updater",
            )
        },
        "/api/updates/activate": {
            "post": _operation(
                "activateModel",
                "Serve what the disk holds for a model now; over the unix socket only.",
                "Traffic",
                _errors(400, 403, 404, 408, 413, 415, 503),
                tag="updater",
            )
        },
        "/api/updates/events": {
            "post": _operation(
                "publishEvents",
                "The updater hands over what it has done, to leave by MQTT; over the unix socket "
                "only.",
                "Taken",
                _errors(400, 403, 408, 413, 415, 503),
                tag="updater",
            )
        },
        "/api/updates/refresh": {
            "post": _operation(
                "refreshUpdates",
                "Ask the updater to look for updates now.",
                None,
                _WISH | _errors(409, 501, 503),
                tag="administration",
            )
        },
    }


def _plain_paths() -> Document:
    metrics = {
        "operationId": "getMetrics",
        "summary": "Metrics for Prometheus.",
        "tags": ["health"],
        "responses": {
            "200": {
                "description": "Text exposition format.",
                "content": {"text/plain": {"schema": _STRING}},
            },
            **_errors(),
        },
    }
    page = {
        "operationId": "getPage",
        "summary": "A page for people.",
        "tags": ["health"],
        "responses": {
            "200": {"description": "HTML.", "content": {"text/html": {"schema": _STRING}}},
            **_errors(),
        },
    }
    not_ready = {"503": _json("Some wanted model does not answer.", "Readiness")}
    return {
        "/": {"get": page},
        "/healthz": {"get": _operation("getHealth", "The daemon is alive.", "Health")},
        "/readyz": {
            "get": _operation("getReadiness", "Every wanted model answers.", "Readiness", not_ready)
        },
        "/metrics": {"get": metrics},
        "/monitoring/prometheus/metrics": {
            "get": metrics | {"operationId": "getMetricsLikeTensorFlowServing"}
        },
        "/api/status": {"get": _operation("getStatus", "How the daemon is.", "Status")},
        "/api/devices": {"get": _operation("getDevices", "What models run on.", "Devices")},
        "/openapi.json": {"get": _operation("getDescription", "This document.", "Description")},
    }


def _operation(
    name: str,
    summary: str,
    schema: str | None,
    responses: Document | None = None,
    *,
    tag: str = "health",
    parameters: list[Document] | None = None,
) -> Document:
    success = {"200": _json(summary, schema)} if schema else {}
    operation: Document = {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        "responses": success | _errors() | (responses or {}),
    }
    if parameters:
        operation["parameters"] = parameters
    return operation


def _model_parameter() -> Document:
    return {
        "name": "model",
        "in": "path",
        "required": True,
        "description": "A model's name, percent-encoded.",
        "schema": _STRING | {"minLength": 1},
    }


def _version_parameter() -> Document:
    return {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
    }


def _query(name: str, schema: Document, description: str) -> Document:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _json(description: str, schema: str) -> Document:
    content = {"application/json": {"schema": _ref(schema)}}
    return {"description": description, "content": content}


def _ref(schema: str) -> Document:
    return {"$ref": f"#/components/schemas/{schema}"}


def _errors(*statuses: int) -> Document:
    """These refusals, and the ones that any request may meet."""
    every = sorted({*statuses, *_ANYWHERE})
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in every}


_ANYWHERE = (400, 403, 500)
_MEANINGS = {
    400: "Malformed.",
    403: "From a web page of another site, or under a foreign host name.",
    404: "No such model, version, label or signature.",
    408: "The body did not arrive in time.",
    409: "The updater will not do it now, and says why.",
    413: "Larger than the server takes.",
    415: "Nothing this model takes.",
    422: "A tensor has the wrong name, shape or datatype.",
    500: "The model failed on this input, or the server has a fault.",
    501: "Not offered by this version.",
    503: "The queue is full or the model is not ready; try again later.",
    504: "The deadline passed.",
}


def _responses() -> Document:
    responses = {str(status): _json(meaning, "Error") for status, meaning in _MEANINGS.items()}
    responses["503"]["headers"] = {
        "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
    }
    return responses


def _object(required: Document, optional: Document | None = None) -> Document:
    properties = required | (optional or {})
    return {"type": "object", "properties": properties, "required": list(required)}


def _list(items: Document) -> Document:
    return {"type": "array", "items": items}


def _map(values: Document) -> Document:
    return {"type": "object", "additionalProperties": values}


def _enum(kind: type[Enum]) -> Document:
    return {"type": "string", "enum": [member.value for member in kind]}


def _nullable(schema: Document) -> Document:
    return {"anyOf": [schema, {"type": "null"}]}


def _schemas() -> Document:
    return _prediction_schemas() | _state_schemas()


def _prediction_schemas() -> Document:
    number = {"anyOf": [_NUMBER, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
    shape = _list(_COUNT)
    category = _object({"label": _STRING, "index": _COUNT, "score": number})
    box = _object(
        {
            "label": _STRING,
            "index": _COUNT,
            "score": number,
            "box": _list(number)
            | {
                "minItems": 4,
                "maxItems": 4,
                "description": "ymin, xmin, ymax, xmax; 0..1 of the picture sent.",
            },
        }
    )
    share = _object({"label": _STRING, "index": _COUNT, "share": _NUMBER})
    output = _object(
        {
            "name": _STRING,
            "datatype": _enum(DataType),
            "shape": shape,
            "data": {"type": "array", "description": "Flat, row-major."},
        }
    )
    parameters = _map({"type": ["string", "number", "boolean"]})
    given = _object(
        {
            "name": _STRING,
            "shape": shape,
            "datatype": _enum(DataType),
            "data": {"type": "array", "description": "Flat, or nested as the shape says."},
        },
        {"parameters": parameters},
    )
    timing = _object(
        dict.fromkeys(("queue", "preprocess", "invoke", "postprocess", "total"), _NUMBER)
    )
    return {
        "Error": _object(
            {"error": _STRING},
            {"model": _STRING, "reason": _STRING, "limit": _COUNT, "unit": _STRING},
        ),
        "Inference": _object(
            {"inputs": _list(given) | {"minItems": 1}},
            {
                "id": _STRING,
                "parameters": parameters,
                "outputs": _list(_object({"name": _STRING}, {"parameters": parameters})),
            },
        ),
        "Prediction": _object(
            {
                "model": _STRING,
                "version": _STRING,
                "id": _STRING,
                "device": _STRING,
                "requested_device": _STRING,
                "degraded": _BOOLEAN,
                "timing_ms": timing,
            },
            {
                "classification": _list(_ref("Category")),
                "classifications": _list(_list(_ref("Category"))),
                "detection": _list(_ref("Box")),
                "detections": _list(_list(_ref("Box"))),
                "segmentation": _ref("Segmentation"),
                "segmentations": _list(_ref("Segmentation")),
                "outputs": _list(output),
            },
        ),
        "Category": category,
        "Box": box,
        "Segmentation": _object(
            {
                "width": _COUNT,
                "height": _COUNT,
                "classes": _list(share),
                "mask_png": _STRING
                | {"contentEncoding": "base64", "contentMediaType": "image/png"},
            }
        ),
    }


def _state_schemas() -> Document:
    tensor = _object(
        {
            "name": _STRING,
            "datatype": _enum(DataType),
            "shape": _list({"type": "integer", "minimum": -1}),
        },
        {"quantization": _object({"scale": _NUMBER, "zero_point": {"type": "integer"}})},
    )
    tensors = _list(_ref("Tensor"))
    counts = {"operators": _COUNT, "claimed": _COUNT, "partitions": _COUNT}
    coverage = _object({**counts, "taken": _list(_STRING)})
    trial = _object(
        {
            "device": _STRING,
            "verdict": _enum(Verdict),
            "reason": _STRING,
            "latency_ms": _nullable(_NUMBER),
            "memory_bytes": _nullable(_COUNT),
            "difference": _nullable(_NUMBER),
            "coverage": _nullable(coverage),
        }
    )
    version = _object(
        {
            "version": _STRING,
            "state": _enum(VersionState),
            "reason": _STRING,
            "device": _nullable(_STRING),
            "requested_device": _nullable(_STRING),
            "degraded": _BOOLEAN,
            "input_kind": _nullable(_enum(InputKind)),
            "output_kind": _nullable(_enum(OutputKind)),
            "inputs": tensors,
            "outputs": tensors,
            "signatures": _map(_object({"inputs": tensors, "outputs": tensors})),
            "placement": _list(trial),
        },
        {
            "max_batch": _COUNT,
            "memory_bytes": _COUNT,
            "runtime": _STRING,
            "digest": _STRING,
            "notes": _list(_STRING),
            "degraded_reason": _STRING,
        },
    )
    device = _object(
        {
            "id": _STRING,
            "kind": _STRING,
            "name": _STRING,
            "driver": _STRING,
            "up": _BOOLEAN,
            "problem": _STRING,
            "next_step": _STRING,
            "losses": _COUNT,
            "facts": {"type": "object"},
            "models": _list(_STRING),
        }
    )
    return {
        "Tensor": tensor,
        "Version": version,
        "Model": _object(
            {
                "name": _STRING,
                "description": _STRING,
                "wanted": _BOOLEAN,
                "labels": _map(_STRING),
                "versions": _list(_ref("Version")),
            }
        ),
        "Models": _object({"models": _list(_ref("Model"))}),
        "Health": _object({"status": {"const": "ok"}}),
        "Readiness": _object({"ready": _BOOLEAN, "reasons": _map(_STRING)}),
        "Status": _object(
            {
                "device": _STRING,
                "version": _STRING,
                "uptime_s": _NUMBER,
                "ready": _BOOLEAN,
                "reasons": _map(_STRING),
                "models": _COUNT,
                "versions": _map(_COUNT),
                "updates": _ref("Updates"),
            }
        ),
        "Updates": {
            "type": "object",
            "description": "`enabled` alone while no updater has said anything.",
            "properties": {
                "enabled": _BOOLEAN,
                "models": _list(_ref("ModelUpdate")),
                "counts": _list(_object({"model": _STRING, "outcome": _STRING, "count": _COUNT})),
                "checked_at": _NUMBER,
                "problem": _STRING,
                "expires": _map(_NUMBER),
            },
            "required": ["enabled"],
        },
        "ModelUpdate": _object(
            {
                "model": _STRING,
                "state": {"type": "string", "enum": list(get_args(State))},
                "version": _COUNT,
                "progress": _NUMBER | {"minimum": 0, "maximum": 1},
                "reason": _STRING,
            }
        ),
        "Taken": _object({"taken": _COUNT}),
        "Traffic": _object(
            {
                "model": _STRING,
                "version": _COUNT,
                "release": _STRING,
                "answered": _COUNT,
                "faults": _COUNT,
                "not_finite": _COUNT,
                "worker_deaths": _COUNT,
                "latency_ms": _object({"p50": _NUMBER, "p95": _NUMBER}),
            }
        ),
        "Verdict": _object(
            {
                "ok": _BOOLEAN,
                "reasons": _list(_STRING),
                "model": _STRING,
                "version": _COUNT,
                "device": _STRING,
                "latency_ms": _NUMBER,
                "memory_bytes": _COUNT,
                "samples": _COUNT,
                "seconds": _NUMBER,
            }
        ),
        "Devices": _object({"devices": _list(device)}),
        "Description": _object({"openapi": _STRING, "info": {"type": "object"}}),
    }
