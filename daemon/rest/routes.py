"""Registers handlers so that each answers errors in its protocol's words and is counted once.

A route module has one function, `add_routes(routes: Routes, context: RestContext) -> None`.
A handler returns a response or raises; DaemonError is answered as its protocol does it, anything
else is a bug: logged with its traceback and answered 500.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, hdrs, web

from daemon.errors import (
    DaemonError,
    LabelNotFound,
    ModelUnavailable,
    VersionNotFound,
    shorten,
)
from daemon.metrics import Outcome, outcome_of
from daemon.rest.answers import json_response
from daemon.rest.body import check_declared_size
from daemon.rest.context import Call
from daemon.rest.errors import error_response
from daemon.rest.guard import Access

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from daemon.rest.context import RestContext
    from daemon.rest.errors import ErrorAnswer
    from daemon.tensors import Protocol

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    Expect = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
    ModelOf = Callable[[web.Request], str | None]
    """The model that a request is about; None for none in particular."""
    PredictHandler = Callable[[web.Request, Call], Awaitable[web.StreamResponse]]

_log = logging.getLogger(f"inferd.{__name__}")


def model_in_path(request: web.Request) -> str | None:
    """The model that a path with `{model}` names."""
    return request.match_info.get("model")


class Routes:
    """The router, with our wrapping around each handler: the guard before it, errors after it."""

    def __init__(self, router: web.UrlDispatcher, context: RestContext) -> None:
        self._router = router
        self._context = context

    def get(
        self,
        path: str,
        handler: Handler,
        *,
        access: Access = Access.READ,
        on_error: ErrorAnswer = error_response,
    ) -> None:
        """Serve GET and HEAD of a path (aiohttp's path syntax; names arrive decoded once)."""
        for method in (hdrs.METH_GET, hdrs.METH_HEAD):
            self.add(method, path, handler, access=access, on_error=on_error)

    def post(
        self,
        path: str,
        handler: Handler,
        *,
        access: Access = Access.ADMIN,
        on_error: ErrorAnswer = error_response,
    ) -> None:
        """Serve POST of a path."""
        self.add(hdrs.METH_POST, path, handler, access=access, on_error=on_error)

    def add(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        access: Access = Access.ADMIN,
        model_of: ModelOf = model_in_path,
        on_error: ErrorAnswer = error_response,
    ) -> None:
        """Serve a method, or "*" for all of them that no earlier route of the path serves."""
        admit = self._context.guard.admit

        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                admit(request, access, model_of)
                return await handler(request)
            except DaemonError as error:
                return on_error(error)
            except Exception:  # noqa: BLE001 (the top of a request)
                return _answer_bug(request)

        self._register(method, path, answer, partial(self._expect, access, model_of))

    def predict(
        self,
        path: str,
        handler: PredictHandler,
        *,
        protocol: Protocol,
        model_of: ModelOf = model_in_path,
        on_error: ErrorAnswer = error_response,
    ) -> None:
        """Serve POST of a path whose every request is one prediction, and count them."""
        count = self._context.metrics.request
        admit = self._context.guard.admit

        async def answer(request: web.Request) -> web.StreamResponse:
            call = Call()
            outcome = Outcome.OK
            started_at = time.perf_counter()
            try:
                admit(request, Access.PREDICT, model_of)
                return await handler(request, call)
            except DaemonError as error:
                outcome = outcome_of(error)
                _name_model(call, error)
                return on_error(error)
            except asyncio.CancelledError:
                outcome = Outcome.CANCELLED
                raise
            except Exception:  # noqa: BLE001 (the top of a request)
                outcome = Outcome.FAILED
                return _answer_bug(request)
            finally:
                duration_s = time.perf_counter() - started_at
                count(call.model, call.version, protocol, outcome, duration_s)

        expect = partial(self._expect, Access.PREDICT, model_of)
        self._register(hdrs.METH_POST, path, answer, expect)

    def _register(self, method: str, path: str, handler: Handler, expect: Expect) -> None:
        path = path.replace("{model}", "{model:[^/]+}")  # aiohttp's own pattern forbids braces
        self._router.add_route(method, path, handler, expect_handler=expect)

    async def _expect(
        self, access: Access, model_of: ModelOf, request: web.Request
    ) -> web.StreamResponse | None:
        """Answer `Expect: 100-continue`, refusing what will be refused before it is sent."""
        try:
            self._context.guard.admit(request, access, model_of)
            check_declared_size(request, self._context)
        except DaemonError as error:
            response = error_response(error)
            response.force_close()
            return response
        if request.headers[hdrs.EXPECT].lower() != "100-continue":
            message = "the only Expect this server knows is 100-continue"
            return json_response({"error": message}, status=HTTPStatus.EXPECTATION_FAILED)
        if request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer proper has not begun
        return None


def _name_model(call: Call, error: DaemonError) -> None:
    """Count against the model when the error proves that it exists."""
    if not call.model and isinstance(error, ModelUnavailable | VersionNotFound | LabelNotFound):
        call.model = error.model


def _answer_bug(request: web.Request) -> web.StreamResponse:
    _log.exception("request failed in a way nobody foresaw path=%s", shorten(request.path))
    return json_response({"error": "internal error; the log says more"}, status=500)
