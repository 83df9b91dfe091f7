"""The HTTP front end: binds addresses, bounds what clients may do, drains when it stops."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

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
from daemon.rest.listening import Listening, open_sockets
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
_BACKLOG = 1024
"""As many may wait while a new daemon takes the sockets over from an old one."""
_LOCAL_CONNECTIONS = 64
"""By the unix socket, beside those of the network: whatever these do, the operator gets in."""

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
        self._listening = Listening()
        self._certificate = context.certificate

    async def start(
        self, unix_socket_path: Path | None, *, inherited: Sequence[socket.socket] = ()
    ) -> tuple[str, ...]:
        """Listen and serve.

        Args:
            unix_socket_path: listen there too; None for no unix socket.
            inherited: listening sockets that somebody else opened, as systemd does; those that the
                configuration names are used, the others closed. Clients of the network wait in
                their queue until `serve_inherited`.

        Returns:
            What is really bound: "http://127.0.0.1:43123", "unix:/run/inferd/inferd.sock".

        Raises:
            OSError: an address cannot be listened on; the message names it.
            ConfigError: the network could reach an address and `allow_anonymous` is not set.
        """
        config = self._context.config
        listening = await open_sockets(config.listen, unix_socket_path, inherited)
        listening.is_tls = self._certificate is not None
        self._listening = listening
        self._loopback_only = listening.is_private
        if not self._loopback_only and self._context.guard.is_open:
            self._allow_network(config, listening)
        await self._serve(config, listening)
        _log.info("listening addresses=%s", ",".join(listening.addresses))
        return listening.addresses

    async def serve_inherited(self) -> None:
        """Serve the clients that wait at inherited sockets: now their models can answer.

        Where one daemon follows another they would else be told that a model is not there.
        """
        for server in self._servers:
            await server.start_serving()

    def forget_heads(self) -> None:
        """Look at every request anew: what its sender may do has changed."""
        for group in (self._network, self._local):
            if group is not None:
                group.heads.clear()

    async def stop(self, grace_s: float) -> None:
        """Stop listening, let running requests finish for at most `grace_s`, close everything."""
        for server in self._servers:
            server.close()
        self._listening.remove_unix_socket()
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

    def _allow_network(self, config: HttpTable, listening: Listening) -> None:
        addresses = listening.addresses
        if not config.allow_anonymous:
            listening.close()
            problem = (
                f"http.listen = {', '.join(addresses)}: others on the network could use this "
                "server without a token; set http.allow_anonymous = true to allow that, or "
                "listen on 127.0.0.1"
            )
            raise ConfigError((problem,))
        _log.warning("the network may use this server anonymously addresses=%s", addresses)

    async def _serve(self, config: HttpTable, listening: Listening) -> None:
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
        for sock in listening.sockets:
            is_local = sock.family == socket.AF_UNIX
            group = self._local if is_local else self._network
            at_once = is_local or sock not in listening.inherited
            tls = self._tls(config) if not is_local else {}
            server = await _listen(loop, partial(connect, group), sock, at_once=at_once, **tls)
            self._servers.append(server)

    def _tls(self, config: HttpTable) -> dict[str, Any]:
        """What asyncio takes for TLS."""
        if self._certificate is None:
            return {}
        return {
            "ssl": self._certificate.context,
            "ssl_handshake_timeout": config.header_timeout_s,
            "ssl_shutdown_timeout": _LINGER_S,
        }

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
    loop: asyncio.AbstractEventLoop,
    connect: Callable[[], Connection],
    sock: socket.socket,
    *,
    at_once: bool,
    **tls: Any,  # noqa: ANN401 (asyncio's own options, passed through)
) -> asyncio.Server:
    make = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
    return await make(connect, sock=sock, backlog=_BACKLOG, start_serving=at_once, **tls)
