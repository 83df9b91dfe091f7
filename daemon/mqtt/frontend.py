"""MqttFrontEnd: takes requests from a broker and gives the answers back; starts, runs and stops.

A request's way: session -> here (place or refusal) -> handler -> sender -> session. It is
acknowledged to the broker when its answer is safe: acknowledged by the broker, or on disk.

What the updater has done leaves on the same way, from the disk; hints that there may be updates
come in, and are passed on to it.

A broker that is away at the start, or later, holds nobody up: the session keeps trying.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import orjson

from daemon.config import parse_mqtt_url
from daemon.documents import DocumentThread
from daemon.errors import ConfigError, NotKept, Overloaded, RefusalReason, shorten
from daemon.mqtt.connection import SessionSettings, Will
from daemon.mqtt.handler import Handler
from daemon.mqtt.hints import Hints
from daemon.mqtt.messages import BrokerLimits, Delivery, Publication, Receipt
from daemon.mqtt.outbox import Outbox, OutboxUnusable
from daemon.mqtt.sender import Sender
from daemon.mqtt.session import Session
from daemon.mqtt.statedocument import StateNews, state_document
from daemon.mqtt.topics import ANY_DEVICE, Command, Topics, encode_level
from daemon.updates import UpdateBoard, event_document
from daemon.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from accelerators.inventory import DeviceInventory
    from daemon.config import MqttTable
    from daemon.metrics import Metrics
    from daemon.service import InferenceService
    from daemon.updates import UpdateEvent

_log = logging.getLogger(f"inferd.{__name__}")

_ONLINE = b"online"
_OFFLINE = b"offline"

_STATE_INTERVAL_S = 1.0
"""How often the state is looked at; it is published when it has changed."""

_FAREWELL_S = 2.0
"""For the last answers, the last announcement and the thread, each: what is durable and has not
left by then is on disk for the next start."""

_MAX_WAITING = 1000
"""QoS 1 requests that wait here for a place. A broker that keeps to our receive maximum leaves them
with itself; mosquitto 2.0.11 (Debian 12) sends a whole window more for every acknowledgement, up to
the 1000 messages that it queues by default. QoS 0 has no window: as many wait as may run."""

_HELD_PAYLOADS = 4
"""Requests under way may together be so many times the largest payload, in bytes."""

_EVENTS_SHARE = 4
"""Of the outbox, events take one part in so many at most: they are safe in the updater's history,
and results are nowhere else."""

_MIB = 1024 * 1024


class MqttFrontEnd:
    """The MQTT front end of one appliance.

    Args:
        config: with a `url`.
        device_id: names the appliance in topics.
        state_dir: where the outbox lies.
        documents: the thread that reads and writes large documents; one of its own when None.
        inventory: the devices of this machine; None to tell of none.
        updates: what the updater has said; None for nothing.
        pass_hint_on: tells the updater to look; bounded, raises a DaemonError. None: no updater.
        backoff_first_s, backoff_most_s: wait before the first and the latest reconnect.
        settle_s: how long delayed results wait for those who asked to be back at the broker.
    """

    def __init__(
        self,
        config: MqttTable,
        *,
        device_id: str,
        service: InferenceService,
        metrics: Metrics,
        state_dir: Path,
        documents: DocumentThread | None = None,
        inventory: DeviceInventory | None = None,
        updates: UpdateBoard | None = None,
        pass_hint_on: Callable[[], Awaitable[object]] | None = None,
        backoff_first_s: float = 1.0,
        backoff_most_s: float = 30.0,
        settle_s: float = 2.0,
    ) -> None:
        if device_id == ANY_DEVICE:
            raise ConfigError((f"device.id: '{ANY_DEVICE}' means every appliance; name this one",))
        self._config = config
        self._device_id = device_id
        self._service = service
        self._metrics = metrics
        self._topics = Topics(encode_level(device_id), config.shared_group)
        self._max_payload_bytes = config.max_payload_mib * _MIB
        self._handler = Handler(
            service,
            metrics,
            self._topics,
            max_payload_bytes=self._max_payload_bytes,
            documents=documents or DocumentThread(),
        )
        self._inventory = inventory
        self._ignore_devices: Callable[[], None] | None = None
        self._updates = updates or UpdateBoard()
        self._hints = None if pass_hint_on is None else Hints(pass_hint_on)
        self._session = Session(self._settings(backoff_first_s, backoff_most_s), self)
        self._sender = Sender(
            self._session,
            Outbox(
                state_dir / "mqtt-outbox.db",
                max_messages=config.outbox_max_messages,
                max_bytes=config.outbox_max_mib * _MIB,
            ),
            on_outbox=metrics.mqtt_outbox,
            on_lost=self._note_lost,
            settle_s=settle_s,
        )
        self._connection = 0  # 0 while there is none
        self._failure = "not started"
        self._waiting: deque[tuple[Delivery, Command]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._held_bytes = 0
        self._lost_results = 0
        self._news = StateNews()
        self._is_draining = False
        self._is_started = False
        self._state_task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and has not gone."""
        return self._connection != 0

    def status(self) -> dict[str, object]:
        """Facts for `/api/status`."""
        return {
            "enabled": True,
            "connected": self.connected,
            "reason": "" if self.connected else self._failure,
            "device": self._device_id,
            "requests_running": len(self._running),
            "requests_waiting": len(self._waiting),
            "outbox_messages": self._sender.outbox_messages,
            "lost_results": self._lost_results,
        }

    async def start(self) -> None:
        """Begin: take up the outbox and connect in the background."""
        self._is_started = True
        self._failure = "connecting"
        self._metrics.mqtt_connected(False)
        self._warn_of_open_password()
        await self._sender.start()
        if self._hints is not None:
            self._hints.start()
        self._session.start()
        if self._inventory is not None:
            # At once, since a device may be back before the state is looked at again.
            self._ignore_devices = self._inventory.subscribe(lambda _: self._publish_state(), ())
        self._state_task = asyncio.create_task(self._publish_states(), name="mqtt-state")

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, answer those under way, say `offline`, disconnect.

        Args:
            grace_s: how long requests under way, and their answers, may take.
        """
        if not self._is_started:
            return
        self._is_started = False
        deadline = time.monotonic() + grace_s
        self._is_draining = True
        if self._state_task is not None:
            self._state_task.cancel()
        if self._ignore_devices is not None:
            self._ignore_devices()
        if self._hints is not None:
            await self._hints.stop()
        if self.connected:
            self._session.unsubscribe(self._connection)
        await self._finish_requests(deadline)
        if self.connected:
            await self._sender.flush(min(_FAREWELL_S, max(0.0, deadline - time.monotonic())))
            self._sender.announce(Publication(self._topics.availability, _OFFLINE, retain=True))
            await self._sender.flush(_FAREWELL_S)
        await self._session.stop(_FAREWELL_S)
        await self._sender.stop()
        self._metrics.mqtt_connected(False)

    async def publish_updates(self, events: Sequence[UpdateEvent]) -> int:
        """Put events of the updater on disk, from where they leave when the broker is there.

        Returns:
            The number of the last one that found a place.

        Raises:
            NotKept: none of them did.
        """
        most = max(1, self._config.outbox_max_messages // _EVENTS_SHARE)
        room = most - self._sender.outbox_messages
        if room <= 0:
            raise NotKept("the outbox is full of what waits for the broker")
        try:
            kept = await self._sender.keep([self._publication(event) for event in events[:room]])
        except OutboxUnusable as exc:
            raise NotKept(f"the outbox cannot be used: {exc}") from exc
        if not kept:
            raise NotKept("the outbox is full")
        return events[kept - 1].sequence

    # What the session tells: `daemon.mqtt.connection.Events`.

    def on_connected(self, connection: int, limits: BrokerLimits) -> None:
        """Say that we are there, then send what waits."""
        self._connection = connection
        self._failure = ""
        self._metrics.mqtt_connected(True)
        _log.info(
            "mqtt connected device=%s max_packet_bytes=%s",
            self._device_id,
            limits.max_packet_bytes,
        )
        self._sender.connected(connection, limits)
        if self._is_draining:
            return
        self._sender.announce(
            Publication(self._topics.availability, _ONLINE, retain=True, content_type="text/plain")
        )
        self._news.forget()
        self._publish_state()

    def on_disconnected(self, connection: int, reason: str) -> None:
        """Keep what is not acknowledged; the session tries again."""
        if connection != self._connection:
            return
        self._connection = 0
        self._metrics.mqtt_connected(False)
        self._sender.disconnected()
        if not self._is_draining:
            self._note_failure(reason)

    def on_unreachable(self, reason: str) -> None:
        """Nothing to do but to say so once."""
        self._note_failure(reason)

    def on_delivery(self, delivery: Delivery) -> None:
        """Take a request up, let it wait for a place, or refuse it."""
        if self._hints is not None and delivery.topic in self._topics.hints:
            self._session.acknowledge(delivery)
            self._hints.came()
            return
        command = None if delivery.retained else self._topics.command(delivery.topic)
        if command is None:
            _log.debug("mqtt message ignored topic=%s", shorten(delivery.topic))
            self._session.acknowledge(delivery)
            return
        refusal = self._why_refused(delivery)
        if refusal is not None:
            self._submit(delivery, self._handler.refuse(delivery, command, refusal))
            return
        self._held_bytes += len(delivery.payload)
        self._waiting.append((delivery, command))
        self._take_up()

    def on_published(self, connection: int, token: int, receipt: Receipt) -> None:
        """A publication has arrived at the broker."""
        if connection == self._connection:
            self._sender.published(token, receipt)

    def _why_refused(self, delivery: Delivery) -> Overloaded | None:
        if self._is_draining:
            return _stopping()
        running, waiting = len(self._running), len(self._waiting)
        most_running = self._config.max_inflight
        most_waiting = _MAX_WAITING if delivery.qos else most_running
        if running >= most_running and waiting >= most_waiting:
            return Overloaded(
                f"{running} requests are under way and {waiting} wait",
                reason=RefusalReason.QUEUE_FULL,
            )
        held = self._held_bytes + len(delivery.payload)
        if self._held_bytes and held > _HELD_PAYLOADS * self._max_payload_bytes:
            return Overloaded(
                "the requests under way are too large together", reason=RefusalReason.QUEUE_FULL
            )
        return None

    def _take_up(self) -> None:
        while self._waiting and len(self._running) < self._config.max_inflight:
            delivery, command = self._waiting.popleft()
            task = asyncio.create_task(self._answer(delivery, command), name="mqtt-request")
            self._running.add(task)
            task.add_done_callback(self._finished)

    async def _answer(self, delivery: Delivery, command: Command) -> None:
        try:
            self._submit(delivery, await self._handler.answer(delivery, command))
        finally:
            self._held_bytes -= len(delivery.payload)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("mqtt request task failed", exc_info=error)
        self._take_up()

    def _submit(self, delivery: Delivery, publication: Publication) -> None:
        self._sender.submit(
            publication,
            lambda: self._session.acknowledge(delivery),
            is_late=delivery.connection != self._connection,
        )

    async def _finish_requests(self, deadline: float) -> None:
        while self._running:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            await asyncio.wait(self._running, timeout=left_s)
        while self._waiting:
            delivery, command = self._waiting.popleft()
            self._held_bytes -= len(delivery.payload)
            self._submit(delivery, self._handler.refuse(delivery, command, _stopping()))
        unfinished = tuple(self._running)
        for task in unfinished:
            task.cancel()
        if unfinished:
            _log.warning("mqtt requests given up at the stop count=%d", len(unfinished))
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _publish_states(self) -> None:
        while True:
            await asyncio.sleep(_STATE_INTERVAL_S)
            self._publish_state()

    def _publish_state(self) -> None:
        if not self.connected:
            return
        models, readiness = self._service.models(), self._service.readiness()
        devices = () if self._inventory is None else self._inventory.known()
        describe = partial(
            state_document, self._device_id, VERSION, models, readiness, devices=devices
        )
        state = describe(self._updates.report)
        is_news = self._news.is_news(
            state, lambda: describe(self._updates.core), now=time.monotonic()
        )
        if not is_news:
            return
        self._sender.announce(Publication(self._topics.state, state, retain=True))

    def _note_failure(self, reason: str) -> None:
        """Log it once for as long as it stays the same."""
        if reason == self._failure:
            return
        self._failure = reason
        _log.warning("mqtt not connected, trying again reason=%s", reason)

    def _note_lost(self, why: str) -> None:
        self._lost_results += 1
        _log.warning("mqtt result dropped reason=%s lost_results=%d", why, self._lost_results)

    def _warn_of_open_password(self) -> None:
        path = self._config.password_file
        if path is None:
            return
        try:
            mode = path.stat().st_mode
        except OSError:
            return  # connecting will say it
        if mode & 0o077:
            _log.warning(
                "mqtt password file can be read by others path=%s mode=%o", path, mode & 0o777
            )

    def _settings(self, backoff_first_s: float, backoff_most_s: float) -> SessionSettings:
        config = self._config
        address, is_tls = parse_mqtt_url(config.url)
        filters = [self._topics.requests, self._topics.shared_requests]
        return SessionSettings(
            host=address.host,
            port=address.port,
            tls=is_tls,
            client_id=config.client_id or f"inferd-{self._device_id}",
            mqtt5=config.protocol == "5",
            keepalive_s=config.keepalive_s,
            will=Will(self._topics.availability, _OFFLINE),
            subscriptions=tuple(wanted for wanted in filters if wanted is not None),
            standing=() if self._hints is None else self._topics.hints,
            receive_maximum=config.max_inflight,
            max_payload_bytes=self._max_payload_bytes,
            ca_file=config.ca_file,
            certificate=_pair(config.certificate_file, config.key_file),
            username=config.username,
            password_file=config.password_file,
            backoff_first_s=backoff_first_s,
            backoff_most_s=backoff_most_s,
        )

    def _publication(self, event: UpdateEvent) -> Publication:
        return Publication(
            self._topics.updates,
            orjson.dumps(event_document(self._device_id, event)),
            request_id=f"update-{event.sequence}",
        )


def _pair(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    return None if certificate is None or key is None else (certificate, key)


def _stopping() -> Overloaded:
    return Overloaded("this appliance is stopping", reason=RefusalReason.DRAINING)
