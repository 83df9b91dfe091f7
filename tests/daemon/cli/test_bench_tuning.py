"""Which of the settings measured is chosen, and what is said of each."""

from __future__ import annotations

from operator import mul

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from daemon.cli.tuning import (
    ENOUGH_MS,
    ENOUGH_RATE,
    GAIN,
    NEAR,
    Figures,
    Goal,
    Outcome,
    Row,
    Setting,
    choose,
    judge,
    pick,
)

ONE = Setting(1, 1, 1)
TWO_THREADS = Setting(1, 2, 1)
TWO_INSTANCES = Setting(2, 1, 1)
FOUR_INSTANCES = Setting(4, 1, 1)


def rated(setting, rate, *, mib=20):
    """A row that was measured for throughput."""
    return Row(setting, Outcome.MEASURED, Figures(1.0, 2.0, rate, mib << 20, 1000))


def timed(setting, p50_ms, p99_ms=None):
    """A row that was measured for latency."""
    figures = Figures(p50_ms, p99_ms or 2 * p50_ms, 1000 / p50_ms, 20 << 20, 1000)
    return Row(setting, Outcome.MEASURED, figures)


def failed(setting, reason="killed by SIGSEGV"):
    return Row(setting, Outcome.FAILED, reason=reason)


def best_rate(present, *rows):
    return choose(rows, present, Goal.THROUGHPUT).setting


def best_time(present, *rows):
    return choose(rows, present, Goal.LATENCY).setting


def test_the_setting_with_the_most_rows_a_second_has_the_best_throughput():
    rows = (rated(ONE, 100), rated(TWO_INSTANCES, 190), rated(FOUR_INSTANCES, 380))

    assert best_rate(ONE, *rows) == FOUR_INSTANCES


def test_the_setting_with_the_shortest_median_has_the_best_latency():
    assert best_time(ONE, timed(ONE, 4.0), timed(TWO_THREADS, 2.1)) == TWO_THREADS


def test_of_settings_near_the_best_the_one_that_takes_least_is_chosen():
    rows = (rated(ONE, 100), rated(TWO_INSTANCES, 195), rated(FOUR_INSTANCES, 200))

    assert best_rate(ONE, *rows) == TWO_INSTANCES


def test_of_equal_processors_the_setting_with_fewer_instances_takes_less():
    rows = (rated(ONE, 100), rated(TWO_INSTANCES, 200), rated(TWO_THREADS, 196))

    assert best_rate(ONE, *rows) == TWO_THREADS


def test_a_gain_that_noise_could_make_leaves_the_present_setting():
    rows = (rated(ONE, 100), rated(TWO_INSTANCES, 100 * (1 + GAIN) - 1))

    assert best_rate(ONE, *rows) == ONE


def test_a_gain_above_noise_changes_the_setting():
    rows = (rated(ONE, 100), rated(TWO_INSTANCES, 100 * (1 + GAIN) + 1))

    assert best_rate(ONE, *rows) == TWO_INSTANCES


def test_a_setting_that_takes_less_and_is_as_good_replaces_the_present_one():
    rows = (rated(FOUR_INSTANCES, 200), rated(TWO_INSTANCES, 196))

    assert best_rate(FOUR_INSTANCES, *rows) == TWO_INSTANCES


def test_fewer_rows_in_a_batch_are_no_reason_to_change():
    present = Setting(1, 1, 8)

    assert best_rate(present, rated(present, 200), rated(Setting(1, 1, 4), 198)) == present


SETTINGS = (ONE, TWO_THREADS, TWO_INSTANCES, FOUR_INSTANCES)
RATES = st.tuples(*[st.floats(80, 120)] * len(SETTINGS))
NOISE = st.tuples(*[st.floats(0.98, 1.02)] * len(SETTINGS))


@given(rates=RATES, noise=NOISE, present=st.sampled_from(SETTINGS))
def test_noise_does_not_swap_back_what_was_swapped(rates, noise, present):
    first = [rated(*each) for each in zip(SETTINGS, rates, strict=True)]
    second = [rated(*each) for each in zip(SETTINGS, map(mul, rates, noise), strict=True)]
    chosen = best_rate(present, *first)
    assume(chosen != present)

    assert best_rate(chosen, *second) != present


@given(rates=RATES, present=st.sampled_from(SETTINGS))
def test_what_is_chosen_is_never_far_from_the_best(rates, present):
    rows = [rated(*each) for each in zip(SETTINGS, rates, strict=True)]

    chosen = best_rate(present, *rows)

    rate = rates[SETTINGS.index(chosen)]
    assert rate * (1 + GAIN) >= (1 - NEAR) * max(rates)


