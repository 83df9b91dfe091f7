"""Puts a run's figures into docs/performance.md, between two marks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks import table
from benchmarks.bounds import Limit, Row
from benchmarks.machine import Machine
from benchmarks.measure import Absence, Footprint, Load, Measurement

if TYPE_CHECKING:
    from pathlib import Path

BEGIN = "<!-- figures: written by `make bench BENCH_ARGS=--write-docs` -->"
END = "<!-- end of figures -->"


def write(results: Path, document: Path) -> None:
    """Replace what is between the marks with this file's figures.

    Raises:
        ValueError: the document has not both marks.
    """
    figures = json.loads(results.read_text(encoding="utf-8"))
    text = document.read_text(encoding="utf-8")
    document.write_text(put_between_marks(text, render(figures)), encoding="utf-8")


def put_between_marks(text: str, figures: str) -> str:
    """The text with these figures. Pure."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the document needs the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


def render(results: dict[str, Any]) -> str:
    """Results as Markdown. Pure."""
    facts = results["machine"]
    facts.pop("busy")
    machine = Machine(**facts)
    rounds = f"{results['rounds']} rounds of {results['seconds']} s"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [f"{machine.describe()} {machine.describe_load()} {rounds}; {versions}."]
    if results["quick"]:
        parts.append("A quick run: its figures mean nothing.")
    for workload in results["workloads"]:
        parts += _workload(workload)
    rows = [
        Row(**{**each, "limit": Limit(each["limit"])})
        for each in ({k: v for k, v in row.items() if k != "verdict"} for row in results["bounds"])
    ]
    parts += ["### What must hold", table.as_markdown(table.bounds(rows))]
    return "\n\n".join(parts)


def _workload(found: dict[str, Any]) -> list[str]:
    measurements = [
        Measurement(**{**each, "rounds": tuple(Load(**load) for load in each["rounds"])})
        for each in found["measurements"]
    ]
    absences = [Absence(**each) for each in found["absences"]]
    footprints = [Footprint(**each) for each in found["footprints"]]
    parts = [
        f"### {found['workload']}",
        table.as_markdown(table.comparison(measurements, absences)),
    ]
    return [*parts, table.as_markdown(table.footprints(footprints))] if footprints else parts
