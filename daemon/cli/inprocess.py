"""Runs a daemon inside this process, in a temporary folder, for as long as a verb needs it."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING

from accelerators.earlyfork import fork_early
from accelerators.errors import AcceleratorError
from daemon.cli.outcome import CommandError, ExitCode
from daemon.config import parse_config
from daemon.errors import ConfigError
from daemon.logs import set_up_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from daemon.app import Running
    from daemon.config import Config


_MODELS_LOG = "inferd.daemon.models"
_FULL_LEVELS = ("debug", "info")


class BadConfig(CommandError):
    """What was asked for makes no configuration that can be used."""

    exit_code = ExitCode.BAD_CONFIG


def build_config(
    root: Path,
    models: Sequence[Path],
    *,
    listen: str,
    mqtt_url: str,
    allow_anonymous: bool,
    log_level: str,
    device_id: str = "",
    more: Mapping[str, Mapping[str, object]] | None = None,
) -> Config:
    """The configuration of a daemon that serves these models and keeps its state below `root`.

    Args:
        more: keys by table, which win over those that are made here.

    What is not an argument comes from `INFERD_SECTION__KEY` variables, else from the defaults.

    Raises:
        BadConfig: with every problem, one line each.
    """
    tables: dict[str, dict[str, object]] = {
        "paths": {"root": str(root)},
        # Nobody looks for a socket in a temporary folder, whose path may be too long for one.
        "http": {"listen": [listen], "unix_socket": False},
        "models": {"folders": [], "serve": [{"path": str(path.absolute())} for path in models]},
        "logs": {"level": log_level},
    }
    if device_id:
        tables["device"] = {"id": device_id}
    if mqtt_url:
        tables["mqtt"] = {"url": mqtt_url}
    if allow_anonymous:
        tables["http"]["allow_anonymous"] = True
    for table, keys in (more or {}).items():
        tables[table] = {**tables.get(table, {}), **keys}
    try:
        return parse_config((), os.environ, arguments=tables)
    except ConfigError as error:
        raise BadConfig(str(error)) from error


def run_daemon(config: Config, on_ready: Callable[[Running], None]) -> None:
    """Run until a signal or `Running.stop`; `on_ready` is called once, when models are settled.

    It is told of every model that cannot be served, so the log says nothing of that before, unless
    its level is one for people who want to read everything.

    Raises:
        CommandError: it cannot start.
    """
    set_up_logging(config.logs.level, config.logs.format, sys.stderr)
    models_log = logging.getLogger(_MODELS_LOG)
    models_log.setLevel(logging.NOTSET if config.logs.level in _FULL_LEVELS else logging.CRITICAL)

    def ready(running: Running) -> None:
        models_log.setLevel(logging.NOTSET)
        on_ready(running)

    try:
        newborn = fork_early() if config.defaults.isolation == "process" else None
        # Only now, for what is imported before the fork is in both processes.
        app = importlib.import_module("daemon.app")
        app.run(config, newborn=newborn, on_ready=ready)
    except (OSError, AcceleratorError) as error:
        raise CommandError(f"cannot start: {error}") from error
