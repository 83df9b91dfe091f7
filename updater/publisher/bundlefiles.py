"""Copies bundles to where devices fetch them: checked against the digest in their name, durable."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

from updater import atomic
from updater.publisher.errors import PublisherError

if TYPE_CHECKING:
    from pathlib import Path


def copy_bundle(source: Path, destination: Path) -> None:
    """Copy a bundle; one that is there already, and good, stays.

    Args:
        destination: "SHA256.NAME", of the bundle's bytes.

    Raises:
        PublisherError: the source has other bytes.
        OSError: it cannot be read, or the disk refused.
    """
    digest = destination.name.partition(".")[0]
    if destination.is_file() and _sha256(destination) == digest:
        return
    atomic.make_folder(destination.parent)
    incoming = atomic.new_name(destination)
    try:
        shutil.copyfile(source, incoming)
        if _sha256(incoming) != digest:
            raise PublisherError(f"{source}: these are not the bytes that were signed")
        atomic.sync_file(incoming)
        atomic.rename(incoming, destination)
    finally:
        incoming.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
