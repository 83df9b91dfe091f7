"""The store: release folders that never change, and for each model one link to the current one.

    releases/MODEL/SHA256/     manifest.json and the files it lists, read-only
    links/MODEL/current        -> ../../store/MODEL/SHA256, relative

Rules:
1. A release appears under its name complete and synced, or not at all.
2. The link points to a complete release. It is replaced from one moment to the next, so whoever
   follows it finds the old release or the new one.
3. What a link points to is never removed, whatever the caller says.
4. Names that are not ours, and a `current` that does not lead into this store, are an operator's:
   they are neither used nor removed.

Power lost, or a kill: whatever is under `.incoming` or a `.gone-SHA256` name is of no use and is
removed by `sweep`; with one exception, see there. One writer, as in `updater/atomic.py`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from updater import atomic
from updater.errors import BundleRejected, Damaged
from updater.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, parse_manifest
from updater.names import check_digest, check_model
from updater.space import Held

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_INCOMING = ".incoming"
_GONE = ".gone-"
_LINK = "current"
_READ_ONLY_FILE, _READ_ONLY_FOLDER = 0o444, 0o555


class Store:
    """Releases and links, below two folders that are made when they are needed.

    Args:
        releases: where the release folders are.
        links: where the models' folders with their links are.
    """

    def __init__(self, releases: Path, links: Path) -> None:
        self._releases = releases
        self._links = links

    def release(self, model: str, digest: str) -> Path:
        """Where a release is, or would be.

        Raises:
            ValueError: this is no model name, or no sha256.
        """
        return self._releases / check_model(model) / check_digest(digest)

    def current(self, model: str) -> str | None:
        """The digest of the release that the model's link names; None when there is no such link.

        Raises:
            OSError: the disk cannot be read.
        """
        link = self._link(model)
        if not link.is_symlink():
            return None
        path = Path(os.path.normpath(_real(link.parent) / link.readlink()))
        is_ours = path.parent == _real(self._releases / model) and _passes(check_digest, path)
        return path.name if is_ours else None

    def check_link(self, model: str) -> None:
        """Whether updates may turn the model's link; none there is fine.

        Raises:
            FileExistsError: `current` is an operator's; he must remove it to let updates in.
            OSError: the disk cannot be read.
        """
        self._own_link(model)

    def incoming(self, digest: str) -> Path:
        """An empty folder to unpack a bundle into.

        It is on the mount of the releases: a rename does not cross mounts, and a sandbox makes one
        of each folder that it lets a service write.

        Raises:
            OSError: the disk refused.
        """
        folder = self._releases / _INCOMING / check_digest(digest)
        atomic.remove(folder)
        atomic.make_folder(folder)
        return folder

    def publish(self, staged: Path, model: str, digest: str) -> None:
        """Make an unpacked bundle a release. Done again, it finds the release and is content.

        Power lost in here: there is no such release, or all of it.

        Args:
            staged: of `incoming`; it is gone afterwards.

        Raises:
            Damaged: the folder is not what its manifest says.
            OSError: the disk refused; there is no such release, unless only a sync failed.
        """
        release = self.release(model, digest)
        if self._is_good(model, digest):
            atomic.remove(staged)
        else:
            self._take_in(staged, release)
        # A folder that is moved must be writable for its owner, hence its own mode comes last.
        atomic.set_mode(release, _READ_ONLY_FOLDER)
        atomic.sync_folder(release.parent)

    def verify(self, model: str, digest: str) -> None:
        """Compare every file with the manifest: names, sizes, digests, nothing missing or extra.

        Raises:
            Damaged: they differ, or there is no such release.
            OSError: the disk cannot be read.
        """
        release = self.release(model, digest)
        try:
            _check(release, thorough=True)
        except OSError as exc:
            if exc.errno == errno.EIO:
                raise Damaged(release, f"cannot be read: {exc}") from exc
            raise

    def activate(self, model: str, digest: str) -> None:
        """Let the model's link point to a release. Power lost in here: the old one or this one.

        Raises:
            Damaged: the release is not complete (names and sizes; `verify` reads the bytes).
            FileExistsError: `current` is an operator's; he must remove it to let updates in.
            OSError: the disk refused; the old link is there, unless only the sync failed.
        """
        release = self.release(model, digest)
        _check(release, thorough=False)
        link = self._own_link(model)
        atomic.make_folder(link.parent)
        target = os.path.relpath(_real(release), _real(link.parent))
        atomic.replace_link(link, target)

    def deactivate(self, model: str) -> None:
        """Remove the model's link: there was nothing before, and there is nothing again.

        Raises:
            FileExistsError: `current` is an operator's.
            OSError: the disk refused.
        """
        atomic.remove(self._own_link(model))

    def held(self) -> tuple[Held, ...]:
        """All releases, with what they take.

        Raises:
            OSError: the disk cannot be read.
        """
        return tuple(
            Held(path.parent.name, path.name, _size_bytes(path), path.stat().st_mtime)
            for path in self._release_folders()
        )

    def discard(self, model: str, digest: str) -> None:
        """Remove a release; none there is fine.

        Raises:
            RuntimeError: it is a model's current one; a bug of the caller.
            OSError: the disk refused; what is left has a name that nobody reads.
        """
        release = self.release(model, digest)
        if digest in self._linked():
            raise RuntimeError(f"{model}: {digest} is current")
        atomic.remove(self._put_away(release))
        if release.parent.is_dir() and not any(release.parent.iterdir()):
            atomic.remove(release.parent)

    def collect(self, keep: Collection[str]) -> tuple[str, ...]:
        """Remove all releases but the current ones and those with these digests.

        Args:
            keep: digests of every model's previous release and candidate.

        Returns:
            The digests that are gone.

        Raises:
            OSError: the disk refused; some may be gone.
        """
        kept = self._linked().union(keep)
        gone = [path for path in self._release_folders() if path.name not in kept]
        for path in gone:
            self.discard(path.parent.name, path.name)
        return tuple(path.name for path in gone)

    def sweep(self) -> tuple[Path, ...]:
        """At the start: remove what was cut off, and make durable what can be read.

        A current release that was put away for its replacement, when the replacement did not come
        to be, is put back: damaged as it is, there is nothing better.

        Returns:
            What was removed. Nothing the second time.

        Raises:
            OSError: the disk refused.
        """
        self._put_back()
        leftovers = tuple(self._leftovers())
        for path in leftovers:
            atomic.remove(path)
        for release in self._release_folders():
            atomic.set_mode(release, _READ_ONLY_FOLDER)
        for folder in (*_folders(self._releases), *_folders(self._links)):
            atomic.sync_folder(folder)
        return leftovers

    def _take_in(self, staged: Path, release: Path) -> None:
        _check(staged, thorough=False)
        _make_read_only(staged)
        atomic.sync_tree(staged)
        atomic.make_folder(release.parent)
        gone = self._put_away(release)
        atomic.rename(staged, release)
        atomic.remove(gone)

    def _link(self, model: str) -> Path:
        return self._links / check_model(model) / _LINK

    def _own_link(self, model: str) -> Path:
        link = self._link(model)
        if os.path.lexists(link) and self.current(model) is None:
            raise FileExistsError(
                f"{link} does not lead into the store: remove it to let updates in"
            )
        return link

    def _linked(self) -> frozenset[str]:
        """The last part of what any model's link names, an operator's link too."""
        links = (folder / _LINK for folder in _folders(self._links))
        return frozenset(link.readlink().name for link in links if link.is_symlink())

    def _release_folders(self) -> tuple[Path, ...]:
        models = (folder for folder in _folders(self._releases) if _passes(check_model, folder))
        return tuple(
            path for folder in models for path in _folders(folder) if _passes(check_digest, path)
        )

    def _leftovers(self) -> Iterator[Path]:
        yield from _folders(self._releases / _INCOMING)
        for folder in _folders(self._releases):
            yield from sorted(folder.glob(f"{_GONE}*"))
        for folder in _folders(self._links):
            yield from (new for new in (atomic.new_name(folder / _LINK),) if new.is_symlink())

    def _put_back(self) -> None:
        linked = self._linked()
        for folder in _folders(self._releases):
            for gone in sorted(folder.glob(f"{_GONE}*")):
                release = gone.with_name(gone.name.removeprefix(_GONE))
                if release.name in linked and not release.exists():
                    atomic.rename(gone, release)

    def _is_good(self, model: str, digest: str) -> bool:
        try:
            self.verify(model, digest)
        except Damaged:
            return False
        return True

    def _put_away(self, release: Path) -> Path:
        """Give a release, if there is one, a name that nobody reads."""
        gone = release.with_name(f"{_GONE}{release.name}")
        atomic.remove(gone)
        if release.exists():
            atomic.rename(release, gone)
        return gone


def _check(folder: Path, *, thorough: bool) -> None:
    """Compare a folder with the manifest in it.

    Args:
        thorough: read the bytes, too.

    Raises:
        Damaged, OSError: as for `Store.verify`.
    """
    found = dict(_files(folder))
    listed = _listed(folder, found.pop(MANIFEST_NAME, None))
    if found.keys() != listed.keys():
        different = sorted(found.keys() ^ listed.keys())
        raise Damaged(folder, f"missing or extra: {', '.join(different)[:200]}")
    for name, (size_bytes, sha256) in listed.items():
        if found[name] != size_bytes:
            raise Damaged(folder / name, f"{found[name]} bytes, expected {size_bytes}")
        if thorough and _sha256(folder / name) != sha256:
            raise Damaged(folder / name, f"its sha256 is not {sha256}")


def _listed(folder: Path, size_bytes: int | None) -> dict[str, tuple[int, str]]:
    if size_bytes is None or size_bytes > MAX_MANIFEST_BYTES:
        raise Damaged(folder, f"no {MANIFEST_NAME}, or a huge one")
    try:
        manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
    except BundleRejected as exc:
        raise Damaged(folder / MANIFEST_NAME, str(exc)[:200]) from exc
    return {entry.path: (entry.size_bytes, entry.sha256) for entry in manifest.files}


def _files(folder: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every file below a folder, with its size.

    Raises:
        Damaged: there is no such folder, or something else than files and folders in it.
    """
    if not folder.is_dir() or folder.is_symlink():
        raise Damaged(folder, "no folder")
    for path in sorted(folder.iterdir()):
        facts = path.lstat()
        if stat.S_ISDIR(facts.st_mode):
            yield from _files(path, f"{prefix}{path.name}/")
        elif stat.S_ISREG(facts.st_mode):
            yield f"{prefix}{path.name}", facts.st_size
        else:
            raise Damaged(path, "neither a file nor a folder")


def _make_read_only(folder: Path) -> None:
    """All below a folder; not the folder, which has yet to move."""
    for path in folder.rglob("*"):
        path.chmod(_READ_ONLY_FOLDER if path.is_dir() else _READ_ONLY_FILE)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def _folders(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.iterdir() if path.is_dir()))


def _passes(check: Callable[[str], str], path: Path) -> bool:
    try:
        check(path.name)
    except ValueError:
        return False
    return True


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
