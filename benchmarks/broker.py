"""Mosquitto on a free port of loopback, for as long as a block runs."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.processes import Command, Unavailable, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# sbin is not on every user's PATH, and that is where Debian puts it.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


@contextmanager
def running_broker(folder: Path) -> Iterator[int]:
    """Gives its port.

    Raises:
        Unavailable: it is not installed or did not start.
    """
    program = shutil.which("mosquitto", path=_PATH)
    if program is None:
        raise Unavailable("mosquitto is not installed")
    port = free_port()
    config = folder / "mosquitto.conf"
    lines = [
        f"listener {port} 127.0.0.1",
        "allow_anonymous true",
        f"user {getpass.getuser()}",
        "log_dest none",
    ]
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = Command((program, "-c", str(config)))
    with running(command, folder / "mosquitto.log", lambda: _listens(port)):
        yield port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
