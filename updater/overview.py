"""Where each model stands: put together from its record, the store, and what has arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING

from updater.errors import BundleRejected
from updater.manifest import MANIFEST_NAME, parse_manifest
from updater.report import ModelStatus, model_status

if TYPE_CHECKING:
    from updater.store import Store
    from updater.walk import Stand, Walk

_MOST_VERSIONS = 2000
"""Of releases, remembered by digest."""


class Overview:
    """Reads only; any thread may."""

    def __init__(self, store: Store, walk: Walk) -> None:
        """Store only."""
        self._store = store
        self._walk = walk
        self._versions: dict[str, int] = {}

    def of(self, stand: Stand) -> ModelStatus:
        """Where a model stands.

        Raises:
            OSError: the disk cannot be read.
        """
        record = stand.record
        current = self._store.current(record.model) or ""
        return model_status(
            record,
            current=current,
            current_version=self.version(record.model, current),
            arrived_bytes=self._walk.arrived_bytes(record),
            waiting_for=stand.waiting_for,
        )

    def version(self, model: str, digest: str) -> int:
        """Of a release in the store; 0 for none, or where it cannot be told."""
        if digest and digest not in self._versions:
            release = self._store.release(model, digest)
            try:
                version = parse_manifest((release / MANIFEST_NAME).read_bytes()).version
            except (OSError, BundleRejected):
                return 0
            if len(self._versions) >= _MOST_VERSIONS:
                self._versions = {}
            self._versions = {**self._versions, digest: version}
        return self._versions.get(digest, 0)
