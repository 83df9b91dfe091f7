"""`inferd-updater`: reads the configuration, runs the updater's service, and ends as it should."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.activation import inherited_sockets
from daemon.configfiles import DEFAULT_CONFIG, read_config
from daemon.errors import ConfigError
from daemon.logs import is_journal, set_up_logging
from daemon.notify import Notifier
from daemon.version import VERSION
from updater.control import ControlServer
from updater.desired import Device
from updater.fetch import Limits
from updater.service import Settings, UpdateService

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.config import Config
    from updater.report import ModelStatus, Status

_log = logging.getLogger(f"inferd.{__name__}")

_EXIT_OK, _EXIT_FAILED, _EXIT_CONFIG = 0, 1, 78  # as daemon/start.py
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ANCHORS = (Path("etc/inferd/root.json"), Path("usr/share/inferd/root.json"))
"""Below `paths.root`; the first that is there."""
_MAX_ANCHOR_BYTES = 512_000
"""As much as python-tuf takes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The program; ends by sys.exit."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run until stopped, or once.

    Returns:
        0 after a stop in good order, or when one look and what follows went well; 1 when something
        went wrong or another updater is at work; 78 for a bad configuration.
    """
    options = build_parser().parse_args(arguments)
    try:
        config = read_config(options.config, os.environ)
        settings = _settings(config)
    except ConfigError as error:
        for problem in error.problems:
            print(f"inferd-updater: {problem}", file=sys.stderr)
        return _EXIT_CONFIG
    journal = is_journal(os.environ, sys.stderr)
    set_up_logging(config.logs.level, config.logs.format, sys.stderr, journal=journal)
    try:
        service = UpdateService(settings)
        if options.once:
            return asyncio.run(_run_once(service))
        asyncio.run(_serve(service, config.run_dir / "updater.sock"))
    except OSError as error:
        _log.error("cannot start error=%s", error)
        return _EXIT_FAILED
    return _EXIT_OK


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="inferd-updater",
        description="Bring signed models to this device, and back when they do not do.",
        epilog="SIGTERM stops; what is under way goes on at the next start.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=None,
        metavar="FILE",
        help=f"configuration file (default {DEFAULT_CONFIG}); conf.d/*.toml beside it is read too",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="look once, bring every model as far as it comes without waiting for a maintenance "
        "window or a probation, say what happened, exit 0 or 1",
    )
    parser.add_argument("--version", action="version", version=f"inferd-updater {VERSION}")
    return parser


def _settings(config: Config) -> Settings:
    """What the service must be told.

    Raises:
        ConfigError: there is a repository, and no trust anchor to believe it by.
    """
    updates = config.updates
    anchor = _read_anchor(config)
    if updates.source and not anchor:
        places = " or ".join(str(config.below_root(path)) for path in _ANCHORS)
        raise ConfigError((f"updates.source: expected the fleet's root.json in {places}",))
    return Settings(
        state=config.below_root(config.paths.updater_state),
        store=config.state_dir / "store",
        links=config.state_dir / "models",
        daemon_socket=config.socket_path,
        device=Device(config.device.id or socket.gethostname(), dict(config.device.labels)),
        source=updates.source,
        anchor=anchor,
        scratch=config.run_dir / "updater-look",
        poll_interval_s=updates.poll_interval_s,
        download_limits=Limits(
            least_rate_bytes_s=updates.least_rate_bytes_s, deadline_s=updates.download_deadline_s
        ),
    )


def _read_anchor(config: Config) -> bytes:
    """The first trust anchor that is there; b"" where there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    for path in (config.below_root(anchor) for anchor in _ANCHORS):
        try:
            with path.open("rb") as file:
                return file.read(_MAX_ANCHOR_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError((f"{path}: cannot be read: {error.strerror}",)) from error
    return b""


async def _serve(service: UpdateService, socket_path: Path) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        OSError: another updater is at work, the socket cannot be had, or the disk refused.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOPS:
        loop.add_signal_handler(number, stopping.set)
    notifier = Notifier(os.environ)
    control = ControlServer(service, socket_path)
    service.start()
    try:
        if await _first(stopping, asyncio.wrap_future(service.recovered)):
            return
        await control.start(inherited_sockets(os.environ, os.getpid()))
        notifier.ready()
        _log.info("ready socket=%s", socket_path)
        await _first(stopping, asyncio.wrap_future(service.ended))
    finally:
        notifier.stopping()
        _log.info("stopping")
        await control.stop()
        await loop.run_in_executor(None, service.stop)


async def _first(stopping: asyncio.Event, future: asyncio.Future[None]) -> bool:
    """Wait for either; whether it is to stop.

    Raises:
        Exception: what the future fails with.
    """
    waiting = asyncio.ensure_future(_until(stopping))
    await asyncio.wait({waiting, future}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if future.done():
        future.result()
    return stopping.is_set()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _run_once(service: UpdateService) -> int:
    """Look once and say what happened.

    Raises:
        OSError: as `UpdateService.run_once`.
    """
    loop = asyncio.get_running_loop()
    for number in _STOPS:
        loop.add_signal_handler(number, service.interrupt)
    status, trouble = await loop.run_in_executor(None, service.run_once)
    for line in _describe(status):
        print(line)
    if trouble:
        print(f"inferd-updater: {trouble}", file=sys.stderr)
    return _EXIT_FAILED if trouble else _EXIT_OK


def _describe(status: Status) -> list[str]:
    """A line for each model."""
    return [_describe_model(model) for model in status.models] or ["no model is updated here"]


def _describe_model(model: ModelStatus) -> str:
    serving = f"version {model.current_version}" if model.current_version else "nothing"
    candidate = f", version {model.version} is {model.state}" if model.version else ""
    reason = f" ({model.waiting_for})" if model.waiting_for else ""
    return f"{model.model}: {serving}{candidate}{reason}"


if __name__ == "__main__":
    main()
