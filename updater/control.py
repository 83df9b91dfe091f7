"""The updater's unix socket: what operators, commands and the daemon ask, as JSON over HTTP.

Whoever may open the socket may ask; its mode says who that is. Nothing that is asked carries trust:
the most that can come of it is a look, a way back, or another chance for a bundle that is signed.

Bounds: `_MOST_REQUESTS` at a time, `_MAX_BODY_BYTES` each, within `_BODY_S`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import socket
import stat
import threading
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from updater.errors import UpdateError
from updater.report import status_document
from updater.requests import Busy, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from updater.service import UpdateService

_log = logging.getLogger(f"inferd.{__name__}")
T = TypeVar("T")

_SOCKET_MODE = 0o660
"""The owner and its group: the daemon and operators."""
_MAX_BODY_BYTES = 64 * 1024
"""The longest is an import with a long path."""
_BODY_S = 10.0
_MOST_REQUESTS = 32
_MOST_CONNECTIONS = 64
_BACKLOG = 64
"""Connections that wait to be taken; a client finds out at once when there are more."""
_STOP_S = 1.0
"""For requests under way."""
_PROBE_S = 1.0
"""For another updater to take a connection, so that its socket is not taken away from it."""
_MOST_EVENTS = 1000
_ORIGINS = ("mqtt", "http", "operator")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


class ControlServer:
    """The socket, and who answers there."""

    def __init__(self, service: UpdateService, path: Path) -> None:
        """Store only."""
        self._service = service
        self._path = path
        self._inode = 0
        self._busy = 0
        self._runner: web.AppRunner | None = None
        self._server: asyncio.AbstractServer | None = None

    async def start(self, inherited: Sequence[socket.socket] = ()) -> None:
        """Listen.

        Args:
            inherited: listening sockets that systemd has opened; the one of this path is taken.

        Raises:
            OSError: the socket cannot be had.
        """
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._answer_errors])
        app.add_routes(
            [
                web.get("/status", self._status),
                web.post("/refresh", self._refresh),
                web.post("/rollback", self._rollback),
                web.get("/history", self._history),
                web.get("/quarantine", self._quarantine),
                web.post("/quarantine/clear", self._clear),
                web.post("/import", self._import),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_S)
        await runner.setup()
        self._runner = runner
        ours = [sock for sock in inherited if sock.getsockname() == os.fspath(self._path)]
        self._server = await asyncio.get_running_loop().create_unix_server(
            self._connect, sock=ours[0] if ours else self._open(), backlog=_BACKLOG
        )

    async def stop(self) -> None:
        """Answer what is under way, within a bound, and take the socket away."""
        if self._inode:
            _remove(self._path, self._inode)
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def _connect(self) -> asyncio.BaseProtocol:
        server = self._runner.server if self._runner else None
        if server is None or len(server.connections) >= _MOST_CONNECTIONS:
            return _Closed()
        return server()

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(self._path)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            sock.bind(os.fspath(self._path))
            self._inode = self._path.stat().st_ino
            self._path.chmod(_SOCKET_MODE)
        except OSError as exc:
            sock.close()
            raise OSError(exc.errno, f"{self._path}: {exc.strerror or exc}") from exc
        return sock

    # Verbs.

    async def _status(self, _request: web.Request) -> web.StreamResponse:
        return _json(status_document(await _in_thread(self._service.status)))

    async def _refresh(self, request: web.Request) -> web.StreamResponse:
        document = await _document(request)
        origin = document.get("origin", "http")
        if origin not in _ORIGINS:
            raise _BadRequest(f"'origin' must be one of {', '.join(_ORIGINS)}")
        return _json({"in_s": round(self._service.hint(origin), 3)}, status=202)

    async def _rollback(self, request: web.Request) -> web.StreamResponse:
        model = _text(await _document(request), "model")
        version = await _in_thread(partial(self._service.roll_back, model))
        return _json({"model": model, "version": version}, status=202)

    async def _history(self, request: web.Request) -> web.StreamResponse:
        limit = _limit(request.query.get("limit", "100"))
        model = request.query.get("model", "")
        lines, chain = await _in_thread(partial(self._service.history, limit=limit, model=model))
        events = [
            {"sequence": line.sequence, "time": line.time, "event": line.event} for line in lines
        ]
        return _json({"events": events, "chain": asdict(chain)})

    async def _quarantine(self, _request: web.Request) -> web.StreamResponse:
        cases = await _in_thread(self._service.quarantine)
        return _json({"bundles": [asdict(case) for case in cases]})

    async def _clear(self, request: web.Request) -> web.StreamResponse:
        document = await _document(request)
        if "digest" not in document:
            raise _BadRequest("'digest' must be a sha256, a beginning of one, or null for all")
        digest = document["digest"]
        if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            raise _BadRequest("'digest' must be 8 to 64 of 0-9 a-f, or null for all")
        try:
            cleared = await _in_thread(partial(self._service.clear_quarantine, digest))
        except Refused as exc:
            return _refusal(404, str(exc))
        return _json({"cleared": list(cleared)})

    async def _import(self, request: web.Request) -> web.StreamResponse:
        folder = Path(_text(await _document(request), "path"))
        if not folder.is_absolute() or "\0" in str(folder):
            return _refusal(422, "'path' must be an absolute path")
        if not await _in_thread(partial(_is_folder, folder)):
            return _refusal(422, f"{folder}: there is no such folder, or it cannot be read")
        try:
            models = await _in_thread(partial(self._service.import_folder, folder))
        except Refused as exc:
            return _refusal(422, str(exc))
        return _json({"models": models})

    # Around them.

    @web.middleware
    async def _answer_errors(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        if self._busy >= _MOST_REQUESTS:
            return _refusal(503, "too many requests at a time; ask again")
        self._busy += 1
        try:
            return await handler(request)
        except Exception as exc:  # noqa: BLE001 - the top of a request
            return _answer(exc, request.path)
        finally:
            self._busy -= 1


class _Closed(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def _in_thread(do: Callable[[], T]) -> T:
    """Do what waits for the disk, for a stick, or for the deciding thread.

    In a daemon thread each, of which there are as many as requests: an executor's would keep the
    process alive for as long as a dead stick does not answer.
    """
    done: Future[T] = Future()

    def run() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(do())
        except Exception as exc:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(exc)

    threading.Thread(target=run, name="control", daemon=True).start()
    return await asyncio.wrap_future(done)


class _BadRequest(Exception):
    """The request is not what was expected; the message says what was."""


def _answer(exc: Exception, path: str) -> web.Response:
    """The one table from what went wrong to what is answered."""
    match exc:
        case web.HTTPException():
            return _refusal(exc.status, exc.reason)
        case _BadRequest():
            return _refusal(400, str(exc))
        case Refused():
            return _refusal(409, str(exc))
        case Busy():
            return _refusal(503, str(exc))
        case UpdateError() | OSError():
            return _refusal(500, str(exc))
    _log.error("a request failed through a fault of this program path=%s", path, exc_info=exc)
    return _refusal(500, "a fault of this program; its log says more")


async def _document(request: web.Request) -> dict[str, Any]:
    """The request's JSON object; no body is an empty one.

    Raises:
        _BadRequest: it is none.
        web.HTTPRequestEntityTooLarge: it is too large.
    """
    if (request.content_length or 0) > _MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(_MAX_BODY_BYTES, request.content_length or 0)
    try:
        async with asyncio.timeout(_BODY_S):
            raw = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(reason=f"the body did not arrive in {_BODY_S:g} s") from None
    try:
        document = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as exc:
        raise _BadRequest(f"the body is not JSON: {exc}") from None
    if not isinstance(document, dict):
        raise _BadRequest("the body must be a JSON object")
    return document


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise _BadRequest(f"'{key}' must be a text")
    return value


def _limit(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) < 6  # noqa: PLR2004 (its digits)
    if not is_number or not 1 <= int(text) <= _MOST_EVENTS:
        raise _BadRequest(f"'limit' must be a whole number from 1 to {_MOST_EVENTS}")
    return int(text)


def _json(document: dict[str, Any], *, status: int = 200) -> web.Response:
    return web.json_response(document, status=status)


def _refusal(status: int, message: str) -> web.Response:
    return _json({"error": message}, status=status)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _remove(path: Path, inode: int) -> None:
    """Unless another updater has put its own there since."""
    try:
        if path.stat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        return


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more, as a kill leaves it."""
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
    raise FileExistsError(errno.EADDRINUSE, "another updater answers there")
