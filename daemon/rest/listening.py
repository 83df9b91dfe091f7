"""Opens the sockets that the configuration names, or takes those that somebody else has opened.

What listens is what the configuration says, whoever opened it: an inherited socket that it does not
name is closed, an address that nobody has opened is opened here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daemon.rest import access

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_log = logging.getLogger(f"inferd.{__name__}")

_PROBE_S = 1.0
"""For another daemon to take a connection, so that its socket is not taken away from it."""
_SOCKET_MODE = 0o660
"""The owner and its group may connect."""


@dataclass(slots=True)
class Listening:
    """The sockets of one front end.

    Attributes:
        is_tls: clients of the network are spoken to by TLS.
        inherited: those of them that somebody else opened.
        own_unix_socket: path and inode of the one that was made here, and goes with us.
    """

    sockets: list[socket.socket] = field(default_factory=list)
    is_tls: bool = False
    inherited: list[socket.socket] = field(default_factory=list)
    own_unix_socket: tuple[Path, int] | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """What is bound: "http://127.0.0.1:43123", "unix:/run/inferd/inferd.sock"."""
        scheme = "https" if self.is_tls else "http"
        return tuple(_address_of(sock, scheme) for sock in self.sockets)

    @property
    def is_private(self) -> bool:
        """Only this machine can reach any of them."""
        return all(
            sock.family == socket.AF_UNIX or access.is_loopback_address(sock.getsockname()[0])
            for sock in self.sockets
        )

    def close(self) -> None:
        """Close them all, when nothing came of it."""
        for sock in self.sockets:
            sock.close()
        self.remove_unix_socket()

    def remove_unix_socket(self) -> None:
        """Unless another daemon has put its own there since, or it is not ours."""
        if self.own_unix_socket is None:
            return
        path, inode = self.own_unix_socket
        try:
            if path.stat().st_ino == inode:
                path.unlink()
        except FileNotFoundError:
            return


async def open_sockets(
    listen: Sequence[str], unix_socket_path: Path | None, inherited: Sequence[socket.socket] = ()
) -> Listening:
    """Listen where the configuration says.

    Args:
        listen: "host:port" each.
        unix_socket_path: None for no unix socket.
        inherited: listening sockets that somebody else opened; taken over or closed.

    Raises:
        OSError: an address cannot be listened on; the message names it.
    """
    listening = Listening()
    offered = {_name_of(sock): sock for sock in inherited}

    def take_over(family: int, address: object) -> bool:
        sock = offered.pop((family, address), None)
        if sock is None:
            return False
        listening.sockets.append(sock)
        listening.inherited.append(sock)
        return True

    try:
        for text in listen:
            for family, address in await _look_up(text):
                if not take_over(family, address):
                    listening.sockets.append(_open_tcp(text, family, address))
        if unix_socket_path is not None and not take_over(
            socket.AF_UNIX, os.fspath(unix_socket_path)
        ):
            listening.sockets.append(_open_unix(unix_socket_path, listening))
    except BaseException:
        listening.close()
        raise
    finally:
        for sock in offered.values():
            _log.warning(
                "the configuration does not name this inherited socket; it is closed address=%s",
                _address_of(sock),
            )
            sock.close()
    return listening


async def _look_up(text: str) -> tuple[tuple[int, tuple[Any, ...]], ...]:
    """Family and address of "host:port"; several where a name has several addresses."""
    host, _, port = text.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]") or None,
            int(port),
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except OSError as exc:
        raise _refused(f"http.listen = '{text}'", exc) from exc
    return tuple(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


def _open_tcp(text: str, family: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError as exc:
        sock.close()
        raise _refused(f"http.listen = '{text}'", exc) from exc
    return sock


def _open_unix(path: Path, listening: Listening) -> socket.socket:
    """A socket bound to `path`; one that nobody listens on any more is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        sock.bind(os.fspath(path))
        listening.own_unix_socket = (path, path.stat().st_ino)
        path.chmod(_SOCKET_MODE)
    except OSError as exc:
        sock.close()
        raise _refused(f"http.unix_socket = {path}", exc) from exc
    return sock


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket is in its place")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except (BlockingIOError, TimeoutError):
            pass  # its queue is full, so there is somebody
    raise FileExistsError(errno.EADDRINUSE, "another daemon answers there")


def _refused(what: str, exc: OSError) -> OSError:
    return OSError(exc.errno, f"{what}: {exc.strerror or exc}")


def _name_of(sock: socket.socket) -> tuple[int, object]:
    name = sock.getsockname()
    return (int(sock.family), os.fsdecode(name) if sock.family == socket.AF_UNIX else name)


def _address_of(sock: socket.socket, scheme: str = "http") -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"{scheme}://{host}:{name[1]}"
