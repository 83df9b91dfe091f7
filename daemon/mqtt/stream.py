"""Stream: the broker's bytes cut into packets, and ours gathered into few writes.

Below it is a transport of asyncio. To paho, which reads and writes the rare packets, it is a socket
that never blocks.

What is sent in one turn of the event loop leaves in one write: a system call costs more than all
the rest of a small answer. Bounds: reading can be paused, so that little more than one packet waits
here; what waits to be sent is bounded by whoever sends, who looks at `is_congested` first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

from daemon.mqtt.packets import find_body

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE_BYTES = 256 * 1024
"""Written at a time, at most: TLS encrypts it in one go, in a quarter of a millisecond."""


class Stream(asyncio.Protocol):
    """The bytes of one connection.

    Args:
        on_readable: called when something came, or the end.
        on_writable: called when it has written and is not congested.
    """

    def __init__(self, on_readable: Callable[[], None], on_writable: Callable[[], None]) -> None:
        self._on_readable = on_readable
        self._on_writable = on_writable
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._position = 0  # in it: what is before has been read
        self._for_paho = b""
        self._is_paused = False
        self._unsent: deque[bytes | bytearray | memoryview] = deque()
        self._unsent_bytes = 0
        self._will_write = False
        self._is_full = False
        self._is_closing = False
        self._is_lost = False
        self._error: Exception | None = None

    @property
    def is_lost(self) -> bool:
        """The transport is gone: nothing comes any more, and what is sent goes nowhere."""
        return self._is_lost

    @property
    def error(self) -> Exception | None:
        """Why it is gone; None when the broker closed it, or we did."""
        return self._error

    @property
    def is_congested(self) -> bool:
        """The broker reads too slowly: better keep what could be sent."""
        return self._is_full or self._unsent_bytes > _PIECE_BYTES

    def next_packet(self) -> tuple[int, memoryview] | None:
        """The first byte and the body of the next packet; None while it is not all here.

        The view must be gone before the event loop gets its turn.

        Raises:
            BrokenPacket: there is none.
        """
        start = self._position
        bounds = find_body(self._received, start)
        if bounds is None or bounds[1] > len(self._received):
            return None
        self._position = bounds[1]
        return self._received[start], memoryview(self._received)[bounds[0] : bounds[1]]

    def give_to_paho(self, packet: bytes) -> None:
        """Let paho receive this."""
        self._for_paho += packet

    def pause_reading(self) -> None:
        """Leave what comes with the kernel, and so with the broker."""
        if self._transport is not None and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take again what comes."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._is_lost = True
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls: `asyncio.Protocol`.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._position:
            del self._received[: self._position]
            self._position = 0
        self._received += data
        self._on_readable()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by whomever."""
        self._is_lost = True
        self._error = exc
        self._unsent.clear()
        self._on_readable()

    def pause_writing(self) -> None:
        """The transport has more than it likes."""
        self._is_full = True

    def resume_writing(self) -> None:
        """The transport takes more."""
        self._is_full = False
        self._write()

    # What paho calls: its `SocketLike`.

    def recv(self, buffer_size: int) -> bytes:
        """At most so many bytes of what was handed to it.

        Raises:
            BlockingIOError: there are none.
        """
        if not self._for_paho:
            raise BlockingIOError
        data = self._for_paho[:buffer_size]
        self._for_paho = self._for_paho[buffer_size:]
        return data

    def send(self, buffer: bytes | bytearray) -> int:
        """Take all of it, to be sent in this turn of the event loop; it must not change any more.

        Nothing fails here: a connection that is gone is told by `on_readable`.
        """
        if self._is_lost:
            return len(buffer)
        self._unsent.append(buffer)
        self._unsent_bytes += len(buffer)
        self._write_soon()
        return len(buffer)

    def close(self) -> None:
        """Close when all is sent."""
        self._is_closing = True
        if not self._is_lost:
            self._write_soon()

    def fileno(self) -> int:
        """None: only loops of paho's own would ask."""
        return -1

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 (paho's interface)
        """It never blocks."""

    def _write_soon(self) -> None:
        if not self._will_write:
            self._will_write = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._will_write = False
        if self._transport is None or self._is_lost:
            return
        while self._unsent and not self._is_full:
            piece = self._next_piece()
            self._unsent_bytes -= len(piece)
            self._transport.write(piece)
        if not self.is_congested:
            self._on_writable()
        if self._is_closing and not self._unsent:
            self._transport.close()

    def _next_piece(self) -> bytes | bytearray | memoryview:
        first = self._unsent.popleft()
        if len(first) > _PIECE_BYTES:
            view = memoryview(first)
            self._unsent.appendleft(view[_PIECE_BYTES:])
            return view[:_PIECE_BYTES]
        size = len(first)
        pieces = [first]
        while self._unsent and size + len(self._unsent[0]) <= _PIECE_BYTES:
            pieces.append(self._unsent.popleft())
            size += len(pieces[-1])
        return first if len(pieces) == 1 else b"".join(pieces)
