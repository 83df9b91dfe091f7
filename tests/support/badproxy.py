"""A bad network: a TCP proxy before a real server, with a fault for each connection.

Connections meet the faults in the order given; those after the last one meet none. One request per
connection, as updater/web.py makes them.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Fault = Callable[["Connection"], None]

_CHUNK_BYTES = 1 << 16
_WAIT_S = 30
"""For any one step of a test; none takes as long unless it fails."""
_END_OF_HEAD = b"\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends RST


@dataclass
class Connection:
    """One client's connection, with the server behind it.

    Attributes:
        request: its head, as the client sent it.
        body_bytes: of the answer's body that were sent on to the client.
    """

    client: socket.socket
    upstream: tuple[str, int]
    ending: threading.Event
    request: bytes = b""
    body_bytes: int = 0

    @property
    def range_start(self) -> int | None:
        """Where the range that was asked for begins; None when none was."""
        for line in self.request.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"range":
                return int(value.strip().removeprefix(b"bytes=").partition(b"-")[0])
        return None

    def relay(self, most_bytes: float = float("inf")) -> None:
        """Send the server's answer on: its head, and so much of its body."""
        with socket.create_connection(self.upstream, timeout=_WAIT_S) as server:
            server.sendall(self.request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            head, chunk = _read_head(server)
            self.client.sendall(head)
            chunk = chunk or server.recv(_CHUNK_BYTES)
            while chunk and self.body_bytes < most_bytes:
                chunk = chunk[: int(min(len(chunk), most_bytes - self.body_bytes))]
                # Before they are sent: a client that has all of them looks at once.
                self.body_bytes += len(chunk)
                self.client.sendall(chunk)
                chunk = server.recv(_CHUNK_BYTES)

    def until_left(self) -> None:
        """Wait until the client closes."""
        with contextlib.suppress(OSError):
            while self.client.recv(_CHUNK_BYTES):
                pass


def cut(after_bytes: int) -> Fault:
    """End the connection in the middle of the body."""
    return lambda connection: connection.relay(after_bytes)


def reset(after_bytes: int) -> Fault:
    """End the connection with RST in the middle of the body."""

    def fault(connection: Connection) -> None:
        connection.relay(after_bytes)
        connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    return fault


def stall(after_bytes: int) -> Fault:
    """Say nothing more in the middle of the body, and stay."""

    def fault(connection: Connection) -> None:
        connection.relay(after_bytes)
        connection.until_left()

    return fault


def silent(connection: Connection) -> None:
    """Take the request and never answer."""
    connection.until_left()


def drip(at_once: bytes, slowly: bytes, *, every_s: float) -> Fault:
    """Send an answer, the second part of it one byte now and then."""

    def fault(connection: Connection) -> None:
        connection.client.sendall(at_once)
        for byte in slowly:
            connection.client.sendall(bytes([byte]))
            if connection.ending.wait(every_s):
                return

    return fault


def answer(status: str, *headers: str, body: bytes = b"") -> Fault:
    """Answer in the server's place, and close."""
    raw = response(status, *headers, body=body)
    return lambda connection: connection.client.sendall(raw)


def endless(status: str, *headers: str, chunk: bytes) -> Fault:
    """Answer in the server's place, and never come to an end."""

    def fault(connection: Connection) -> None:
        connection.client.sendall(response(status, *headers))
        while not connection.ending.is_set():
            connection.client.sendall(chunk)
            connection.body_bytes += len(chunk)

    return fault


def without_ranges(connection: Connection) -> None:
    """Keep it from the server that only a range is wanted."""
    head = connection.request.replace(b"\r\nRange:", b"\r\nX-Range:")
    assert head != connection.request, "no range was asked for"
    plain = Connection(connection.client, connection.upstream, connection.ending, head)
    plain.relay()
    connection.body_bytes = plain.body_bytes


def response(status: str, *headers: str, body: bytes = b"") -> bytes:
    """The bytes of an answer; its length is not told unless a header does."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


@dataclass
class BadProxy:
    """What the proxy has seen; `url` leads through it."""

    url: str
    faults: Iterator[Fault]
    upstream: tuple[str, int]
    ending: threading.Event = field(default_factory=threading.Event)
    connections: list[Connection] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        threads = []
        while not self.ending.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                break
            client.settimeout(_WAIT_S)
            connection = Connection(client, self.upstream, self.ending)
            self.connections.append(connection)
            fault = next(self.faults, Connection.relay)
            threads.append(threading.Thread(target=_meet, args=(connection, fault), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join(_WAIT_S)


@contextmanager
def bad_proxy(server_url: str, *faults: Fault) -> Iterator[BadProxy]:
    """A proxy before a server until the block ends."""
    parts = urlsplit(server_url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = BadProxy(
            f"{parts.scheme}://127.0.0.1:{listener.getsockname()[1]}",
            iter(faults),
            (parts.hostname or "", parts.port or 0),
        )
        thread = threading.Thread(target=proxy.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ending.set()
            listener.shutdown(socket.SHUT_RDWR)
            for connection in proxy.connections:
                with contextlib.suppress(OSError):
                    connection.client.shutdown(socket.SHUT_RDWR)
            thread.join(_WAIT_S)


@contextmanager
def bad_tunnel(server_url: str, after_bytes: int) -> Iterator[str]:
    """For one connection of any protocol: a byte of the answer is another; gives the URL."""
    parts = urlsplit(server_url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(
            target=_tunnel, args=(listener, parts.hostname, parts.port, after_bytes), daemon=True
        )
        thread.start()
        yield f"{parts.scheme}://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(_WAIT_S)


def _tunnel(listener: socket.socket, host: str, port: int, after_bytes: int) -> None:
    client, _ = listener.accept()
    with client, socket.create_connection((host, port)) as server:
        forth = threading.Thread(target=_pass_on, args=(client, server), daemon=True)
        forth.start()
        _pass_on(server, client, after_bytes)
        forth.join(_WAIT_S)


def _pass_on(source: socket.socket, sink: socket.socket, after_bytes: int = -1) -> None:
    """Relay until one of them ends; the byte after so many is another."""
    passed = 0
    with contextlib.suppress(OSError):
        while chunk := bytearray(source.recv(_CHUNK_BYTES)):
            if passed <= after_bytes < passed + len(chunk):
                chunk[after_bytes - passed] ^= 1
            passed += len(chunk)
            sink.sendall(chunk)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _meet(connection: Connection, fault: Fault) -> None:
    # The client leaves when it has seen enough; that is what most tests are about.
    with connection.client, contextlib.suppress(OSError):
        connection.request, _ = _read_head(connection.client)
        fault(connection)


def _read_head(peer: socket.socket) -> tuple[bytes, bytes]:
    """Up to the empty line, and what has come with it."""
    data = b""
    while _END_OF_HEAD not in data:
        chunk = peer.recv(_CHUNK_BYTES)
        if not chunk:
            raise ConnectionError("ended within its head")
        data += chunk
    head, end, rest = data.partition(_END_OF_HEAD)
    return head + end, rest
