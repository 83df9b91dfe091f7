"""Reads a request's body within its limits of size, time and memory, and undoes gzip or deflate.

Rules:
1. A Content-Length over the limit is refused before anything is read.
2. A chunked body is refused as soon as it passes the limit; so is an inflated one.
3. The whole body must be there within `body_timeout_s`, however steadily it drips.
4. Large bodies and answers of all connections share one memory budget.
5. Compressed data must be whole and nothing may follow it.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

from aiohttp import web

from daemon.errors import Malformed, Overloaded, RefusalReason, TooLarge, UnsupportedMedia, shorten
from daemon.rest.connection import connection_of
from daemon.rest.errors import BodyTimedOut

if TYPE_CHECKING:
    from daemon.rest.context import RestContext

_INFLATE_STEP_BYTES = 256 * 1024
"""Output of one step, which takes about 1 ms."""


async def read_body(request: web.Request, context: RestContext) -> bytes:
    """The whole body, inflated if it was compressed; b"" when there is none.

    Raises:
        TooLarge: it is, or would become, larger than `max_body_mib`.
        BodyTimedOut: it did not arrive in time.
        Malformed: bad chunking, bad or cut compression.
        UnsupportedMedia: an encoding other than gzip, deflate and identity.
        Overloaded: the large bodies of other requests leave no memory for it.
    """
    check_declared_size(request, context)
    raw_encoding = request.headers.get("Content-Encoding")
    window_bits = 0 if raw_encoding is None else _window_bits(raw_encoding)
    body = await _read_raw(request, context)
    if not window_bits or not body:
        return body
    return await _inflate(request, body, window_bits, context)


def check_declared_size(request: web.Request, context: RestContext) -> None:
    """Rule 1.

    Raises:
        TooLarge: the Content-Length is over the limit.
    """
    declared_bytes = request.content_length
    if declared_bytes is not None and declared_bytes > context.max_body_bytes:
        raise _too_large(context)


def _too_large(context: RestContext) -> TooLarge:
    limit = context.max_body_bytes
    return TooLarge(
        f"the body is larger than the {limit} bytes this server takes", limit=limit, unit="bytes"
    )


def _window_bits(raw_encoding: str) -> int:
    encoding = raw_encoding.strip().lower()
    if encoding in ("", "identity"):
        return 0
    if encoding in ("gzip", "x-gzip"):
        return 16 + zlib.MAX_WBITS
    if encoding == "deflate":
        return zlib.MAX_WBITS
    message = f"Content-Encoding '{shorten(raw_encoding)}' is not known; use gzip or deflate"
    raise UnsupportedMedia(message)


async def _read_raw(request: web.Request, context: RestContext) -> bytes:
    content = request.content
    try:
        if content.is_eof():  # a small body arrives with its head
            body = content.read_nowait()
            _account(request, len(body))
            return body
        async with asyncio.timeout(context.config.body_timeout_s):
            return await _read_arriving(request, context)
    except TimeoutError as exc:
        message = f"the body did not arrive within {context.config.body_timeout_s:g} s"
        raise BodyTimedOut(message) from exc
    except web.RequestPayloadError as exc:
        raise Malformed(f"the body cannot be read: {shorten(str(exc))}") from exc


async def _read_arriving(request: web.Request, context: RestContext) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await request.content.readany():
        size += len(chunk)
        if size > context.max_body_bytes:
            raise _too_large(context)
        _account(request, size)
        chunks.append(chunk)
    return b"".join(chunks)


def _account(request: web.Request, size: int) -> None:
    """Rule 4, for a request that now holds `size` bytes; the connection gives them back."""
    if not connection_of(request).hold(size):
        raise Overloaded(
            "other requests with large bodies are under way; send this one again later",
            reason=RefusalReason.QUEUE_FULL,
        )


async def _inflate(
    request: web.Request, body: bytes, window_bits: int, context: RestContext
) -> bytes:
    if window_bits == zlib.MAX_WBITS and body[0] & 0x0F != zlib.DEFLATED:
        window_bits = -zlib.MAX_WBITS  # raw deflate, as some clients send; RFC 9110 8.4.1.2
    inflater = zlib.decompressobj(window_bits)
    pieces: list[bytes] = []
    packed_bytes = len(body)
    size = 0
    try:
        while not inflater.eof:
            piece = inflater.decompress(body, _INFLATE_STEP_BYTES)
            body = inflater.unconsumed_tail
            if not piece and not body and not inflater.eof:
                raise Malformed("the compressed body ends too early")
            size += len(piece)
            if size > context.max_body_bytes:
                raise _too_large(context)
            _account(request, packed_bytes + size)
            pieces.append(piece)
            if body:
                await asyncio.sleep(0)  # others get their turn between the steps
    except zlib.error as exc:
        raise Malformed(f"the body is not what its Content-Encoding says: {exc}") from exc
    if inflater.unused_data:
        raise Malformed("there is data after the end of the compressed body")
    return b"".join(pieces)
