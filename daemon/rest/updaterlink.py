"""Passes a wish on to the updater, over its unix socket.

Whatever answers there, or does not: it costs at most `_TIMEOUT_S` and `_MAX_ANSWER_BYTES`, and the
one who wished gets a clear answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from daemon.errors import shorten
from daemon.rest.errors import UpdaterRefused, UpdaterUnavailable

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 5.0
"""The updater answers at once: it only takes the wish down."""
_MAX_ANSWER_BYTES = 64 * 1024
_MAX_WORDS = 500
"""Characters of its refusal that are passed on."""
_BAD_REQUEST = 400
_SERVER_ERROR = 500


async def tell_updater(socket_path: Path, verb: str, document: dict[str, Any]) -> dict[str, Any]:
    """POST a wish to the updater.

    Returns:
        What it answered.

    Raises:
        UpdaterUnavailable: it does not run, cannot do it now, or answered with nonsense.
        UpdaterRefused: it will not, and says why.
    """
    try:
        status, raw = await _post(socket_path, verb, document)
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as exc:
        raise UpdaterUnavailable(
            f"the updater does not answer at {socket_path}; is inferd-updater running?"
        ) from exc
    answer = _read(raw)
    if status < _BAD_REQUEST:
        return answer
    words = shorten(
        str(answer.get("error", f"the updater answered with status {status}")), _MAX_WORDS
    )
    raise (UpdaterUnavailable if status >= _SERVER_ERROR else UpdaterRefused)(words)


async def _post(socket_path: Path, verb: str, document: dict[str, Any]) -> tuple[int, bytes]:
    """The answer's status, and its body as far as one may be long, and one byte more."""
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket_path)),
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
            auto_decompress=False,  # a small answer may be a large document
        ) as session,
        session.post(f"http://updater/{verb}", json=document, allow_redirects=False) as response,
    ):
        body = b""
        while len(body) <= _MAX_ANSWER_BYTES and (piece := await response.content.readany()):
            body += piece
        return response.status, body


def _read(raw: bytes) -> dict[str, Any]:
    """The answer's JSON object.

    Raises:
        UpdaterUnavailable: it is something else, or too long.
    """
    try:
        answer = orjson.loads(raw) if len(raw) <= _MAX_ANSWER_BYTES else None
    except orjson.JSONDecodeError:
        answer = None
    if type(answer) is not dict:
        raise UpdaterUnavailable("what answers at the updater's socket does not speak as it must")
    return answer
