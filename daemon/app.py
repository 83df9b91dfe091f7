"""Builds the daemon from its parts and runs it: start, ready, drain, stop.

The order of the calls is the life of the process:
1. Signals are ours from the first moment. The fork server was forked even before (`__main__.py`).
2. HTTP, so that /healthz and /readyz answer while models load; then the mark that this life has
   begun (`daemon/lives.py`), before any model can end it.
3. The fork server, where models run in processes unless they say otherwise; the devices that are
   here; then the models.
4. MQTT, and HTTP at sockets that were held for us, once the models are settled or `_SETTLE_S` have
   passed: a request that waited should find its model, and one model that hangs while it loads must
   not hold up the others.
5. READY to systemd, then wait for a signal.
6. Front ends stop taking requests and finish those under way; then models, then the fork server.
   All of it together has `life.drain_timeout_s`. The mark that it ended well comes last.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import CollectorRegistry

from accelerators.forkserver import ForkServer
from accelerators.hardware import Hardware
from accelerators.hosts import DeviceHosts
from accelerators.inventory import DeviceInventory
from accelerators.startpages import give_back_start_pages
from accelerators.trials import TrialBook
from accelerators.turns import Turns
from daemon.activation import inherited_sockets
from daemon.documents import DocumentThread
from daemon.errors import ConfigError
from daemon.hardware import hardware_settings
from daemon.lives import begin_life
from daemon.metrics import Metrics
from daemon.models.registry import ModelRegistry
from daemon.notify import Notifier, watchdog_interval_s
from daemon.pipeline.media import MediaLimits
from daemon.probe import Prober
from daemon.rest.context import RestContext
from daemon.rest.doors import Doors, open_doors
from daemon.rest.server import HttpServer
from daemon.rest.updaterlink import tell_updater
from daemon.selfcheck import answers
from daemon.service import InferenceService
from daemon.updates import UpdateBoard
from daemon.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from accelerators.earlyfork import Newborn
    from daemon.config import Config
    from daemon.lives import Life
    from daemon.mqtt.frontend import MqttFrontEnd

_log = logging.getLogger(f"inferd.{__name__}")

_SETTLE_S = 10.0
"""Longer than good models take to load on a small box, far below systemd's 90 s to be ready."""

_LOOK_S = 2.0
"""How long a token may still be good after it was taken out of the file."""

_DESCRIPTORS = 65536
"""One for each connection and seven for each worker; far above what any configuration needs."""


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon that answers.

    Attributes:
        addresses: where its HTTP is, e.g. "http://127.0.0.1:8080", "unix:/run/inferd/inferd.sock".
        stop: ends it in good order.
    """

    addresses: tuple[str, ...]
    service: InferenceService
    registry: ModelRegistry
    stop: Callable[[], None]


def run(
    config: Config,
    *,
    newborn: Newborn | None = None,
    reload: Callable[[], Config] | None = None,
    on_ready: Callable[[Running], None] | None = None,
) -> None:
    """`serve` in an event loop of its own; this process has no other thing to do.

    Raises:
        OSError, ConfigError, AcceleratorError: as `serve` says.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, newborn=newborn, reload=reload, on_ready=on_ready))


async def serve(
    config: Config,
    *,
    newborn: Newborn | None = None,
    reload: Callable[[], Config] | None = None,
    on_listening: Callable[[Running], None] | None = None,
    on_ready: Callable[[Running], None] | None = None,
    environment: Mapping[str, str] | None = None,
    handle_signals: bool = True,
) -> None:
    """Run until SIGTERM, SIGINT or `Running.stop`, and leave nothing behind.

    Args:
        config: what to run.
        newborn: a fork server that was forked early; taken over.
        reload: reads the configuration anew at SIGHUP; models and defaults take effect.
        on_listening: told when HTTP answers, before the models are loaded.
        on_ready: told when every wanted model answers or was refused.
        environment: where systemd's socket and watchdog are named.
        handle_signals: False where the caller owns the signals.

    Raises:
        OSError: an address cannot be listened on.
        ConfigError: the network could reach an address, and that was not allowed.
        AcceleratorError: no fork server can be had.
    """
    environment = os.environ if environment is None else environment
    life = _Life(config, environment, reload)
    async with AsyncExitStack() as stack:
        if handle_signals:
            life.own_signals(stack)
        stack.push(life.end)
        _raise_descriptor_limit()
        running, http, mqtt = await _assemble(config, newborn, stack, life)
        stack.callback(life.notifier.stopping)
        life.registry = running.registry
        if on_listening is not None:
            on_listening(running)
        async with asyncio.TaskGroup() as tasks:
            bringing_up = _bring_up(running, http, mqtt, life, on_ready)
            work = [tasks.create_task(bringing_up, name="bring-up")]
            interval_s = watchdog_interval_s(environment, os.getpid())
            if interval_s is not None:
                feeding = _feed(life.notifier, interval_s / 2, running.addresses)
                work.append(tasks.create_task(feeding, name="watchdog"))
            await life.stopping.wait()
            for task in work:
                task.cancel()
        _log.info("stopping drain_timeout_s=%.1f", config.life.drain_timeout_s)
        running.registry.begin_stop()
        life.begin_drain()


