"""What can be typed after `inferctl bundle`. Pure; arguments.py says how verbs are declared."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_CHANNELS = 4
_MOST_SAMPLES = 64  # daemon/samples.py
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
        "source",
        metavar="SOURCE",
        type=Path,
        help="a model's folder, a .tflite, a Keras .h5 or .keras file, or a SavedModel folder",
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
        help="kinds it cannot do without, as edgetpu; default: the one that model.toml requires",
    )
    parser.add_argument(
        "--memory-mib", type=_positive, metavar="N", help="default: model.toml's, else not said"
    )
    parser.add_argument(
        "--max-latency-ms", type=_number, metavar="MS", help="default: model.toml's, else not said"
    )
    _add_probation(parser)
    _add_making(parser)


def _add_making(parser: argparse.ArgumentParser) -> None:
    """For what is not a model's folder yet."""
    parser.add_argument(
        "--optimize",
        choices=("none", "float16", "dynamic", "int8", "auto"),
        help="how a Keras file or SavedModel is stored; auto: the smallest that is good enough; "
        "default: none",
    )
    parser.add_argument(
        "--representative",
        metavar="PATH",
        type=Path,
        help="a folder of pictures or WAV sounds, or an .npz: int8 takes its ranges from it",
    )
    parser.add_argument(
        "--eval",
        metavar="PATH",
        type=Path,
        help="data to compare with the original by, and to choose health samples from",
    )
    parser.add_argument(
        "--max-accuracy-drop",
        type=_share,
        metavar="R",
        help="what a variant may lose by --eval, 0 to 1; default: 0.01",
    )
    parser.add_argument("--labels", metavar="FILE", type=Path, help="class names, one on each line")
    parser.add_argument("--description", metavar="TEXT", help="of the model, for people")
    parser.add_argument(
        "--mean",
        metavar="N,…",
        type=_numbers,
        help="real = (pixel - mean) / std, pixels 0 to 255; one number or one for each channel",
    )
    parser.add_argument("--std", metavar="N,…", type=_numbers, help="as --mean")
    parser.add_argument(
        "--model-toml",
        metavar="FILE",
        type=Path,
        help="a model.toml that says what no option does, as [input] kind",
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=_samples,
        help="health samples chosen from --eval, 64 at most; default: 10",
    )
    parser.add_argument(
        "--record-latency",
        action="store_true",
        help="also write measured latencies into provenance.json, whose bytes then differ",
    )
    parser.add_argument(
        "--convert-seconds",
        type=_positive,
        metavar="S",
        help="that TensorFlow may take for each step; default: 1800",
    )
    parser.add_argument(
        "--convert-memory-mib",
        type=_positive,
        metavar="N",
        help="that TensorFlow may take; default: three quarters of the machine's",
    )


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


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key",
        metavar="FILE",
        type=Path,
        help="check its model signature as well, against this public key",
    )
    _add_file(parser)


def _add_sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a bundle")
    parser.add_argument(
        "--key", metavar="FILE", type=Path, required=True, help="a private ECDSA key, PEM"
    )
    parser.add_argument(
        "-o", dest="out", metavar="FILE", type=Path, help="the signed one; default: the same file"
    )
    parser.add_argument(
        "--passphrase-file",
        metavar="FILE",
        type=Path,
        help="its first line opens the key; default: INFERD_KEY_PASSPHRASE, or a question",
    )


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


def _samples(text: str) -> int:
    number = _counter(text)
    if number > _MOST_SAMPLES:
        raise argparse.ArgumentTypeError(f"'{text}': a probe runs {_MOST_SAMPLES} at most")
    return number


def _share(text: str) -> float:
    number = _number(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number from 0 to 1")
    return number


def _numbers(text: str) -> float | tuple[float, ...]:
    """One for all channels of a picture, or one for each."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not 1 <= len(numbers) <= _MOST_CHANNELS or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"'{text}': expected 1 to 4 numbers with commas between")
    return numbers if len(numbers) > 1 else numbers[0]


def _words(text: str) -> tuple[str, ...]:
    """In one order, so that the same words make the same bundle."""
    return tuple(sorted({word.strip() for word in text.split(",")}))


_ACTIONS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "build": (
        "daemon.cli.bundlebuild:build",
        "make a bundle of a model's folder, or of a model as it was trained",
        _add_build,
    ),
    "inspect": ("daemon.cli.bundle:inspect", "say what a bundle holds", _add_file),
    "sign": (
        "daemon.cli.bundlesign:sign",
        "put an OpenSSF model signature into a bundle, for whoever has the model's files",
        _add_sign,
    ),
    "verify": ("daemon.cli.bundlesign:verify", "check every byte of a bundle", _add_verify),
    "test": (
        "daemon.cli.bundletest:test",
        "run a bundle's health samples here, as a device does before it serves it",
        _add_file,
    ),
}