def test_a_short_median_is_no_gain_where_the_tail_grows():
    rows = (timed(ONE, 4.0, 5.0), timed(TWO_THREADS, 2.0, 7.0))

    assert best_time(ONE, *rows) == ONE


def test_the_tail_is_not_looked_at_for_throughput():
    slow_tail = Row(TWO_INSTANCES, Outcome.MEASURED, Figures(1.0, 90.0, 190.0, 1 << 20, 1000))

    assert best_rate(ONE, rated(ONE, 100), slow_tail) == TWO_INSTANCES


def test_a_rate_that_no_front_end_brings_is_no_reason_to_change():
    rows = (rated(ONE, ENOUGH_RATE), rated(TWO_INSTANCES, 2 * ENOUGH_RATE))

    choice = choose(rows, ONE, Goal.THROUGHPUT)

    assert choice.setting == ONE
    assert "more than HTTP and MQTT can bring" in choice.why


def test_a_time_that_http_hides_is_no_reason_to_change():
    rows = (timed(ONE, ENOUGH_MS), timed(TWO_THREADS, ENOUGH_MS / 2))

    choice = choose(rows, ONE, Goal.LATENCY)

    assert choice.setting == ONE
    assert "HTTP takes longer" in choice.why


def test_where_the_present_setting_fails_another_is_chosen_and_the_reason_told():
    choice = choose((failed(FOUR_INSTANCES), rated(ONE, 100)), FOUR_INSTANCES, Goal.THROUGHPUT)

    assert choice.setting == ONE
    assert "killed by SIGSEGV" in choice.why


def test_a_setting_that_fails_is_never_chosen():
    assert best_rate(ONE, rated(ONE, 100), failed(TWO_INSTANCES)) == ONE


def test_where_nothing_was_measured_nothing_is_chosen():
    assert choose((failed(ONE),), ONE, Goal.THROUGHPUT) is None
    assert pick((failed(ONE),), Goal.THROUGHPUT) is None


def test_the_reason_of_a_change_tells_the_gain_and_what_it_takes():
    rows = (rated(ONE, 100, mib=20), rated(TWO_INSTANCES, 184, mib=33))

    choice = choose(rows, ONE, Goal.THROUGHPUT)

    assert choice.why == (
        "Best is 2 instances x 1 thread, no batches: 184 rows/s, +84% rows/s against the present "
        "1 instance x 1 thread, no batches, with 13 MiB more memory."
    )


def test_the_reason_of_a_change_for_latency_speaks_of_the_median():
    choice = choose((timed(ONE, 4.0), timed(TWO_THREADS, 2.0)), ONE, Goal.LATENCY)

    assert "p50 2.00 ms, -50% p50 against the present" in choice.why


def test_the_reason_of_a_smaller_setting_says_that_it_takes_less():
    rows = (rated(FOUR_INSTANCES, 200), rated(TWO_INSTANCES, 196))

    assert "it takes less" in choose(rows, FOUR_INSTANCES, Goal.THROUGHPUT).why


def test_the_reason_to_stay_tells_by_how_much_the_other_was_too_little_better():
    choice = choose((rated(ONE, 100), rated(TWO_INSTANCES, 107)), ONE, Goal.THROUGHPUT)

    assert "2 instances x 1 thread, no batches has +7% rows/s" in choice.why
    assert "10% better" in choice.why


def test_the_reason_to_stay_says_that_nothing_is_better():
    choice = choose((rated(ONE, 100), rated(TWO_INSTANCES, 90)), ONE, Goal.THROUGHPUT)

    assert choice.why.endswith("nothing measured is better by more than 5%.")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (rated(ONE, 100), "present"),
        (rated(TWO_INSTANCES, 184), "best, +84% rows/s"),
        (rated(TWO_THREADS, 90), "-10% rows/s"),
        (failed(FOUR_INSTANCES), "failed: killed by SIGSEGV"),
    ],
)
def test_the_table_says_of_each_setting_what_became_of_it(row, words):
    rows = (rated(ONE, 100), rated(TWO_INSTANCES, 184), rated(TWO_THREADS, 90))

    assert judge(row, rows, ONE, TWO_INSTANCES, Goal.THROUGHPUT) == words


def test_the_table_says_which_setting_has_too_long_a_tail():
    rows = (timed(ONE, 4.0, 5.0), timed(TWO_THREADS, 2.0, 7.0))

    assert "p99 is more than 25% longer" in judge(rows[1], rows, ONE, ONE, Goal.LATENCY)


def test_a_setting_is_told_in_words():
    assert str(Setting(2, 1, 8, 1.5)) == "2 instances x 1 thread, batches up to 8, delay 1.5 ms"
