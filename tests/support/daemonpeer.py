"""A small peer in the daemon's place, where a test takes more steps than processes could follow.

A real HTTP server on a real unix socket. It serves what a model's link names when it starts and
when it is told to activate, keeps a record of the traffic it is given, dies of a release that kills
it, and leaves the mark (`daemon.json`) that the daemon leaves. No model runs: what is wrong with a
release is told by its digest.

    with DaemonPeer(root / "run/inferd", root / "var/lib/inferd/models") as daemon:
        daemon.faults[digest] = Fault.NOT_FINITE
        daemon.ask("digits", 40)
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from dataclasses import asdict, dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from updater.manifest import MANIFEST_NAME, parse_manifest

SOCKET, MARK = "inferd.sock", "daemon.json"
_WAIT_S = 20
_USUAL_MS, _SLOW_MS = 2.0, 10.0


class Fault(Enum):
    """What is wrong with a release."""

    REFUSED = "refused"  # the probe finds it out
    NOT_TAKEN_UP = "not taken up"  # the probe does not; it does not load when it counts
    NOT_FINITE = "not finite"  # its real answers hold NaN
    WORKER_DIES = "worker dies"  # of its real requests
    SLOW = "slow"
    KILLS_AT_PROBE = "kills at probe"
    KILLS_AT_LOAD = "kills at load"
    KILLS_ON_TRAFFIC = "kills on traffic"


class Died(Exception):
    """The peer is dead; nobody gets an answer."""


@dataclass
class Served:
    """What answers for one model, and its record since it was loaded."""

    model: str
    version: int
    release: str
    answered: int = 0
    faults: int = 0
    not_finite: int = 0
    worker_deaths: int = 0
    p95_ms: float = 0.0

    def describe(self) -> dict[str, Any]:
        """As the daemon answers."""
        document = asdict(self)
        p95_ms = document.pop("p95_ms")
        return {**document, "latency_ms": {"p50": p95_ms, "p95": p95_ms}}


class DaemonPeer:
    """One peer in one life after the other.

    Attributes:
        faults: by digest; a release without one is good.
        served: by model.
        refuses: answers every question with an error, as a daemon in trouble does.
    """

    def __init__(self, folder: Path, links: Path) -> None:
        """Store only.

        Args:
            folder: of its socket; it is made.
            links: with `MODEL/current`.
        """
        self.folder, self.links = folder, links
        self.faults: dict[str, Fault] = {}
        self.served: dict[str, Served] = {}
        self.refuses = False
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def socket_path(self) -> Path:
        """Where it listens; the socket's path may have 107 characters."""
        return self.folder / SOCKET

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        return self._listener is not None

    def start(self) -> bool:
        """Begin a life; False when it dies of what it loads."""
        assert not self.is_alive, "one at a time"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mark_start()
        try:
            for link in self._links():
                self._load(link.parent.name)
        except Died:
            self.served = {}
            return False
        self.socket_path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.socket_path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._thread.start()
        return True

    def kill(self) -> None:
        """End at once, as by SIGKILL; the socket's file and the mark stay. None alive is fine."""
        listener, thread = self._listener, self._thread
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_WAIT_S)
        self._end()

    def stop(self) -> None:
        """End in good order."""
        self.kill()
        mark = json.loads((self.folder / MARK).read_bytes())
        self._mark(**{**mark, "clean": True})

    def look(self) -> None:
        """Serve what the links name now, as the daemon does every few seconds."""
        with self._lock:
            try:
                for model in {*self.served, *(link.parent.name for link in self._links())}:
                    self._load(model)
            except Died:
                is_dead = True
            else:
                is_dead = False
        if is_dead:
            self.kill()

    def ask(self, model: str, times: int = 1) -> str | None:
        """Have real requests answered; the digest of what answered them, None when nothing does."""
        with self._lock:
            served = self.served.get(model)
            if served is None:
                return None
            fault = self.faults.get(served.release)
            served.answered += times
            served.not_finite += times if fault is Fault.NOT_FINITE else 0
            served.worker_deaths += 1 if fault is Fault.WORKER_DIES else 0
            served.p95_ms = _SLOW_MS if fault is Fault.SLOW else _USUAL_MS
        if fault is Fault.KILLS_ON_TRAFFIC:
            self.kill()
            return None
        return served.release

    def answer(self, method: str, path: str, document: dict[str, Any]) -> tuple[int, object]:
        """What it says; raises `Died` when the question is the end of it."""
        with self._lock:
            if self.refuses:
                return 503, {"error": "not now"}
            match method, path.strip("/").split("/"):
                case "POST", ["api", "updates", "probe"]:
                    return 200, self._probe(Path(document["path"]))
                case "POST", ["api", "updates", "activate"]:
                    self._load(document["model"])
                    return self._traffic(document["model"])
                case "GET", ["api", "models", model, "traffic"]:
                    return self._traffic(unquote(model))
                case "PUT", ["api", "updates"]:
                    return 200, document
                case _:
                    return 404, {"error": "no such path"}

    def _links(self) -> list[Path]:
        return sorted(self.links.glob("*/current"))

    def _probe(self, release: Path) -> dict[str, Any]:
        manifest = parse_manifest((release / MANIFEST_NAME).read_bytes())
        fault = self.faults.get(release.name)
        if fault is Fault.KILLS_AT_PROBE:
            raise Died
        reasons = ["does not load"] if fault is Fault.REFUSED else []
        return {"reasons": reasons, "model": manifest.name, "version": manifest.version}

    def _traffic(self, model: str) -> tuple[int, object]:
        served = self.served.get(model)
        if served is None:
            return 404, {"error": f"there is no model {model}"}
        return 200, served.describe()

    def _load(self, model: str) -> None:
        """Serve what the link names; what does not load leaves what served before."""
        release = (self.links / model / "current").resolve()
        if not release.is_dir():
            self.served.pop(model, None)
            return
        fault = self.faults.get(release.name)
        if fault is Fault.KILLS_AT_LOAD:
            raise Died
        if fault in {Fault.NOT_TAKEN_UP, Fault.REFUSED}:
            return
        before = self.served.get(model)
        if before is None or before.release != release.name:
            manifest = parse_manifest((release / MANIFEST_NAME).read_bytes())
            self.served[model] = Served(manifest.name, manifest.version, release.name)

    def _serve(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(ConnectionError):
                    connection.settimeout(_WAIT_S)
                    try:
                        _Handler(connection, "", self)
                    except Died:
                        self._end()
                        return

    def _end(self) -> None:
        self._listener = self._thread = None
        self.served = {}

    def _mark_start(self) -> None:
        try:
            before = json.loads((self.folder / MARK).read_bytes())
        except FileNotFoundError:
            before = {"deaths": 0, "clean": True}
        deaths = before["deaths"] + (0 if before["clean"] else 1)
        self._mark(instance=uuid.uuid4().hex, pid=os.getpid(), deaths=deaths, clean=False)

    def _mark(self, **mark: object) -> None:
        new = self.folder / f".{MARK}.new"
        new.write_text(json.dumps(mark), encoding="utf-8")
        new.replace(self.folder / MARK)


class _Handler(BaseHTTPRequestHandler):
    """One request, then the connection ends."""

    server: DaemonPeer  # type: ignore[assignment]

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            return  # whoever asks has left
        document = json.loads(body) if body else {}
        status, answer = self.server.answer(self.command, self.path, document)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST  # noqa: N815 (names that the server looks for)

    def log_message(self, *_: object) -> None:
        """Not needed."""