class _Life:
    """This life: its mark, its drain time, and what signals do."""

    def __init__(
        self,
        config: Config,
        environment: Mapping[str, str],
        reload: Callable[[], Config] | None,
    ) -> None:
        self.environment = environment
        self.notifier = Notifier(environment)
        self.stopping = asyncio.Event()
        self.registry: ModelRegistry | None = None
        self._mark: Life | None = None
        self._drain_s = config.life.drain_timeout_s
        self._drained_at = 0.0
        self._was_ready = False
        self._read = reload
        self._reloads = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def own_signals(self, stack: AsyncExitStack) -> None:
        """Take SIGTERM, SIGINT and SIGHUP until the very end.

        Where nothing can be read anew, SIGHUP is a closed terminal, and stops.
        """
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self.stopping.set,
            signal.SIGINT: self.stopping.set,
            signal.SIGHUP: self._on_hangup if self._read else self.stopping.set,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
            stack.callback(loop.remove_signal_handler, number)

    def is_ready(self, status: str) -> None:
        """The start is over."""
        self._was_ready = True
        self.notifier.ready(status)

    def begin(self, mark_path: Path) -> None:
        """Mark that this life has begun."""
        self._mark = begin_life(mark_path)

    def end(
        self, error: type[BaseException] | None, _: BaseException | None, __: object, /
    ) -> None:
        """Mark that it ended well, if it did: the last thing of an exit stack."""
        if self._mark is not None and error is None:
            self._mark.end()

    def begin_drain(self) -> None:
        """From now on the drain time runs, once for everything."""
        self._drained_at = time.monotonic() + self._drain_s

    @property
    def grace_s(self) -> float:
        """What is left of the drain time."""
        return max(0.0, self._drained_at - time.monotonic())

    def _on_hangup(self) -> None:
        if self._read is None or self.registry is None or self.stopping.is_set():
            return
        task = asyncio.create_task(self._reload(self._read, self.registry), name="reload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self, read: Callable[[], Config], registry: ModelRegistry) -> None:
        """Models and defaults change at once, the rest at the next start."""
        async with self._reloads:
            self.notifier.reloading()
            try:
                config = await asyncio.to_thread(read)
                logging.getLogger("inferd").setLevel(config.logs.level.upper())
                await registry.reconfigure(config)
                _log.info(
                    "configuration reloaded; [accelerators], [http], [mqtt] wait for the next start"
                )
            except ConfigError as error:
                for problem in error.problems:
                    _log.error("configuration not reloaded problem=%s", problem)
            finally:
                if self._was_ready:
                    self.notifier.ready()


async def _assemble(
    config: Config, newborn: Newborn | None, stack: AsyncExitStack, life: _Life
) -> tuple[Running, HttpServer, MqttFrontEnd | None]:
    """Build every object; HTTP listens when this returns. `stack` undoes it in reverse order."""
    metrics = Metrics(CollectorRegistry())
    forkserver = ForkServer(newborn)
    stack.push_async_callback(forkserver.stop)
    hardware = _build_hardware(config, forkserver)
    stack.push_async_callback(hardware.hosts.stop)
    stack.push_async_callback(hardware.inventory.stop)
    metrics.watch_devices(hardware.inventory)
    registry = ModelRegistry(config, forkserver=forkserver, metrics=metrics, hardware=hardware)
    stack.push_async_callback(_stop_registry, registry, life)
    media_executor = stack.enter_context(
        ThreadPoolExecutor(config.media.decode_threads, thread_name_prefix="media")
    )
    service = InferenceService(
        registry,
        metrics=metrics,
        media_limits=MediaLimits(
            max_pixels=config.media.max_pixels, max_audio_s=config.media.max_audio_s
        ),
        media_executor=media_executor,
    )
    documents = DocumentThread()
    stack.callback(documents.close)
    device_id = config.device.id or socket.gethostname()
    updates = UpdateBoard()
    updater_socket = config.socket_path.with_name("updater.sock")
    mqtt = _build_mqtt(
        config,
        device_id,
        service,
        metrics,
        documents,
        inventory=hardware.inventory,
        updates=updates,
        pass_hint_on=partial(tell_updater, updater_socket, "refresh", {"origin": "mqtt"}),
    )
    doors = open_doors(config.http)
    http = HttpServer(
        RestContext(
            guard=doors.guard,
            certificate=doors.certificate,
            prober=Prober(config, forkserver, service, hardware),
            store_dir=config.state_dir / "store",
            updater_socket=updater_socket,
            updates=updates,
            publish_events=mqtt.publish_updates if mqtt else None,
            service=service,
            metrics=metrics,
            inventory=hardware.inventory,
            config=config.http,
            version=VERSION,
            device_id=device_id,
            documents=documents,
            status=lambda: {"mqtt": mqtt.status() if mqtt else {"enabled": False}},
        )
    )
    addresses = await http.start(
        config.socket_path if config.http.unix_socket else None,
        inherited=inherited_sockets(life.environment, os.getpid()),
    )
    stack.push_async_callback(_cancel, _start_looking(doors, http))
    life.begin(config.socket_path.with_name("daemon.json"))
    stack.push_async_callback(_stop_front_end, http, life)
    if mqtt is not None:
        stack.push_async_callback(_stop_front_end, mqtt, life)
    running = Running(
        addresses=addresses, service=service, registry=registry, stop=life.stopping.set
    )
    give_back_start_pages()  # everything is imported, and no other thread has begun
    if config.defaults.isolation == "process":  # else the first model that wants one starts it
        await forkserver.start()
    await hardware.inventory.start()
    return running, http, mqtt


def _build_hardware(config: Config, forkserver: ForkServer) -> Hardware:
    return Hardware(
        forkserver=forkserver,
        inventory=DeviceInventory(hardware_settings(config), forkserver),
        hosts=DeviceHosts(forkserver),
        turns=Turns(),
        trials=TrialBook(config.state_dir / "devices" / "trials.json"),
    )


def _start_looking(doors: Doors, http: HttpServer) -> asyncio.Task[None] | None:
    """See to it that tokens and certificates which change take effect."""
    if not doors.have_files:
        return None

    async def look() -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            if await asyncio.to_thread(doors.look):
                http.forget_heads()

    return asyncio.create_task(look(), name="doors")


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait({task})


async def _stop_front_end(front_end: HttpServer | MqttFrontEnd, life: _Life) -> None:
    await front_end.stop(life.grace_s)


async def _stop_registry(registry: ModelRegistry, life: _Life) -> None:
    await registry.stop(life.grace_s)


def _build_mqtt(
    config: Config,
    device_id: str,
    service: InferenceService,
    metrics: Metrics,
    documents: DocumentThread,
    *,
    inventory: DeviceInventory,
    updates: UpdateBoard,
    pass_hint_on: Callable[[], Awaitable[object]],
) -> MqttFrontEnd | None:
    if not config.mqtt.url:
        return None
    # Here and not above: the MQTT client and the outbox's database take 3 MB where MQTT is off.
    from daemon.mqtt.frontend import MqttFrontEnd  # noqa: PLC0415

    return MqttFrontEnd(
        config.mqtt,
        device_id=device_id,
        service=service,
        metrics=metrics,
        state_dir=config.state_dir / "outbox",
        documents=documents,
        inventory=inventory,
        updates=updates,
        pass_hint_on=pass_hint_on,
    )


async def _bring_up(
    running: Running,
    http: HttpServer,
    mqtt: MqttFrontEnd | None,
    life: _Life,
    on_ready: Callable[[Running], None] | None,
) -> None:
    await running.registry.start()
    try:
        await asyncio.wait_for(running.registry.settled(), _SETTLE_S)
    except TimeoutError:
        _log.warning("models are still being loaded after seconds=%.0f", _SETTLE_S)
    await http.serve_inherited()
    if mqtt is not None:
        await mqtt.start()
    life.is_ready(f"{len(running.service.models())} models")
    await running.registry.settled()
    gc.freeze()  # what is there now stays: the collector need not look at it again
    if on_ready is not None:
        on_ready(running)


async def _feed(notifier: Notifier, interval_s: float, addresses: Sequence[str]) -> None:
    """Tell the watchdog that we answer; where we do not, it ends us and systemd starts us anew."""
    while True:
        if await answers(addresses, timeout_s=interval_s):
            notifier.watchdog()
        else:
            _log.error("our own HTTP does not answer; the watchdog is not fed")
        await asyncio.sleep(interval_s / 2)


def _raise_descriptor_limit() -> None:
    """Take the descriptors that may be had: the usual soft limit is short of what is configured."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
