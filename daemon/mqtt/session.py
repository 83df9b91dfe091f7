"""Session: one connection to the broker at a time, kept up for ever, in a thread of its own.

The event loop hands in commands (publish, acknowledge, unsubscribe) and gets `Events`, in the order
in which they happened. Both ways are bounded: commands by their callers' windows and by
`publish_unconfirmed`; messages by `HandOver`, which stops reading the socket while the event loop
is behind.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import threading
import time
from typing import TYPE_CHECKING

from daemon.mqtt.connection import Connection
from daemon.mqtt.crossing import (
    Acknowledge,
    Commands,
    Crossing,
    HandOver,
    Publish,
    ToLoop,
    Unsubscribe,
)

if TYPE_CHECKING:
    from daemon.mqtt.connection import Events, SessionSettings
    from daemon.mqtt.messages import Delivery, Publication

_log = logging.getLogger(f"inferd.{__name__}")

_STEADY_AFTER_S = 10.0
"""A connection that lasted this long was a good one: the next back-off starts from the least."""


class Session:
    """The connection. Use it from the event loop that `start` was called on."""

    def __init__(self, settings: SessionSettings, events: Events) -> None:
        self._settings = settings
        self._events = events
        self._stop = threading.Event()
        self._commands = Commands()
        self._thread = threading.Thread(target=self._run, name="inferd-mqtt", daemon=True)
        self._to_loop: ToLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin connecting, in the background; never fails, never waits."""
        self._commands.open()
        self._to_loop = ToLoop(loop)
        self._thread.start()

    def publish(self, connection: int, token: int, publication: Publication) -> None:
        """Send a QoS 1 message; `on_published` follows with this token, unless the connection goes.

        The caller keeps no more open than the broker's receive maximum.
        """
        self._commands.put(connection, Publish(token, publication))

    def publish_unconfirmed(self, connection: int, publication: Publication) -> bool:
        """Send a QoS 0 message; False when too many wait for the socket already: it is dropped."""
        return self._commands.put_unconfirmed(connection, Publish(0, publication))

    def acknowledge(self, delivery: Delivery) -> None:
        """This message is done with; its PUBACK leaves when those of earlier ones have."""
        if delivery.qos > 0:
            self._commands.put(delivery.connection, Acknowledge(delivery.mid))

    def unsubscribe(self, connection: int) -> None:
        """Ask for no more messages."""
        self._commands.put(connection, Unsubscribe())

    async def stop(self, timeout_s: float) -> None:
        """Disconnect in good order, so that no last will is published, and end the thread."""
        self._stop.set()
        self._commands.wake()
        await asyncio.to_thread(self._thread.join, timeout_s)
        if self._thread.is_alive():  # still in a name look-up; it touches nothing of ours any more
            _log.warning("mqtt thread did not end in time timeout_s=%s", timeout_s)
            return
        self._commands.close()

    def _run(self) -> None:
        """The thread."""
        assert self._to_loop is not None  # noqa: S101 (for the type checker)
        crossing = Crossing(
            commands=self._commands,
            to_loop=self._to_loop,
            hand_over=HandOver(self._settings.max_payload_bytes, self._stop),
        )
        backoff = _Backoff(self._settings.backoff_first_s, self._settings.backoff_most_s)
        for number in itertools.count(1):
            began = time.monotonic()
            connection = Connection(number, self._settings, self._events, crossing)
            try:
                connection.converse(self._stop)
            except Exception:  # noqa: BLE001 (top of a thread: a broken packet must not end it)
                _log.exception("mqtt connection failed unexpectedly connection=%d", number)
            finally:
                connection.close()
            if time.monotonic() - began > _STEADY_AFTER_S:
                backoff.reset()
            if self._stop.wait(backoff.next_s()):
                return


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
