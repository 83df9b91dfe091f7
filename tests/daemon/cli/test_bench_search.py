"""Which settings are measured, and which are left out."""

from __future__ import annotations

import pytest

from daemon.cli.tuning import Figures, Goal, Outcome, Row, Setting
from daemon.cli.tuningsearch import (
    Space,
    batch_sizes,
    delays,
    doublings,
    memory_problem,
    most_settings,
    placements,
    usual_clients,
    why_left_out,
)

ONE = Setting(1, 1, 1)


def space(**facts):
    return Space(**{"processors": 4, "clients": 64, **facts})


def shapes(settings):
    """Instances and threads of each."""
    return [(setting.instances, setting.threads) for setting in settings]


def rated(setting, rate):
    return Row(setting, Outcome.MEASURED, Figures(1.0, 2.0, rate, 20 << 20, 1000))


def left_out(setting, *rows, **facts):
    return why_left_out(setting, rows, Goal.THROUGHPUT, space(**facts))


@pytest.mark.parametrize(
    ("most", "steps"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4, 6))]
)
def test_steps_double_up_to_the_most(most, steps):
    assert doublings(most) == steps


def test_no_more_threads_are_tried_than_there_are_processors():
    tried = shapes(placements(space(processors=4), ONE))

    assert tried == [(1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1)]


def test_one_processor_leaves_one_placement():
    assert shapes(placements(space(processors=1), ONE)) == [(1, 1)]


def test_no_more_instances_are_tried_than_requests_are_under_way():
    assert shapes(placements(space(clients=1), ONE)) == [(1, 1), (1, 2), (1, 4)]


def test_a_stateful_model_has_one_instance_and_no_batches():
    stateful = space(stateful=True, instances=(1, 2), max_sizes=(1, 8))

    assert shapes(placements(stateful, ONE)) == [(1, 1), (1, 2), (1, 4)]
    assert batch_sizes(stateful, ONE) == []


def test_only_listed_placements_are_tried_also_above_the_processors():
    listed = space(processors=2, instances=(4,), threads=(2,))

    assert shapes(placements(listed, ONE)) == [(4, 2)]


def test_placements_are_tried_with_the_present_batches():
    present = Setting(1, 1, 8, 2.0)

    assert {(each.max_size, each.max_delay_ms) for each in placements(space(), present)} == {
        (8, 2.0)
    }


def test_placements_are_tried_with_a_listed_batch_size():
    tried = placements(space(max_sizes=(4, 2)), Setting(1, 1, 8))

    assert {each.max_size for each in tried} == {2}


def test_batch_sizes_go_up_to_sixteen():
    assert [each.max_size for each in batch_sizes(space(), ONE)] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("facts", [{"batches": False}, {"clients": 1}])
def test_no_batches_are_tried_where_none_can_come_about(facts):
    assert batch_sizes(space(**facts), ONE) == []


def test_listed_batch_sizes_are_tried_also_with_one_request_under_way():
    tried = batch_sizes(space(clients=1, max_sizes=(4, 1)), ONE)

    assert [each.max_size for each in tried] == [1, 4]


@pytest.mark.parametrize(
    ("base", "goal", "tried"),
    [
        (Setting(1, 1, 8), Goal.THROUGHPUT, [0.0, 1.0, 4.0]),
        (Setting(1, 1, 1), Goal.THROUGHPUT, [0.0]),
        (Setting(1, 1, 8, 5.0), Goal.LATENCY, [0.0]),
    ],
)
def test_waiting_is_tried_where_it_can_fill_batches(base, goal, tried):
    assert [each.max_delay_ms for each in delays(base, goal)] == tried


def test_a_step_that_gained_nothing_ends_its_direction():
    rows = (rated(ONE, 100), rated(Setting(2, 1, 1), 103))

    assert left_out(Setting(4, 1, 1), *rows) == "2 instances were no better than 1"
    assert left_out(Setting(2, 2, 1), *rows) == "2 instances were no better than 1"


