"""Answers whose body is whole before it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import orjson
from aiohttp import hdrs, web

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.web_request import BaseRequest

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


_PIECE_BYTES = 256 * 1024


class LargeResponse(web.Response):
    """A large body, handed to the connection piece by piece, as the client takes it.

    aiohttp would hand over a copy of all of it at once, which is kept until the client has taken
    the last byte.
    """

    __slots__ = ("_has_body",)

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Send the head; the answer to HEAD is nothing else."""
        self._has_body = request.method != hdrs.METH_HEAD
        return await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the body."""
        body = memoryview(cast("bytes", self.body) if self._has_body else b"")
        for start in range(0, len(body), _PIECE_BYTES):
            await self.write(body[start : start + _PIECE_BYTES])
        await web.StreamResponse.write_eof(self, data)


def json_response(
    payload: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer whose body is `payload` as JSON. NaN has no JSON form here: it becomes null."""
    return json_bytes_response(orjson.dumps(payload, option=_OPTIONS), status, headers)


def json_bytes_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer whose body is JSON already."""
    return bytes_response(body, {"Content-Type": "application/json", **(headers or {})}, status)


def bytes_response(body: bytes, headers: Mapping[str, str], status: int = 200) -> web.Response:
    """An answer of any type; `headers` name it."""
    kind = web.Response if len(body) <= _PIECE_BYTES else LargeResponse
    return kind(body=body, status=status, headers=headers)
