"""Talks to the updater of this box, over its unix socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from daemon.cli.client import DEFAULT_SOCKET, Address, Client, parse_address
from daemon.cli.outcome import UsageError

if TYPE_CHECKING:
    import argparse

SOCKET_NAME = "updater.sock"
_JSON = "application/json"
_ADVICE = "is the updater running? See: systemctl status inferd-updater"
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


def socket_of(url: str, given: Path | None) -> Path:
    """The updater's socket: the one that was named, else the one beside the daemon's.

    Raises:
        UsageError: the daemon's address is of another machine.
    """
    if given is not None:
        return given
    address = parse_address(url)
    if address.socket_path is not None:
        return Path(address.socket_path).with_name(SOCKET_NAME)
    if address.host in _THIS_MACHINE:
        return DEFAULT_SOCKET.with_name(SOCKET_NAME)
    raise UsageError(
        f"argument --url: '{url}': updates are looked after on the box itself; expected "
        "unix:/PATH/TO/inferd.sock, or --updater PATH"
    )


def updater_of(arguments: argparse.Namespace) -> Updater:
    """The updater that a command line speaks of.

    Raises:
        UsageError: it cannot be told from it.
    """
    return Updater(socket_of(arguments.url, arguments.updater))


class Updater:
    """One updater. What it answers is JSON as docs/update.md has it.

    Every method raises `Unreachable` where it does not run, and `Refused` where it says no.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        address = Address(url=f"unix:{path}", socket_path=str(path))
        self._client = Client(address, advice=_ADVICE)

    def status(self) -> Any:  # noqa: ANN401 (JSON)
        """Where every model's update stands."""
        return self._client.get("/status")

    def refresh(self) -> None:
        """Have it look for updates at once."""
        self._post("/refresh", {"origin": "operator"})

    def roll_back(self, model: str) -> Any:  # noqa: ANN401 (JSON)
        """Undo a model's last update."""
        return self._post("/rollback", {"model": model})

    def history(self, *, limit: int, model: str | None = None) -> Any:  # noqa: ANN401 (JSON)
        """The last events, oldest first, and what the whole history is like."""
        asked = {"limit": str(limit), **({"model": model} if model else {})}
        return self._client.get(f"/history?{urlencode(asked)}")

    def quarantine(self) -> Any:  # noqa: ANN401 (JSON)
        """The bundles that have failed here."""
        return self._client.get("/quarantine")

    def clear(self, digest: str | None) -> Any:  # noqa: ANN401 (JSON)
        """Let one bundle, or all, be tried again."""
        return self._post("/quarantine/clear", {"digest": digest})

    def import_stick(self, folder: Path) -> Any:  # noqa: ANN401 (JSON)
        """Take what a folder says."""
        return self._post("/import", {"path": str(folder)})

    def _post(self, path: str, document: object) -> Any:  # noqa: ANN401 (JSON)
        return self._client.post(path, json.dumps(document).encode(), _JSON)
