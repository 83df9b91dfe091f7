"""Runs a real mosquitto for a test: on a free port, with a restart on the same one."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_TIMEOUT_S = 20
BROKER_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


class Broker:
    """A mosquitto process. `lines` is its log, which `wait_for_log` waits on."""

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        program = shutil.which("mosquitto", path=BROKER_PATH)
        assert program is not None, "tests that need a broker carry the marker `broker`"
        self.port = _free_port()
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        config = folder / "mosquitto.conf"
        data = folder / "mosquitto"
        data.mkdir(exist_ok=True)
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            f"user {getpass.getuser()}",
            "persistence true",
            f"persistence_location {data}/",
            "log_dest stderr",
            "log_type all",
            *options,
        ]
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._command = [program, "-c", str(config)]

    @property
    def url(self) -> str:
        """As the configuration's `mqtt.url`."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return when it listens."""
        mark = len(self.lines)
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        self.wait_for_log(" running", after=mark)

    def stop(self) -> None:
        """Stop it in good order: it saves what it persists."""
        assert self._process is not None
        assert self._reader is not None
        for _ in range(START_TIMEOUT_S):
            # It forgets a signal that comes right after it said that it runs (2.0.11).
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
                break
        self._process.wait(0)
        self._reader.join(START_TIMEOUT_S)

    def restart(self) -> None:
        """Stop it and start it on the same port."""
        self.stop()
        self.start()

    def wait_for_log(self, text: str, *, after: int = 0) -> str:
        """The first line with this text, waiting for it."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with self._changed:
            while True:
                for line in self.lines[after:]:
                    if text in line:
                        return line
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"mosquitto never logged {text!r}: {self.lines[-20:]}"
                self._changed.wait(left_s)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as stream:
            for line in stream:
                with self._changed:
                    self.lines.append(line)
                    self._changed.notify_all()


@contextmanager
def running_broker(folder: Path, *options: str) -> Iterator[Broker]:
    """A broker with these further lines of configuration, until the block ends."""
    broker = Broker(folder, options)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
