"""Asks the inference daemon, over its unix socket: probe, activate, traffic; and tells it news."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from updater.errors import DaemonUnavailable
from updater.probation import Traffic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from updater.history import Line

_MAX_ANSWER_BYTES = 1 << 20
_MAX_EVENTS_BYTES = 512 << 10
"""Handed over at a time: less than the daemon takes, however it is configured."""
_QUICK_S = 10.0
"""For what the daemon answers from memory."""
_LOAD_S = 300.0
"""For what loads a model: longer than any load or probe that ends by itself."""
_NOT_FOUND = 404
_ERROR = 400


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe found.

    Attributes:
        reasons: what speaks against the release; () when it would serve well.
    """

    reasons: tuple[str, ...]
    model: str
    version: int


class DaemonRefused(Exception):
    """The daemon answered, and the answer is no; the message says why.

    Attributes:
        status: of its answer.
        passes: it is expected to answer otherwise without anybody's doing.
    """

    def __init__(self, message: str, *, status: int, passes: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.passes = passes


class DaemonLink:
    """One daemon. Blocks; every wait is bounded."""

    def __init__(self, socket_path: Path) -> None:
        """Store only."""
        self._socket_path = socket_path
        self._lock = threading.Lock()
        self._asking: set[_UnixConnection] = set()
        self._is_cut = False

    def cut(self) -> None:
        """From any thread: end what is asked now and later, as if nobody answered."""
        with self._lock:
            self._is_cut = True
            for connection in self._asking:
                connection.shut_down()

    def probe(self, release: Path) -> Verdict:
        """Have a release in the store tried.

        Raises:
            DaemonUnavailable: the daemon does not answer, or could not try it now: later it may.
            DaemonRefused: it does not probe this.
        """
        answer = self._wish("/api/updates/probe", {"path": str(release)}, wait_s=_LOAD_S)
        try:
            reasons = tuple(str(reason) for reason in answer["reasons"])
            return Verdict(reasons, str(answer["model"]), int(answer["version"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise DaemonUnavailable(f"the daemon answered a probe with nonsense: {exc}") from exc

    def activate(self, model: str) -> Traffic:
        """Have it serve what the model's link names now; returns when that is settled.

        Returns:
            The record of what serves now: it may be the release of before.

        Raises:
            DaemonUnavailable, DaemonRefused: as `probe`; refused when nothing serves.
        """
        answer = self._wish("/api/updates/activate", {"model": model}, wait_s=_LOAD_S)
        return _traffic(answer)

    def traffic(self, model: str) -> Traffic | None:
        """How what serves now has done; None when nothing of that name serves.

        Raises:
            DaemonUnavailable: as `probe`.
        """
        try:
            path = f"/api/models/{quote(model, safe='')}/traffic"
            return _traffic(self._ask("GET", path, None, wait_s=_QUICK_S))
        except DaemonRefused:
            return None

    def kinds(self) -> frozenset[str]:
        """The kinds of device that models can run on now: "cpu", "edgetpu".

        Raises:
            DaemonUnavailable, DaemonRefused: as `probe`.
        """
        answer = self._ask("GET", "/api/devices", None, wait_s=_QUICK_S)
        try:
            return frozenset(str(device["kind"]) for device in answer["devices"] if device["up"])
        except (KeyError, TypeError) as exc:
            raise DaemonUnavailable(f"the daemon's list of devices is nonsense: {exc}") from exc

    def tell(self, report: Mapping[str, object]) -> None:
        """Say what the updater is at.

        Raises:
            DaemonUnavailable, DaemonRefused: as `probe`.
        """
        self._ask("PUT", "/api/updates", report, wait_s=_QUICK_S)

    def publish(self, lines: Sequence[Line]) -> int:
        """Hand over lines of the history for the fleet to hear, oldest first, 1 to 100 of them.

        Returns:
            The number of the last one that is safe with the daemon: it leaves by MQTT even if power
            is lost now. The others are to be handed over again.

        Raises:
            DaemonUnavailable: as `probe`; or MQTT is off there, or has no place: later it may.
            DaemonRefused: it cannot read them.
        """
        events: list[dict[str, object]] = []
        size = 0
        for line in lines:
            event = {"sequence": line.sequence, "time": line.time, "event": dict(line.event)}
            size += len(json.dumps(event))
            if events and size > _MAX_EVENTS_BYTES:
                break
            events.append(event)
        answer = self._wish("/api/updates/events", {"events": events}, wait_s=_QUICK_S)
        taken = answer.get("taken")
        if type(taken) is not int or taken > lines[len(events) - 1].sequence:
            raise DaemonUnavailable("the daemon did not say which events it has taken")
        return taken

    def _wish(self, path: str, document: Mapping[str, object], *, wait_s: float) -> dict[str, Any]:
        """POST; a refusal that passes is as good as no answer."""
        try:
            return self._ask("POST", path, document, wait_s=wait_s)
        except DaemonRefused as refused:
            if refused.passes:
                raise DaemonUnavailable(str(refused)) from refused
            raise

    def _ask(
        self, method: str, path: str, document: Mapping[str, object] | None, *, wait_s: float
    ) -> dict[str, Any]:
        connection = _UnixConnection(self._socket_path, wait_s)
        body = None if document is None else json.dumps(document).encode()
        try:
            connection.connect()
            with self._lock:
                self._asking.add(connection)
                if self._is_cut:
                    connection.shut_down()
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read(_MAX_ANSWER_BYTES))
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as exc:
            raise DaemonUnavailable(
                f"the daemon does not answer at {self._socket_path}: {exc}"
            ) from exc
        finally:
            with self._lock:
                self._asking.discard(connection)
            connection.close()
        if not isinstance(answer, dict):
            raise DaemonUnavailable("the daemon answered with something else than an object")
        if response.status >= _ERROR:
            raise DaemonRefused(
                str(answer.get("error", f"status {response.status}")),
                status=response.status,
                passes=response.getheader("Retry-After") is not None,
            )
        return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = self._own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def shut_down(self) -> None:
        """Once it is connected; not by `sock`, which is gone as soon as an answer begins."""
        with contextlib.suppress(OSError):  # the other side has ended it already
            self._own.shutdown(socket.SHUT_RDWR)


def _traffic(answer: Mapping[str, Any]) -> Traffic:
    try:
        return Traffic(
            release=str(answer["release"]),
            answered=int(answer["answered"]),
            faults=int(answer["faults"]),
            not_finite=int(answer["not_finite"]),
            worker_deaths=int(answer["worker_deaths"]),
            p95_ms=float(answer["latency_ms"]["p95"]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise DaemonUnavailable(f"the daemon's record of a model is nonsense: {exc}") from exc
