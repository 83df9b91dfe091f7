"""Room on the disk: what an update takes, what stays free for others, what may go to make room.

Rules:
1. A part of the disk is never taken by an update: the journal, the history and the daemon's outbox
   must be able to write, above all when something goes wrong.
2. An update takes, beside the current and the previous release, its bundle and its unpacked files
   at the same time; both are reserved before the first byte is fetched.
3. The way back takes room too: a record, a quarantine, a link. `hold_ballast` keeps it from before
   a try; `drop_ballast` gives it to the roll back, on however full a disk.
4. Only releases that nobody needs go, the oldest first, and no more of them than it takes. When
   that is not enough nothing goes at all.

The rules are pure; the functions from `look` on ask the disk.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from updater import atomic
from updater.errors import NoSpace

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_MIB = 1 << 20
_LEAST_RESERVE_BYTES = 16 * _MIB  # the history, the outbox and a day of logs
_MOST_RESERVE_BYTES = 512 * _MIB  # on a large disk a share of it is more than all of them take
_RESERVE_SHARE = 20  # a twentieth of the disk
_ROUNDING_BYTES = _MIB  # the last block of each file, the folders: bundles have few files

_BALLAST_BYTES = 256 * 1024  # some blocks each for the files that a roll back replaces

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Held:
    """A release that takes room.

    Attributes:
        since: when it was made, wall seconds.
    """

    model: str
    digest: str
    size_bytes: int
    since: float


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system; bytes that this user can have."""

    total_bytes: int
    free_bytes: int


def reserve_bytes(total_bytes: int) -> int:
    """What stays free on a disk of this size (rule 1)."""
    share = total_bytes // _RESERVE_SHARE
    return min(max(share, _LEAST_RESERVE_BYTES), _MOST_RESERVE_BYTES)


def needed_bytes(length: int, *, allocated_bytes: int = 0) -> int:
    """What a bundle still takes at its peak (rule 2).

    Args:
        length: of the bundle; its files are no larger together.
        allocated_bytes: that its part file has on the disk already.
    """
    return max(length - allocated_bytes, 0) + length + _ROUNDING_BYTES


def choose_removals(
    held: Collection[Held], *, keep: Collection[str], disk: Disk, needed: int, reserve: int
) -> tuple[Held, ...]:
    """The releases to remove so that an update fits (rule 4); none when it fits already.

    Args:
        keep: digests of all that are current, previous or candidate, of any model.
        needed: bytes, of `needed_bytes`.
        reserve: bytes, of `reserve_bytes`.

    Raises:
        NoSpace: it does not fit even without all of them.
    """
    usable = disk.free_bytes - reserve
    chosen: list[Held] = []
    for release in sorted(held, key=lambda one: (one.since, one.model, one.digest)):
        if usable >= needed:
            break
        if release.digest not in keep:
            chosen.append(release)
            usable += release.size_bytes
    if usable < needed:
        raise NoSpace(
            f"an update takes {needed} bytes; {max(usable, 0)} can be had beyond the "
            f"{reserve} that stay free",
            needed_bytes=needed,
            free_bytes=max(usable, 0),
        )
    return tuple(chosen)


def look(folder: Path) -> Disk:
    """The file system that a folder is on.

    Raises:
        OSError: there is no such folder.
    """
    facts = os.statvfs(folder)
    return Disk(facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize)


def allocated_bytes(path: Path) -> int:
    """What a file takes on the disk; 0 when there is none.

    Raises:
        OSError: the disk cannot be read.
    """
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def allocate(path: Path, length: int) -> None:
    """Reserve a file's blocks, so that a download cannot fill the disk half-way; make the file.

    Its size stays what it is, because the size says how much has arrived (posix_fallocate would
    change it). A file system that cannot do this is left to the rules above.

    Args:
        length: bytes it will have, 1 or more.

    Raises:
        NoSpace: the disk has not so many; what was reserved is given back.
        OSError: the disk refused otherwise.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        error = _fallocate(descriptor, length)
        if error in _FULL:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size)
            raise NoSpace(
                f"the disk cannot hold {length} bytes of {path.name}",
                needed_bytes=length,
                free_bytes=look(path.parent).free_bytes,
            )
        if error and error not in _UNSUPPORTED:
            raise OSError(error, os.strerror(error), str(path))
    finally:
        os.close(descriptor)


def is_full(exc: OSError) -> bool:
    """Whether the disk refused for want of room, which may be there later."""
    return exc.errno in _FULL


def hold_ballast(path: Path) -> None:
    """Take the room that a roll back will need, in a file that says nothing; done again, no more.

    Raises:
        NoSpace: there is not even so much: do not try the candidate.
        OSError: the disk refused otherwise.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, _BALLAST_BYTES)
    except OSError as exc:
        if exc.errno not in _FULL:
            raise
        drop_ballast(path)
        raise NoSpace(
            "there is no room for a way back",
            needed_bytes=_BALLAST_BYTES,
            free_bytes=look(path.parent).free_bytes,
        ) from exc
    finally:
        os.close(descriptor)
    atomic.sync_file(path)
    atomic.sync_folder(path.parent)


def drop_ballast(path: Path) -> None:
    """Give the room back; none held is fine.

    Raises:
        OSError: the disk refused.
    """
    atomic.remove(path)


def _fallocate(descriptor: int, length: int) -> int:
    """The errno of fallocate(2), which Python does not offer; 0 when it worked."""
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or library.fallocate  # offsets of 64 bits
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while call(descriptor, _KEEP_SIZE, 0, length) != 0:
        if ctypes.get_errno() != errno.EINTR:
            return ctypes.get_errno()
    return 0
