"""The HTTP front end: binds addresses, bounds what clients may do, drains when it stops."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
import stat
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from daemon.errors import ConfigError, Overloaded, RefusalReason
from daemon.rest import (
    access,
    admin,
    console,
    health,
    kserve,
    kserve_extensions,
    native,
    openapi,
    tfserving,
    updates,
)
from daemon.rest.answers import json_response
from daemon.rest.connection import Connection, Connections, connection_of
from daemon.rest.errors import CrossSite, error_response
from daemon.rest.routes import Routes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from daemon.config import HttpTable
    from daemon.rest.context import RestContext

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(f"inferd.{__name__}")

_MAX_LINE_BYTES = 8190
"""Of the request line and of each header: what most servers take."""
_MAX_HEADERS = 100
_LINGER_S = 1.0
"""After refusing a body that is still arriving, read on for so long, so that a client which sends
first and reads later gets to see the answer instead of a reset connection."""
_CUT_S = 0.1
"""For requests that are cut off at stop to end in order; `stop` has given them their time."""
_BACKLOG = 128
_LOCAL_CONNECTIONS = 64
"""By the unix socket, beside those of the network: whatever these do, the operator gets in."""
_PROBE_S = 1.0
"""For another daemon to take a connection, so that its socket is not taken away from it."""
_SOCKET_MODE = 0o660
"""The owner and its group may connect."""

_ROUTE_MODULES = (
    native,
    admin,
    updates,
    health,
    openapi,
    console,
    kserve,
    kserve_extensions,
    tfserving,
)


def build_application(context: RestContext) -> web.Application:
    """The application with every route."""
    application = web.Application()
    routes = Routes(application.router, context)
    for module in _ROUTE_MODULES:
        module.add_routes(routes, context)
    return application


class HttpServer:
    """The HTTP front end. Start it once, stop it once."""

    def __init__(self, context: RestContext) -> None:
        self._context = context
        self._application = build_application(context)
        self._application.middlewares.append(self._gate)
        self._loopback_only = True
        self._runner: web.AppRunner | None = None
        self._network: Connections | None = None
        self._local: Connections | None = None
        self._servers: list[asyncio.Server] = []
        self._unix_socket: tuple[Path, int] | None = None

    async def start(
        self, unix_socket_path: Path | None, *, sockets: Sequence[socket.socket] = ()
    ) -> tuple[str, ...]:
        """Listen and serve.

        Args:
            unix_socket_path: listen there too; None for no unix socket.
            sockets: listening sockets that someone else opened, as systemd's socket activation
                will; then nothing is opened here.

        Returns:
            What is really bound: "http://127.0.0.1:43123", "unix:/run/inferd/inferd.sock".

        Raises:
            OSError: an address cannot be listened on; the message names it.
            ConfigError: the network could reach an address and `allow_anonymous` is not set.
        """
        config = self._context.config
        listening = list(sockets) or await self._open_sockets(config, unix_socket_path)
        addresses = tuple(_address_of(sock) for sock in listening)
        self._loopback_only = all(_is_private(sock) for sock in listening)
        if not self._loopback_only:
            self._allow_network(config, listening, addresses)
        await self._serve(config, listening)
        _log.info("listening addresses=%s", ",".join(addresses))
        return addresses

    async def stop(self, grace_s: float) -> None:
        """Stop listening, let running requests finish for at most `grace_s`, close everything."""
        for server in self._servers:
            server.close()
        self._remove_unix_socket()
        groups = [group for group in (self._network, self._local) if group is not None]
        for group in groups:
            group.begin_drain()
        try:
            async with asyncio.timeout(grace_s):
                for group in groups:
                    await group.drained()
        except TimeoutError:
            _log.warning("requests were cut off at stop count=%d", sum(map(len, groups)))
        if self._runner is not None:
            await self._runner.cleanup()

    async def _open_sockets(
        self, config: HttpTable, unix_socket_path: Path | None
    ) -> list[socket.socket]:
        opened: list[socket.socket] = []
        try:
            for text in config.listen:
                opened.extend(await _open_tcp(text))
            if unix_socket_path is not None:
                sock, inode = _open_unix(unix_socket_path)
                opened.append(sock)
                self._unix_socket = (unix_socket_path, inode)
        except BaseException:
            _close_all(opened)
            raise
        return opened

    def _remove_unix_socket(self) -> None:
        """Unless another daemon has put its own there since."""
        if self._unix_socket is None:
            return
        path, inode = self._unix_socket
        try:
            if path.stat().st_ino == inode:
                path.unlink()
        except FileNotFoundError:
            return

    def _allow_network(
        self, config: HttpTable, listening: Sequence[socket.socket], addresses: Sequence[str]
    ) -> None:
        if not config.allow_anonymous:
            _close_all(listening)
            problem = (
                f"http.listen = {', '.join(addresses)}: others on the network could use this "
                "server without a token; set http.allow_anonymous = true to allow that, or "
                "listen on 127.0.0.1"
            )
            raise ConfigError((problem,))
        _log.warning("the network may use this server anonymously addresses=%s", addresses)

    async def _serve(self, config: HttpTable, listening: Sequence[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        runner = web.AppRunner(
            self._application, handler_cancellation=True, shutdown_timeout=_CUT_S
        )
        await runner.setup()
        manager = runner.server
        if manager is None:
            raise RuntimeError("the runner is set up but has no server")

        def connect(connections: Connections) -> Connection:
            return Connection(
                manager,
                connections,
                loop=loop,
                access_log=None,  # metrics count requests; a line for each would wear out flash
                auto_decompress=False,  # read_body does it, within the size limit
                keepalive_timeout=math.inf,  # idle connections are ours to end
                lingering_time=_LINGER_S,
                max_field_size=_MAX_LINE_BYTES,
                max_headers=_MAX_HEADERS,
                max_line_size=_MAX_LINE_BYTES,
            )

        self._runner = runner
        self._network = self._make_group(config.max_connections)
        self._local = self._make_group(min(_LOCAL_CONNECTIONS, config.max_connections))
        for sock in listening:
            group = self._local if sock.family == socket.AF_UNIX else self._network
            self._servers.append(await _listen(loop, partial(connect, group), sock))

    def _make_group(self, limit: int) -> Connections:
        config = self._context.config
        return Connections(
            limit=limit,
            budget=self._context.bodies,
            head_timeout_s=config.header_timeout_s,
            answer_timeout_s=config.body_timeout_s,
            keepalive_timeout_s=config.keepalive_timeout_s,
        )

    @web.middleware
    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The one middleware: access rules, errors of the router, bookkeeping of connections."""
        connection = connection_of(request)
        connection.begin_request()
        try:
            response = await self._answer(request, handler, connection)
        except BaseException:
            connection.release()
            raise
        if not connection.hold(_size_of(response)):
            response = error_response(_no_room_for_answer())
        if connection.is_draining or not request.content.is_eof():
            response.force_close()
        return response

    async def _answer(
        self, request: web.Request, handler: Handler, connection: Connection
    ) -> web.StreamResponse:
        headers = request.headers
        reason = access.refusal(
            request.method,
            headers.get("Host"),
            headers.get("Origin"),
            loopback_only=self._loopback_only and not connection.is_local,
        )
        if reason is not None:
            return error_response(CrossSite(reason))
        try:
            return await handler(request)
        except web.HTTPMethodNotAllowed as error:
            allow = {"Allow": error.headers.get("Allow", "")}
            return json_response({"error": "Method Not Allowed"}, status=405, headers=allow)
        except web.HTTPException as error:
            return json_response({"error": error.reason}, status=error.status)


