"""The bounded ways between the event loop and the session's thread.

To the thread: `Commands`, with a socket that wakes its selector. To the loop: `ToLoop`, calls in
the order they were made, and `HandOver`, which makes the thread wait while the loop is behind.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from daemon.mqtt.messages import Publication

_log = logging.getLogger(f"inferd.{__name__}")

_UNCONFIRMED_MESSAGES = 256
_UNCONFIRMED_BYTES = 64 * 2**20
"""QoS 0 answers that wait for a socket that takes no more; further ones are dropped."""

_HAND_OVER_MESSAGES = 64
_HAND_OVER_PAYLOADS = 2
"""Messages that the event loop has not looked at yet: so many, and so many times the largest
payload in bytes. It looks at them at once, so they only pile up while it is busy."""

_WAIT_S = 1.0
"""How often a waiting thread looks whether it should stop."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Send this. `token` comes back when the broker has acknowledged it; 0 with QoS 0."""

    token: int
    publication: Publication


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """This message is done with."""

    mid: int


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Ask for no more messages."""


Command = Publish | Acknowledge | Unsubscribe


class Commands:
    """Commands on their way to the thread, with a socket that wakes it."""

    def __init__(self) -> None:
        self._queue: deque[tuple[int, Command]] = deque()
        self._lock = threading.Lock()
        self._unconfirmed = 0
        self._unconfirmed_bytes = 0
        self._awake = False
        self._waker: socket.socket | None = None
        self.wake_socket: socket.socket | None = None

    def open(self) -> None:
        """Make the sockets."""
        self.wake_socket, self._waker = socket.socketpair()
        self.wake_socket.setblocking(False)
        self._waker.setblocking(False)

    def put(self, connection: int, command: Command) -> None:
        """Queue a command for this connection; their callers keep them few."""
        with self._lock:
            self._queue.append((connection, command))
        self.wake()

    def put_unconfirmed(self, connection: int, command: Publish) -> bool:
        """Queue a QoS 0 message; False when too many wait already."""
        size = len(command.publication.payload)
        with self._lock:
            if self._unconfirmed >= _UNCONFIRMED_MESSAGES:
                return False
            if self._unconfirmed and self._unconfirmed_bytes + size > _UNCONFIRMED_BYTES:
                return False
            self._unconfirmed += 1
            self._unconfirmed_bytes += size
            self._queue.append((connection, command))
        self.wake()
        return True

    def take(self) -> tuple[int, Command] | None:
        """The next command and its connection; None when there is none."""
        with self._lock:
            if not self._queue:
                return None
            connection, command = self._queue.popleft()
            if isinstance(command, Publish) and command.publication.qos == 0:
                self._unconfirmed -= 1
                self._unconfirmed_bytes -= len(command.publication.payload)
            return connection, command

    def wake(self) -> None:
        """Make the thread look at the queue."""
        if self._awake or self._waker is None:
            return
        self._awake = True
        with contextlib.suppress(OSError):  # full: it is awake
            self._waker.send(b"\0")

    def clear_wake(self) -> None:
        """The thread is about to look at the queue."""
        with contextlib.suppress(OSError):  # nothing in it
            if self.wake_socket is not None:
                self.wake_socket.recv(4096)
        self._awake = False  # before the queue is looked at, so that nothing is overlooked

    def close(self) -> None:
        """Close the sockets; the thread has ended."""
        for end in (self.wake_socket, self._waker):
            if end is not None:
                end.close()
        self.wake_socket = self._waker = None


class ToLoop:
    """Calls on their way to the event loop, which is woken once for many."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._scheduled = False

    def call(self, function: Callable[[], None]) -> None:
        """Have it called on the loop, after all that were given before it."""
        with self._lock:
            self._queue.append(function)
            if self._scheduled:
                return
            self._scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            _log.debug("mqtt event after the end of the event loop")

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._scheduled = False
                    return
                function = self._queue.popleft()
            function()


class HandOver:
    """How many messages, and bytes, the event loop has been given and not looked at."""

    def __init__(self, max_payload_bytes: int, stop: threading.Event) -> None:
        self._max_messages = _HAND_OVER_MESSAGES
        self._max_bytes = _HAND_OVER_PAYLOADS * max_payload_bytes
        self._stop = stop
        self._messages = 0
        self._bytes = 0
        self._changed = threading.Condition()

    def enter(self, size_bytes: int) -> bool:
        """Wait for a place; the first one always has one. False when the session is stopping."""
        with self._changed:
            while not self._has_place(size_bytes):
                if self._stop.is_set():
                    return False
                self._changed.wait(_WAIT_S)
            self._messages += 1
            self._bytes += size_bytes
        return True

    def leave(self, size_bytes: int) -> None:
        """The loop has looked at it."""
        with self._changed:
            self._messages -= 1
            self._bytes -= size_bytes
            self._changed.notify()

    def _has_place(self, size_bytes: int) -> bool:
        if self._messages == 0:
            return True
        if self._messages >= self._max_messages:
            return False
        return self._bytes + size_bytes <= self._max_bytes


@dataclass(frozen=True, slots=True)
class Crossing:
    """All ways of one session."""

    commands: Commands
    to_loop: ToLoop
    hand_over: HandOver
