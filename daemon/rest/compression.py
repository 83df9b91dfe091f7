"""Compresses answers for clients that ask for it.

Rules:
1. The client's `Accept-Encoding` decides: gzip before deflate, never what it gives quality 0.
2. Small answers stay as they are: they fit into one packet either way.
3. Speed before size: on a local network the processor is the narrow place.
"""

from __future__ import annotations

import asyncio
import zlib

MIN_BYTES = 1024
"""Below this a compressed answer saves no packet."""
_MAX_INLINE_BYTES = 64 * 1024
"""Compressed in the event loop, in about 2 ms at most; larger ones in a thread."""
_LEVEL = 1
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def choose_coding(accept_encoding: str | None) -> str | None:
    """The coding an answer may have: "gzip", "deflate", or None for none.

    Source: RFC 9110, 12.5.3.
    """
    if not accept_encoding:
        return None
    accepted = set(map(_accepted_coding, accept_encoding.lower().split(",")))
    return next((coding for coding in _WINDOW_BITS if coding in accepted), None)


async def compress(body: bytes, coding: str) -> bytes:
    """`body` in that coding."""
    if len(body) <= _MAX_INLINE_BYTES:
        return _compress(body, coding)
    return await asyncio.to_thread(_compress, body, coding)


def _accepted_coding(item: str) -> str:
    """The coding that one item of the header names; "" when its quality is 0."""
    coding, _, parameters = item.partition(";")
    key, _, quality = parameters.partition("=")
    is_refused = key.strip() == "q" and quality.strip().rstrip("0") in ("", ".", "0.")
    return "" if is_refused else coding.strip()


def _compress(body: bytes, coding: str) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return compressor.compress(body) + compressor.flush()
