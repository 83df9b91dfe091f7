"""Asks ourselves over our own front door: a watchdog that is fed by less proves less."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_ANSWER = b"HTTP/1.1 "
"""Whatever the status: a server that refuses because it is full is alive."""


async def answers(addresses: Sequence[str], *, timeout_s: float) -> bool:
    """Whether our HTTP answers a request that comes from outside of the event loop's own calls.

    Args:
        addresses: of `HttpServer.start`; the unix socket is asked where there is one, for it has
            room when the network's connections are all taken. () is fine: nobody can ask.
    """
    if not addresses:
        return True
    address = next((each for each in addresses if each.startswith("unix:")), addresses[0])
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(address)
    except (OSError, TimeoutError):
        return False
    except asyncio.IncompleteReadError:
        # By TLS, hanging up on a plain request is the answer of a server that lives.
        return address.startswith("https:")


async def _ask(address: str) -> bool:
    if address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    else:
        host, _, port = address.partition("://")[2].rpartition(":")
        reader, writer = await asyncio.open_connection(_reachable(host.strip("[]")), int(port))
    try:
        writer.write(_REQUEST)
        return await reader.readexactly(len(_ANSWER)) == _ANSWER
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _reachable(host: str) -> str:
    """Where who listens everywhere can be asked."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (asked, not bound)
