"""What must hold, and whether it does."""

from __future__ import annotations

import pytest
from support.bench_cases import make_load, measured, weighed

from benchmarks.bounds import Figures, Limit, Row, Verdict, judge
from benchmarks.workloads import WORKLOADS

ALL = {workload.name for workload in WORKLOADS}


def judged(text: str, *measurements, footprints=(), decode_ms=None) -> Row:
    """The only row whose text has this in it."""
    rows = judge(Figures(measurements, footprints, decode_ms or {}), ALL)
    (row,) = [row for row in rows if text in row.text]
    return row


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [
        (1.0, Limit.AT_MOST, Verdict.HOLDS),
        (1.1, Limit.AT_MOST, Verdict.FAILS),
        (1.0, Limit.AT_LEAST, Verdict.HOLDS),
        (0.9, Limit.AT_LEAST, Verdict.FAILS),
        (None, Limit.AT_LEAST, Verdict.NOT_MEASURED),
    ],
)
def test_a_bound_itself_still_holds(value, limit, verdict):
    assert Row("x", value, limit=limit, bound=1.0).verdict is verdict


def test_without_a_bound_there_is_no_verdict():
    assert Row("x", 1.0).verdict is Verdict.NO_BOUND


def test_nothing_measured_is_nothing_that_holds():
    verdicts = {row.verdict for row in judge(Figures((), (), {}), ALL)}

    assert verdicts == {Verdict.NOT_MEASURED}


def test_overhead_is_counted_in_echoes():
    row = judged(
        "1 connection: inferd's p50",
        measured("fc_mnist", "raw invoke()", 1, make_load(p50_ms=0.01)),
        measured("fc_mnist", "aiohttp echo", 1, make_load(p50_ms=0.1)),
        measured("fc_mnist", "inferd", 1, make_load(p50_ms=0.16)),
    )

    assert row.value == pytest.approx(1.5)
    assert row.verdict is Verdict.HOLDS


def test_the_median_round_counts():
    rounds = [make_load(100), make_load(1300), make_load(9000)]

    row = judged(
        "fc_mnist, 8 connections: inferd's rate over Triton's",
        measured("fc_mnist", "inferd", 8, *rounds),
        measured("fc_mnist", "Triton", 8, make_load(1000)),
    )

    assert row.value == pytest.approx(1.3)


def test_a_rate_is_compared_at_the_same_number_of_connections():
    row = judged(
        "fc_mnist, 32 connections: inferd's rate over Triton's",
        measured("fc_mnist", "inferd", 8),
        measured("fc_mnist", "Triton", 32),
    )

    assert row.verdict is Verdict.NOT_MEASURED


def test_all_cores_are_compared_at_everybodys_best():
    row = judged(
        "mobilenet_v2-all-cores: best rate over Triton's",
        measured("mobilenet_v2-all-cores", "inferd", 2, make_load(100)),
        measured("mobilenet_v2-all-cores", "inferd", 8, make_load(400)),
        measured("mobilenet_v2-all-cores", "Triton", 32, make_load(500)),
    )

    assert row.value == pytest.approx(0.8)
    assert row.verdict is Verdict.FAILS


def test_slow_decoding_widens_the_bound_of_pictures():
    row = judged("mobilenet_v2-jpeg", decode_ms={"mobilenet_v2-jpeg": 10.0})

    assert row.bound == pytest.approx(13.0)


def test_fast_decoding_does_not_narrow_the_bound_of_pictures():
    row = judged("mobilenet_v2-jpeg", decode_ms={"mobilenet_v2-jpeg": 1.0})

    assert row.bound == 6.0


def test_memory_is_held_against_triton_of_the_same_run():
    row = judged(
        "memory over Triton's",
        footprints=(weighed("fc_mnist", "inferd", 90.0), weighed("fc_mnist", "Triton", 60.0)),
    )

    assert row.value == pytest.approx(1.5)
    assert row.verdict is Verdict.FAILS


def test_only_what_was_asked_for_is_judged():
    rows = judge(Figures((), (), {}), {"mobilenet_v2-json"})

    assert len(rows) == 3
    assert {row.text.split(",")[0] for row in rows[:2]} == {"mobilenet_v2-json"}


def test_one_failed_answer_of_ours_fails_a_bound():
    row = judged(
        "failed answers",
        measured("fc_mnist", "inferd", 8, make_load(), make_load(errors=1), make_load()),
        measured("fc_mnist", "Triton", 8, make_load(errors=5)),
    )

    assert row.value == 1
    assert row.verdict is Verdict.FAILS
