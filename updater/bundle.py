"""Builds and opens bundles: one tar with a manifest and the files that it lists.

For each manifest there is exactly one sequence of bytes that is its bundle, so opening one is
comparing it with what it must be. Nothing of a header is ever believed but the manifest's size.

1. A bundle is a regular file: ustar headers as `_header` makes them, with the file's path and size
   and nothing else that varies; after each file zeros up to a multiple of 512 bytes; at the end
   two blocks of zeros.
2. The first file is `manifest.json`, then come the files it lists, in its order. None is missing,
   none is extra, none comes twice; the bundle's size follows from the manifest, and is compared
   before a file is made.
3. Each file has the manifest's sha256.

So links, devices, folders, sparse files, pax and GNU headers, names that lead elsewhere, modes,
owners and times are all refused, by one comparison. What is made is regular files below one folder
that was empty, with names that updater/manifest.py lets pass.

What is not checked: who made it. That is signed for the whole file (updater/trust.py).
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msgspec.structs import replace

from updater import atomic
from updater.errors import BundleRejected, CannotBundle
from updater.manifest import (
    MANIFEST_NAME,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    check_path,
    encode_manifest,
    parse_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Source = Path | bytes
    """Where a file's bytes are, or what they are."""

_BLOCK_BYTES = 512
_END = bytes(2 * _BLOCK_BYTES)
_CHUNK_BYTES = 1 << 20
_USTAR = struct.Struct("100s 8s 8s 8s 12s 12s 8s 1s 100s 8s 32s 32s 8s 8s 155s 12x")
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)
_ZERO, _MODE, _TIME = b"0000000\0", b"0000644\0", b"00000000000\0"
_REGULAR = b"0"


def build_bundle(files: Mapping[str, Source], out: Path, draft: Manifest) -> Manifest:
    """Write a bundle. The same files and the same draft make the same bytes, on any machine.

    Args:
        files: by their path in the bundle.
        out: replaced when it is there; its folder exists.
        draft: the manifest, but for its files.

    Returns:
        The manifest with its files.

    Raises:
        CannotBundle: these files or this draft make no bundle, or a file changed meanwhile.
        OSError: a file cannot be read, or the disk refused. `out` is as it was.
    """
    try:
        manifest = replace(draft, files=tuple(_entry(path, files[path]) for path in sorted(files)))
        raw = encode_manifest(manifest)
    except BundleRejected as exc:
        raise CannotBundle(str(exc)) from exc
    new = atomic.new_name(out)
    try:
        with new.open("wb") as file:
            _write_manifest(file, raw)
            for entry in manifest.files:
                _write_file(file, entry, files[entry.path])
            file.write(_END)
        atomic.sync_file(new)
        atomic.rename(new, out)
    finally:
        new.unlink(missing_ok=True)
    return manifest


def folder_files(folder: Path) -> dict[str, Path]:
    """Every file of a folder by its path in a bundle; names that begin with "." are left out.

    Raises:
        CannotBundle: something in it cannot be in a bundle; the message is for the publisher.
        OSError: it cannot be read.
    """
    files = dict(islice(_walk(folder, ""), MAX_FILES + 1))
    if not 1 <= len(files) <= MAX_FILES:
        found = f"more than {MAX_FILES}" if files else "no"
        raise CannotBundle(f"{folder}: {found} files in it, expected 1 to {MAX_FILES}")
    return files


def open_bundle(bundle: Path, into: Path, *, limit_bytes: int) -> Manifest:
    """Unpack a bundle into an empty folder: its files and `manifest.json`.

    Nothing is synced. When it fails the folder is empty again; power lost in here leaves a part.

    Args:
        limit_bytes: the bundle has at most, as was signed; and so its files together.

    Raises:
        BundleRejected: it breaks a rule; says which.
        FileExistsError: the folder is not empty.
        OSError: the bundle cannot be read, or the disk refused (ENOSPC).
    """
    if any(into.iterdir()):
        raise FileExistsError(f"{into} is not empty")
    try:
        with _opened(bundle, limit_bytes) as file:
            raw, manifest = _take_manifest(file)
            _take_files(file, manifest, lambda path: _create(into, path))
        # Last: a folder with a manifest is complete.
        with _create(into, MANIFEST_NAME) as out:
            out.write(raw)
    except BaseException:
        for path in into.iterdir():
            atomic.remove(path)
        raise
    return manifest


