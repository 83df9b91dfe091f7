"""Which requests a browser may have been tricked into. Pure.

Rules:
1. A request that changes something and carries an `Origin` must come from a page of this server.
2. A server that listens on loopback only is asked for by a loopback name: any other `Host` is a
   foreign domain that was pointed at 127.0.0.1 ("DNS rebinding").

Not checked: GET from other sites, since without CORS headers no page can read the answer; and
`Host` on servers that the network can reach, since their names are not known here.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


@lru_cache(maxsize=256)
def is_loopback_host(host: str) -> bool:
    """True for `localhost`, `*.localhost` and loopback addresses, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    if not name:
        return False
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return is_loopback_address(name)


def is_loopback_address(address: str) -> bool:
    """True for 127.0.0.0/8 and ::1."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_same_site(origin: str, host: str) -> bool:
    """True when the page at `origin` came from the server that answers to `host`."""
    try:
        page = urlsplit(origin)
        default_port = _DEFAULT_PORTS.get(page.scheme)
        here = urlsplit(f"//{host}")
        same_port = (page.port or default_port) == (here.port or default_port)
    except ValueError:
        return False
    return default_port is not None and page.hostname == here.hostname and same_port


def refusal(
    method: str, host: str | None, origin: str | None, *, loopback_only: bool
) -> str | None:
    """Why a request is refused, or None.

    Args:
        method: of the request, upper case.
        host: the header, None where absent.
        origin: the header, None where absent.
        loopback_only: rule 2 applies.
    """
    if loopback_only and host is not None and not is_loopback_host(host):
        return (
            "this server listens on this machine only and answers to localhost or a loopback "
            "address; the Host header names something else"
        )
    if origin is None or method in SAFE_METHODS:
        return None
    if is_same_site(origin, host or ""):
        return None
    return "requests from web pages of other sites are refused; see the Origin header"
