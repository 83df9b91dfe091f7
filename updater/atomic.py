"""Durable steps: what one of these functions has done when it returns, no loss of power undoes.

Rules:
1. New content is written under another name in the same folder, synced, then renamed: a reader,
   and a restart, find the old content or the new, never a part of either.
2. A rename moves only what is synced already. Afterwards the folders it touched are synced, so
   the next step cannot reach the disk before it.
3. Done again after a kill, a step ends the same, and syncs again: what an earlier life has left
   in place may be seen and still not be durable.
4. A failed fsync is not tried again: the kernel may have dropped the pages and would call the
   second one a success. The caller has failed, and goes back to what it knows.

One writer: nobody else changes these files at the same time. What a cut leaves behind is a file
`.NAME.new` beside NAME; the next write of NAME replaces it, and `leftovers` finds it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PREFIX, _SUFFIX = ".", ".new"


def _no_step(_step: str, _path: Path) -> None:
    """Nobody is watching."""


on_step: Callable[[str, Path], None] = _no_step
"""Called before each step with its name and what it is about to change: the crash points.

Names: "write", "append", "fsync", "rename", "fsync-folder", "link", "mkdir", "chmod", "unlink",
"rmdir". Tests copy the disk here, or kill themselves.
"""


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file's content, or make the file; its folder exists.

    Args:
        mode: exact, whatever the umask.

    Raises:
        OSError: the disk refused (full, failing, read-only). The old content is there; only when
            the last step fails, the sync of the folder, it may be the new one.
    """
    new = new_name(path)
    try:
        on_step("write", new)
        _write_new(new, data, mode)
        on_step("rename", path)
        new.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()  # on a full disk it takes what others need
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: bytes) -> None:
    r"""Add a line to a file, or make the file with it: one write of the line and its "\n".

    Power lost in here: the file ends with nothing, a part or all of the line.

    Raises:
        OSError: the disk refused. What could be taken back is; the file may end with a part.
    """
    if b"\n" in line:
        raise ValueError("a line holds no line break")
    on_step("append", path)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size_bytes = os.fstat(descriptor).st_size
        try:
            _write_once(descriptor, line + b"\n")
            on_step("fsync", path)
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size_bytes)
            raise
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def make_folder(path: Path, *, mode: int = 0o755) -> None:
    """Make a folder and those above it that are missing; one that is there keeps its mode.

    Raises:
        OSError: the disk refused, or something else has this name (FileExistsError).
    """
    missing = []
    there = path
    while not there.is_dir():
        missing.append(there)
        there = there.parent
    with contextlib.suppress(PermissionError):  # where we may not look, we have made nothing
        sync_folder(there.parent)
    for folder in reversed(missing):
        on_step("mkdir", folder)
        folder.mkdir(mode)
        set_mode(folder, mode)  # the umask had its say in mkdir
        sync_folder(folder.parent)


def rename(source: Path, destination: Path) -> None:
    """Give a synced file or tree its name. A file with that name is replaced, a folder is not.

    A folder's own mode must let its owner write when it moves to another parent.

    Raises:
        OSError: the disk refused; the two are not below one mount (EXDEV); a folder is in the way
            (ENOTEMPTY). Nothing has moved, unless only the sync of a folder failed.
    """
    on_step("rename", destination)
    source.rename(destination)
    sync_folder(destination.parent)
    if source.parent != destination.parent:
        sync_folder(source.parent)


def replace_link(link: Path, target: str) -> None:
    """Let a symbolic link point to `target`, from one moment to the next; there may be none yet.

    Raises:
        OSError: the disk refused, or a folder has the link's name. The old link is there; only
            when the last step fails it may be the new one.
    """
    new = new_name(link)
    new.unlink(missing_ok=True)
    on_step("link", new)
    new.symlink_to(target)
    on_step("rename", link)
    new.rename(link)
    sync_folder(link.parent)


def set_mode(path: Path, mode: int) -> None:
    """Set the permissions of a file or folder.

    Raises:
        OSError: the disk refused.
    """
    on_step("chmod", path)
    path.chmod(mode)
    sync_file(path)


def sync_file(path: Path) -> None:
    """Sync a file's content and permissions, or a folder's.

    Raises:
        OSError: the disk refused.
    """
    on_step("fsync", path)
    _fsync(path)


def sync_folder(folder: Path) -> None:
    """Sync a folder: which names are in it, and what they stand for.

    Raises:
        OSError: the disk refused.
    """
    on_step("fsync-folder", folder)
    _fsync(folder)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder below `folder`, and the folder; links come with their folder.

    Raises:
        OSError: the disk refused.
    """
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            sync_tree(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            sync_file(Path(entry.path))
    sync_folder(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a tree, however read-only; none there is fine.

    Power lost in here leaves a part of a tree: give it a name that nobody reads first.

    Raises:
        OSError: the disk refused.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        pass
    else:
        _remove_any(path, is_folder=stat.S_ISDIR(mode))
    if path.parent.is_dir():
        sync_folder(path.parent)


def new_name(path: Path) -> Path:
    """Where the new content or link is until it is renamed, and after a cut for ever."""
    return path.with_name(f"{_PREFIX}{path.name}{_SUFFIX}")


def leftovers(folder: Path) -> tuple[Path, ...]:
    """What cut-off writes have left in a folder; nothing of it is of use to anybody.

    Raises:
        OSError: the folder is there and cannot be read.
    """
    if not folder.is_dir():
        return ()
    return tuple(
        Path(entry.path)
        for entry in _entries(folder)
        if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX)
    )


def _write_new(path: Path, data: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        on_step("fsync", path)
        os.fsync(file.fileno())


def _write_once(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, "the disk took only a part of a line")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_any(path: Path, *, is_folder: bool) -> None:
    if not is_folder:
        on_step("unlink", path)
        path.unlink()
        return
    path.chmod(0o700)  # nobody but root may remove anything from a read-only folder
    for entry in _entries(path):
        _remove_any(Path(entry.path), is_folder=entry.is_dir(follow_symlinks=False))
    on_step("rmdir", path)
    path.rmdir()


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)
