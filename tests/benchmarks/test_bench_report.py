"""Figures as tables, on the screen and in the document."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from support.bench_cases import make_load, measured, weighed

from benchmarks.bounds import Row
from benchmarks.machine import Machine
from benchmarks.measure import Absence
from benchmarks.report import BEGIN, END, put_between_marks, render
from benchmarks.table import as_markdown, as_text, bounds, comparison

ABSENT = Absence("fc_mnist", "Triton", "could not be installed: no such wheel")


def test_a_lane_has_its_figures_under_its_number_of_connections():
    rows = comparison([measured("w", "inferd", 1), measured("w", "inferd", 8, make_load(50))], [])

    assert rows[1][1:3] == ["1000  1.00  3.00", "50  1.00  3.00"]


def test_inferds_rate_is_compared_where_both_were_measured():
    rows = comparison(
        [
            measured("w", "inferd", 1, make_load(300)),
            measured("w", "inferd", 8, make_load(900)),
            measured("w", "Triton", 1, make_load(100)),
        ],
        [],
    )

    assert rows[2][-1] == "3.00x"


def test_errors_are_told_beside_the_figure():
    rows = comparison([measured("w", "inferd", 1, make_load(errors=4))], [])

    assert "4 ERRORS" in rows[1][1]


def test_who_is_absent_is_a_row_with_the_reason():
    text = as_text(comparison([measured("fc_mnist", "inferd", 1)], [ABSENT]))

    assert "Triton: could not be installed: no such wheel" in text.splitlines()


def test_a_failed_bound_is_told_in_the_open():
    text = as_markdown(bounds([Row("memory", 120.0, "MB", bound=110)]))

    assert "| memory | 120.00 MB | at most 110.00 MB | FAILS |" in text.splitlines()


def test_a_run_renders_with_its_machine_and_everything_measured():
    machine = Machine("2026-01-02", "a processor", 2, 4.0, "Debian", "3.11", 0.1)
    results = {
        "machine": {**asdict(machine), "busy": False},
        "seconds": 2,
        "rounds": 3,
        "quick": False,
        "versions": {"MLServer": "1.7.1"},
        "workloads": [
            {
                "workload": "fc_mnist",
                "measurements": [asdict(measured("fc_mnist", "inferd", 8))],
                "footprints": [asdict(weighed("fc_mnist", "inferd", 90.0))],
                "absences": [asdict(ABSENT)],
            }
        ],
        "bounds": [{**asdict(Row("x", 2.0, bound=1.0)), "limit": "at most", "verdict": "FAILS"}],
    }

    text = render(results)

    assert "2026-01-02; a processor, 2 CPUs" in text
    assert "MLServer 1.7.1" in text
    assert "could not be installed: no such wheel" in text
    assert "| x | 2.00 x | at most 1.00 x | FAILS |" in text


def test_figures_replace_what_is_between_the_marks():
    text = put_between_marks(f"before\n{BEGIN}\nold\n{END}\nafter\n", "new")

    assert text == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


def test_a_document_without_marks_is_left_alone():
    with pytest.raises(ValueError, match="marks"):
        put_between_marks("no marks", "new")


def test_the_document_has_the_marks(repository):
    text = (repository / "docs" / "performance.md").read_text(encoding="utf-8")

    assert put_between_marks(text, "new") != text
