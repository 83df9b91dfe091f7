"""Sender: what leaves, in which order, and what becomes of it when the broker goes away.

Rules:
1. Announcements (availability, state) leave first; of one topic only the newest.
2. QoS 1 results leave in the order in which they were submitted, those on disk and those in memory
   each; at most a window of them is in flight.
3. A durable result (QoS 1, no expiry) is *settled*, so that its request may be acknowledged, when
   the broker has acknowledged it or when it is on disk; never before.
4. While the broker is away durable results go to disk. When a connection is lost, those in flight
   follow, in their order; the broker may have some of them already and gets them again.
5. Those on disk leave a moment after the broker has come back, since the ones who asked lost the
   same broker and must be back to hear them; so goes a result whose request came by an earlier
   connection. Of each topic one is sent ahead, and what is behind it on disk waits for the broker's
   word. Nobody was subscribed (MQTT 5 brokers tell): the topic's results stay, in their order, and
   the first is tried again, with growing waits, for `_GIVE_UP_S`. It was heard: the others follow.
   Fresh results go past them.
6. Results that may expire wait in memory, a bounded number of them, and are dropped when they have.
7. QoS 0 results are sent or dropped at once.
8. What is larger than the broker's Maximum Packet Size is never given to the client library, which
   would send it again for ever: a small refusal takes its place. A broker that names no limit and
   closes the connection instead is found out: see `_Suspicion`.

Lives on the event loop; the disk is asked in one thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from daemon.errors import shorten
from daemon.mqtt.messages import BrokerLimits, Publication, Receipt, ReceiptKind, packet_bytes
from daemon.mqtt.outbox import Outbox, OutboxUnusable
from daemon.mqtt.refusals import too_large_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from daemon.mqtt.outbox import Stored

    T = TypeVar("T")

_log = logging.getLogger(f"inferd.{__name__}")

_WINDOW = 20
"""QoS 1 messages in flight: enough to hide the round trip to a distant broker. The broker's own
receive maximum may be less."""

_REMOVE_AT = 64
"""Acknowledged rows are removed from disk in batches of this size, or when nothing is left."""

_MAX_EXPIRING = 1000
"""Results that may expire and wait in memory for the broker."""

_MAX_IN_MEMORY = 256
"""Durable results that wait for a window place in memory; beyond it they go to disk too."""

_RETRY_DISK_S = 5.0
"""After the disk has refused."""

_RETRY_FIRST_S = 1.0
_RETRY_MOST_S = 30.0
_GIVE_UP_S = 600.0
"""Results that nobody was there to hear: first wait, longest wait, and how long after the broker
has come back they count as delivered after all."""

_SUSPECT_BYTES = 256
"""Smaller messages are never suspected: every broker takes them."""

_SUSPECT_AFTER = 3
"""Connections that must have been lost on the same message, without one acknowledgement."""


class Link(Protocol):
    """What the sender needs of a session."""

    def publish(self, connection: int, token: int, publication: Publication) -> None:
        """Send with QoS 1."""

    def publish_unconfirmed(self, connection: int, publication: Publication) -> bool:
        """Send with QoS 0; False when it was dropped."""


@dataclass(slots=True)
class _Waiting:
    """A QoS 1 message on its way.

    Attributes:
        settled: to be called once, when its request may be acknowledged.
        number: counts what was submitted, so that the disk gets it in that order.
        row: on disk; 0 for one that is not there.
        is_replaced: a refusal has taken the result's place.
    """

    publication: Publication
    settled: Callable[[], None]
    number: int = 0
    row: int = 0
    is_replaced: bool = False

    @property
    def is_announcement(self) -> bool:
        """It answers nobody, and is said anew at the next connection."""
        return not self.publication.request_id


class _Topic(Enum):
    """What is known of a topic for which results are on disk, in one pass through them."""

    TRIED = "tried"  # its first result is in flight; the others wait for the broker's word
    HEARD = "heard"  # somebody listens, as far as the broker tells: all of them may leave
    UNHEARD = "unheard"  # nobody listens: none leaves before the next pass


@dataclass(frozen=True, slots=True)
class _Connected:
    """The connection there is now."""

    number: int
    limits: BrokerLimits
    since: float

    @property
    def window(self) -> int:
        return min(_WINDOW, self.limits.receive_maximum)


class Sender:
    """The way out for everything the front end publishes.

    Args:
        link: the session.
        outbox: not opened yet.
        on_outbox: told how many results wait on disk, whenever that changes.
        on_lost: told why, for every result that was dropped.
        settle_s: how long results on disk wait after a reconnect (rule 5).
    """

    def __init__(
        self,
        link: Link,
        outbox: Outbox,
        *,
        on_outbox: Callable[[int], None],
        on_lost: Callable[[str], None],
        settle_s: float,
    ) -> None:
        self._link = link
        self._outbox = outbox
        self._on_outbox = on_outbox
        self._on_lost = on_lost
        self._settle_s = settle_s
        self._connected: _Connected | None = None
        self._announcements: dict[str, Publication] = {}
        self._from_disk: deque[_Waiting] = deque()  # read, not sent yet
        self._memory: deque[_Waiting] = deque()
        self._in_flight: dict[int, _Waiting] = {}  # by token, in the order they were sent
        self._acknowledged_rows: list[int] = []
        self._last_token = 0
        self._last_number = 0
        self._last_row = 0  # of this pass through the disk: rows up to it have been read
        self._has_unread_rows = False
        self._topics: dict[str, _Topic] = {}  # of this pass; none: nothing was sent there yet
        self._next_pass: asyncio.TimerHandle | None = None  # while rows wait for their time
        self._retry_s = _RETRY_FIRST_S
        self._late: list[_Waiting] = []  # on the way to disk
        self._is_spilling = False
        self._suspicion = _Suspicion()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inferd-mqtt-outbox")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what an earlier run left on disk."""
        try:
            await self._on_disk(self._outbox.open)
        except OutboxUnusable as exc:
            _log.error("outbox cannot be opened cause=%s", exc)
        self._on_outbox(len(self._outbox))
        self._task = asyncio.create_task(self._run(), name="mqtt-outbox")

    async def stop(self) -> None:
        """Put what is durable on disk and close it. The session is gone already."""
        if self._task is None:
            return
        self.disconnected()
        # Not cancelled: what it is writing then would be written once more.
        self._stopping.set()
        self._wake.set()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        try:
            await self._tidy_disk()
            await self._spill()
        except OutboxUnusable as exc:
            _log.error(
                "results lost: the outbox cannot be written count=%d cause=%s",
                len(self._memory),
                exc,
            )
        await self._on_disk(self._outbox.close)
        self._disk.shutdown()

    @property
    def outbox_messages(self) -> int:
        """Results on disk."""
        return len(self._outbox)

    def submit(
        self, publication: Publication, settled: Callable[[], None], *, is_late: bool = False
    ) -> None:
        """Send a result.

        Args:
            settled: called once, when its request may be acknowledged.
            is_late: its request came by an earlier connection (rule 5).
        """
        if publication.qos == 0:
            self._send_unconfirmed(publication)
            settled()
            return
        self._last_number += 1
        waiting = _Waiting(publication, settled, number=self._last_number)
        self._idle.clear()
        if not publication.is_durable and self._count_expiring() >= _MAX_EXPIRING:
            self._lose(waiting, "too many results wait in memory")
            return
        if is_late and publication.is_durable:
            self._late.append(waiting)
            self._wake.set()
            return
        self._memory.append(waiting)
        self._send_ready()
        if self._connected is None or len(self._memory) > _MAX_IN_MEMORY:
            self._wake.set()

    async def keep(self, publications: Sequence[Publication]) -> int:
        """Put messages that answer nobody on disk at once; they leave from there (rule 5).

        Args:
            publications: QoS 1 without expiry, each with a request id.

        Returns:
            How many found a place, from the first.

        Raises:
            OutboxUnusable: the disk refused, or the sender does not run; none of them is kept.
        """
        if self._task is None or self._stopping.is_set():
            raise OutboxUnusable("MQTT does not run now")
        try:
            return await self._on_disk(self._outbox.append, publications)
        finally:  # also when whoever handed them over has left: they may be there all the same
            self._on_outbox(len(self._outbox))
            if self._connected is not None and self._next_pass is None:
                self._has_unread_rows = True
                self._idle.clear()
                self._wake.set()

    def announce(self, publication: Publication) -> None:
        """Send availability or state before anything else; nothing when there is no connection."""
        if self._connected is None:
            return
        self._idle.clear()
        self._announcements[publication.topic] = publication
        self._send_ready()

    def connected(self, number: int, limits: BrokerLimits) -> None:
        """There is a connection: begin with the oldest, those on disk a moment later."""
        self._connected = _Connected(number, limits, time.monotonic())
        self._retry_s = _RETRY_FIRST_S
        self._begin_pass_in(self._settle_s)
        self._send_ready()

    def disconnected(self) -> None:
        """The connection is gone: everything in flight must be sent again."""
        if self._connected is None:
            return
        self._connected = None
        self._announcements.clear()
        self._from_disk.clear()
        self._topics.clear()
        self._has_unread_rows = False
        if self._next_pass is not None:
            self._next_pass.cancel()
            self._next_pass = None
        lost = list(self._in_flight.values())
        self._in_flight.clear()
        unwritten = [w for w in lost if not (w.row or w.is_announcement)]
        self._memory.extendleft(reversed(unwritten))
        self._suspicion.connection_lost(lost[0].publication if lost else None)
        self._wake.set()

    def published(self, token: int, receipt: Receipt) -> None:
        """The broker has acknowledged, or refused, what went by this token."""
        waiting = self._in_flight.pop(token, None)
        if waiting is None or self._connected is None:
            return
        if not waiting.is_announcement:
            self._suspicion.acknowledged()
        match receipt.kind:
            case ReceiptKind.TAKEN | ReceiptKind.UNHEARD:
                if not self._must_be_heard_again(waiting, receipt, self._connected):
                    self._finish(waiting)
            case ReceiptKind.TOO_LARGE if not (waiting.is_announcement or waiting.is_replaced):
                self._resend_as_refusal(waiting, self._connected)
            case ReceiptKind.TOO_LARGE | ReceiptKind.REFUSED:
                self._lose(waiting, f"the broker refused it: {receipt.detail}")
        self._send_ready()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight and nothing waits; False when it took too long."""
        self._note_idle()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def _must_be_heard_again(
        self, waiting: _Waiting, receipt: Receipt, connected: _Connected
    ) -> bool:
        """Whether a result from disk stays there for the next pass (rule 5)."""
        if not waiting.row:
            return False
        topic = waiting.publication.topic
        if self._topics.get(topic) is _Topic.UNHEARD:
            return True  # who was heard again meanwhile has missed one before it
        if receipt.kind is ReceiptKind.TAKEN:
            self._topics[topic] = _Topic.HEARD
            return False
        if time.monotonic() - connected.since > _GIVE_UP_S:
            _log.info("mqtt result had no subscriber topic=%s", shorten(topic))
            self._topics[topic] = _Topic.HEARD
            return False
        self._topics[topic] = _Topic.UNHEARD
        return True

    def _begin_pass_in(self, delay_s: float) -> None:
        """Go through the disk from its beginning, after a while."""
        loop = asyncio.get_running_loop()
        self._next_pass = loop.call_later(delay_s, self._begin_pass)

    def _begin_pass(self) -> None:
        self._next_pass = None
        self._last_row = 0
        self._from_disk.clear()
        self._topics.clear()
        self._has_unread_rows = len(self._outbox) > 0
        self._wake.set()

    def _end_pass(self) -> None:
        """When all of the disk was tried: some of it, if it was not heard, once more later."""
        if not self._topics or self._has_unread_rows or self._from_disk or self._next_pass:
            return
        if any(waiting.row for waiting in self._in_flight.values()):
            return
        was_heard = _Topic.UNHEARD not in self._topics.values()
        self._topics.clear()
        if not was_heard:
            self._begin_pass_in(self._retry_s)
            self._retry_s = min(_RETRY_MOST_S, self._retry_s * 2)

    def _send_ready(self) -> None:
        """Send as much as the window takes, in the order of rules 1 and 2."""
        connected = self._connected
        if connected is None:
            return
        window = 1 if self._suspicion.is_raised else connected.window
        while len(self._in_flight) < window:
            waiting = self._next()
            if waiting is None:
                break
            self._send(waiting, connected)
        self._end_pass()
        self._note_idle()

    def _next(self) -> _Waiting | None:
        if self._announcements:
            topic = next(iter(self._announcements))
            return _Waiting(self._announcements.pop(topic), _nothing)
        if (waiting := self._next_from_disk()) is not None:
            return waiting
        if self._has_unread_rows and not self._from_disk:
            self._wake.set()
            return None
        if self._is_spilling:
            return None
        while self._memory:
            waiting = self._memory.popleft()
            expires_at = waiting.publication.expires_at
            if expires_at is None or expires_at > time.monotonic():
                return waiting
            self._lose(waiting, "it expired before the broker came back")
        return None

    def _next_from_disk(self) -> _Waiting | None:
        """None also while the next one waits for the broker's word on the one before it."""
        while self._from_disk:
            topic = self._from_disk[0].publication.topic
            match self._topics.get(topic):
                case _Topic.TRIED:
                    return None
                case _Topic.UNHEARD:
                    self._from_disk.popleft()
                case _Topic.HEARD:
                    return self._from_disk.popleft()
                case None:
                    self._topics[topic] = _Topic.TRIED
                    return self._from_disk.popleft()
        return None

    def _send(self, waiting: _Waiting, connected: _Connected) -> None:
        fitting = self._fit(waiting.publication, connected.limits)
        if fitting is None:
            self._lose(waiting, "over the broker's Maximum Packet Size")
            return
        self._last_token += 1
        self._in_flight[self._last_token] = waiting
        self._link.publish(connected.number, self._last_token, fitting)

    def _send_unconfirmed(self, publication: Publication) -> None:
        if self._connected is None:
            self._on_lost("the broker is away")
            return
        fitting = self._fit(publication, self._connected.limits)
        if fitting is None:
            self._on_lost("over the broker's Maximum Packet Size")
        elif not self._link.publish_unconfirmed(self._connected.number, fitting):
            self._on_lost("the broker reads too slowly")

    def _fit(self, publication: Publication, limits: BrokerLimits) -> Publication | None:
        """The publication, or its refusal, or None when not even that fits (rule 8)."""
        limit = limits.max_packet_bytes
        if self._suspicion.condemns(publication):
            return too_large_refusal(publication, None) if publication.request_id else None
        if limit is None or packet_bytes(publication) <= limit:
            return publication
        if not publication.request_id:
            return None
        refusal = too_large_refusal(publication, limit)
        return refusal if packet_bytes(refusal) <= limit else None

    def _resend_as_refusal(self, waiting: _Waiting, connected: _Connected) -> None:
        waiting.publication = too_large_refusal(waiting.publication, None)
        waiting.is_replaced = True
        self._send(waiting, connected)

    def _finish(self, waiting: _Waiting) -> None:
        if waiting.row:
            self._acknowledged_rows.append(waiting.row)
            if self._topics.get(waiting.publication.topic) is _Topic.TRIED:
                del self._topics[waiting.publication.topic]  # refused: the next one is tried
            self._wake.set()
        waiting.settled()

    def _lose(self, waiting: _Waiting, why: str) -> None:
        if waiting.is_announcement:
            _log.warning(
                "mqtt announcement dropped topic=%s why=%s", waiting.publication.topic, why
            )
        else:
            self._on_lost(why)
        self._finish(waiting)

    def _count_expiring(self) -> int:
        if len(self._memory) < _MAX_EXPIRING:
            return 0
        return sum(not waiting.publication.is_durable for waiting in self._memory)

    def _note_idle(self) -> None:
        is_busy = (
            self._in_flight
            or self._memory
            or self._from_disk
            or self._announcements
            or self._has_unread_rows
            or self._late
            or self._is_spilling
        )
        if is_busy:
            self._idle.clear()
        else:
            self._idle.set()

    async def _run(self) -> None:
        """Everything that asks the disk, one after the other."""
        while not self._stopping.is_set():
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._tidy_disk()
                if self._connected is None or self._late or len(self._memory) > _MAX_IN_MEMORY:
                    await self._spill()
                await self._read_rows()
            except OutboxUnusable as exc:
                _log.error(
                    "outbox cannot be used, results wait in memory count=%d cause=%s",
                    len(self._memory),
                    exc,
                )
                self._has_unread_rows = False
                self._shed_memory()
                self._send_ready()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _RETRY_DISK_S)
                if self._connected is not None and self._next_pass is None:
                    self._begin_pass()
                self._wake.set()
            self._send_ready()

    async def _tidy_disk(self) -> None:
        """Remove what the broker has acknowledged, when it is worth a write."""
        rows = self._acknowledged_rows
        is_drained = not self._from_disk and not self._has_unread_rows
        if not rows or (len(rows) < _REMOVE_AT and not is_drained and self._connected is not None):
            return
        self._acknowledged_rows = []
        await self._on_disk(self._outbox.remove, rows)
        self._on_outbox(len(self._outbox))

    async def _spill(self) -> None:
        """Put the durable results of the memory on disk, in order (rules 3 and 4)."""
        batch, self._late = self._late, []
        if self._connected is None or len(self._memory) > _MAX_IN_MEMORY:
            batch += [waiting for waiting in self._memory if waiting.publication.is_durable]
            self._memory = deque(w for w in self._memory if not w.publication.is_durable)
        if not batch:
            return
        batch.sort(key=_by_number)
        self._is_spilling = True
        try:
            accepted = await self._on_disk(self._outbox.append, [w.publication for w in batch])
        except BaseException:
            self._memory = deque(sorted([*batch, *self._memory], key=_by_number))
            raise
        finally:
            self._is_spilling = False
        self._has_unread_rows = self._connected is not None and self._next_pass is None
        self._on_outbox(len(self._outbox))
        for waiting in batch[:accepted]:
            waiting.settled()
        for waiting in batch[accepted:]:
            self._lose(waiting, "the outbox is full")

    async def _read_rows(self) -> None:
        connected = self._connected
        if connected is None or self._from_disk or not self._has_unread_rows:
            return
        after, limit = self._last_row, _WINDOW
        stored: Sequence[Stored] = await self._on_disk(
            lambda: self._outbox.peek(after_row=after, limit=limit)
        )
        if connected is not self._connected:
            return  # it went meanwhile; the next connection begins with the oldest row again
        gone = {*self._acknowledged_rows, *(w.row for w in self._in_flight.values())}
        self._from_disk.extend(
            _Waiting(s.publication, _nothing, row=s.row) for s in stored if s.row not in gone
        )
        self._wake.set()
        if stored:
            self._last_row = stored[-1].row
            return
        self._has_unread_rows = False

    def _shed_memory(self) -> None:
        while len(self._memory) > _MAX_IN_MEMORY:
            self._lose(self._memory.pop(), "the outbox cannot be written")

    async def _on_disk(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._disk, function, *arguments)


