"""`inferd` after its fork server was forked: configuration, logging, the daemon, the exit code."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from accelerators.errors import AcceleratorError
from daemon import app
from daemon.configfiles import read_config
from daemon.errors import ConfigError
from daemon.logs import is_journal, set_up_logging

if TYPE_CHECKING:
    from pathlib import Path

    from accelerators.earlyfork import Newborn
    from daemon.config import Config

_log = logging.getLogger(f"inferd.{__name__}")

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: the unit does not restart on it."""


def check(path: Path | None) -> int:
    """Read the configuration and say what is wrong with it; the exit code."""
    if _read(path) is None:
        return EXIT_CONFIG
    print("the configuration is good")  # noqa: T201 (the answer that was asked for)
    return EXIT_OK


def run(path: Path | None, newborn: Newborn | None) -> int:
    """Run until stopped.

    Args:
        path: of the configuration file; None for the default one.
        newborn: the fork server that was forked early; taken over.

    Returns:
        0 after a stop in good order, 1 when an address or a fork server cannot be had, 78 for a bad
        configuration.
    """
    config = _read(path)
    if config is None:
        return EXIT_CONFIG
    journal = is_journal(os.environ, sys.stderr)
    set_up_logging(config.logs.level, config.logs.format, sys.stderr, journal=journal)
    if newborn is not None and config.defaults.isolation == "thread":
        newborn.end()
        newborn = None
    try:
        app.run(config, newborn=newborn, reload=lambda: read_config(path, os.environ))
    except ConfigError as error:
        _log.error("cannot start error=%s", error)
        return EXIT_CONFIG
    except (OSError, AcceleratorError) as error:
        _log.error("cannot start error=%s", error)
        return EXIT_FAILED
    return EXIT_OK


def _read(path: Path | None) -> Config | None:
    """The configuration; None when it is bad, which is then said."""
    try:
        return read_config(path, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            print(f"inferd: {problem}", file=sys.stderr)  # noqa: T201 (no logging yet)
        return None
