"""Session: one connection to the broker at a time, kept up for ever, in a task of the event loop.

It tells `Events`, in the order in which they happened, and takes publications and acknowledgements,
which leave in the order in which they are given. All of it is bounded: by the callers' windows, and
by `publish_unconfirmed`, which refuses.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from typing import TYPE_CHECKING

from daemon.mqtt.connection import Connection

if TYPE_CHECKING:
    from daemon.mqtt.connection import Events, SessionSettings
    from daemon.mqtt.messages import Delivery, Publication

_log = logging.getLogger(f"inferd.{__name__}")

_STEADY_AFTER_S = 10.0
"""A connection that lasted this long was a good one: the next back-off starts from the least."""


class Session:
    """The connection there is, and the next ones."""

    def __init__(self, settings: SessionSettings, events: Events) -> None:
        self._settings = settings
        self._events = events
        self._number = 0
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin connecting, in the background; never fails, never waits."""
        self._task = asyncio.create_task(self._run(), name="mqtt-session")

    def publish(self, connection: int, token: int, publication: Publication) -> None:
        """Send a QoS 1 message; `on_published` follows with this token, unless the connection goes.

        The caller keeps no more open than the broker's receive maximum.
        """
        if (current := self._current(connection)) is not None:
            current.publish(token, publication)

    def publish_unconfirmed(self, connection: int, publication: Publication) -> bool:
        """Send a QoS 0 message; False when too many wait for the socket already: it is dropped."""
        current = self._current(connection)
        return current is None or current.publish_unconfirmed(publication)

    def acknowledge(self, delivery: Delivery) -> None:
        """This message is done with; its PUBACK leaves when those of earlier ones have."""
        if delivery.qos > 0 and (current := self._current(delivery.connection)) is not None:
            current.acknowledge(delivery.mid)

    def unsubscribe(self, connection: int) -> None:
        """Ask for no more messages."""
        if (current := self._current(connection)) is not None:
            current.unsubscribe()

    async def stop(self, timeout_s: float) -> None:
        """Disconnect in good order, so that no last will is published, and end."""
        task, self._task = self._task, None
        if task is None:
            return
        if self._connection is not None:
            self._connection.leave()
            if self._connection.is_open:
                await asyncio.wait({task}, timeout=timeout_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _current(self, connection: int) -> Connection | None:
        """The connection of this number; None when it is gone, and its owner knows or will."""
        return self._connection if connection == self._number else None

    async def _run(self) -> None:
        backoff = _Backoff(self._settings.backoff_first_s, self._settings.backoff_most_s)
        for number in itertools.count(1):
            began = time.monotonic()
            await self._connect_once(number)
            if self._task is None:
                return  # it was asked to leave
            if time.monotonic() - began > _STEADY_AFTER_S:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def _connect_once(self, number: int) -> None:
        self._number = number
        self._connection = Connection(number, self._settings, self._events)
        try:
            await self._connection.converse()
        except Exception:  # noqa: BLE001 (top of a task: whatever it is, the next one follows)
            _log.exception("mqtt connection failed unexpectedly connection=%d", number)
        finally:
            connection, self._connection = self._connection, None
            connection.close()


class _Backoff:
    """How long to wait before the next try: doubling, with jitter so that a fleet spreads out."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._base_s = first_s

    def next_s(self) -> float:
        """Between half of it and all of it."""
        base_s = self._base_s
        self._base_s = min(self._most_s, base_s * 2)
        return base_s * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)

    def reset(self) -> None:
        self._base_s = self._first_s
