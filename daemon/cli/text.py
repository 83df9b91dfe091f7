"""Answers as a person reads them: tables, numbers with their unit, JSON."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_DURATIONS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def print_json(value: object) -> None:
    """Print a value for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Left-aligned columns, two spaces apart; no trailing blanks."""
    lines = [[printable(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def printable(text: str) -> str:
    """Text without what would move the cursor or colour the terminal."""
    return "".join("?" if unicodedata.category(char).startswith("C") else char for char in text)


def shortened(text: str, most: int) -> str:
    """At most so many characters of a line."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def milliseconds(value: float) -> str:
    """A duration, three digits or so: "0.31 ms", "42 ms"."""
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"  # noqa: PLR2004 (two digits)


def mebibytes(count: float) -> str:
    """An amount of memory."""
    return f"{count / 2**20:.0f} MiB"


def describe_duration(seconds: float) -> str:
    """Its two largest units: "3 d 4 h", "12 min 5 s"."""
    left = int(seconds)
    parts: list[str] = []
    for size, unit in _DURATIONS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
