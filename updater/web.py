"""GETs over HTTP that another thread can end at any moment.

Nothing here is believed or limited in length; whoever reads a body bounds it. What is bounded:

1. Connecting, and each wait for a byte, by timeouts. Both are about silence, and a byte now and
   then keeps them content for ever: hence the `Line`, which ends everything else.
2. Redirects: a few, to http and https only, and their bodies are not read.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from updater.errors import FetchFailed, FetchReason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MOST_REDIRECTS = 3
_SCHEMES = ("http", "https")
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "inferd-updater"}
_SHOWN_CHARACTERS = 300
_LONGEST_RETRY_AFTER_S = 86_400.0
"""A server's word does not keep a device from updates for longer."""


class Line:
    """The connections of one transfer, which any thread may cut, giving the reason."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._reason: FetchFailed | None = None

    def cut(self, reason: FetchFailed) -> None:
        """End what is open and what will be. The first reason stays."""
        with self._lock:
            self._reason = self._reason or reason
            for connection in self._connections:
                _shut_down(connection)

    def check(self) -> None:
        """Go on, unless it was cut.

        Raises:
            FetchFailed: the reason.
        """
        if self._reason is not None:
            raise self._reason

    def add(self, connection: socket.socket) -> socket.socket:
        """Take a new connection in; returns it."""
        # A copy of the descriptor, for TLS takes the original over and closes the object.
        copy = connection.dup()
        with self._lock:
            self._connections.append(copy)
            if self._reason is not None:
                _shut_down(copy)
        return connection

    def close(self) -> None:
        """Forget the connections, which have ended."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long nothing may happen, in seconds.

    Attributes:
        connect_s: for each address of a server, until it answers.
        silence_s: between two bytes.
    """

    connect_s: float
    silence_s: float


@contextmanager
def get(
    url: str, headers: Mapping[str, str], timeouts: Timeouts, line: Line
) -> Iterator[urllib3.BaseHTTPResponse]:
    """Ask for a URL, and have the answer, whatever its status, with its body still to be read.

    Raises:
        FetchFailed: there is no answer, or the body cannot be read to its end.
    """
    for _ in range(_MOST_REDIRECTS + 1):
        with _asked(url, headers, timeouts, line) as response:
            location = response.get_redirect_location()
            if not location:
                yield response
                return
        url = _follow(url, location)
    message = f"{shown(url)}: more than {_MOST_REDIRECTS} redirects"
    raise FetchFailed(FetchReason.STATUS, message, status=response.status)


def refused(url: str, response: urllib3.BaseHTTPResponse, why: str = "") -> FetchFailed:
    """What an answer is that is not what was asked for.

    Args:
        why: "the server answered ..." in other words; by default with its status.
    """
    return FetchFailed(
        FetchReason.STATUS,
        f"{shown(url)}: {why or f'the server answered with status {response.status}'}",
        status=response.status,
        retry_after_s=retry_after_s(response.headers, now=time.time()),
    )


def shown(text: str) -> str:
    """A text from outside for a message: cut, and without what a terminal would follow."""
    return "".join(char if char.isprintable() else "?" for char in text[:_SHOWN_CHARACTERS])


def retry_after_s(headers: Mapping[str, str], *, now: float) -> float | None:
    """Seconds that a server asks to wait, a day at most; None when it does not say.

    Args:
        now: wall clock, seconds; for a server that names a time and not its own.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:  # noqa: PLR2004 (three centuries)
        return min(float(text), _LONGEST_RETRY_AFTER_S)
    until = _read_date(text)
    if until is None:
        return None
    # By the server's own clock: the device's may not have been set yet.
    since = _read_date(headers.get("Date", ""))
    wait_s = until - (now if since is None else since)
    return min(max(wait_s, 0.0), _LONGEST_RETRY_AFTER_S)


@contextmanager
def _asked(
    url: str, headers: Mapping[str, str], timeouts: Timeouts, line: Line
) -> Iterator[urllib3.BaseHTTPResponse]:
    has_answer = False
    try:
        with (
            _manager(url, line) as manager,
            contextlib.closing(_ask(manager, url, headers, timeouts)) as response,
        ):
            has_answer = True
            yield response
    except urllib3.exceptions.HTTPError as exc:
        line.check()
        reason = _reason(exc, has_answer=has_answer)
        raise FetchFailed(reason, f"{shown(url)}: {shown(str(exc))}") from exc


def _ask(
    manager: urllib3.PoolManager, url: str, headers: Mapping[str, str], timeouts: Timeouts
) -> urllib3.BaseHTTPResponse:
    return manager.request(
        "GET",
        url,
        headers={**_HEADERS, **headers},
        preload_content=False,
        decode_content=False,
        redirect=False,
        retries=False,
        timeout=urllib3.Timeout(connect=timeouts.connect_s, read=timeouts.silence_s),
    )


def _reason(exc: urllib3.exceptions.HTTPError, *, has_answer: bool) -> FetchReason:
    if isinstance(exc, urllib3.exceptions.ReadTimeoutError):
        return FetchReason.TOO_SLOW
    if has_answer or isinstance(exc, urllib3.exceptions.ProtocolError):
        return FetchReason.CUT
    return FetchReason.UNREACHABLE


def _follow(url: str, location: str) -> str:
    """Where a redirect leads."""
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
    except ValueError:
        scheme = ""
    if scheme not in _SCHEMES:
        message = f"{shown(url)}: redirected to '{shown(location)}', expected http or https"
        raise FetchFailed(FetchReason.STATUS, message)
    return target


def _manager(url: str, line: Line) -> urllib3.PoolManager:
    """Connections on a line, through the proxy of the environment where there is one."""
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    except ValueError as exc:
        raise FetchFailed(FetchReason.UNREACHABLE, f"{shown(url)}: {exc}") from exc
    proxy = urllib.request.getproxies().get(scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        manager: urllib3.PoolManager = urllib3.ProxyManager(proxy)
    else:
        manager = urllib3.PoolManager()
    manager.pool_classes_by_scheme = _pools(line)
    return manager


def _pools(line: Line) -> dict[str, Any]:
    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return line.add(super()._new_conn())

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return line.add(super()._new_conn())

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side has ended it already
        connection.shutdown(socket.SHUT_RDWR)


def _read_date(text: str) -> float | None:
    """Wall clock seconds of an HTTP date; None for anything else."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
