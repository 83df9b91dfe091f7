"""Tokens at the front door: every protocol asks for one, and each is for what it is for."""

from __future__ import annotations

import asyncio

import pytest
from support.rest import get, post, running_server

from daemon.rest.guard import Guard
from daemon.tokens import Scope, TokenEntry, Tokens, hash_token

PREDICT, READ, ADMIN, ONE_MODEL = "to-predict", "to-read", "to-administer", "for-one-model"
OPEN_PATHS = ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"]
READ_PATHS = [
    "/",
    "/metrics",
    "/openapi.json",
    "/api/models",
    "/api/models/m",
    "/api/models/m/traffic",
    "/api/status",
    "/api/devices",
    "/api/updates",
    "/v1/models/m",
    "/v1/models/m/metadata",
    "/v2",
    "/v2/models",
    "/v2/models/m",
    "/v2/models/m/stats",
]
PREDICT_PATHS = [
    "/api/models/m/predict",
    "/api/models/m/versions/1/predict",
    "/v1/models/m:predict",
    "/v1/models/m/versions/1:predict",
    "/V1/models/m:predict",
    "/v2/models/m/infer",
    "/v2/models/m/versions/1/infer",
]
ADMIN_PATHS = [
    "/api/models/m/load",
    "/api/models/m/unload",
    "/api/models/m/rollback",
    "/api/updates/refresh",
    "/v2/repository/models/m/load",
    "/v2/repository/models/m/unload",
    "/v2/logging",
]


def tokens() -> Tokens:
    def entry(token, scopes, models=None):
        return TokenEntry(token, hash_token(token).hex(), scopes, models)

    return Tokens(
        (
            entry(PREDICT, ("predict",)),
            entry(READ, ("read",)),
            entry(ADMIN, ("admin",)),
            entry(ONE_MODEL, ("predict", "read", "admin"), ("m",)),
        )
    )


@pytest.fixture
async def server(tmp_path):
    async with running_server(tmp_path / "s") as server:
        server.context.guard.tokens = tokens()
        yield server


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def requests_with(token: str | None):
    headers = {} if token is None else bearer(token)
    yield from (("read", get(path, headers=headers)) for path in READ_PATHS)
    yield from (("predict", post(path, b"{}", headers=headers)) for path in PREDICT_PATHS)
    yield from (("admin", post(path, b"{}", headers=headers)) for path in ADMIN_PATHS)


async def test_without_a_token_nothing_is_told_but_whether_it_lives(server):
    for _, request in requests_with(None):
        answer = await server.ask(request)
        assert answer.status == 401, request
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "Authorization: Bearer" in answer.error
    for path in OPEN_PATHS:
        assert (await server.ask(get(path))).status in {200, 400, 503}


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer ", "Bearer nobody's", "Basic dXNlcjpwYXNz", PREDICT, f"Token {PREDICT}"],
)
async def test_what_is_no_good_token_is_refused(server, header):
    request = post("/api/models/m/predict", b"{}", headers={"Authorization": header})

    assert (await server.ask(request)).status == 401


@pytest.mark.parametrize(
    ("token", "good_for"), [(PREDICT, "predict"), (READ, "read"), (ADMIN, "admin")]
)
async def test_a_token_is_for_its_scope_in_every_protocol_and_for_no_other(server, token, good_for):
    for scope, request in requests_with(token):
        status = (await server.ask(request)).status

        assert (status == 403) is (scope != good_for), request
        assert status != 401


async def test_a_token_for_some_models_is_for_nothing_else(server):
    for path in ("/api/models/m/predict", "/v1/models/m:predict", "/v2/models/m/infer"):
        good = await server.ask(post(path, b"{}", headers=bearer(ONE_MODEL)))
        other = path.replace("/m", "/n").replace("/n" + "odels", "/models")
        bad = await server.ask(post(other, b"{}", headers=bearer(ONE_MODEL)))

        assert (good.status, bad.status) == (404, 403)
    for path in ("/api/models", "/metrics", "/v2/models", "/"):
        assert (await server.ask(get(path, headers=bearer(ONE_MODEL)))).status == 403
    unnamed = await server.ask(post("/v1/nonsense", b"{}", headers=bearer(ONE_MODEL)))
    assert unnamed.status == 403


@pytest.mark.parametrize("path", ["/api/models/%6D/predict", "/v1/models/%6D:predict"])
async def test_a_name_written_otherwise_is_the_same_name(server, path):
    assert (await server.ask(post(path, b"{}", headers=bearer(ONE_MODEL)))).status == 404


async def test_a_body_is_refused_before_it_is_sent(server):
    client = await server.connect()
    headers = {"Content-Length": "1000000", "Expect": "100-continue"}
    raw = post("/api/models/m/predict", headers=headers)

    answer = await client.ask(raw)

    assert answer.status == 401


async def test_the_unix_socket_asks_for_no_token(server, tmp_path):
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    writer.write(get("/api/models"))

    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()


async def test_a_certificate_is_for_the_scopes_of_certificates(tmp_path):
    async with running_server() as server:
        server.context.guard.certificate_scopes = frozenset({Scope.READ})

        assert (await server.ask(get("/api/models"))).status == 200
        assert (await server.ask(post("/api/models/m/predict"))).status == 403


def test_without_tokens_and_certificates_everybody_is_let_in():
    assert Guard().is_open
    assert not Guard(tokens=Tokens()).is_open
