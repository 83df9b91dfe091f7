"""A device as its operator knows it: the daemon, the updater, the fleet's web server, all real.

The two services are processes of their own; the fleet is shared with the test, which publishes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.box import MODEL, Publisher
from support.daemon import KeptDaemon, free_port
from support.fleet import Fleet, Server
from support.inferctl import ENVIRONMENT, inferctl

from daemon.cli.outcome import Unreachable
from daemon.cli.updaterclient import Updater
from updater.manifest import Probation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUICK = Probation(min_requests=0, min_s=0.0, max_s=60.0)
"""Kept at once."""
ENDLESS = Probation(min_requests=1_000_000, min_s=3600.0, max_s=7200.0)
_END_S = 30
_WAIT_S = 60
_LOOK_EVERY_S = 0.02


class ServiceBox:
    """The device, its fleet, and a person at its command line.

    Attributes:
        server: of the fleet's files; a test may have it answer something else.
        updater: the control socket.
    """

    def __init__(self, root: Path, fleet: Fleet, server: Server, daemon: KeptDaemon) -> None:
        self.root, self.fleet, self.server, self.daemon = root, fleet, server, daemon
        self.publisher = Publisher(fleet, fleet.folder / "work")
        self.run = root / "run" / "inferd"
        self.updater = Updater(self.run / "updater.sock")
        self.config = root / "updater.toml"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As `--url` takes it."""
        return f"unix:{self.run / 'inferd.sock'}"

    @property
    def log(self) -> str:
        """The updater's."""
        return (self.root / "updater.log").read_text()

    def configure(self, source: str, *, anchor: bytes | None = None) -> None:
        """Write the updater's configuration and the trust anchor."""
        (self.root / "etc/inferd").mkdir(parents=True, exist_ok=True)
        (self.root / "etc/inferd/root.json").write_bytes(anchor or self.fleet.anchor)
        self.config.write_text(
            f'[device]\nid = "box-1"\n[paths]\nroot = "{self.root}"\n'
            f'[updates]\nsource = "{source}"\npoll_interval_s = 3600\n'
        )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The updater's, of the present life or the last one."""
        assert self._process is not None, "it was never started"
        return self._process

    def start(self, **environment: str) -> None:
        """Start the updater and wait until it answers."""
        self.spawn(**environment)
        wait_until(self.answers)

    def spawn(self, **environment: str) -> None:
        """Start the updater and wait for nothing."""
        with (self.root / "updater.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daemon.cli.updaterd", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env={**ENVIRONMENT, **environment},
            )

    def stop(self) -> None:
        """SIGTERM, which must end it in good order."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(_END_S) == 0, self.log

    def kill(self) -> None:
        """SIGKILL; none alive is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_END_S)

    def ctl(self, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `inferctl --url … words`."""
        return inferctl("--url", self.url, *words, **environment)

    def model(self) -> dict[str, Any]:
        """What the updater says of the model."""
        models = self.updater.status()["models"]
        return next(each for each in models if each["model"] == MODEL)

    def answers(self) -> bool:
        """Whether the updater answers at its socket."""
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            self.updater.status()
        except Unreachable:
            return False
        return True


def wait_until(holds: Callable[[], object], timeout_s: float = _WAIT_S) -> None:
    """Return when `holds()` is true; there is no event to wait for in another process."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"did not hold within {timeout_s} s"
        time.sleep(_LOOK_EVERY_S)


@contextmanager
def running_services(folder: Path, **tables: Any) -> Iterator[ServiceBox]:
    """Both services and the web server, until the block ends.

    Args:
        folder: the fleet's.
        tables: of the daemon's configuration.
    """
    fleet = Fleet(folder / "fleet", now=time.time())
    # A unix socket's path may have 107 characters, which a test's own folder exceeds.
    root = Path(tempfile.mkdtemp(prefix="inferd-"))
    (root / "var/lib/inferd/models").mkdir(parents=True)
    tables = {"models": {"folders": ["var/lib/inferd/models"]}, **tables}
    daemon = KeptDaemon(root, port=free_port(), **tables)
    try:
        with Server(fleet.path).running() as server, daemon:
            box = ServiceBox(root, fleet, server, daemon)
            box.configure(server.url)
            box.start()
            try:
                yield box
            finally:
                box.kill()
    finally:
        shutil.rmtree(root)
