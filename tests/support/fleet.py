"""A real repository made by our publisher, the web server it lies on, a device, and an attacker.

The server is a static one. An attacker who has the network says what is answered instead
(`Server.answers`); one who has keys signs (`Fleet.forge`).
"""

from __future__ import annotations

import copy
import functools
import shutil
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tuf.api.metadata import TargetFile

from updater.desired import DESIRED_PATH
from updater.floors import SNAPSHOT, TARGETS, TIMESTAMP
from updater.publisher.assignments import ALL, assign
from updater.publisher.keys import Keyring
from updater.publisher.metadata import LIFE_S, sign
from updater.publisher.repository import Plan, Repository
from updater.source import Limits
from updater.target import Facts
from updater.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from securesystemslib.signer import CryptoSigner

    from updater.publisher.metadata import AnyMetadata

START = 1_760_000_000.0
"""When every story begins, wall clock seconds: October 2025."""
DAY_S = 86_400
PASSPHRASE = b"correct horse battery staple"
SHORT = Limits(silence_s=5, patience_s=0.5, least_rate_bytes_s=1e9)
"""For what must end by the deadline; nothing else comes near it."""


class OnePassphrase:
    """Of all keys."""

    def for_new(self, path: Path) -> bytes:  # noqa: ARG002 (a protocol)
        return PASSPHRASE

    def for_known(self, path: Path) -> Iterator[bytes]:  # noqa: ARG002 (a protocol)
        yield PASSPHRASE


class Clock:
    """A wall clock that moves when it is told to."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def facts(model: str = "digits", version: int = 1, **changes: Any) -> Facts:
    """Those of a bundle for any device; its counter is its version."""
    plain = {"name": model, "version": version, "release_counter": version, "runtime": "litert>=2"}
    return Facts(**{**plain, **changes})


class Fleet:
    """A publisher: the repository, all of its keys, and the clock that everybody goes by."""

    def __init__(self, folder: Path, plan: Plan | None = None, *, now: float = START) -> None:
        self.clock = Clock(now)
        self.folder = folder
        self.keyring = Keyring([folder / "keys"], OnePassphrase())
        self.repository = Repository(folder / "repo", self.keyring, clock=self.clock)
        self.repository.init(plan or Plan())
        self.anchor = (folder / "repo" / "metadata" / "1.root.json").read_bytes()

    def copy(self, name: str) -> Fleet:
        """The repository as it is now, and every key: a backup, or a thief's."""
        other = copy.copy(self)
        shutil.copytree(self.path, self.folder / name)
        other.repository = Repository(self.folder / name, self.keyring, clock=self.clock)
        return other

    @property
    def path(self) -> Path:
        """The repository's folder."""
        return self.repository.folder

    def add(self, model: str = "digits", version: int = 1, **changes: Any) -> None:
        """Sign a bundle; its bytes say what it is."""
        bundle = self.folder / f"{model}-{version}.bundle"
        bundle.write_bytes(f"{model} {version}".encode() * 100)
        self.repository.add([(bundle, facts(model, version, **changes))])

    def assign(self, model: str = "digits", version: int = 1, percent: float = ALL) -> None:
        """Assign a version to every device."""
        self.repository.assign(
            lambda desired: assign(desired, {model: version}, percent=percent, labels={})
        )

    def ship(self, model: str = "digits", version: int = 1, **changes: Any) -> None:
        """Sign and assign."""
        self.add(model, version, **changes)
        self.assign(model, version)

    def signers(self, role: str) -> list[CryptoSigner]:
        """A thief's copy of a role's keys, as they are now."""
        return self.keyring.signers(self.repository.roles()[role])

    def forge(
        self,
        role: str,
        change: Callable[[Any], object],
        *,
        signers: list[CryptoSigner] | None = None,
        life_s: float = LIFE_S,
    ) -> AnyMetadata:
        """Sign a changed next version of a role and put it in place, whatever it says.

        Args:
            signers: None: those who may.
        """
        metadata = self.repository.metadata
        signed = copy.deepcopy(metadata.newest(role).signed)
        signed.version += 1
        change(signed)
        keys = self.signers(role) if signers is None else signers
        forged = sign(signed, keys, now=self.clock(), life_s=life_s)
        metadata.path(role, signed.version).write_bytes(forged.to_bytes())
        return forged

    def forge_online(self) -> None:
        """List whatever is newest, as a thief of the online keys can."""
        metadata = self.repository.metadata
        roles = (TARGETS, *metadata.newest(TARGETS).signed.delegations.roles)
        listed = {f"{role}.json": metadata.describe(role) for role in roles}
        self.forge(SNAPSHOT, lambda signed: setattr(signed, "meta", listed))
        newest = metadata.describe(SNAPSHOT)
        self.forge(TIMESTAMP, lambda signed: setattr(signed, "snapshot_meta", newest), life_s=DAY_S)

    def forge_wish(self, raw: bytes) -> None:
        """Sign these bytes as the fleet's wish, and list them."""
        wish = TargetFile.from_data(DESIRED_PATH, raw, ["sha256"])
        (self.path / "targets" / wish.get_prefixed_paths()[0]).write_bytes(raw)
        self.forge_all("fleet", lambda signed: setattr(signed, "targets", {DESIRED_PATH: wish}))

    def forge_all(self, role: str, change: Callable[[Any], object]) -> None:
        """Forge a role below `targets`, with the online keys to list it."""
        self.forge(role, change)
        self.forge_online()


class Device:
    """Somebody who trusts the fleet's first root."""

    def __init__(
        self,
        folder: Path,
        fleet: Fleet,
        *,
        limits: Limits | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clock = Clock(fleet.clock.now)
        self.trust = Trust(
            self.folder,
            fleet.anchor,
            clock=self.clock,
            limits=limits or Limits(patience_s=20),
            scratch=scratch,
        )

    def lose_metadata(self) -> None:
        """The disk has lost python-tuf's cache."""
        shutil.rmtree(self.folder / "tuf")

    def empty_metadata(self) -> None:
        """Every file of the cache is there, with nothing in it."""
        for path in (self.folder / "tuf").rglob("*.json"):
            path.write_bytes(b"")

    def disk(self) -> dict[str, bytes | str]:
        """All that lies there, by path; of a link where it leads."""
        return {
            str(path.relative_to(self.folder)): str(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_symlink() or path.is_file()
        }

    def versions(self) -> dict[str, int]:
        """Of the metadata on disk; empty when there is none."""
        view = self.trust.current()
        return view.versions if view else {}


class Server:
    """A static web server on a free port, and whoever sits on the line to it.

    Attributes:
        requests: paths, in order.
        answers: path, or "" for all, to what is answered instead of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.answers: dict[str, Callable[[SimpleHTTPRequestHandler], None]] = {}
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[Server]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def answer(self, path: str, body: bytes, *, status: int = 200, **headers: str) -> None:
        """Answer with these bytes."""

        def write(handler: SimpleHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[path] = write


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, owner: Server, *arguments: Any) -> None:
        self._owner = owner
        super().__init__(*arguments, directory=str(owner.folder))

    def do_GET(self) -> None:
        self._owner.requests.append(self.path)
        answer = self._owner.answers.get(self.path) or self._owner.answers.get("")
        try:
            if answer is None:
                super().do_GET()
            else:
                answer(self)
        except ConnectionError:
            self.close_connection = True  # the device has hung up

    def log_message(self, *_: object) -> None:
        """Not needed."""