def _size_of(response: web.StreamResponse) -> int:
    """In bytes; answers here are whole, never streamed."""
    body = response.body if isinstance(response, web.Response) else None
    return len(body) if isinstance(body, bytes) else 0


def _no_room_for_answer() -> Overloaded:
    return Overloaded(
        "other requests with large answers are under way; send this one again later",
        reason=RefusalReason.QUEUE_FULL,
    )


async def _listen(
    loop: asyncio.AbstractEventLoop, connect: Callable[[], Connection], sock: socket.socket
) -> asyncio.Server:
    if sock.family == socket.AF_UNIX:
        return await loop.create_unix_server(connect, sock=sock, backlog=_BACKLOG)
    return await loop.create_server(connect, sock=sock, backlog=_BACKLOG)


async def _open_tcp(text: str) -> list[socket.socket]:
    """Listening sockets for "host:port"; several where a name has several addresses."""
    host, _, port = text.rpartition(":")
    opened: list[socket.socket] = []
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]") or None,
            int(port),
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
        for family, kind, number, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, number)
            opened.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except OSError as exc:
        _close_all(opened)
        raise OSError(exc.errno, f"http.listen = '{text}': {exc.strerror or exc}") from exc
    return opened


def _open_unix(path: Path) -> tuple[socket.socket, int]:
    """A socket bound to `path`, and its inode; one that nobody listens on any more is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        sock.bind(os.fspath(path))
        path.chmod(_SOCKET_MODE)
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, f"http.unix_socket = {path}: {exc.strerror or exc}") from exc
    return sock, path.stat().st_ino


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket is in its place")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except (BlockingIOError, TimeoutError):
            pass  # its queue is full, so there is somebody
    raise FileExistsError(errno.EADDRINUSE, "another daemon answers there")


def _close_all(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _is_private(sock: socket.socket) -> bool:
    """Only this machine can reach it."""
    return sock.family == socket.AF_UNIX or access.is_loopback_address(sock.getsockname()[0])


def _address_of(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"
