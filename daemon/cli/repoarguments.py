"""What can be typed after `inferctl repo`. Pure; arguments.py says how verbs are declared."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DAYS = {"d": 1.0, "h": 1 / 24}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_QUORUM = re.compile(r"(\d{1,3})/(\d{1,3})")
_LIFE_HELP = "for how long devices believe a timestamp, as 7d or 36h"


class _AnyOrder(argparse.ArgumentParser):
    """Takes options before positional arguments as well, where there may be none of these (`*`)."""

    _is_inside = False

    def parse_known_args(  # type: ignore[override]  # of its overloads subparsers use this one
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._is_inside:  # the library's own two passes
            return super().parse_known_args(args, namespace)
        self._is_inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inside = False


def add_repo(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=_AnyOrder
    )
    for name, (summary, add) in _ACTIONS.items():
        child = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        child.set_defaults(parser=child)
        child.add_argument("repo", metavar="REPO", type=Path, help="the repository's folder")
        add(child)


def _add_init(parser: argparse.ArgumentParser) -> None:
    _add_keys(parser)
    parser.add_argument(
        "--quorum",
        metavar="ROLE=N/M,…",
        type=_quorums,
        default={},
        help="so many of so many keys sign for a role; default: root=2/3, the others 1/1",
    )
    parser.add_argument(
        "--team",
        metavar="NAME=PATTERN,…",
        type=_team,
        action="append",
        help="a role models-NAME that signs the models with such names; default: main=*",
    )
    parser.add_argument("--life", metavar="T", type=_life_s, help=f"{_LIFE_HELP}; default: 7d")


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", metavar="BUNDLE", nargs="*", type=Path, help="a bundle to sign")
    _add_keys(parser)
    parser.add_argument(
        "--floor",
        metavar="NAME=COUNTER,…",
        type=_numbers,
        default={},
        help="no device installs a release of the model below this counter; signed offline",
    )


def _add_assign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        metavar="NAME=VERSION",
        nargs="*",
        type=_version,
        help="a model, and the version that devices shall serve",
    )
    _add_keys(parser)
    parser.add_argument(
        "--percent", metavar="P", type=_percent, default=100.0, help="only this share of them"
    )
    parser.add_argument(
        "--labels", metavar="K=V,…", type=_labels, default={}, help="only devices with these labels"
    )
    parser.add_argument(
        "--window",
        metavar="WINDOW",
        action="append",
        default=[],
        help="they change only then, local time: 'mon-fri 22:00-04:00'; 'always' ends that",
    )
    parser.add_argument(
        "--block",
        metavar="SHA256,…",
        type=_digests,
        default=(),
        help="no device installs these bundles",
    )
    parser.add_argument(
        "--unblock", metavar="SHA256,…", type=_digests, default=(), help="they may again"
    )
    parser.add_argument(
        "--floor",
        metavar="NAME=COUNTER,…",
        type=_numbers,
        default={},
        help="no device installs a release of the model below this counter",
    )


def _add_refresh(parser: argparse.ArgumentParser) -> None:
    _add_keys(parser)
    parser.add_argument(
        "--life", metavar="T", type=_life_s, help=f"{_LIFE_HELP}; default: as before"
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="the stick")
    _add_keys(parser)
    parser.add_argument(
        "--life",
        metavar="T",
        type=_life_s,
        default=_life_s("90d"),
        help="for how long devices believe the stick, 1d to 365d; default: 90d",
    )
    parser.add_argument(
        "--models", metavar="NAME,…", type=_words, help="only these models; default: all assigned"
    )


def _add_rotate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "roles",
        metavar="ROLE",
        nargs="+",
        help="root, targets, snapshot, timestamp, fleet, models-…",
    )
    _add_keys(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--revoke", metavar="KEY,…", type=_words, help="only these keys; default: all of the roles"
    )
    which.add_argument(
        "--keep", action="store_true", help="revoke none; with --quorum, to have more keys"
    )
    parser.add_argument(
        "--quorum",
        metavar="N/M",
        type=_quorum,
        help="from now on so many of so many keys sign; default: as before",
    )


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keys", metavar="KEYS", type=Path, action="append", default=[], help="say which are here"
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keys",
        metavar="KEYS",
        type=Path,
        action="append",
        required=True,
        help="a folder with keys; may be given several times, new keys go into the first",
    )
    parser.add_argument(
        "--passphrase-file",
        metavar="F",
        type=Path,
        help="its first line opens the keys; default: INFERD_KEY_PASSPHRASE, else you are asked",
    )


def _pairs(text: str, expected: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and separator and value for name, separator, value in pairs):
        raise argparse.ArgumentTypeError(f"'{text}': expected {expected}")
    return {name: value for name, _, value in pairs}


def _labels(text: str) -> dict[str, str]:
    return _pairs(text, "labels as in ring=canary,site=berlin")


def _numbers(text: str) -> dict[str, int]:
    expected = "names and whole numbers as in digits=3"
    pairs = _pairs(text, expected)
    if not all(value.isascii() and value.isdigit() for value in pairs.values()):
        raise argparse.ArgumentTypeError(f"'{text}': expected {expected}")
    return {name: int(value) for name, value in pairs.items()}


def _version(text: str) -> tuple[str, int]:
    pairs = _numbers(text)
    if len(pairs) != 1 or 0 in pairs.values():
        raise argparse.ArgumentTypeError(f"'{text}': expected one model's version as in digits=2")
    return next(iter(pairs.items()))


def _quorum(text: str) -> tuple[int, int]:
    match = _QUORUM.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}': expected so many of so many keys, as in 2/3")
    return int(match[1]), int(match[2])


def _quorums(text: str) -> dict[str, tuple[int, int]]:
    pairs = _pairs(text, "roles and keys as in root=2/3,targets=1/2")
    return {role: _quorum(value) for role, value in pairs.items()}


def _team(text: str) -> tuple[str, tuple[str, ...]]:
    name, separator, patterns = text.partition("=")
    if not (name and separator and patterns):
        raise argparse.ArgumentTypeError(f"'{text}': expected a team as in vision=vision-*,faces")
    return name, tuple(patterns.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _digests(text: str) -> tuple[str, ...]:
    words = _words(text)
    if bad := [word for word in words if not _DIGEST.fullmatch(word)]:
        raise argparse.ArgumentTypeError(f"'{bad[0]}': expected a bundle's sha256, 64 of 0-9 a-f")
    return words


def _percent(text: str) -> float:
    try:
        percent = float(text)
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100 or round(percent, 2) != percent:  # noqa: PLR2004 (percent)
        raise argparse.ArgumentTypeError(f"'{text}': expected 0 to 100 in steps of 0.01")
    return percent


def _life_s(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    if unit not in _DAYS or not (number.isascii() and number.isdigit() and 0 < int(number) < 10000):  # noqa: PLR2004 (years)
        raise argparse.ArgumentTypeError(f"'{text}': expected days or hours, as in 90d or 36h")
    return int(number) * _DAYS[unit] * 86400


_ACTIONS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "init": ("make a repository and its keys", _add_init),
    "add": ("sign bundles, so that they can be assigned", _add_add),
    "assign": ("say what devices shall serve", _add_assign),
    "refresh": ("sign the timestamp anew, publish and renew what waits for that", _add_refresh),
    "export": ("write a stick for devices that no network reaches", _add_export),
    "rotate": ("replace keys", _add_rotate),
    "status": ("say what expires when, and which keys are where", _add_status),
}
