"""What `bench` has found, as a person and as a program read it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from daemon.cli.modelsource import NoPlace, TablesPlace
from daemon.cli.modeltoml import write_tables
from daemon.cli.text import mebibytes, milliseconds, printable, table
from daemon.cli.tuning import judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.cli.machine import Machine
    from daemon.cli.tuning import Choice, Goal, Row, Setting

_COLUMNS = (
    *("", "INSTANCES", "THREADS", "BATCH", "DELAY", "P50", "P99", "ROWS/S", "MEMORY", "VERDICT"),
)
_MARK = "*"
_KEYS = {
    "instances": ("placement", "instances"),
    "threads": ("placement", "threads"),
    "max_size": ("batching", "max_size"),
    "max_delay_ms": ("batching", "max_delay_ms"),
}
"""Where in `model.toml` each part of a setting stands."""


@dataclass(frozen=True, slots=True)
class Report:
    """One run of `bench`.

    Attributes:
        model, version, path: what was measured.
        digest: of its file, sha256 in lower-case hex.
        asked: the inputs, in words.
        clients: requests kept under way.
        seconds: that each setting was counted for.
        rows: in the order they were tried.
        choice: None when nothing could be measured.
        notes: what the reader should know before believing it.
    """

    model: str
    version: int
    path: str
    digest: str
    goal: Goal
    asked: str
    clients: int
    seconds: float
    machine: Machine
    present: Setting
    rows: tuple[Row, ...]
    choice: Choice | None
    notes: tuple[str, ...]

    @property
    def changes(self) -> dict[str, dict[str, float]]:
        """Keys of `model.toml` that turn the present setting into the best one, by table."""
        found: dict[str, dict[str, float]] = {}
        if self.choice is None:
            return found
        for part, (section, key) in _KEYS.items():
            value = getattr(self.choice.setting, part)
            if value != getattr(self.present, part):
                found.setdefault(section, {})[key] = value
        return found


def describe_model(report: Report) -> str:
    """What is measured, with what, in a line."""
    under_way = f"{report.clients} request{'s' if report.clients > 1 else ''} under way"
    return printable(
        f"{report.model} version {report.version} ({report.path}): {report.goal.value} with "
        f"{under_way}, asked {report.asked}"
    )


def describe_machine(machine: Machine) -> str:
    """What it is measured on, in a line."""
    count = machine.processors
    told = (
        f"{count} processor{'s' if count > 1 else ''}, {machine.busy_percent:.0f} % in use "
        f"before, load average {machine.load_average:.2f}; "
        f"{mebibytes(machine.available_bytes)} of memory available"
    )
    if machine.is_busy:
        told += "\nThe machine is BUSY: measure again when it is not, before you trust the figures."
    return told


def describe_rows(report: Report) -> str:
    """The table, with its best row marked, and the notes."""
    lines = [table([_cells(row, report) for row in report.rows], _COLUMNS)]
    return "\n".join([*lines, *(f"note: {printable(note)}" for note in report.notes)])


def describe_choice(report: Report, place: TablesPlace | NoPlace | None) -> list[str]:
    """What is best and why, in lines.

    Args:
        report: what was found.
        place: where --apply would write it, which is then offered; None when that is under way.
    """
    if report.choice is None:
        return ["Nothing could be measured."]
    if place is None or not report.changes:
        return [report.choice.why]
    return [report.choice.why, _describe_place(place), "", write_tables(report.changes)]


def as_document(report: Report) -> dict[str, object]:
    """Everything, for programs."""
    choice = report.choice
    return {
        "model": report.model,
        "version": str(report.version),
        "path": report.path,
        "digest": report.digest,
        "goal": report.goal.value,
        "asked": report.asked,
        "clients": report.clients,
        "seconds": report.seconds,
        "machine": {
            "processors": report.machine.processors,
            "available_bytes": report.machine.available_bytes,
            "busy_percent": round(report.machine.busy_percent, 1),
            "load_average": round(report.machine.load_average, 2),
            "busy": report.machine.is_busy,
        },
        "settings": [_row_document(row, report) for row in report.rows],
        "present": _setting_document(report.present),
        "best": _setting_document(choice.setting) if choice else None,
        "why": choice.why if choice else "",
        "changes": report.changes,
        "notes": list(report.notes),
    }


def _describe_place(place: TablesPlace | NoPlace) -> str:
    match place:
        case TablesPlace(file):
            return f"--apply writes it into {printable(str(file))}:"
        case NoPlace(reason, advice):
            return printable(f"--apply cannot write it: {reason}. To have it, {advice}:")
        case _:
            assert_never(place)


def _cells(row: Row, report: Report) -> Sequence[str]:
    setting, figures = row.setting, row.figures
    best = report.choice is not None and setting == report.choice.setting
    cells = [
        _MARK if best else "",
        str(setting.instances),
        str(setting.threads),
        str(setting.max_size),
        f"{setting.max_delay_ms:g} ms" if setting.max_delay_ms else "",
    ]
    if figures is None:
        cells += ["", "", "", ""]
    else:
        cells += [milliseconds(figures.p50_ms), milliseconds(figures.p99_ms)]
        cells += [f"{figures.rows_per_s:,.0f}", mebibytes(figures.memory_bytes)]
    return [*cells, _verdict(row, report)]


def _verdict(row: Row, report: Report) -> str:
    best = report.choice.setting if report.choice else None
    return judge(row, report.rows, report.present, best, report.goal)


def _row_document(row: Row, report: Report) -> dict[str, object]:
    figures = row.figures
    return {
        **_setting_document(row.setting),
        "outcome": row.outcome.value,
        "reason": row.reason,
        "p50_ms": round(figures.p50_ms, 4) if figures else None,
        "p99_ms": round(figures.p99_ms, 4) if figures else None,
        "rows_per_s": round(figures.rows_per_s, 1) if figures else None,
        "memory_bytes": figures.memory_bytes if figures else None,
        "answers": figures.answers if figures else 0,
        "others_percent": round(figures.others_percent, 1) if figures else None,
        "verdict": _verdict(row, report),
    }


def _setting_document(setting: Setting) -> dict[str, object]:
    return {part: getattr(setting, part) for part in _KEYS}
