"""The API description and the router say the same."""

from __future__ import annotations

import json

import pytest
from support.rest import get, make_context, running_server

from daemon.rest.openapi import build_document
from daemon.rest.server import build_application

METHODS = {"get", "post", "put", "delete", "patch"}


def documented():
    paths = build_document("1.2.3")["paths"]
    return {
        (method.upper(), path)
        for path, operations in paths.items()
        for method in operations
        if method in METHODS
    }


def routed(context):
    """What the router serves of our own: the two standard protocols describe themselves."""
    routes = build_application(context).router.routes()
    found = {(route.method, route.resource.canonical) for route in routes}
    return {
        (method, path)
        for method, path in found
        if method != "HEAD" and not path.lower().startswith(("/v1", "/v2"))
    }


async def test_every_endpoint_is_documented_and_every_documented_one_exists() -> None:
    assert routed(make_context()) == documented()


async def test_the_document_is_served_as_it_is_built() -> None:
    async with running_server() as server:
        answer = await server.ask(get("/openapi.json"))

        assert answer.document == build_document("1.2.3")


def references(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def test_every_reference_leads_somewhere() -> None:
    document = build_document("1.2.3")
    targets = {
        f"#/components/{kind}/{name}"
        for kind, entries in document["components"].items()
        for name in entries
    }

    assert set(references(document)) == targets


def test_operations_have_names_of_their_own() -> None:
    operations = [o for ops in build_document("1")["paths"].values() for o in ops.values()]
    names = [operation["operationId"] for operation in operations]

    assert len(names) == len(set(names))


def test_the_document_is_json() -> None:
    assert json.loads(json.dumps(build_document("1")))["openapi"] == "3.1.0"


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/metrics", "/api/models", "/api/status", "/api/devices"]
)
async def test_what_needs_no_model_answers_without_one(path: str) -> None:
    async with running_server() as server:
        assert (await server.ask(get(path))).status == 200
