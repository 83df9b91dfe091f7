"""Passes a wish on to the updater, over its unix socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp

from daemon.errors import TemporaryError

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 5.0
"""The updater answers at once: it only takes the wish down."""


class UpdaterUnavailable(TemporaryError):
    """The updater does not answer."""


async def tell_updater(socket_path: Path, verb: str, document: dict[str, Any]) -> dict[str, Any]:
    """POST a wish to the updater.

    Returns:
        What it answered.

    Raises:
        UpdaterUnavailable: it does not run, or did not understand.
    """
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    connector = aiohttp.UnixConnector(str(socket_path))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.post(f"http://updater/{verb}", json=document) as response,
        ):
            answer = await response.json()
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as exc:
        raise UpdaterUnavailable(
            f"the updater does not answer at {socket_path}; is inferd-updater running?"
        ) from exc
    if response.status >= 400:  # noqa: PLR2004 (an error by RFC 9110)
        raise UpdaterUnavailable(str(answer.get("error", "the updater refused")))
    return dict(answer)
