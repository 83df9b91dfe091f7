"""`bundle inspect`: what a bundle is, without running anything of it."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from daemon.cli.outcome import CommandError, ExitCode, UsageError
from daemon.cli.text import print_json, table
from updater import atomic
from updater.bundle import read_manifest
from updater.errors import UpdateError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from updater.manifest import Manifest

_FILE_COLUMNS = ("FILE", "BYTES", "SHA256")


def inspect(arguments: argparse.Namespace) -> ExitCode:
    """Print a bundle's manifest. Its files are listed, not read.

    Raises:
        CommandError: it is no bundle, or cannot be read.
    """
    with refusing(arguments.file):
        manifest, digest = read_manifest(arguments.file), sha256_of(arguments.file)
    if arguments.json:
        print_json(as_document(manifest, digest))
    else:
        print(describe(manifest, digest))
    return ExitCode.DONE


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Tell what the updater says of a bundle as this program does.

    Raises:
        UsageError: there is no such file.
        CommandError: in the place of UpdateError and OSError.
    """
    if not path.exists():
        raise UsageError(f"argument FILE: no such file: {path}")
    try:
        yield
    except UpdateError as exc:
        raise CommandError(f"{path}: {exc}") from exc
    except OSError as exc:
        raise CommandError(f"{exc.filename or path}: {exc.strerror or exc}") from exc


def check_out(out: Path) -> None:
    """Let pass where a bundle can be written, before the work that comes first.

    Raises:
        UsageError: it would replace what is no regular file, or has no folder to lie in.
        CommandError: the disk refused.
    """
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"argument -o: expected a file in a folder that is there: {out}")
    is_device = os.path.realpath(out.parent) == "/dev"
    if out.is_symlink() or is_device or (out.exists() and not out.is_file()):
        raise UsageError(f"argument -o: expected a regular file or a new one, no link: {out}")
    new = atomic.new_name(out)
    try:
        new.touch()
        new.unlink()
    except OSError as exc:
        raise CommandError(f"{out}: cannot be written: {exc.strerror}") from exc


def sha256_of(path: Path) -> str:
    """The digest that a repository signs.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def summary(manifest: Manifest) -> str:
    """A bundle in half a line."""
    size_bytes = sum(entry.size_bytes for entry in manifest.files)
    files = f"{len(manifest.files)} file{'s' * (len(manifest.files) != 1)}"
    return f"{manifest.name} version {manifest.version}, {files}, {size_bytes} bytes"


def as_document(manifest: Manifest, digest: str) -> dict[str, Any]:
    """The manifest for programs, with the bundle's own digest."""
    return {"sha256": digest, **msgspec.to_builtins(manifest)}


def describe(manifest: Manifest, digest: str) -> str:
    """The manifest for people."""
    probation = manifest.probation
    watched = f"{probation.min_requests} requests and {probation.min_s:g} s"
    failed = f"at most {probation.max_error_ratio:.2%} of requests fail"
    slow = f"it is at most {probation.max_latency_ratio:g} times as slow"
    facts = [
        ("model", manifest.name),
        ("version", str(manifest.version)),
        ("release counter", str(manifest.release_counter)),
        ("sha256", digest),
        ("runtime", manifest.runtime),
        ("architectures", _words(manifest.architectures, "any")),
        ("needs", _words(manifest.accelerators, "no accelerator")),
        ("memory", _unit(manifest.memory_mib, "MiB")),
        ("latency", _unit(manifest.max_latency_ms, "ms at most")),
        ("probation", f"{watched}, {probation.max_s:g} s at most"),
        ("is kept when", f"{failed}, and {slow}"),
    ]
    files = [(entry.path, str(entry.size_bytes), entry.sha256) for entry in manifest.files]
    return f"{table(facts)}\n\n{table(files, _FILE_COLUMNS)}"


def _words(words: Sequence[str], none: str) -> str:
    return ", ".join(words) or none


def _unit(value: float | None, unit: str) -> str:
    return "not said" if value is None else f"{value:g} {unit}"
