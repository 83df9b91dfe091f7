"""What can be typed after the verbs that look after updates. Pure."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_EVENTS = 1000
"""That are asked for at a time; the updater answers with no more."""
_USUAL_EVENTS = 50
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_UPDATER_HELP = (
    "the updater's unix socket; default: updater.sock beside the daemon's socket, else "
    "/run/inferd/updater.sock"
)


def add_update(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `update`."""
    parser.add_argument(
        "--now", action="store_true", help="look for updates at once, and follow them"
    )
    _add_common(parser, reads=True)


def add_history(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `history`."""
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_limit,
        default=_USUAL_EVENTS,
        help=f"the last N events, 1 to {MOST_EVENTS}; default: {_USUAL_EVENTS}",
    )
    parser.add_argument("--model", metavar="MODEL", type=_model, help="of this model alone")
    parser.add_argument(
        "--verify", action="store_true", help="say whether all of it is as it was written"
    )
    _add_common(parser, reads=True)


def add_rollback(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rollback`."""
    parser.add_argument("model", metavar="MODEL", type=_model, help="whose last update to undo")
    _add_common(parser, reads=False)


def add_quarantine(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of `quarantine`; each names its own code."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (runner, summary, add) in _ACTIONS.items():
        child = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        child.set_defaults(runner=runner, parser=child)
        child.add_argument("--url", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        add(child)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `import`."""
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="what `inferctl repo export` wrote, as /media/usb"
    )
    _add_common(parser, reads=False)


def _add_list(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, reads=True)


def _add_clear(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "digest",
        metavar="DIGEST",
        nargs="?",
        type=_digest,
        help="the bundle's sha256, or its first 8 characters or more",
    )
    which.add_argument("--all", action="store_true", help="every bundle")
    _add_common(parser, reads=False)


def _add_common(parser: argparse.ArgumentParser, *, reads: bool) -> None:
    if reads:
        parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--updater", metavar="PATH", type=Path, help=_UPDATER_HELP)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_EVENTS):
        raise argparse.ArgumentTypeError(
            f"'{text}': expected a whole number from 1 to {MOST_EVENTS}"
        )
    return int(text)


def _model(text: str) -> str:
    """As updater/names.py has it, which a verb that only reads need not import."""
    if not _MODEL.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"'{text[:100]}': expected a model's name, 1 to 100 of A-Z a-z 0-9 . _ -, beginning "
            "with a letter, a digit or _"
        )
    return text


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError(
            f"'{text[:100]}': expected 8 to 64 of 0-9 a-f, as `inferctl quarantine list` shows them"
        )
    return text.lower()


_ACTIONS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "list": (
        "daemon.cli.updates:list_quarantine",
        "list the bundles that have failed here, with the reasons",
        _add_list,
    ),
    "clear": (
        "daemon.cli.updates:clear_quarantine",
        "let bundles that have failed here be tried again",
        _add_clear,
    ),
}
