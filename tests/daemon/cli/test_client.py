"""The command line's way to a daemon."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import pytest

from daemon.cli.client import DEFAULT_URL, Client, default_url, model_path, parse_address
from daemon.cli.outcome import Refused, Unreachable, UsageError


@contextmanager
def answering(raw_answer: bytes):
    """Something that is no inferd: it answers one connection with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(raw_answer)

        thread = threading.Thread(target=answer)
        thread.start()
        yield Client(parse_address(f"http://127.0.0.1:{server.getsockname()[1]}"))
        thread.join()


def test_the_environment_decides_when_no_address_is_given(tmp_path):
    assert default_url("http://box:9", tmp_path / "none.sock") == "http://box:9"


def test_the_socket_is_used_where_it_exists(tmp_path):
    path = tmp_path / "inferd.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))

        assert default_url(None, path) == f"unix:{path}"


def test_the_usual_port_is_the_last_resort(tmp_path):
    assert default_url(None, tmp_path / "none.sock") == DEFAULT_URL


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix"),
    [
        ("http://box:81", "box", 81, ""),
        ("box:81", "box", 81, ""),
        ("http://box", "box", 80, ""),
        ("https://box", "box", 443, ""),
        ("http://[::1]:8080", "::1", 8080, ""),
        ("http://box/edge/7/", "box", 80, "/edge/7"),
    ],
)
def test_tcp_addresses_are_read(url, host, port, prefix):
    address = parse_address(url)

    assert (address.host, address.port, address.prefix) == (host, port, prefix)


@pytest.mark.parametrize("url", ["unix:/run/x.sock", "unix:///run/x.sock"])
def test_socket_addresses_are_read(url):
    assert parse_address(url).socket_path == "/run/x.sock"


@pytest.mark.parametrize("url", ["ftp://box", "http://", "http://box:99999", "unix:", "http://b?x"])
def test_what_is_no_address_is_a_usage_error(url):
    with pytest.raises(UsageError):
        parse_address(url)


def test_names_are_escaped_in_paths():
    assert model_path("a/b%", 3, "predict") == "/api/models/a%2Fb%25/versions/3/predict"


def test_a_closed_port_is_unreachable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        client = Client(parse_address(f"http://127.0.0.1:{taken.getsockname()[1]}"))

        with pytest.raises(Unreachable):
            client.get("/api/status")


def test_a_missing_socket_is_unreachable(tmp_path):
    with pytest.raises(Unreachable):
        Client(parse_address(f"unix:{tmp_path}/none.sock")).get("/api/status")


def test_a_server_that_speaks_no_http_is_unreachable():
    with answering(b"220 mail.example ESMTP\r\n") as client, pytest.raises(Unreachable):
        client.get("/api/status")


def test_a_web_page_is_not_taken_for_an_answer():
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
    with answering(page) as client, pytest.raises(Refused, match="is it inferd"):
        client.get("/api/status")


def test_an_error_carries_the_servers_own_words():
    answer = b'HTTP/1.1 404 Not Found\r\nContent-Length: 21\r\n\r\n{"error": "not here"}\n'
    with answering(answer) as client, pytest.raises(Refused, match="not here") as error_info:
        client.get("/api/models/x")

    assert error_info.value.status == 404
