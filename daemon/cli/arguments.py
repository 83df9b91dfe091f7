"""Everything that can be typed after `inferctl`: verbs, arguments, and what they mean. Pure.

The verbs' code is named, not imported: reading a status must not wait for an HTTP server's import.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli.bundlearguments import add_bundle
from daemon.cli.repoarguments import add_repo
from daemon.cli.tokenarguments import add_token
from daemon.cli.updatearguments import (
    add_history,
    add_import,
    add_quarantine,
    add_rollback,
    add_update,
)
from daemon.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_URL_HELP = (
    "the daemon's address, http://HOST:PORT or unix:/PATH; default: INFERD_URL, "
    "else /run/inferd/inferd.sock where it exists, else http://127.0.0.1:8080"
)
_MOST_LISTED = 10000
"""As the daemon's `top_k` (daemon/config.py, which takes longer to import than a verb may)."""
_MOST_INTERPRETERS, _MOST_ROWS = 64, 256
"""As `placement.instances`, `placement.threads` and `batching.max_size` (daemon/modelfile.py)."""
_MOST_VALUES = 8
"""In a list of `bench`: eight instances by eight threads are two minutes and more."""
_MOST_SECONDS = 600
"""That one setting may be measured for."""
_EPILOG = (
    "exit codes: 0 done, 1 refused or failed, 2 usage, 69 daemon or updater not reachable, "
    "78 bad config"
)


@dataclass(frozen=True, slots=True)
class Verb:
    """One word after `inferctl`.

    Attributes:
        runner: "module:function" of its code, called with the parsed arguments.
        summary: one line for the list of verbs.
        add: declares its arguments.
        talks: it talks to a running daemon, so it has --url.
    """

    runner: str
    summary: str
    add: Callable[[argparse.ArgumentParser], None]
    talks: bool = True


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="inferctl",
        description="Serve models, ask for predictions, and look after an inferd appliance.",
        epilog=_EPILOG,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"inferctl {VERSION}")
    parser.add_argument("--url", default=None, help=_URL_HELP)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        child = verbs.add_parser(
            name,
            help=verb.summary,
            description=f"{verb.summary[0].upper()}{verb.summary[1:]}.",
            allow_abbrev=False,
        )
        child.set_defaults(runner=verb.runner, parser=child)
        if verb.talks:
            # Also accepted after the verb; SUPPRESS keeps it from undoing the one before it.
            child.add_argument("--url", default=argparse.SUPPRESS, help=_URL_HELP)
        verb.add(child)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; a word that is no verb or option gets the nearest one suggested.

    Returns:
        The arguments; `runner` is their verb's code, `parser` what else is wrong with them is told
        to (`parser.error`).

    Raises:
        SystemExit: 0 after --help and --version, 2 for a command line nobody can follow.
    """
    parser = build_parser()
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        parser.error(_suggest_verb(str(error)))
    if unknown:
        arguments.parser.error(_suggest_option(arguments.parser, unknown))
    return arguments


def _suggest_option(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    known = re.findall(r"--[a-z-]+", parser.format_usage())
    nearest = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
    hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
    return f"unrecognized arguments: {' '.join(unknown)}{hint}"


def _suggest_verb(message: str) -> str:
    found = re.search(r"invalid choice: '([^']*)'", message)
    if found is None:
        return message
    word = found.group(1)
    nearest = difflib.get_close_matches(word.lower(), VERBS, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"verbs are: {', '.join(VERBS)}"
    return f"no verb '{word}'; {hint}"


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="end after the story, for scripts")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        type=Path,
        help="a .tflite file, a model folder, or a folder of versions",
    )
    parser.add_argument(
        "--http", metavar="H:P", default="127.0.0.1:8080", help="listen here; port 0: any free one"
    )
    parser.add_argument("--mqtt", metavar="URL", default="", help="mqtt://HOST[:PORT] of a broker")
    parser.add_argument(
        "--allow-anonymous",
        action="store_true",
        help="let anyone who can reach the address use it, when it is not only this machine",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="its name, as `inferctl models` lists it")
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a picture, a WAV, a raw tensor, or KServe v2 JSON (*.json); '-' reads standard input",
    )
    parser.add_argument("--model-version", type=_version, metavar="N", help="default: the newest")
    parser.add_argument("--top-k", type=_count, metavar="N", help="list at most so many")
    parser.add_argument("--threshold", type=_score, metavar="SCORE", help="list from this score on")
    _add_json(parser)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model's name in the configuration, or the path of a .tflite file or of its folder",
    )
    parser.add_argument(
        "--goal",
        choices=("latency", "throughput"),
        default="throughput",
        help="what the best setting is best at; default: throughput",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        default=2.0,
        help="measure each setting for so long; default: 2",
    )
    parser.add_argument(
        "--clients",
        type=_clients,
        metavar="N",
        help="keep so many requests under way; default: for latency 1, for throughput as many as "
        "keep every worker busy",
    )
    parser.add_argument(
        "--instances",
        type=_some_interpreters,
        metavar="N,…",
        default=(),
        help="try only these numbers of instances",
    )
    parser.add_argument(
        "--threads",
        type=_some_interpreters,
        metavar="N,…",
        default=(),
        help="try only these numbers of threads",
    )
    parser.add_argument(
        "--batch", type=_some_rows, metavar="N,…", default=(), help="try only these batch sizes"
    )
    parser.add_argument(
        "--apply",
        action="store_true",
        help="write the best setting into the model's model.toml, and tell the daemon",
    )
    _add_config(parser)
    _add_json(parser)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="F",
        help="the daemon's configuration; default: /etc/inferd/inferd.toml",
    )


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    _add_json(parser)


def _version(text: str) -> int:
    return _whole_number(text, "a whole number from 1 on", math.inf)


def _count(text: str) -> int:
    return _whole_number(text, f"a whole number from 1 to {_MOST_LISTED}", _MOST_LISTED)


def _whole_number(text: str, expected: str, most: float) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"'{text}': expected {expected}")
    return int(text)


def _clients(text: str) -> int:
    return _whole_number(text, "a whole number from 1 on", math.inf)


def _some_interpreters(text: str) -> tuple[int, ...]:
    return _whole_numbers(text, _MOST_INTERPRETERS)


def _some_rows(text: str) -> tuple[int, ...]:
    return _whole_numbers(text, _MOST_ROWS)


def _whole_numbers(text: str, most: int) -> tuple[int, ...]:
    words = text.split(",")
    expected = f"at most {_MOST_VALUES} whole numbers from 1 to {most}, as in 1,2,4"
    if len(words) > _MOST_VALUES:
        raise argparse.ArgumentTypeError(f"'{text}': expected {expected}")
    return tuple(_whole_number(word.strip(), expected, most) for word in words)


def _seconds(text: str) -> float:
    seconds = _number(text)
    if not 0 < seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"'{text}': expected a number of seconds above 0 up to {_MOST_SECONDS}"
        )
    return seconds


def _number(text: str) -> float:
    """NaN for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _score(text: str) -> float:
    score = _number(text)
    if not math.isfinite(score):
        raise argparse.ArgumentTypeError(f"'{text}': expected a number")
    return score


