"""Starts an MQTT broker of our own, for the demo: mosquitto where it is installed, else iotcore.

It listens on this machine only and lets everybody in: no broker to ship. It ends with the process
that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib
import shutil
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.cli.children import start, stop
from daemon.cli.outcome import CommandError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

HOST = "127.0.0.1"
_SBIN = "/usr/sbin:/usr/local/sbin"
"""Not on every user's PATH, and that is where Debian puts the broker."""
_START_TIMEOUT_S = 10.0
_POLL_S = 0.02
_ATTEMPTS = 3
"""Somebody else can take a free port before the broker does."""

_MOSQUITTO_CONFIG = """\
listener {port} {host}
allow_anonymous true
persistence false
set_tcp_nodelay true
user {user}
log_dest stderr
log_type error
log_type warning
"""
_IOTCORE_CONFIG = """\
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "demo"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 16777216
max_inflight_count = 100
"""


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that takes connections.

    Attributes:
        program: what it is, for people.
    """

    program: str
    port: int

    @property
    def url(self) -> str:
        """Its address, as `[mqtt] url` takes it."""
        return f"mqtt://{HOST}:{self.port}"


@contextmanager
def run_broker(folder: Path) -> Iterator[Broker]:
    """Run a broker whose files lie in `folder`; it is gone when the context ends.

    Raises:
        CommandError: there is no broker, or it does not start.
    """
    mosquitto = find_mosquitto()
    run = run_iotcore(folder) if mosquitto is None else run_mosquitto(mosquitto, folder)
    with run as broker:
        yield broker


def find_mosquitto() -> str | None:
    """The path of mosquitto, or None."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=_SBIN)


@contextmanager
def run_mosquitto(program: str, folder: Path) -> Iterator[Broker]:
    """Run the mosquitto at this path; see `run_broker`."""
    process, port = _start_mosquitto(program, folder)
    try:
        yield Broker("mosquitto", port)
    finally:
        stop(process)


def _start_mosquitto(program: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    config, log = folder / "mosquitto.conf", folder / "mosquitto.log"
    for _ in range(_ATTEMPTS):
        port = _free_port()
        config.write_text(_MOSQUITTO_CONFIG.format(port=port, host=HOST, user=getpass.getuser()))
        with log.open("wb") as stderr:
            process = start([program, "-c", str(config)], output=stderr, errors=stderr)
        if _wait_until_listening(process, port):
            return process, port
        stop(process)
    raise CommandError(f"mosquitto does not start: {log.read_text(errors='replace').strip()}")


@contextmanager
def run_iotcore(folder: Path) -> Iterator[Broker]:
    """Run rumqttd, which comes in a wheel; see `run_broker`."""
    try:
        # An extra of its own (`inferd[demo]`): only the demo without mosquitto needs it.
        iotcore = importlib.import_module("iotcore")
    except ImportError as error:
        hint = "install mosquitto, or the extra inferd[demo]"
        raise CommandError(f"no MQTT broker for the demo: {hint}") from error
    port = _free_port()
    config = folder / "iotcore.toml"
    config.write_text(_IOTCORE_CONFIG.format(port=port, host=HOST))
    try:
        with iotcore.Broker(config_path=str(config)):
            yield Broker("iotcore", port)
    except RuntimeError as error:
        raise CommandError(f"the embedded broker does not start: {error}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> bool:
    """True once it takes connections; False when it ended or took too long."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
            return True
        time.sleep(_POLL_S)
    return False
