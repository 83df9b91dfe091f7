"""Says how something goes on: bars that move on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.cli.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

_BAR_CELLS = 24
_LEAST_BAR_CELLS = 4
_UP_AND_CLEAR = "\x1b[{lines}A\x1b[J"
_LEAST_COLUMNS = 20


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that is under way.

    Attributes:
        share: done of it, 0..1; None when it has no end that is known.
        detail: what to say of it beside the bar.
    """

    name: str
    share: float | None
    detail: str = ""


class Screen:
    """Lines that stay, and on a terminal bars below them that are drawn again and again."""

    def __init__(self, out: TextIO) -> None:
        """Store only."""
        self._out = out
        self._is_terminal = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._drawn = 0

    @property
    def is_terminal(self) -> bool:
        """Whether bars are shown."""
        return self._is_terminal

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.draw(())
        print(printable(line), file=self._out, flush=True)

    def draw(self, bars: Sequence[Bar]) -> None:
        """Show these bars instead of those before; nothing where there is no terminal."""
        if not self._is_terminal:
            return
        if self._drawn:
            self._out.write(_UP_AND_CLEAR.format(lines=self._drawn))
        size = shutil.get_terminal_size()
        columns, most = max(_LEAST_COLUMNS, size.columns), max(1, size.lines - 2)
        # What has scrolled off could not be drawn again.
        shown = bars if len(bars) <= most else (*bars[: most - 1], _more(len(bars) - most + 1))
        self._out.writelines(f"{draw_bar(bar, columns)}\n" for bar in shown)
        self._out.flush()
        self._drawn = len(shown)


def _more(count: int) -> Bar:
    return Bar(f"and {count} more", None)


def draw_bar(bar: Bar, columns: int) -> str:
    """A bar in one line that is shorter than the terminal: a full line would break."""
    width = columns - 1
    if bar.share is None:
        return printable(f"{bar.name}  {bar.detail}".rstrip())[:width]
    share = min(1.0, max(0.0, bar.share))
    percent = f"{share:4.0%}"
    words = printable(f"{bar.name}  {percent}  {bar.detail}")
    cells = min(_BAR_CELLS, width - len(words) - 4)
    if cells < _LEAST_BAR_CELLS:
        return words[:width]
    filled = int(share * cells)
    line = f"[{'#' * filled}{'.' * (cells - filled)}]"
    return printable(f"{bar.name}  {line} {percent}  {bar.detail}")[:width]