VERBS = {
    "demo": Verb(
        "daemon.cli.demo:demo",
        "serve the demo model with a broker of its own and show it off",
        _add_demo,
        talks=False,
    ),
    "serve": Verb("daemon.cli.serve:serve", "serve models from files", _add_serve, talks=False),
    "status": Verb("daemon.cli.reading:status", "say how the daemon is", _add_json),
    "models": Verb("daemon.cli.reading:models", "list the models and what runs them", _add_json),
    "devices": Verb("daemon.cli.reading:devices", "list the devices models can run on", _add_json),
    "predict": Verb("daemon.cli.predict:predict", "ask a model about a file", _add_predict),
    "bench": Verb(
        "daemon.cli.bench:bench", "measure how a model is best run on this machine", _add_bench
    ),
    "update": Verb(
        "daemon.cli.updates:update", "say where updates stand, or look for new ones", add_update
    ),
    "history": Verb(
        "daemon.cli.updates:history", "say what updates have done here, and why", add_history
    ),
    "rollback": Verb("daemon.cli.updates:rollback", "undo a model's last update", add_rollback),
    "quarantine": Verb(
        "daemon.cli.updates:list_quarantine",  # each action names its own
        "look after the bundles that have failed here",
        add_quarantine,
    ),
    "import": Verb(
        "daemon.cli.updates:import_stick", "take updates from a USB stick or a folder", add_import
    ),
    "bundle": Verb(
        "daemon.cli.bundle:inspect",  # each action names its own
        "make, look into and try bundles, the files that updates consist of",
        add_bundle,
        talks=False,
    ),
    "repo": Verb(
        "daemon.cli.repo:repo",
        "publish signed updates: make a repository, sign, assign, export",
        add_repo,
        talks=False,
    ),
    "token": Verb(
        "daemon.cli.tokens:show",  # each action names its own
        "make and revoke the tokens of http.tokens_file",
        add_token,
        talks=False,
    ),
    "doctor": Verb(
        "daemon.cli.doctor:doctor", "look for what is wrong and say what to do", _add_doctor
    ),
}
