"""Takes over the sockets that systemd holds for this service (socket activation).

Source: sd_listen_fds(3): $LISTEN_FDS descriptors from 3 on, for the process that $LISTEN_PID names.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(f"inferd.{__name__}")

_FIRST = 3
_MOST = 64
"""Far more than there are front ends."""


def inherited_sockets(environment: Mapping[str, str], pid: int) -> tuple[socket.socket, ...]:
    """The listening stream sockets that this process was started with; () without systemd.

    What else was passed is closed, and said. To be called once.
    """
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(pid) or not _is_number(count):
        return ()
    sockets = []
    for descriptor in range(_FIRST, _FIRST + min(int(count), _MOST)):
        sock = _listening_socket(descriptor)
        if sock is not None:
            sockets.append(sock)
    return tuple(sockets)


def _listening_socket(descriptor: int) -> socket.socket | None:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            _log.warning("what the service manager passed is no socket descriptor=%d", descriptor)
            return None
    except OSError as exc:
        _log.warning("a passed socket is not there descriptor=%d error=%s", descriptor, exc)
        return None
    sock = socket.socket(fileno=descriptor)
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.type != socket.SOCK_STREAM or not listens:
        _log.warning("a passed socket does not listen descriptor=%d", descriptor)
        sock.close()
        return None
    sock.set_inheritable(False)
    return sock


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6  # noqa: PLR2004 (descriptors' digits)
