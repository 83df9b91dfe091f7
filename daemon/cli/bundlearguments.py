"""What can be typed after `inferctl bundle`. Pure; arguments.py says how verbs are declared."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST = 2**53 - 1
"""As the manifest's whole numbers (updater/manifest.py)."""


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Declare the actions; each names its own code."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (runner, summary, add) in _ACTIONS.items():
        child = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        child.set_defaults(runner=runner, parser=child)
        add(child)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="DIR", type=Path, help="a model's folder, or a lone .tflite file"
    )
    parser.add_argument(
        "-o", dest="out", metavar="FILE", type=Path, required=True, help="the bundle to write"
    )
    parser.add_argument("--name", metavar="NAME", help="of the model; default: as the daemon would")
    parser.add_argument(
        "--model-version", type=_positive, metavar="N", help="default: model.toml's, else 1"
    )
    parser.add_argument(
        "--release-counter",
        type=_counter,
        metavar="N",
        help="grows with each release that must not be undone; default: the version",
    )
    parser.add_argument(
        "--runtime", metavar="RANGE", help="runtimes that can run it; default: litert>=2.3,<3"
    )
    parser.add_argument(
        "--arch",
        type=_words,
        metavar="NAME,…",
        default=(),
        help="Debian's names of architectures it is for, as amd64,arm64; default: any",
    )
    parser.add_argument(
        "--accelerators",
        type=_words,
        metavar="KIND,…",
        default=(),
        help="kinds it cannot do without, as edgetpu; default: none",
    )
    parser.add_argument(
        "--memory-mib", type=_positive, metavar="N", help="default: model.toml's, else not said"
    )
    parser.add_argument(
        "--max-latency-ms", type=_number, metavar="MS", help="default: model.toml's, else not said"
    )
    _add_probation(parser)


def _add_probation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-requests", type=_counter, metavar="N", help="to be answered before it is kept"
    )
    parser.add_argument("--min-seconds", type=_number, metavar="S", help="on probation at least")
    parser.add_argument("--max-seconds", type=_number, metavar="S", help="on probation at most")
    parser.add_argument(
        "--max-error-ratio", type=_number, metavar="R", help="failed of all requests, 0 to 1"
    )
    parser.add_argument(
        "--max-latency-ratio",
        type=_number,
        metavar="R",
        help="its 95th percentile over that of the version before, from 1 on",
    )


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a bundle")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _positive(text: str) -> int:
    return _whole_number(text, 1)


def _counter(text: str) -> int:
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= _MOST):
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number from {least} on")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number from 0 on")
    return number


def _words(text: str) -> tuple[str, ...]:
    """In one order, so that the same words make the same bundle."""
    return tuple(sorted({word.strip() for word in text.split(",")}))


_ACTIONS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "build": (
        "daemon.cli.bundlebuild:build",
        "make a bundle of a model's folder: the same folder, the same bytes",
        _add_build,
    ),
    "inspect": ("daemon.cli.bundle:inspect", "say what a bundle holds", _add_file),
    "verify": ("daemon.cli.bundle:verify", "check every byte of a bundle", _add_file),
    "test": (
        "daemon.cli.bundletest:test",
        "run a bundle's health samples here, as a device does before it serves it",
        _add_file,
    ),
}