def verify_bundle(bundle: Path, *, limit_bytes: int | None = None) -> Manifest:
    """Check all of a bundle as `open_bundle` does, and unpack nothing.

    Raises:
        BundleRejected, OSError: as there.
    """
    with _opened(bundle, limit_bytes) as file:
        _, manifest = _take_manifest(file)
        _take_files(file, manifest, _discard)
    return manifest


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of a bundle whose size fits it; its files are not read.

    Raises:
        BundleRejected, OSError: as for `open_bundle`.
    """
    with _opened(bundle, None) as file:
        return _take_manifest(file)[1]


@contextmanager
def _opened(bundle: Path, limit_bytes: int | None) -> Iterator[BinaryIO]:
    # O_NONBLOCK: opening a FIFO with a bundle's name would wait for ever.
    descriptor = os.open(bundle, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise BundleRejected("no regular file")
        if limit_bytes is not None and facts.st_size > limit_bytes:
            raise BundleRejected(f"{facts.st_size} bytes, at most {limit_bytes} were expected")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _take_manifest(file: BinaryIO) -> tuple[bytes, Manifest]:
    """Rules 1 and 2 as far as the first file and the size of all.

    Returns:
        The manifest's bytes, and what they say.
    """
    header = _take(file, _BLOCK_BYTES)
    size_bytes = _size_of(header)
    if header != _header(MANIFEST_NAME, size_bytes):
        raise BundleRejected(f"it does not begin with {MANIFEST_NAME} as a bundle does")
    raw = _take(file, size_bytes)
    _expect(file, _padding(size_bytes), f"the zeros after {MANIFEST_NAME}")
    manifest = parse_manifest(raw)
    expected_bytes = _bundle_bytes(size_bytes, manifest)
    actual_bytes = os.fstat(file.fileno()).st_size
    if actual_bytes != expected_bytes:
        raise BundleRejected(f"{actual_bytes} bytes, its manifest makes {expected_bytes}")
    return raw, manifest


def _take_files(file: BinaryIO, manifest: Manifest, create: Callable[[str], BinaryIO]) -> None:
    """Rules 1 to 3 from the second file on."""
    for entry in manifest.files:
        _expect(file, _header(entry.path, entry.size_bytes), f"the header of {entry.path}")
        with create(entry.path) as out:
            digest = _copy(file, out, entry)
        if digest != entry.sha256:
            raise BundleRejected(f"{entry.path}: its sha256 is {digest}, listed is {entry.sha256}")
        _expect(file, _padding(entry.size_bytes), f"the zeros after {entry.path}")
    _expect(file, _END, "its end")


def _copy(file: BinaryIO, out: BinaryIO, entry: FileEntry) -> str:
    digest = hashlib.sha256()
    left = entry.size_bytes
    while left:
        chunk = _take(file, min(left, _CHUNK_BYTES))
        digest.update(chunk)
        out.write(chunk)
        left -= len(chunk)
    return digest.hexdigest()


def _take(file: BinaryIO, size_bytes: int) -> bytes:
    data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise BundleRejected("it ends too early")
    return data


def _expect(file: BinaryIO, expected: bytes, what: str) -> None:
    if _take(file, len(expected)) != expected:
        raise BundleRejected(f"{what}: not as in a bundle")


def _size_of(header: bytes) -> int:
    """The size in the manifest's header; whether all of that is as it must be shows later."""
    try:
        size_bytes = int(header[_SIZE].rstrip(b"\0"), 8)
    except ValueError:
        size_bytes = 0
    if not 0 < size_bytes <= MAX_MANIFEST_BYTES:
        raise BundleRejected(f"it does not begin with {MANIFEST_NAME} as a bundle does")
    return size_bytes


def _create(into: Path, path: str) -> BinaryIO:
    place = into / path
    place.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(place, flags, 0o644), "wb")


def _discard(_path: str) -> BinaryIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), "wb")


def _write_manifest(file: BinaryIO, raw: bytes) -> None:
    file.write(_header(MANIFEST_NAME, len(raw)))
    file.write(raw)
    file.write(_padding(len(raw)))


def _write_file(file: BinaryIO, entry: FileEntry, source: Source) -> None:
    file.write(_header(entry.path, entry.size_bytes))
    if _read(source, file.write) != (entry.size_bytes, entry.sha256):
        raise CannotBundle(f"{entry.path}: it changed while it was read")
    file.write(_padding(entry.size_bytes))


def _entry(path: str, source: Source) -> FileEntry:
    _check_source(path)
    size_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise CannotBundle(f"{path}: {size_bytes} bytes, at most {MAX_FILE_BYTES} fit")
    size_bytes, digest = _read(source, lambda _chunk: 0)
    return FileEntry(path, digest, size_bytes)


def _read(source: Source, write: Callable[[bytes], object]) -> tuple[int, str]:
    """Hand a file's bytes on; returns how many they were, and their sha256."""
    size_bytes, digest = 0, hashlib.sha256()
    for chunk in _chunks(source):
        size_bytes += len(chunk)
        digest.update(chunk)
        write(chunk)
    return size_bytes, digest.hexdigest()


def _chunks(source: Source) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    with os.scandir(folder) as entries:
        names = sorted((entry for entry in entries if not entry.name.startswith(".")), key=_name)
    for entry in names:
        path = prefix + entry.name
        _check_source(path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{path}/")
        elif entry.is_file(follow_symlinks=False):
            yield path, Path(entry.path)
        else:
            raise CannotBundle(f"{entry.path}: expected a file or a folder, no link or device")


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _check_source(path: str) -> None:
    try:
        check_path(path)
    except ValueError as exc:
        raise CannotBundle(str(exc)) from exc


def _bundle_bytes(manifest_bytes: int, manifest: Manifest) -> int:
    sizes = (manifest_bytes, *(entry.size_bytes for entry in manifest.files))
    return sum(_BLOCK_BYTES + size + len(_padding(size)) for size in sizes) + len(_END)


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % _BLOCK_BYTES)


def _header(path: str, size_bytes: int) -> bytes:
    """The one header that a file with this path and size has. Source: POSIX.1-1988, ustar."""
    block = _USTAR.pack(
        path.encode("ascii"),
        _MODE,
        _ZERO,  # owner
        _ZERO,  # group
        b"%011o\0" % size_bytes,
        _TIME,
        b" " * 8,  # the checksum is made with blanks in its place
        _REGULAR,
        b"",  # no link
        b"ustar\x0000",
        b"",  # no owner's name
        b"",  # no group's name
        _ZERO,  # no device
        _ZERO,
        b"",  # no prefix
    )
    checksum = b"%06o\0 " % sum(block)
    return block[: _CHECKSUM.start] + checksum + block[_CHECKSUM.stop :]
