"""Outbox: results that wait on disk, oldest first, through a restart and a loss of power.

What is true at each crash point:
1. Before `append` returns: none or all of its results are on disk.
2. After `append` has returned: they are on disk, through a loss of power (WAL, synchronous FULL).
3. Between the broker's acknowledgement and `remove`: they are still on disk and leave once more.
   So each leaves at least once.
4. A file that cannot be read is moved aside, to FILE.corrupt, and an empty one takes its place.

Writes are few, for the sake of SD cards: nothing is written, and no file made, until the first
result has to wait; waiting results are appended, and sent ones removed, many in one transaction.
A full outbox keeps what it has and refuses what comes: the older result was promised first.

Not thread-safe, and not for the event loop: every method may wait for the disk.
"""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.mqtt.messages import Publication

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_log = logging.getLogger(f"inferd.{__name__}")

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS result (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    content_type TEXT NOT NULL,
    correlation BLOB,
    request_id TEXT NOT NULL
)
"""
_ROW_OVERHEAD_BYTES = 64
"""What a row costs on disk besides its topic and payload, roughly: it counts against max_bytes."""

_BUSY_TIMEOUT_S = 1.0
"""Another daemon on the same state folder is a mistake: say so soon."""


class OutboxUnusable(Exception):
    """The disk refused: full, read-only, or held by another process. It may work later."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A result on disk.

    Attributes:
        row: its place in the order; grows, and is never used twice.
    """

    row: int
    publication: Publication


class Outbox:
    """A bounded queue of QoS 1 results in one file.

    Args:
        path: of the file; its folder is made when it is needed.
        max_messages, max_bytes: bounds of what waits; bytes of topics and payloads.
    """

    def __init__(self, path: Path, *, max_messages: int, max_bytes: int) -> None:
        self._path = path
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._database: sqlite3.Connection | None = None
        self._messages = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._messages

    @property
    def size_bytes(self) -> int:
        """Topics and payloads that wait, in bytes."""
        return self._bytes

    def open(self) -> None:
        """Take up what an earlier run left; makes nothing when it left nothing.

        Raises:
            OutboxUnusable: the disk refused.
        """
        if self._path.exists():
            self._connect()

    def append(self, publications: Sequence[Publication]) -> int:
        """Put results at the end, in order, all in one transaction.

        Returns:
            How many found a place, from the first; the rest are refused because it is full.

        Raises:
            OutboxUnusable: the disk refused; none of them is in.
        """
        accepted, added_bytes = self._fit(publications)
        if not accepted:
            return 0
        try:
            self._insert(accepted)
        except sqlite3.DatabaseError as exc:
            self._recover_from(exc)
            self._insert_again(accepted)
        self._messages += len(accepted)
        self._bytes += added_bytes
        return len(accepted)

    def peek(self, *, after_row: int, limit: int) -> tuple[Stored, ...]:
        """The oldest results beyond a row, at most `limit`.

        Raises:
            OutboxUnusable: the disk refused.
        """
        if not self._messages:
            return ()
        try:
            return tuple(_stored(row) for row in self._select(after_row, limit))
        except sqlite3.DatabaseError as exc:
            self._recover_from(exc)
            return ()

    def remove(self, rows: Iterable[int]) -> None:
        """Forget results that the broker has acknowledged, all in one transaction.

        Raises:
            OutboxUnusable: the disk refused; they will leave once more.
        """
        gone = [(row,) for row in rows]
        if not gone or self._database is None:
            return
        try:
            with self._database as transaction:
                transaction.execute("BEGIN IMMEDIATE")
                transaction.executemany("DELETE FROM result WHERE id = ?", gone)
            self._count()
            # Power lost here: the rows may come back with the last checkpoint, and leave again.
            if not self._messages:
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.DatabaseError as exc:
            self._recover_from(exc)

    def close(self) -> None:
        """Let go of the file; what waits stays in it."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _fit(self, publications: Sequence[Publication]) -> tuple[list[Publication], int]:
        accepted: list[Publication] = []
        added_bytes = 0
        for publication in publications:
            size = _row_bytes(publication)
            if self._messages + len(accepted) >= self._max_messages:
                break
            if self._bytes + added_bytes + size > self._max_bytes:
                break
            accepted.append(publication)
            added_bytes += size
        return accepted, added_bytes

    def _insert(self, publications: Sequence[Publication]) -> None:
        if self._database is None:
            self._connect()
        assert self._database is not None  # noqa: S101 (for the type checker)
        with self._database as transaction:
            transaction.execute("BEGIN IMMEDIATE")
            transaction.executemany(
                "INSERT INTO result (topic, payload, content_type, correlation, request_id)"
                " VALUES (?, ?, ?, ?, ?)",
                [
                    (p.topic, p.payload, p.content_type, p.correlation, p.request_id)
                    for p in publications
                ],
            )
        # Power lost before this line: rolled back. After it: they stay.

    def _insert_again(self, publications: Sequence[Publication]) -> None:
        try:
            self._insert(publications)
        except sqlite3.DatabaseError as exc:
            raise OutboxUnusable(str(exc)) from exc

    def _select(self, after_row: int, limit: int) -> list[tuple[int, str, bytes, str, bytes, str]]:
        assert self._database is not None  # noqa: S101 (for the type checker)
        return self._database.execute(
            "SELECT id, topic, payload, content_type, correlation, request_id"
            " FROM result WHERE id > ? ORDER BY id LIMIT ?",
            (after_row, limit),
        ).fetchall()

    def _connect(self) -> None:
        try:
            self._open_database()
        except sqlite3.OperationalError as exc:
            self.close()
            raise OutboxUnusable(str(exc)) from exc
        except sqlite3.DatabaseError as exc:
            self._move_aside(exc)
            self._open_fresh()
        except OSError as exc:
            raise OutboxUnusable(str(exc)) from exc

    def _open_fresh(self) -> None:
        try:
            self._open_database()
        except (sqlite3.DatabaseError, OSError) as exc:
            self.close()
            raise OutboxUnusable(str(exc)) from exc

    def _open_database(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        run = self._database.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        if run("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("the quick check found damage")
        if run("PRAGMA user_version").fetchone()[0] not in (0, _SCHEMA_VERSION):
            raise sqlite3.DatabaseError("it was written by another version")
        run("BEGIN IMMEDIATE")
        run(_SCHEMA)
        run(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        run("COMMIT")
        self._count()

    def _count(self) -> None:
        assert self._database is not None  # noqa: S101 (for the type checker)
        self._messages, self._bytes = self._database.execute(
            "SELECT count(*), coalesce(sum(length(CAST(topic AS BLOB)) + length(payload) + ?), 0)"
            " FROM result",
            (_ROW_OVERHEAD_BYTES,),
        ).fetchone()

    def _recover_from(self, exc: sqlite3.DatabaseError) -> None:
        """After damage: an empty outbox. After anything else: `OutboxUnusable`."""
        if isinstance(exc, sqlite3.OperationalError):
            raise OutboxUnusable(str(exc)) from exc
        self._move_aside(exc)
        self._open_fresh()

    def _move_aside(self, cause: sqlite3.DatabaseError) -> None:
        self.close()
        self._messages = self._bytes = 0
        aside = self._path.with_name(self._path.name + ".corrupt")
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._path.replace(aside)
        _log.error(
            "outbox damaged, starting an empty one; results that waited in it are lost"
            " cause=%s kept=%s",
            cause,
            aside,
        )


def _row_bytes(publication: Publication) -> int:
    return len(publication.topic.encode()) + len(publication.payload) + _ROW_OVERHEAD_BYTES


def _stored(row: tuple[int, str, bytes, str, bytes | None, str]) -> Stored:
    number, topic, payload, content_type, correlation, request_id = row
    return Stored(
        row=number,
        publication=Publication(
            topic=topic,
            payload=payload,
            content_type=content_type,
            correlation=correlation,
            request_id=request_id,
        ),
    )
