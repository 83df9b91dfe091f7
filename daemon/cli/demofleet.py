"""The demo's publisher: a repository with keys of its own, and the versions that it brings out.

All of them are made from the demo model when they are published:
2. says "running shoe" where version 1 says "sneaker", and is good;
3. is version 2 with another network (examples/break_demo_model.py): it knows every health sample,
   and makes no number of a dress;
4. is version 2 with its labels one line too low, as after a slip in a spreadsheet.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.cli.bundle import sha256_of
from daemon.cli.children import start, stop
from daemon.cli.modeltoml import edit
from daemon.cli.outcome import CommandError
from updater.bundle import build_bundle, folder_files
from updater.errors import UpdateError
from updater.manifest import Manifest, Probation
from updater.publisher.assignments import ALL, assign
from updater.publisher.keys import Keyring
from updater.publisher.repository import Plan, Repository
from updater.target import facts_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from updater.bundle import Source

MODEL = "fashion"
GOOD, POISONED, MIXED_UP = 2, 3, 4
OLD_WORD, NEW_WORD = "sneaker", "running shoe"
_BROKEN_FOLDER = "fashion-broken"
_LABELS, _TABLES, _FILE = "labels.txt", "model.toml", "model.tflite"
_PROBATION = Probation(
    min_requests=100,
    min_s=2.0,
    max_s=30.0,
    # So small a model takes longer to wake up than to answer: its latency is mostly noise.
    max_latency_ratio=1000.0,
)
_HOST = "127.0.0.1"
_STARTED = re.compile(rb"Serving HTTP on \S+ port (\d+)")


@dataclass(frozen=True, slots=True)
class Shipment:
    """A version that was published.

    Attributes:
        length: bytes of its bundle.
    """

    version: int
    length: int
    sha256: str


class Fleet:
    """A publisher with all of its keys, as a person with `inferctl repo` is one.

    Args:
        folder: for the repository, the keys and the bundles.
        model_folder: of version 1.
    """

    def __init__(self, folder: Path, model_folder: Path) -> None:
        self._folder = folder
        self._model_folder = model_folder
        keyring = Keyring([folder / "keys"], _OnePassphrase())
        self._repository = Repository(folder / "repo", keyring, clock=time.time)

    @property
    def path(self) -> Path:
        """The folder for a web server."""
        return self._repository.folder

    def begin(self) -> bytes:
        """Make the repository; gives the trust anchor for devices.

        Raises:
            CommandError: the disk refused.
        """
        with _refusing():
            self._repository.init(Plan())
            return self._repository.metadata.path("root", 1).read_bytes()

    def ship(self, version: int) -> Shipment:
        """Make a version's bundle, sign it, and assign it to every device.

        Raises:
            CommandError: the disk refused.
        """
        bundle = self._folder / f"{MODEL}-{version}.bundle"
        draft = Manifest(name=MODEL, version=version, release_counter=version, probation=_PROBATION)
        with _refusing():
            manifest = build_bundle(files_of(version, self._model_folder), bundle, draft)
            facts = facts_of(manifest)
            self._repository.add([(bundle, facts)])
            self._repository.assign(
                lambda desired: assign(desired, {MODEL: version}, percent=ALL, labels={})
            )
        return Shipment(version, bundle.stat().st_size, sha256_of(bundle))


def labels_of(version: int, model_folder: Path) -> list[str]:
    """What a version calls the ten classes; of the versions from 2 on, what it should."""
    labels = (model_folder / _LABELS).read_text().splitlines()
    return labels if version < GOOD else [_renamed(label) for label in labels]


def files_of(version: int, model_folder: Path) -> dict[str, Source]:
    """The files of a version from 2 on."""
    labels = labels_of(version, model_folder)
    if version == MIXED_UP:
        labels = [*labels[-1:], *labels[:-1]]
    tables = (model_folder / _TABLES).read_text()
    tables = edit(tables, {"model": {"version": version}})
    tables = tables.replace(f'label = "{OLD_WORD}"', f'label = "{NEW_WORD}"')
    files: dict[str, Source] = {
        **folder_files(model_folder),
        _LABELS: "".join(f"{label}\n" for label in labels).encode(),
        _TABLES: tables.encode(),
    }
    if version == POISONED:
        files[_FILE] = model_folder.parent / _BROKEN_FOLDER / _FILE
    return files


@contextmanager
def web_server(folder: Path, log: Path) -> Iterator[str]:
    """Serve a folder with Python's own web server on this machine; gives its URL.

    Raises:
        CommandError: it does not start.
    """
    command = [sys.executable, "-I", "-u", "-m", "http.server", "--bind", _HOST]
    with log.open("wb") as errors:
        process = start(
            [*command, "--directory", str(folder), "0"], output=subprocess.PIPE, errors=errors
        )
    with process:
        try:
            line = process.stdout.readline() if process.stdout else b""
            started = _STARTED.search(line)
            if started is None:
                said = log.read_text(errors="replace").strip()
                raise CommandError(f"the demo's web server does not start: {said}")
            yield f"http://{_HOST}:{int(started[1])}"
        finally:
            stop(process)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (UpdateError, OSError) as exc:
        raise CommandError(f"the demo's publisher cannot go on: {exc}") from exc


class _OnePassphrase:
    """Of all keys. They live for a minute in a folder that nobody else may enter."""

    def for_new(self, path: Path) -> bytes:  # noqa: ARG002 (a protocol)
        return b"a demo has no secrets"

    def for_known(self, path: Path) -> Iterator[bytes]:
        yield self.for_new(path)


def _renamed(label: str) -> str:
    return NEW_WORD if label == OLD_WORD else label
