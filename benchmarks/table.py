"""Figures as lines of text, and as Markdown. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.lanes import INFERD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bounds import Row
    from benchmarks.measure import Absence, Footprint, Load, Measurement


def comparison(measurements: Sequence[Measurement], absences: Sequence[Absence]) -> list[list[str]]:
    """One workload's table: a line per lane, a column per number of connections.

    Returns:
        Rows of cells, the head first. A cell reads "rate/s, p50, p99 ms"; the last one compares
        inferd's rate with the lane's at the most connections that both have.
    """
    widths = sorted({each.connections for each in measurements})
    by_lane: dict[str, dict[int, Load]] = {}
    for each in measurements:
        by_lane.setdefault(each.lane, {})[each.connections] = each.median
    head = ["requests/s  p50  p99 ms", *(f"{width} under way" for width in widths)]
    rows = [[*head, "inferd's rate"]]
    for lane, loads in by_lane.items():
        cells = [_load(loads.get(width)) for width in widths]
        rows.append([lane, *cells, _compared(by_lane.get(INFERD, {}), loads)])
    blank = [""] * len(widths)
    rows += [[f"{each.lane}: {each.reason}", *blank, ""] for each in absences]
    return rows


def footprints(found: Sequence[Footprint]) -> list[list[str]]:
    """Memory and start-up of servers that run alone."""
    head = ["alone", "memory, MB", "processes", "first right answer after, s"]
    rows = [
        [each.lane, f"{each.pss_mb:.0f}", str(each.processes), f"{each.start_s:.2f}"]
        for each in found
    ]
    return [head, *rows]


def bounds(rows: Sequence[Row]) -> list[list[str]]:
    """What must hold, and whether it does."""
    return [["what", "measured", "must be", "verdict"], *(_bound(row) for row in rows)]


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other."""
    widths = _widths(rows)
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    head, *rest = rows
    lines = [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rest)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Of columns; a line that says why there are no figures may run over them."""
    full = [row for row in rows if any(row[1:])]
    return [max((len(row[column]) for row in full), default=0) for column in range(len(rows[0]))]


def _load(load: Load | None) -> str:
    if load is None:
        return ""
    errors = f"  {load.errors} ERRORS" if load.errors else ""
    return f"{load.rate_per_s:.0f}  {_ms(load.p50_ms)}  {_ms(load.p99_ms)}{errors}"


def _ms(value: float) -> str:
    """Three digits that mean something."""
    decimals = next((n for limit, n in ((1, 3), (10, 2), (100, 1)) if value < limit), 0)
    return f"{value:.{decimals}f}"


def _compared(ours: dict[int, Load], theirs: dict[int, Load]) -> str:
    both = sorted(ours.keys() & theirs.keys())
    if not both or not theirs[both[-1]].rate_per_s:
        return ""
    return f"{ours[both[-1]].rate_per_s / theirs[both[-1]].rate_per_s:.2f}x"


def _bound(row: Row) -> list[str]:
    note = f" ({row.note})" if row.note else ""
    value = "" if row.value is None else f"{row.value:.2f} {row.unit}{note}"
    limit = "" if row.bound is None else f"{row.limit.value} {row.bound:.2f} {row.unit}"
    return [row.text, value, limit, row.verdict.value]
