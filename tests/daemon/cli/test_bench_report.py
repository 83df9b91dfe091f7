"""What `bench` says of what it has found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from daemon.cli.benchreport import (
    Report,
    as_document,
    describe_choice,
    describe_machine,
    describe_model,
    describe_rows,
)
from daemon.cli.machine import Machine
from daemon.cli.modelsource import NoPlace, TablesPlace
from daemon.cli.tuning import Choice, Figures, Goal, Outcome, Row, Setting

PRESENT = Setting(1, 1, 1)
BEST = Setting(2, 1, 8, 1.0)
IDLE = Machine(2, 1 << 30, 3.2, 0.456)
ROWS = (
    Row(PRESENT, Outcome.MEASURED, Figures(2.0, 3.5, 1500.0, 20 << 20, 3000)),
    Row(BEST, Outcome.MEASURED, Figures(0.5, 0.75, 3000.0, 33 << 20, 6000)),
    Row(Setting(4, 1, 8), Outcome.LEFT_OUT, reason="2 instances were no better than 1"),
)


def make_report(**facts):
    known = {
        "model": "parts",
        "version": 3,
        "path": "/models/parts/3/model.tflite",
        "digest": "ab" * 32,
        "goal": Goal.THROUGHPUT,
        "asked": "random numbers, float32 [1, 8]",
        "clients": 64,
        "seconds": 2.0,
        "machine": IDLE,
        "present": PRESENT,
        "rows": ROWS,
        "choice": Choice(BEST, "It is faster."),
        "notes": (),
    }
    return Report(**{**known, **facts})


def test_only_keys_that_differ_are_changes():
    assert make_report().changes == {
        "placement": {"instances": 2},
        "batching": {"max_size": 8, "max_delay_ms": 1.0},
    }


@pytest.mark.parametrize("choice", [None, Choice(PRESENT, "It stays.")])
def test_where_nothing_is_better_nothing_changes(choice):
    assert make_report(choice=choice).changes == {}


def test_the_model_is_told_with_what_it_was_asked():
    assert describe_model(make_report()) == (
        "parts version 3 (/models/parts/3/model.tflite): throughput with 64 requests under way, "
        "asked random numbers, float32 [1, 8]"
    )


def test_the_machine_is_told_with_its_load():
    assert describe_machine(IDLE) == (
        "2 processors, 3 % in use before, load average 0.46; 1024 MiB of memory available"
    )


def test_a_busy_machine_is_said_to_be_busy():
    assert "BUSY" in describe_machine(replace(IDLE, busy_percent=40.0))


def test_each_setting_has_a_line_and_the_best_one_a_mark():
    lines = describe_rows(make_report(notes=("short",))).splitlines()

    assert [" ".join(line.split()) for line in lines] == [
        "INSTANCES THREADS BATCH DELAY P50 P99 ROWS/S MEMORY VERDICT",
        "1 1 1 2.00 ms 3.50 ms 1,500 20 MiB present",
        "* 2 1 8 1 ms 0.50 ms 0.75 ms 3,000 33 MiB best, +100% rows/s",
        "4 1 8 left out: 2 instances were no better than 1",
        "note: short",
    ]


def test_the_best_setting_is_offered_with_its_place_and_lines():
    lines = describe_choice(make_report(), TablesPlace(Path("/m/model.toml")))

    assert lines[:2] == ["It is faster.", "--apply writes it into /m/model.toml:"]
    assert lines[-1].startswith("[placement]\ninstances = 2\n")


def test_where_it_cannot_be_written_the_way_is_told_with_the_lines():
    lines = describe_choice(make_report(), NoPlace("it is a lone file", "make a folder"))

    assert lines[1] == "--apply cannot write it: it is a lone file. To have it, make a folder:"
    assert "instances = 2" in lines[-1]


@pytest.mark.parametrize(
    ("facts", "place"),
    [
        ({}, None),
        ({"choice": Choice(PRESENT, "It is faster.")}, TablesPlace(Path("/m/model.toml"))),
    ],
)
def test_nothing_is_offered_that_is_written_already(facts, place):
    assert describe_choice(make_report(**facts), place) == ["It is faster."]


def test_where_nothing_was_measured_that_is_said():
    assert describe_choice(make_report(choice=None), None) == ["Nothing could be measured."]


def test_programs_get_every_figure():
    document = as_document(make_report())

    assert document["best"] == {
        "instances": 2,
        "threads": 1,
        "max_size": 8,
        "max_delay_ms": 1.0,
    }
    best = document["settings"][1]
    assert (best["p50_ms"], best["p99_ms"], best["rows_per_s"]) == (0.5, 0.75, 3000.0)
    assert (best["memory_bytes"], best["answers"]) == (33 << 20, 6000)
    left_out = document["settings"][2]
    assert (left_out["outcome"], left_out["p50_ms"]) == ("left out", None)


def test_programs_are_told_when_nothing_was_measured():
    document = as_document(make_report(choice=None))

    assert (document["best"], document["why"], document["changes"]) == (None, "", {})
