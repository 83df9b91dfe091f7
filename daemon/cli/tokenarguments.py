"""What can be typed after `token`. Pure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SCOPES = ("predict", "read", "admin")
"""As `daemon/tokens.py`, which takes longer to import than a verb may."""
USUAL_FILE = Path("/etc/inferd/tokens.toml")
_MOST_CHARACTERS = 128


def add_token(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of `token`; each names its own code."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (runner, summary, add) in _ACTIONS.items():
        child = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        child.set_defaults(runner=runner, parser=child)
        child.add_argument(
            "--file",
            type=Path,
            default=USUAL_FILE,
            metavar="FILE",
            help=f"as http.tokens_file; default: {USUAL_FILE}",
        )
        add(child)


def _add_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", type=_name, help="who gets it, for the log")
    parser.add_argument(
        "--scopes",
        type=_scopes,
        default=("predict",),
        metavar="SCOPE,…",
        help="predict, read (models, status, metrics), admin (load, unload, roll back); "
        "default: predict",
    )
    parser.add_argument(
        "--models",
        type=_models,
        default=None,
        metavar="MODEL,…",
        help="for these alone; * stands for any characters; default: all",
    )


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _add_revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", type=_name, help="as `token list` shows it")


_ACTIONS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "create": ("daemon.cli.tokens:create", "make a token, and print it this once", _add_create),
    "list": ("daemon.cli.tokens:show", "list the tokens and what they are for", _add_list),
    "revoke": ("daemon.cli.tokens:revoke", "take a token out of the file", _add_revoke),
}


def _name(text: str) -> str:
    if not text or len(text) > _MOST_CHARACTERS or not text.isprintable():
        raise argparse.ArgumentTypeError("expected 1 to 128 characters, all of them printable")
    return text


def _scopes(text: str) -> tuple[str, ...]:
    scopes = tuple(dict.fromkeys(text.split(",")))
    if not set(scopes) <= set(SCOPES):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(SCOPES)}")
    return scopes


def _models(text: str) -> tuple[str, ...]:
    return tuple(_name(model) for model in text.split(","))
