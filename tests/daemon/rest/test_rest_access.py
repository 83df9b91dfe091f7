"""Which requests are refused because a browser may have been tricked into them."""

from __future__ import annotations

import asyncio

import pytest
from support.rest import Client, get, post, running_server

from daemon.rest.access import is_loopback_host, refusal


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "box.localhost:1",
        "localhost.",
        "127.0.0.1",
        "127.9.9.9:8080",
        "[::1]",
        "[::1]:8080",
    ],
)
def test_loopback_names_are_known(host):
    assert is_loopback_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[::2]",
        "[::1",
        "notlocalhost",
        "evil.example@localhost@evil.example",
        "\x00",
    ],
)
def test_other_names_are_not(host):
    assert not is_loopback_host(host)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost:3000",
        "null",
        "",
        "file://",
    ],
)
def test_a_page_of_another_site_changes_nothing(method, origin):
    assert refusal(method, "localhost:8080", origin, loopback_only=True) is not None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("localhost", "http://localhost"),
        ("box.example:8443", "https://box.example:8443"),
        ("localhost:80", "http://LOCALHOST"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_a_page_of_this_server_may(host, origin):
    assert refusal("POST", host, origin, loopback_only=False) is None


def test_other_programs_send_no_origin_and_may():
    assert refusal("POST", "localhost", None, loopback_only=True) is None


def test_a_page_of_another_site_may_ask_but_not_read():
    assert refusal("GET", "localhost", "http://evil.example", loopback_only=True) is None


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_foreign_name_for_loopback_is_refused(method):
    assert refusal(method, "evil.example", None, loopback_only=True) is not None


def test_any_name_will_do_where_the_network_reaches():
    assert refusal("GET", "box.example", None, loopback_only=False) is None


async def test_the_server_refuses_a_page_of_another_site():
    request = post("/api/models/m/unload", headers={"Origin": "http://evil.example"})
    async with running_server() as server:
        answer = await server.ask(request)

        assert answer.status == 403
        assert "Origin" in answer.error


async def test_the_server_refuses_a_foreign_host():
    async with running_server() as server:
        answer = await server.ask(get("/api/models", host="evil.example"))

        assert answer.status == 403
        assert "Host" in answer.error


async def test_the_unix_socket_takes_any_host(tmp_path):
    path = tmp_path / "inferd.sock"
    async with running_server(path):
        client = Client(*await asyncio.open_unix_connection(path))

        answer = await client.ask(get("/healthz", host="any.thing"))
        await client.close()

        assert answer.status == 200


async def test_no_answer_allows_another_site_to_read_it():
    async with running_server() as server:
        answer = await server.ask(get("/healthz", headers={"Origin": "http://evil.example"}))

        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]
