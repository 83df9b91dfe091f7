"""The way back from a release that has failed, or that an operator does not want.

In this order, each of it done again after a cut without harm:
1. It goes into quarantine, so that it is not tried again.
2. The link is turned to the release before. Where there was none, or it is damaged, the link goes:
   nothing is served rather than a release that failed.
3. The daemon serves that; when it is not there, it will when it starts.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from updater.daemonlink import DaemonRefused
from updater.errors import DaemonUnavailable, Damaged

if TYPE_CHECKING:
    from collections.abc import Callable

    from updater.daemonlink import DaemonLink
    from updater.journal import Record
    from updater.moves import Moves
    from updater.quarantine import Quarantine
    from updater.store import Store

_log = logging.getLogger(f"inferd.{__name__}")


class WayBack:
    """All that it needs. Blocks."""

    def __init__(
        self,
        moves: Moves,
        store: Store,
        quarantine: Quarantine,
        daemon: DaemonLink,
        clock: Callable[[], float],
    ) -> None:
        """Store only."""
        self._moves = moves
        self._store = store
        self._quarantine = quarantine
        self._daemon = daemon
        self._clock = clock

    def take(self, record: Record, runtime_version: str) -> str:
        """Go all of it, for a record in ROLLING_BACK.

        Args:
            runtime_version: that it has failed on.

        Returns:
            Why, and what has become of it when that is not what was before.

        Raises:
            OSError: the disk refused; to be done again.
        """
        self._condemn(record, runtime_version)
        self.turn_link(record)
        self._tell_daemon(record.model)
        if record.previous and self._store.current(record.model) is None:
            return f"{record.reason}; no release of the store is served now"
        return record.reason

    def turn_link(self, record: Record) -> None:
        """Only turn the link, which a daemon that starts goes by.

        Raises:
            OSError: the disk refused; to be done again.
        """
        model = record.model
        if self._store.current(model) != record.digest:
            return
        try:
            if record.previous:
                self._store.activate(model, record.previous)
                return
        except Damaged as exc:
            _log.error("there is no good release to go back to model=%s: %s", model, exc)
            reason = f"it is damaged: {exc}"
            self._moves.note(model, "nothing to go back to", digest=record.previous, reason=reason)
        self._store.deactivate(model)

    def _condemn(self, record: Record, runtime_version: str) -> None:
        if self._quarantine.find(record.digest, runtime=runtime_version) is None:
            self._quarantine.add(
                record.digest,
                runtime=runtime_version,
                model=record.model,
                version=record.version,
                reason=record.reason,
                now=self._clock(),
            )

    def _tell_daemon(self, model: str) -> None:
        try:
            self._daemon.activate(model)
        except DaemonRefused as exc:
            _log.warning("nothing serves after the way back model=%s reason=%s", model, exc)
        except DaemonUnavailable as exc:
            # The link is turned: whenever the daemon starts, it starts with what was before.
            _log.warning("the daemon is not there to turn back model=%s: %s", model, exc)
