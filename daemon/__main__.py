"""`inferd`: reads the arguments, forks the fork server, and only then imports the rest.

What is imported before the fork is in both processes, so this module imports little.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from accelerators.earlyfork import fork_early
from daemon.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXIT_FAILED = 1
_DEFAULT_CONFIG = "/etc/inferd/inferd.toml"  # as in daemon/configfiles.py, which imports much


def main(arguments: Sequence[str] | None = None) -> None:
    """The program; ends by sys.exit."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run until stopped.

    Returns:
        0 after a stop in good order, 1 when an address cannot be had, 78 for a bad configuration.
    """
    options = build_parser().parse_args(arguments)
    if options.check_config:
        return int(importlib.import_module("daemon.start").check(options.config))
    try:
        newborn = fork_early()
    except OSError as error:
        print(f"inferd: cannot start: {error}", file=sys.stderr)  # noqa: T201 (no logging yet)
        return _EXIT_FAILED
    return int(importlib.import_module("daemon.start").run(options.config, newborn))


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
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
        help=f"configuration file (default {_DEFAULT_CONFIG}); conf.d/*.toml beside it is read too",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="read the configuration, report every problem, exit 0 or 78",
    )
    parser.add_argument("--version", action="version", version=f"inferd {VERSION}")
    return parser


if __name__ == "__main__":
    main()
