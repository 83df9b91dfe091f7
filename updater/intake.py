"""Brings a bundle's bytes here and makes them a release: room, transfer, opening.

Rules:
1. A release that is in the store already, from an earlier update or a life that was cut short, is
   not fetched again.
2. What arrives waits in a part file of its own; parts that nobody waits for go.
3. What does not become a release takes no room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from updater import atomic, space
from updater.bundle import open_bundle
from updater.errors import BundleRejected, Damaged
from updater.manifest import MANIFEST_NAME, parse_manifest
from updater.target import disagreement, facts_of
from updater.transfers import Order

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from updater.manifest import Manifest
    from updater.space import Held
    from updater.store import Store
    from updater.target import Target
    from updater.transfers import Transfers


class Intake:
    """The way of the bytes."""

    def __init__(self, staging: Path, store: Store, transfers: Transfers) -> None:
        """Store only.

        Args:
            staging: folder of part files; `recover` makes it.
        """
        self._staging = staging
        self._store = store
        self._transfers = transfers

    def recover(self) -> None:
        """At the start: remove what cut-off writes left beside the parts, and in the store.

        Raises:
            OSError: the disk refused.
        """
        atomic.make_folder(self._staging)
        self._store.sweep()

    def make_room(
        self, model: str, digest: str, length: int, *, keep: Collection[str]
    ) -> tuple[Held, ...]:
        """Remove what nobody needs until the bundle fits.

        Args:
            keep: digests of the releases that somebody may still want.

        Returns:
            What was removed.

        Raises:
            NoSpace: it does not fit even so.
            OSError: the disk refused.
        """
        if self._is_here(model, digest):
            return ()
        disk = space.look(self._staging)
        allocated_bytes = space.allocated_bytes(self._part(digest))
        removals = space.choose_removals(
            self._store.held(),
            keep=keep,
            disk=disk,
            needed=space.needed_bytes(length, allocated_bytes=allocated_bytes),
            reserve=space.reserve_bytes(disk.total_bytes),
        )
        for release in removals:
            self._store.discard(release.model, release.digest)
        return removals

    def bring_in(self, target: Target, source: str) -> str:
        """Make a signed bundle a release; to be called again until it is one.

        Returns:
            "" when it is in the store; else how much of it has arrived, in words.

        Raises:
            FetchFailed, NoSpace: later it may.
            Untrusted: MISMATCH, whoever serves it sends something else.
            BundleRejected, Damaged: it is not what it must be, and never will be.
            OSError: the disk refused.
        """
        model, digest = target.facts.name, target.sha256
        if self._is_here(model, digest):
            release = self._store.release(model, digest)
            _compare(target, parse_manifest((release / MANIFEST_NAME).read_bytes()))
            return ""
        part = self._part(digest)
        order = Order(source, target.location, part, target.length, digest)
        if not self._transfers.want(order):
            there, length = self._transfers.progress(order)
            return f"{there / 1e6:.1f} of {length / 1e6:.1f} MB of its bundle"
        self._open(part, target)
        return ""

    def keep(self, digests: Collection[str]) -> None:
        """Remove, and no longer fetch, what is not waited for.

        Raises:
            OSError: the disk refused.
        """
        wanted = {self._part(digest) for digest in digests}
        self._transfers.keep(wanted)
        for path in sorted(set(self._staging.iterdir()) - wanted):
            atomic.remove(path)

    def _open(self, part: Path, target: Target) -> None:
        staged = self._store.incoming(target.sha256)
        try:
            manifest = open_bundle(part, staged, limit_bytes=target.length)
            _compare(target, manifest)
            self._store.publish(staged, manifest.name, target.sha256)
        finally:
            atomic.remove(staged)

    def _is_here(self, model: str, digest: str) -> bool:
        try:
            self._store.verify(model, digest)
        except Damaged:
            return False
        return True

    def _part(self, digest: str) -> Path:
        return self._staging / f"{digest}.part"


def _compare(target: Target, manifest: Manifest) -> None:
    if problem := disagreement(target.facts, facts_of(manifest)):
        raise BundleRejected(f"its manifest is not what was signed: {problem}")
