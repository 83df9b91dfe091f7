"""Temporary folders that go: at the end of their use, or at the next one's start after a kill.

A folder is locked for as long as its user lives. One that is not locked was left by a process that
had no time to remove it, and the next `scratch_folder` does that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "inferd-scratch-"


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder of our own below `parent`, by default the system's for temporary files."""
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_left_behind(parent)
    folder, lock = _make(parent)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # Until it is locked, another process may take it for left behind and remove it.
        with contextlib.suppress(FileNotFoundError):
            lock = _open(folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_left_behind(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, somebody else's, or gone by now
            _remove_unless_locked(folder)


def _remove_unless_locked(folder: Path) -> None:
    lock = _open(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_uid == os.geteuid():
            _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Also what lies in folders that nobody may write, as a store's releases do."""
    for path, _, _ in os.walk(folder):  # which follows no links
        with contextlib.suppress(OSError):
            Path(path).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _open(folder: Path) -> int:
    # NOFOLLOW: where everybody may write, the name may be somebody's link to anything.
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
