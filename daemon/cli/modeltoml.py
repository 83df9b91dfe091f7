"""Changes keys of a `model.toml` and leaves everything else as its writer left it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from daemon.cli.outcome import CommandError
from daemon.errors import ConfigError
from daemon.modelfile import ModelTables, parse_model_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tomlkit.items import Item, Key

    Changes = Mapping[str, Mapping[str, float | str]]
    """Values by table and key."""

_BOM = "\ufeff"
_NEW_MODE = 0o644
"""The daemon's user must be able to read what an operator's command writes."""


def write_changes(file: Path, changes: Changes) -> None:
    """Set these keys in a file, which is made when it is not there.

    Whoever reads it meanwhile, and whoever looks after a power cut, finds the old text or the new
    one. Its mode and owner stay.

    Args:
        file: no link; its folder is there.
        changes: what to set.

    Raises:
        CommandError: it cannot be read or written; it is as it was.
    """
    try:
        before = file.read_bytes().decode() if file.exists() else ""
        _replace(file, edit(before, changes).encode())
    except OSError as exc:
        raise CommandError(f"{file} cannot be written: {exc.strerror}") from exc
    except ValueError as exc:
        raise CommandError(f"{file} cannot be changed: {exc}") from exc


def why_not_writable(file: Path) -> str:
    """Why `write_changes` would fail for want of a permission; "" when it need not."""
    folder = file.parent
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return f"you may not write into {folder}"
    if file.exists() and os.geteuid() not in (0, file.stat().st_uid):
        return f"{file} belongs to somebody else"
    return ""


def edit(text: str, changes: Changes) -> str:
    """The text of a `model.toml` with these keys set. Comments, order and line ends stay.

    Raises:
        ValueError: it is not TOML, or no `model.toml` with these values.
    """
    bare = text.removeprefix(_BOM)
    end = "\r\n" if 0 < bare.count("\r\n") == bare.count("\n") else "\n"
    try:
        document = tomlkit.parse(bare.replace(end, "\n"))
        for table, keys in changes.items():
            if table not in document:
                document[table] = tomlkit.table()
            for key, value in keys.items():
                _set(document[table], key, value)
        edited = text[: len(text) - len(bare)] + tomlkit.dumps(document).replace("\n", end)
        _check(parse_model_file(edited), changes)
    except (TOMLKitError, ConfigError, TypeError) as exc:
        raise ValueError(str(exc)) from exc
    return edited


def write_tables(changes: Changes) -> str:
    """These keys as the text of a file of their own."""
    return edit("", changes).strip()


def _set(table: Any, key: str, value: float | str) -> None:  # noqa: ANN401 (any kind of table TOML has)
    """Set a key; a new one goes behind the last, before comments that speak of what follows."""
    rest: list[tuple[Key | None, Item]] = []
    if isinstance(table, Table) and key not in table:
        body = table.value.body
        while body and body[-1][0] is None:
            rest.insert(0, body.pop())
    table[key] = value
    if rest:
        table.value.body.extend(rest)


def _check(tables: ModelTables, changes: Changes) -> None:
    for table, keys in changes.items():
        for key, value in keys.items():
            if getattr(getattr(tables, table), key) != value:
                raise ValueError(f"{table}.{key} does not take {value}")


def _replace(file: Path, content: bytes) -> None:
    """Put another content in a file's place, whole or not at all.

    Raises:
        OSError: it cannot be done; the file is as it was.
    """
    # A name that the daemon does not look at (daemon/models/store.py).
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            _keep_facts(stream.fileno(), file)
            stream.flush()
            os.fsync(stream.fileno())
        # Power lost here: the old file, and a temporary one that nobody reads.
        temporary.replace(file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    # Power lost here: the old file or the new one, each whole.
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _keep_facts(descriptor: int, file: Path) -> None:
    """Give the new file the mode and owner of the one whose place it takes."""
    try:
        before = file.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, _NEW_MODE)
        return
    ours = os.fstat(descriptor)
    if (ours.st_uid, ours.st_gid) != (before.st_uid, before.st_gid):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, before.st_mode & 0o7777)
