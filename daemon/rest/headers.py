"""What headers say about a prediction: its deadline and its id; and what made the answer."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from typing import TYPE_CHECKING

from daemon.errors import Malformed, shorten

if TYPE_CHECKING:
    from aiohttp import web

    from daemon.models.served import Target
    from daemon.tensors import PredictResult

TIMEOUT_HEADER = "Inferd-Timeout-Ms"
MAX_TIMEOUT_MS = 3_600_000
"""An hour; as long as any model's own limit may be."""
MAX_ID_CHARACTERS = 128

_WHOLE_NUMBER = re.compile(r"[0-9]{1,7}")
_FOREIGN = re.compile(r"[^A-Za-z0-9._:/+=@-]")
_PREFIX = secrets.token_hex(4)
_counter = itertools.count(1)


def origin_headers(result: PredictResult) -> dict[str, str]:
    """What made an answer, for protocols whose documents have no place for it.

    A device's id holds letters, digits and `:_.-` only.
    """
    return {
        "Inferd-Device": result.device,
        "Inferd-Requested-Device": result.requested_device,
        "Inferd-Degraded": str(result.degraded).lower(),
    }


def deadline_of(request: web.Request, target: Target) -> float:
    """When the answer must be there, in `time.monotonic()` seconds.

    The header counts from now on, which is when the whole body has arrived; without it the
    model's own limit holds.

    Raises:
        Malformed: the header is not a whole number of milliseconds, 1 to 3600000.
    """
    timeout_s = timeout_of(request)
    return time.monotonic() + (target.timeout_s if timeout_s is None else timeout_s)


def timeout_of(request: web.Request) -> float | None:
    """The seconds that the header allows for the answer; None where there is none.

    Raises:
        Malformed: the header is not a whole number of milliseconds, 1 to 3600000.
    """
    raw_timeout = request.headers.get(TIMEOUT_HEADER)
    if raw_timeout is None:
        return None
    is_number = _WHOLE_NUMBER.fullmatch(raw_timeout) is not None
    if not is_number or not 1 <= int(raw_timeout) <= MAX_TIMEOUT_MS:
        raise Malformed(
            f"{TIMEOUT_HEADER} must be whole milliseconds, 1 to {MAX_TIMEOUT_MS}, "
            f"not '{shorten(raw_timeout)}'"
        )
    return int(raw_timeout) / 1000


def request_id_of(request: web.Request) -> str:
    """The client's `X-Request-Id`, cut to 128 harmless characters, or a new one."""
    raw_id = request.headers.get("X-Request-Id")
    if not raw_id:
        return f"{_PREFIX}-{next(_counter):x}"
    return _FOREIGN.sub("_", raw_id[:MAX_ID_CHARACTERS])