def test_a_step_that_gained_something_leads_on():
    assert left_out(Setting(4, 1, 1), rated(ONE, 100), rated(Setting(2, 1, 1), 106)) == ""


def test_a_step_in_another_direction_says_nothing():
    assert left_out(Setting(4, 1, 1), rated(ONE, 100), rated(Setting(1, 2, 1), 90)) == ""


def test_a_step_of_the_placement_says_nothing_of_larger_batches():
    assert left_out(Setting(2, 1, 2), rated(ONE, 100), rated(Setting(2, 1, 1), 90)) == ""


def test_larger_batches_are_left_out_after_a_step_that_gained_nothing():
    rows = (rated(Setting(2, 1, 4), 100), rated(Setting(2, 1, 8), 99))

    assert left_out(Setting(2, 1, 16), *rows) == "batches up to 8 were no better than up to 4"
    assert left_out(Setting(2, 1, 2), *rows) == ""


def test_a_step_that_gained_nothing_ends_nothing_where_a_further_one_gained():
    rows = [rated(Setting(1, 1, size), rate) for size, rate in ((8, 200), (1, 90), (2, 91))]

    assert left_out(Setting(1, 1, 4), *rows) == ""
    assert left_out(Setting(1, 1, 16), *rows) == ""


def test_a_longer_delay_is_left_out_after_one_that_gained_nothing():
    rows = (rated(Setting(1, 1, 8), 100), rated(Setting(1, 1, 8, 1.0), 90))

    assert left_out(Setting(1, 1, 8, 4.0), *rows) == "a delay of 1 ms was no better than 0"


def test_what_the_operator_lists_is_measured():
    rows = (rated(ONE, 100), rated(Setting(2, 1, 1), 90))

    assert left_out(Setting(4, 1, 1), *rows, instances=(1, 2, 4)) == ""


def test_more_instances_are_left_out_where_fewer_took_too_much_memory():
    over = Row(Setting(2, 1, 1), Outcome.MEMORY, reason="too large")

    assert left_out(Setting(4, 1, 1), over, instances=(2, 4)).startswith("too much memory at 2")
    assert left_out(Setting(1, 2, 1), over) == ""


def test_larger_batches_are_left_out_where_smaller_ones_are_not_proven():
    unproven = Row(Setting(1, 1, 2), Outcome.UNPROVEN, reason="rows differ")

    assert left_out(Setting(1, 1, 4), unproven, max_sizes=(2, 4))
    assert left_out(ONE, unproven) == ""


def test_a_failure_says_nothing_of_other_settings():
    assert left_out(Setting(4, 1, 1), Row(ONE, Outcome.FAILED, reason="too slow")) == ""


@pytest.mark.parametrize("processors", [1, 2, 4, 64])
def test_the_bound_counts_every_setting_once(processors):
    bound = most_settings(space(processors=processors), Setting(1, 1, 8), Goal.THROUGHPUT)

    assert len(bound) == len(set(bound)) == len(placements(space(processors=processors), ONE)) + 6


@pytest.mark.parametrize(
    ("goal", "rows", "clients"),
    [(Goal.LATENCY, 16, 1), (Goal.THROUGHPUT, 1, 8), (Goal.THROUGHPUT, 16, 64)],
)
def test_as_many_requests_are_under_way_as_the_goal_asks_and_the_queue_holds(goal, rows, clients):
    assert usual_clients(goal, workers=4, calls=2, rows=rows, queue=64) == clients


def test_instances_that_do_not_fit_are_refused_with_the_figures():
    problem = memory_problem(
        Setting(4, 1, 1), worker_bytes=100 << 20, available_bytes=500 << 20, reserve_bytes=128 << 20
    )

    assert problem == (
        "4 of its workers would take 400 MiB of the 500 MiB available, and 128 MiB are kept free"
    )


def test_instances_that_fit_are_not_refused():
    assert not memory_problem(
        Setting(3, 1, 1), worker_bytes=100 << 20, available_bytes=500 << 20, reserve_bytes=128 << 20
    )
