"""Asks the inference daemon, over its unix socket: probe, activate, traffic; and tells it news."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from updater.errors import DaemonUnavailable
from updater.probation import Traffic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAX_ANSWER_BYTES = 1 << 20
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
    """The daemon answered, and the answer is no; the message says why."""


class DaemonLink:
    """One daemon. Blocks; every wait is bounded."""

    def __init__(self, socket_path: Path) -> None:
        """Store only."""
        self._socket_path = socket_path

    def probe(self, release: Path) -> Verdict:
        """Have a release in the store tried.

        Raises:
            DaemonUnavailable: the daemon does not answer; try again later.
            DaemonRefused: it does not probe this.
        """
        answer = self._ask("POST", "/api/updates/probe", {"path": str(release)}, wait_s=_LOAD_S)
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
        answer = self._ask("POST", "/api/updates/activate", {"model": model}, wait_s=_LOAD_S)
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

    def tell(self, report: Mapping[str, object]) -> None:
        """Say what the updater is at.

        Raises:
            DaemonUnavailable, DaemonRefused: as `probe`.
        """
        self._ask("PUT", "/api/updates", report, wait_s=_QUICK_S)

    def _ask(
        self, method: str, path: str, document: Mapping[str, object] | None, *, wait_s: float
    ) -> dict[str, Any]:
        connection = _UnixConnection(self._socket_path, wait_s)
        body = None if document is None else json.dumps(document).encode()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read(_MAX_ANSWER_BYTES))
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise DaemonUnavailable(
                f"the daemon does not answer at {self._socket_path}: {exc}"
            ) from exc
        finally:
            connection.close()
        if not isinstance(answer, dict):
            raise DaemonUnavailable("the daemon answered with something else than an object")
        if response.status >= _ERROR:
            raise DaemonRefused(str(answer.get("error", f"status {response.status}")))
        return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


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