class _Suspicion:
    """Finds the message on which the broker closes the connection (rule 8).

    mosquitto with `max_packet_size` does so to clients of MQTT 3.1.1, which has no way to tell it.

    A message that was the first in flight whenever the connection was lost, several times in a row
    and with no result acknowledged in between, is sent alone; if the connection is lost once more,
    it is condemned: a result for as long as no other is acknowledged, an announcement for good.
    """

    def __init__(self) -> None:
        self._suspect: Publication | str | None = None
        self._losses = 0
        self._condemned_topics: set[str] = set()

    @property
    def is_raised(self) -> bool:
        """Send one at a time."""
        return self._losses >= _SUSPECT_AFTER

    def connection_lost(self, first_in_flight: Publication | None) -> None:
        """A connection went while this was the oldest that the broker had not acknowledged."""
        if first_in_flight is None:
            return
        if len(first_in_flight.payload) < _SUSPECT_BYTES:
            self.acknowledged()
            return
        identity = self._identity(first_in_flight)
        self._losses = self._losses + 1 if identity == self._suspect else 1
        self._suspect = identity
        if self._losses > _SUSPECT_AFTER and isinstance(identity, str):
            self._condemned_topics.add(identity)
            self.acknowledged()

    def acknowledged(self) -> None:
        """The broker takes the results that we send."""
        self._suspect = None
        self._losses = 0

    def condemns(self, publication: Publication) -> bool:
        """Whether it must not be sent."""
        if self._condemned_topics and publication.topic in self._condemned_topics:
            return True
        return self._losses > _SUSPECT_AFTER and self._identity(publication) == self._suspect

    def _identity(self, publication: Publication) -> Publication | str:
        """What an announcement says changes; that it is too large does not."""
        return publication if publication.request_id else publication.topic


def _by_number(waiting: _Waiting) -> int:
    return waiting.number


def _nothing() -> None:
    """For what has no request to acknowledge."""
