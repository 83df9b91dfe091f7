"""Talks to a running daemon over TCP or its unix socket, with the standard library alone.

A reading verb should answer before a person notices the wait: importing an HTTP library would take
longer than the request.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from daemon.cli.outcome import Refused, Unreachable, UsageError

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_SOCKET = Path("/run/inferd/inferd.sock")
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 120.0
"""Longer than any sensible model's own timeout, so that the daemon's answer comes first."""
MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""An answer above this is not read into memory; segmentation masks stay far below it."""
TOKEN_VARIABLE = "INFERD_TOKEN"  # noqa: S105 (its name, not its value)
_DAEMON_ADVICE = "is inferd running, and is --url right?"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon listens: a unix socket, or host and port, with a path before every request's.

    Attributes:
        url: as the operator wrote it.
        socket_path: None for TCP.
        prefix: "" or a path such as "/box7", for a daemon behind a reverse proxy.
    """

    url: str
    host: str = "localhost"
    port: int = 80
    tls: bool = False
    socket_path: str | None = None
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the daemon.

    Attributes:
        body: parsed JSON.
    """

    status: int
    body: Any


def default_url(environment_url: str | None, socket_path: Path = DEFAULT_SOCKET) -> str:
    """The address to use when none is given: INFERD_URL, else the socket, else the usual port."""
    if environment_url:
        return environment_url
    return f"unix:{socket_path}" if socket_path.is_socket() else DEFAULT_URL


def parse_address(url: str) -> Address:
    """Read `http://HOST[:PORT]`, `https://HOST[:PORT]`, `unix:/PATH` or `HOST:PORT`.

    Raises:
        UsageError: it is none of these.
    """
    expected = f"argument --url: '{url}': expected http://HOST:PORT or unix:/PATH/TO.sock"
    if url.startswith("unix:"):
        path = unquote("/" + url.removeprefix("unix:").lstrip("/"))
        if path == "/":
            raise UsageError(expected)
        return Address(url=url, socket_path=path)
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError as exc:
        raise UsageError(expected) from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UsageError(expected)
    tls = parts.scheme == "https"
    default_port = 443 if tls else 80
    prefix = parts.path.rstrip("/")
    return Address(url=url, host=parts.hostname, port=port or default_port, tls=tls, prefix=prefix)


def model_path(model: str, version: int | None = None, verb: str = "") -> str:
    """The path of a model, of one of its versions, or of something to do with it."""
    path = f"/api/models/{quote(model, safe='')}"
    if version is not None:
        path += f"/versions/{version}"
    return f"{path}/{verb}" if verb else path


class Client:
    """One daemon. Every request is a connection of its own.

    Args:
        advice: what to look at when nobody answers.
    """

    def __init__(self, address: Address, *, advice: str = _DAEMON_ADVICE) -> None:
        self._address = address
        self._advice = advice

    @property
    def url(self) -> str:
        """The address, for messages."""
        return self._address.url

    def get(self, path: str) -> Any:  # noqa: ANN401 (JSON)
        """Return the JSON of a GET.

        Raises:
            Unreachable: nobody answers there.
            Refused: the answer is an error.
        """
        return self._accept(self.ask("GET", path))

    def post(self, path: str, body: bytes, content_type: str) -> Any:  # noqa: ANN401 (JSON)
        """Return the JSON that answers a POST; raises as `get` does."""
        return self._accept(self.ask("POST", path, body, content_type))

    def ask(
        self, method: str, path: str, body: bytes | None = None, content_type: str = ""
    ) -> Reply:
        """Send one request and return the answer, whatever its status.

        Raises:
            Unreachable: nobody answers there, or not in HTTP.
            Refused: the answer is not JSON, so it is no inferd that answers.
        """
        headers = {"Content-Type": content_type} if content_type else {}
        token = os.environ.get(TOKEN_VARIABLE, "")
        if token and self._address.socket_path is None:
            headers["Authorization"] = f"Bearer {token}"
        connection = self._connect()
        try:
            connection.request(method, self._address.prefix + path, body, headers)
            response = connection.getresponse()
            raw_answer = response.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as exc:
            raise Unreachable(self._explain(exc)) from exc
        finally:
            connection.close()
        try:
            return Reply(response.status, json.loads(raw_answer))
        except ValueError as exc:
            message = f"{self.url} answered {response.status} without JSON: is it inferd?"
            raise Refused(message, status=response.status) from exc

    def _accept(self, reply: Reply) -> Any:  # noqa: ANN401 (JSON)
        if reply.status < http.client.BAD_REQUEST:
            return reply.body
        message = reply.body.get("error") if isinstance(reply.body, dict) else None
        raise Refused(str(message or f"HTTP status {reply.status}"), status=reply.status)

    def _connect(self) -> http.client.HTTPConnection:
        address = self._address
        if address.socket_path is not None:
            connection: http.client.HTTPConnection = _UnixConnection(address.socket_path)
        elif address.tls:
            connection = http.client.HTTPSConnection(address.host, address.port)
        else:
            connection = http.client.HTTPConnection(address.host, address.port)
        connection.timeout = CONNECT_TIMEOUT_S
        try:
            connection.connect()
        except OSError as exc:
            connection.close()
            raise Unreachable(self._explain(exc)) from exc
        connection.sock.settimeout(ANSWER_TIMEOUT_S)
        return connection

    def _explain(self, exc: Exception) -> str:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        advice = self._advice
        if isinstance(exc, PermissionError) and self._address.socket_path is not None:
            advice = f"use sudo, or be a member of the group {_group(self._address.socket_path)}"
        return f"no answer from {self.url}: {reason or type(exc).__name__}; {advice}"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT_S)
        self.sock.connect(self._path)
        self.sock.settimeout(ANSWER_TIMEOUT_S)


def _group(path: str) -> str:
    """Whose members may use a socket."""
    try:
        return Path(path).group()
    except (OSError, KeyError):
        return "that owns it"
