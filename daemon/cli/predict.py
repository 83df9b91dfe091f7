"""`predict`: sends a file to a model and shows what the model makes of it."""

from __future__ import annotations

import mimetypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from daemon.cli.client import Client, model_path, parse_address
from daemon.cli.outcome import ExitCode, UsageError
from daemon.cli.text import milliseconds, print_json, printable, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

STANDARD_INPUT = "-"
RAW_CONTENT_TYPE = "application/octet-stream"
"""The daemon looks at the content itself; only JSON has to be named."""
_SHOWN_VALUES = 8


def predict(arguments: argparse.Namespace) -> ExitCode:
    """Ask, and print the answer."""
    body = read_input(arguments.file)
    client = Client(parse_address(arguments.url))
    wishes = {"top_k": arguments.top_k, "threshold": arguments.threshold}
    query = urlencode({name: value for name, value in wishes.items() if value is not None})
    path = model_path(arguments.model, arguments.model_version, "predict")
    answer = client.post(
        f"{path}?{query}" if query else path, body, content_type(arguments.file, body)
    )
    if arguments.json:
        print_json(answer)
    else:
        print(describe_answer(answer))
    return ExitCode.DONE


def read_input(file: str) -> bytes:
    """The bytes of a file, or of standard input.

    Raises:
        UsageError: it cannot be read.
    """
    if file == STANDARD_INPUT:
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"argument FILE: cannot read {file}: {error.strerror}") from error


def content_type(file: str, body: bytes) -> str:
    """The hint that goes with the bytes: by the file's ending, or for standard input by a brace."""
    if file == STANDARD_INPUT:
        return "application/json" if body.lstrip()[:1] == b"{" else RAW_CONTENT_TYPE
    guess = mimetypes.guess_type(file)[0] or ""
    known = guess == "application/json" or guess.startswith(("image/", "audio/"))
    return guess if known else RAW_CONTENT_TYPE


def describe_answer(answer: dict[str, Any]) -> str:
    """The answer of the native API as a person reads it: what it means, then who says so."""
    meaning = _describe_meaning(answer)
    return f"{meaning}\n{_describe_origin(answer)}"


def _describe_meaning(answer: dict[str, Any]) -> str:
    for kind, describe in _KINDS:
        if kind in answer:
            return describe(answer[kind])
        # Several pictures were sent at once: one answer for each.
        if f"{kind}s" in answer:
            return "\n\n".join(describe(row) for row in answer[f"{kind}s"])
    return _describe_outputs(answer["outputs"])


def _describe_classification(categories: list[dict[str, Any]]) -> str:
    rows = [(_decimal(each["score"]), str(each["label"])) for each in categories]
    return table(rows) if rows else "no class reaches the threshold"


def _describe_detection(boxes: list[dict[str, Any]]) -> str:
    rows = [
        (_decimal(each["score"]), str(each["label"]), *map(_decimal, each["box"])) for each in boxes
    ]
    header = ("score", "label", "ymin", "xmin", "ymax", "xmax")
    return table(rows, header) if rows else "nothing detected"


def _describe_segmentation(mask: dict[str, Any]) -> str:
    rows = [(f"{each['share']:.1%}", str(each["label"])) for each in mask["classes"]]
    return f"mask of {mask['width']}x{mask['height']}\n{table(rows)}"


_KINDS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("classification", _describe_classification),
    ("detection", _describe_detection),
    ("segmentation", _describe_segmentation),
)


def _describe_outputs(outputs: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{printable(each['name'])}: {each['datatype']}{each['shape']} {_first(each['data'])}"
        for each in outputs
    )


def _decimal(value: float | str) -> str:
    """A number with three places; "NaN" and "Infinity" come as text, since JSON has neither."""
    return f"{float(value):.3f}"


def _first(values: Any) -> str:  # noqa: ANN401 (JSON: numbers, strings or lists of them)
    shown = values[:_SHOWN_VALUES]
    more = f" and {len(values) - len(shown)} more" if len(values) > len(shown) else ""
    return printable(", ".join(str(value) for value in shown)) + more


def _describe_origin(answer: dict[str, Any]) -> str:
    total_ms = answer["timing_ms"]["total"]
    model = printable(str(answer["model"]))
    origin = f"{model} version {answer['version']} on {answer['device']}"
    if answer["degraded"]:
        origin += f" (wanted {answer['requested_device']})"
    return f"{origin}, {milliseconds(total_ms)}"
