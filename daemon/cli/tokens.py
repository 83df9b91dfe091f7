"""`token`: makes, lists and revokes the tokens of a file; a daemon that reads it takes them up."""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson
import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT

from daemon.cli.outcome import CommandError, ExitCode
from daemon.cli.text import table
from daemon.errors import ConfigError
from daemon.tokens import hash_token, make_token, parse_tokens

if TYPE_CHECKING:
    import argparse

    from tomlkit import TOMLDocument

    from daemon.tokens import TokenEntry

_MODE = 0o600
_OWNER = "inferd"


def create(arguments: argparse.Namespace) -> ExitCode:
    """Add a token; it goes to standard output, and nowhere else ever."""
    document, entries = _read(arguments.file)
    if any(entry.name == arguments.name for entry in entries):
        raise CommandError(f"there is a token '{arguments.name}' already; revoke it first")
    token = make_token()
    added = tomlkit.table()
    added["name"] = arguments.name
    added["sha256"] = hash_token(token).hex()
    added["scopes"] = list(arguments.scopes)
    if arguments.models is not None:
        added["models"] = list(arguments.models)
    _entries_of(document).append(added)
    _write(arguments.file, document)
    if not entries:
        print(f'set http.tokens_file = "{arguments.file}" to have it asked for', file=sys.stderr)
    print(token)
    return ExitCode.DONE


def show(arguments: argparse.Namespace) -> ExitCode:
    """List what is in the file."""
    _, entries = _read(arguments.file)
    if arguments.json:
        print(orjson.dumps({"tokens": [_describe(entry) for entry in entries]}).decode())
        return ExitCode.DONE
    rows = [("NAME", "SCOPES", "MODELS")]
    rows += [
        (entry.name, ",".join(entry.scopes), ",".join(entry.models or ("all",)))
        for entry in entries
    ]
    print(table(rows) if entries else f"no tokens in {arguments.file}")
    return ExitCode.DONE


def revoke(arguments: argparse.Namespace) -> ExitCode:
    """Take one out."""
    document, entries = _read(arguments.file)
    names = [entry.name for entry in entries]
    if arguments.name not in names:
        known = f"; there are: {', '.join(names)}" if names else ""
        raise CommandError(f"there is no token '{arguments.name}' in {arguments.file}{known}")
    del _entries_of(document)[names.index(arguments.name)]
    if len(names) == 1:
        del document["tokens"]  # an array of tables that is empty cannot be written
    _write(arguments.file, document)
    print(f"'{arguments.name}' is revoked; a running daemon refuses it within seconds")
    return ExitCode.DONE


def _describe(entry: TokenEntry) -> dict[str, Any]:
    models = None if entry.models is None else list(entry.models)
    return {"name": entry.name, "scopes": list(entry.scopes), "models": models}


def _entries_of(document: TOMLDocument) -> AoT:
    """The tables `[[tokens]]`, also where there are none or they were written in one line."""
    tables = document.get("tokens")
    if not isinstance(tables, AoT):
        document["tokens"] = tomlkit.aot()
        for entry in tables or ():
            document["tokens"].append(tomlkit.item(entry.unwrap()))
    return cast("AoT", document["tokens"])


def _read(path: Path) -> tuple[TOMLDocument, tuple[TokenEntry, ...]]:
    """The file, with its comments, and what it says; empty where there is none.

    Raises:
        CommandError: it cannot be read or is not good.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandError(f"{path}: cannot be read: {exc}") from exc
    try:
        return tomlkit.parse(text), parse_tokens(text, str(path))
    except ConfigError as exc:
        raise CommandError("\n".join(exc.problems)) from exc
    except TOMLKitError as exc:
        raise CommandError(f"{path}: not TOML: {exc}") from exc


def _write(path: Path, document: TOMLDocument) -> None:
    """Replace the file as a whole; owner and permissions stay.

    Raises:
        CommandError: it cannot be written.
    """
    text = tomlkit.dumps(document)
    new = None
    try:
        descriptor, new = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            _own_as(path, descriptor)
            os.fsync(descriptor)
        Path(new).replace(path)
    except OSError as exc:
        if new is not None:
            Path(new).unlink(missing_ok=True)
        raise CommandError(f"{path}: cannot be written: {exc.strerror}") from exc


def _own_as(path: Path, descriptor: int) -> None:
    """The permissions of the file that is replaced; a new one is for root and the daemon alone.

    Not for the daemon's group: the updater and operators are in it.
    """
    try:
        facts = path.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, _MODE)
        with contextlib.suppress(KeyError, PermissionError):
            os.fchown(descriptor, pwd.getpwnam(_OWNER).pw_uid, -1)
        return
    os.fchmod(descriptor, facts.st_mode & 0o777)
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, facts.st_uid, facts.st_gid)
