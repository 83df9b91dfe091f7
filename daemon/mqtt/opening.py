"""From the settings to an open stream, with nothing that could hold up the event loop.

What may wait for a disk or a name server is done in a short-lived thread of its own, which nobody
has to wait for at the end; TCP and TLS are the event loop's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemon.mqtt.stream import Stream

    _Result = TypeVar("_Result")
    _Address = tuple[Any, ...]
    """As the socket module takes it for the family."""

_CONNECT_TIMEOUT_S = 10.0
"""For TCP to one address, and for TLS: longer than a slow mobile link needs."""


@dataclass(frozen=True, slots=True)
class Way:
    """How to reach the broker: looked up anew for each connection.

    Attributes:
        addresses: where it may be, with their families, the likeliest first.
        tls: None for a plain connection.
        password: None when there is none.
    """

    addresses: tuple[tuple[socket.AddressFamily, _Address], ...]
    tls: ssl.SSLContext | None
    password: str | None


async def find_way(
    host: str,
    port: int,
    *,
    tls: bool,
    ca_file: Path | None,
    password_file: Path | None,
    certificate: tuple[Path, Path] | None = None,
) -> Way:
    """Ask the name server, and read the files; what changes in them needs no restart.

    Args:
        certificate: ours, and its key, for a broker that asks.

    Raises:
        OSError, ValueError: as `daemon.mqtt.failures` explains them.
    """

    def look_up() -> Way:
        password = None
        if password_file is not None:
            password = password_file.read_text(encoding="utf-8").rstrip("\r\n")
        context = None
        if tls:
            cafile = None if ca_file is None else str(ca_file)
            context = ssl.create_default_context(cafile=cafile)
            if certificate is not None:
                # A key with a passphrase would ask for it on the terminal.
                context.load_cert_chain(*certificate, password=lambda: "")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = tuple((family, address) for family, _, _, _, address in found)
        return Way(addresses, context, password)

    return await _in_a_thread(look_up)


async def open_stream(way: Way, host: str, make_stream: Callable[[], Stream]) -> Stream:
    """Connect to the first address that answers.

    Args:
        host: as it must stand in the broker's certificate.

    Raises:
        OSError: the last address's reason; TimeoutError when it did not answer.
    """
    error: OSError | None = None
    for family, address in way.addresses:
        try:
            sock = await _connect(family, address)
        except OSError as exc:
            error = exc
            continue
        return await _talk(sock, way.tls, host, make_stream)
    raise error or OSError("the name has no address")


async def _connect(family: socket.AddressFamily, address: _Address) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Small packets both ways: without it each may wait 40 ms for a delayed acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _talk(
    sock: socket.socket, tls: ssl.SSLContext | None, host: str, make_stream: Callable[[], Stream]
) -> Stream:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
        _, stream = await loop.create_connection(
            make_stream, sock=sock, ssl=tls, server_hostname=host if tls else None
        )
    return stream


async def _in_a_thread(work: Callable[[], _Result]) -> _Result:
    """The result of `work`, or what it raised.

    A thread of its own, and a daemon: those of an executor are waited for at the end of the
    program, and a name server may be silent for long.
    """
    future: Future[_Result] = Future()
    future.set_running_or_notify_cancel()  # it cannot be called off from here on

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as exc:  # noqa: BLE001 (top of a thread: raised where it is awaited)
            future.set_exception(exc)

    threading.Thread(target=run, name="inferd-mqtt-lookup", daemon=True).start()
    return await asyncio.wrap_future(future)
