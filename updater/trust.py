"""Decides which metadata is believed: python-tuf's client, made durable, with floors of our own.

What python-tuf 7 does: the whole client workflow of the TUF specification, with the network and a
folder. What it does not do, and is done here:

1. It syncs nothing. A session works on a copy of the metadata; the result is synced, then a link is
   turned to it. Power lost at any moment leaves the old metadata or the new, whole. With a scratch
   folder in memory, a session that finds nothing new does not touch the disk.
2. It remembers what it has seen in that folder alone. Our floors (floors.py) lie beside it and are
   checked before the link turns.
3. It takes the system's clock. Ours is signedtime.py.
4. It believes the root it finds on disk unless told better. It is always given the trust anchor.

A refresh that fails half-way keeps what was verified until then, as the specification wants it: a
newer root counts even if the snapshot behind it never arrives.

One process at a time uses a folder; the updater's service sees to that.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from typing import TYPE_CHECKING

from updater import atomic
from updater.chain import Chain
from updater.documents import read_document, set_aside, write_document
from updater.errors import Damaged
from updater.floors import MAX_FLOORS_BYTES, Floors, for_anchor, held, raised
from updater.session import Session, stored_view
from updater.signedtime import Reference, reference_time
from updater.source import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from updater.view import View

_log = logging.getLogger(f"inferd.{__name__}")

_LIMITS = Limits()
_GENERATIONS = ("a", "b")


def _never() -> bool:
    return False


class Trust:
    """The metadata of one repository on this device."""

    def __init__(
        self,
        folder: Path,
        anchor: bytes,
        *,
        clock: Callable[[], float],
        limits: Limits = _LIMITS,
        earliest: float = 0.0,
        scratch: Path | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            folder: the updater's state; `tuf/` and `floor.json` below it are ours.
            anchor: the root.json that the device was provisioned with.
            clock: wall clock, seconds.
            earliest: when this program was made, wall clock seconds; it cannot be earlier.
            scratch: name of a folder in memory that sessions may make, and work in; None: they work
                on the disk.
        """
        self._metadata = folder / "tuf"
        self._floors_file = folder / "floor.json"
        self._anchor = anchor
        self._clock = clock
        self._limits = limits
        self._earliest = earliest
        self._scratch = scratch

    def refresh(self, source: str, *, cancelled: Callable[[], bool] = _never) -> View:
        """Bring the metadata up to date, and the fleet's wish with it.

        Args:
            source: http:// or https:// URL of the repository, or the path of its folder.
            cancelled: asked ten times a second, from another thread, whether to give up.

        Raises:
            Untrusted: what the source has must not be believed.
            FetchFailed: the source did not answer; try again later.
            OSError: the disk refused. What was known before is known still.
        """
        with self.session(source, cancelled=cancelled) as session:
            session.refresh()
            return session.look_at_fleet()

    def current(self) -> View | None:
        """What the last refresh left on disk, without asking anybody; None before the first.

        It may have expired since (`View.check_expiry`). None also when the device has got another
        trust anchor, which the metadata on disk does not come from.

        Raises:
            Untrusted: the fleet's wish was kept by a program that understood more of it.
            OSError: the disk refused.
        """
        generation = self._generation()
        if generation is None or not self._has_followed(generation):
            return None
        floors = self._floors(generation)
        return stored_view(generation, floors, self._believe(floors.signed_time))

    def reference(self) -> Reference:
        """What time it is now, as far as this device can tell.

        Raises:
            OSError: the disk refused.
        """
        return self._believe(self._floors(self._generation()).signed_time)

    @contextlib.contextmanager
    def session(self, source: str, *, cancelled: Callable[[], bool] = _never) -> Iterator[Session]:
        """Work with a source; what was verified in the block is kept, also when the block fails.

        Raises:
            Untrusted: NO_ROOT, the trust anchor cannot be used; or ROLLBACK, found at the end: then
                nothing is kept.
            OSError: the disk refused.
        """
        before = self._generation()
        floors = self._floors(before)
        work = self._make_work_folder(before)
        try:
            session = Session(
                work,
                self._anchor,
                source,
                limits=self._limits,
                floors=floors,
                believe=self._believe,
                cancelled=cancelled,
            )
            try:
                yield session
            finally:
                self._keep(session, before)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _believe(self, signed: float) -> Reference:
        return reference_time(self._clock(), signed=max(signed, self._earliest))

    def _generation(self) -> Path | None:
        """The folder in use; None before the first refresh, or when it is lost."""
        link = self._metadata / "current"
        return link.resolve() if link.is_symlink() and link.is_dir() else None

    def _has_followed(self, generation: Path) -> bool:
        """Whether our anchor is in the chain of roots that python-tuf has walked there."""
        roots = (generation / "root_history").glob("*.root.json")
        return any(root.read_bytes() == self._anchor for root in roots)

    def _floors(self, generation: Path | None) -> Floors:
        """The floors under our anchor, none below what the metadata on disk says.

        The latter counts when power was lost between the two writes of `_keep`.
        """
        chain = Chain(generation) if generation and self._has_followed(generation) else None
        anchor = hashlib.sha256(self._anchor).hexdigest()
        floors = for_anchor(self._stored_floors(), anchor, is_followed=chain is not None)
        return raised(held(floors, chain.authorities), chain.roles) if chain else floors

    def _stored_floors(self) -> Floors:
        try:
            stored = read_document(self._floors_file, Floors, max_bytes=MAX_FLOORS_BYTES)
        except Damaged as exc:
            # The metadata on disk is the next best memory of what was seen.
            aside = set_aside(self._floors_file)
            _log.warning("floors are damaged and put aside file=%s error=%.200s", aside, exc)
            return Floors()
        return stored or Floors()

    def _make_work_folder(self, before: Path | None) -> Path:
        """A copy of the metadata in use. Nothing of it needs to outlive the session."""
        atomic.make_folder(self._metadata)
        work = self._scratch or self._metadata / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.parent.mkdir(parents=True, exist_ok=True)
        if before is not None and self._has_followed(before):
            _copy(before, work)
        else:  # nothing yet, or it came from another trust anchor
            work.mkdir()
        return work

    def _keep(self, session: Session, before: Path | None) -> None:
        """Make durable what the session has verified.

        Power lost before the link turns: the old metadata. Before the floors are written: the new
        metadata, from which `_floors` takes them.
        """
        chain = Chain(session.folder)
        floors = session.hold_floors(chain)
        if before is None or _content(before) != _content(session.folder):
            self._turn_to(session.folder, before)
        if floors != self._stored_floors():
            write_document(self._floors_file, floors, max_bytes=MAX_FLOORS_BYTES)

    def _turn_to(self, work: Path, before: Path | None) -> None:
        """Let the work be the metadata in use."""
        name = next(name for name in _GENERATIONS if before is None or name != before.name)
        generation = self._metadata / name
        fresh = self._metadata / "work"
        if work != fresh:
            atomic.remove(fresh)
            _copy(work, fresh)
        atomic.sync_tree(fresh)
        atomic.remove(generation)
        atomic.rename(fresh, generation)
        atomic.replace_link(self._metadata / "current", name)


def _copy(source: Path, target: Path) -> None:
    """Copy a tree's names and bytes, and nothing else.

    Not its modes: a folder below a set-group-id one has that bit, and a service that may not set
    it (systemd's RestrictSUIDSGID) may not even copy it.
    """
    target.mkdir()
    for path in sorted(source.iterdir()):
        copy = target / path.name
        if path.is_symlink():
            copy.symlink_to(path.readlink())
        elif path.is_dir():
            _copy(path, copy)
        else:
            shutil.copyfile(path, copy)


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
