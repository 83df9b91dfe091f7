"""Builds the daemon from its parts and runs it: start, ready, drain, stop.

The order of the calls is the life of the process:
1. HTTP first, so that /healthz and /readyz answer while models load.
2. The fork server and the models.
3. MQTT, once the models are settled: a request taken from the broker must find its model.
4. READY to systemd, then wait for a signal.
5. Front ends stop taking requests and finish those under way; then models, then the fork server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from accelerators.forkserver import ForkServer
from daemon.errors import ConfigError
from daemon.metrics import Metrics
from daemon.models.registry import ModelRegistry
from daemon.mqtt.frontend import MqttFrontEnd
from daemon.notify import Notifier, watchdog_interval_s
from daemon.pipeline.media import MediaLimits
from daemon.rest.context import RestContext
from daemon.rest.server import HttpServer
from daemon.service import InferenceService
from daemon.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from daemon.config import Config

_log = logging.getLogger(f"inferd.{__name__}")


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


async def serve(
    config: Config,
    *,
    reload: Callable[[], Config] | None = None,
    on_listening: Callable[[Running], None] | None = None,
    on_ready: Callable[[Running], None] | None = None,
    environment: Mapping[str, str] | None = None,
    handle_signals: bool = True,
) -> None:
    """Run until SIGTERM, SIGINT or `Running.stop`, and leave nothing behind.

    Args:
        config: what to run.
        reload: reads the configuration anew at SIGHUP; models and defaults take effect.
        on_listening: told when HTTP answers, before the models are loaded.
        on_ready: told when every wanted model answers or was refused.
        environment: where systemd's socket and watchdog are named.
        handle_signals: False where the caller owns the signals.

    Raises:
        OSError: an address cannot be listened on.
    """
    environment = os.environ if environment is None else environment
    stopping = asyncio.Event()
    notifier = Notifier(environment)
    async with AsyncExitStack() as life:
        running, mqtt = await _assemble(config, life, stopping.set)
        life.callback(notifier.stopping)
        if handle_signals:
            _own_signals(life, stopping, running.registry, reload, notifier)
        if on_listening is not None:
            on_listening(running)
        started = asyncio.create_task(_bring_up(running, mqtt), name="bring-up")
        life.push_async_callback(_cancel, started)
        stop_wait = asyncio.create_task(stopping.wait(), name="stop-wait")
        life.push_async_callback(_cancel, stop_wait)
        await asyncio.wait({started, stop_wait}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set():
            return
        started.result()
        notifier.ready(f"{len(running.service.models())} models")
        if on_ready is not None:
            on_ready(running)
        interval_s = watchdog_interval_s(environment, os.getpid())
        if interval_s is not None:
            watchdog = asyncio.create_task(_feed(notifier, interval_s / 2), name="watchdog")
            life.push_async_callback(_cancel, watchdog)
        await stop_wait
        _log.info("stopping drain_timeout_s=%.1f", config.life.drain_timeout_s)


async def _assemble(
    config: Config, life: AsyncExitStack, stop: Callable[[], None]
) -> tuple[Running, MqttFrontEnd | None]:
    """Build every object; HTTP listens when this returns. `life` undoes it in reverse order."""
    metrics = Metrics(CollectorRegistry())
    forkserver = ForkServer()
    life.push_async_callback(forkserver.stop)
    registry = ModelRegistry(config, forkserver=forkserver, metrics=metrics)
    life.push_async_callback(registry.stop)
    media_executor = life.enter_context(
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
    device_id = config.device.id or socket.gethostname()
    mqtt = _build_mqtt(config, device_id, service, metrics)
    http = HttpServer(
        RestContext(
            service=service,
            metrics=metrics,
            config=config.http,
            version=VERSION,
            device_id=device_id,
            status=lambda: {"mqtt": mqtt.status() if mqtt else {"enabled": False}},
        )
    )
    unix_socket = config.run_dir / "inferd.sock" if config.http.unix_socket else None
    addresses = await http.start(unix_socket)
    grace_s = config.life.drain_timeout_s
    life.push_async_callback(http.stop, grace_s)
    if mqtt is not None:
        life.push_async_callback(mqtt.stop, grace_s)
    running = Running(addresses=addresses, service=service, registry=registry, stop=stop)
    await forkserver.start()
    return running, mqtt


def _build_mqtt(
    config: Config, device_id: str, service: InferenceService, metrics: Metrics
) -> MqttFrontEnd | None:
    if not config.mqtt.url:
        return None
    return MqttFrontEnd(
        config.mqtt,
        device_id=device_id,
        service=service,
        metrics=metrics,
        state_dir=config.state_dir,
    )


async def _bring_up(running: Running, mqtt: MqttFrontEnd | None) -> None:
    await running.registry.start()
    await running.registry.settled()
    if mqtt is not None:
        await mqtt.start()


def _own_signals(
    life: AsyncExitStack,
    stopping: asyncio.Event,
    registry: ModelRegistry,
    reload: Callable[[], Config] | None,
    notifier: Notifier,
) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
        life.callback(loop.remove_signal_handler, number)
    if reload is None:
        return
    reloads: set[asyncio.Task[None]] = set()

    def on_hangup() -> None:
        task = asyncio.create_task(_reload(registry, reload, notifier), name="reload")
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    life.callback(loop.remove_signal_handler, signal.SIGHUP)


async def _reload(
    registry: ModelRegistry, reload: Callable[[], Config], notifier: Notifier
) -> None:
    """SIGHUP: models and defaults change at once, the rest at the next start."""
    notifier.reloading()
    try:
        config = await asyncio.to_thread(reload)
        logging.getLogger("inferd").setLevel(config.logs.level.upper())
        await registry.reconfigure(config)
        _log.info("configuration reloaded; [http], [mqtt] and [paths] change at the next start")
    except ConfigError as error:
        for problem in error.problems:
            _log.error("configuration not reloaded problem=%s", problem)
    finally:
        notifier.ready()


async def _feed(notifier: Notifier, interval_s: float) -> None:
    """Tell the watchdog that the event loop still turns."""
    while True:
        notifier.watchdog()
        await asyncio.sleep(interval_s)


async def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
