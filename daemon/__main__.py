"""`inferd`: reads arguments and configuration, sets up logging, runs the daemon."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from accelerators.errors import AcceleratorError
from daemon.app import serve
from daemon.configfiles import DEFAULT_CONFIG, read_config
from daemon.errors import ConfigError
from daemon.logs import is_journal, set_up_logging
from daemon.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = logging.getLogger(f"inferd.{__name__}")

EXIT_FAILED = 1
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: the unit does not restart on it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The program; ends by sys.exit."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run until stopped.

    Returns:
        0 after a stop in good order, 1 when an address cannot be had, 78 for a bad configuration.
    """
    options = _parse(arguments)
    try:
        config = read_config(options.config, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            print(f"inferd: {problem}", file=sys.stderr)  # noqa: T201 (no logging yet)
        return EXIT_CONFIG
    if options.check_config:
        print("the configuration is good")  # noqa: T201 (the answer that was asked for)
        return 0
    journal = is_journal(os.environ, sys.stderr)
    set_up_logging(config.logs.level, config.logs.format, sys.stderr, journal=journal)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, reload=lambda: read_config(options.config, os.environ)))
    except ConfigError as error:
        _log.error("cannot start error=%s", error)
        return EXIT_CONFIG
    except (OSError, AcceleratorError) as error:
        _log.error("cannot start error=%s", error)
        return EXIT_FAILED
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="inferd",
        description="Serve TFLite models over HTTP and MQTT.",
        epilog="SIGTERM drains and stops, SIGHUP reloads models and defaults.",
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
        "--check-config",
        action="store_true",
        help="read the configuration, report every problem, exit 0 or 78",
    )
    parser.add_argument("--version", action="version", version=f"inferd {VERSION}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
