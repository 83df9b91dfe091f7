"""JSON documents on disk: one object in a file, replaced as a whole, never believed when damaged.

What a reader finds, and what it means:
1. No file: nothing has been written yet.
2. An object of the right kind: what was written last.
3. Anything else, be it empty, cut off, zeros, garbage, a folder or a sector that cannot be read,
   is damage. Our own writes do not leave it (`updater/atomic.py`), a failing disk does. It is put
   aside as `NAME.corrupt`, for people to look at; the next one takes its place.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

import msgspec

from updater import atomic
from updater.errors import Damaged

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

MAX_TEXT = 1000
"""Characters of a text from outside that are kept."""

DAMAGE = frozenset({errno.EIO, errno.EISDIR, errno.ENXIO})
"""What reading says of a bad sector, a folder, a socket. Others, such as EACCES, are no damage."""


def read_document(path: Path, kind: type[T], *, max_bytes: int) -> T | None:
    """The object in a file; None where there is no file.

    Raises:
        Damaged: there is something else, or more than `max_bytes`.
        OSError: it cannot be read, for a reason that is no damage.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno in DAMAGE:
            raise Damaged(path, f"cannot be read: {exc.strerror}") from exc
        raise
    if len(raw) > max_bytes:
        raise Damaged(path, f"larger than {max_bytes} bytes")
    return _decode(path, raw, kind)


def write_document(path: Path, document: object, *, max_bytes: int) -> None:
    """Replace a document; its folder exists.

    Raises:
        ValueError: it has more than `max_bytes`, and could not be read again.
        OSError: the disk refused; the old document is there (see `atomic.write_file`).
    """
    raw = msgspec.json.encode(document) + b"\n"
    if len(raw) > max_bytes:
        raise ValueError(f"{path.name} would have {len(raw)} bytes, at most {max_bytes} are read")
    atomic.write_file(path, raw)


def set_aside(path: Path) -> Path:
    """Move a damaged document out of the way, over what was put aside before.

    Returns:
        Where it is now.

    Raises:
        OSError: the disk refused.
    """
    aside = path.with_name(f"{path.name}.corrupt")
    atomic.remove(aside)
    atomic.rename(path, aside)
    return aside


def plain(text: str) -> str:
    """A text from outside as it may be kept: cut, and nothing in it that JSON cannot hold."""
    return text[:MAX_TEXT].encode("utf-8", "replace").decode("utf-8")


def _decode(path: Path, raw: bytes, kind: type[T]) -> T:
    if not raw.strip(b"\0"):
        raise Damaged(path, "nothing but zeros" if raw else "empty")
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Damaged(path, str(exc)[:200]) from exc
