"""Passphrases of a publisher's keys: from a file, the environment, or the person at the keyboard.

None is ever an argument, for arguments are seen by everybody on the machine; and none is printed.
"""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING

from updater.publisher.errors import PublisherError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

VARIABLE = "INFERD_KEY_PASSPHRASE"
_MAX_BYTES = 4096
_TRIES = 3


class Passphrases:
    """Those that were given, then those that are typed; what was typed is tried again first.

    Attributes never leave this object but to open a key.
    """

    def __init__(self, file: Path | None, environment: Mapping[str, str]) -> None:
        """Read the file.

        Raises:
            PublisherError: it cannot be read, or is empty.
        """
        self._given = [_read(file)] if file is not None else []
        if not self._given and environment.get(VARIABLE):
            self._given = [environment[VARIABLE].encode()]
        self._typed: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return "Passphrases()"

    def for_new(self, path: Path) -> bytes:
        """One for each kind of key, asked for twice.

        Raises:
            PublisherError: there is nobody to ask, or the two differ.
        """
        if self._given:
            return self._given[0]
        kind = path.parent.name
        if kind not in self._typed:
            first = _ask(f"new passphrase for the {kind} keys: ")
            if first != _ask("the same again: "):
                raise PublisherError("the two passphrases differ")
            self._typed[kind] = first
        return self._typed[kind]

    def for_known(self, path: Path) -> Iterator[bytes]:
        """Those that may open a key.

        Raises:
            PublisherError: none of them does, and there is nobody to ask.
        """
        yield from self._given
        yield from tuple(self._typed.values())
        for number in range(_TRIES):
            typed = _ask(f"passphrase of {path}: ")
            self._typed[f"{path} {number}"] = typed
            yield typed


def _ask(question: str) -> bytes:
    if not sys.stdin.isatty():
        message = f"no passphrase that fits: expected --passphrase-file, {VARIABLE} or a terminal"
        raise PublisherError(message)
    return getpass.getpass(question).encode()


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            line = stream.readline(_MAX_BYTES).rstrip(b"\r\n")
    except OSError as exc:
        raise PublisherError(f"{file}: {exc.strerror}") from exc
    if not line:
        raise PublisherError(f"{file}: expected a passphrase in its first line")
    return line
