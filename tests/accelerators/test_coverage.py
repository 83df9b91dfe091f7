"""How much of a model a delegate took is counted from the graph, whatever the parts look like."""

from __future__ import annotations

from accelerators.base import Coverage
from accelerators.coverage import Node, measure_coverage

# Tensors 0 to 4 in a line; 10 to 13 are weights.
LINE = [Node((number, 10 + number), (number + 1,)) for number in range(4)]


def part(inputs, outputs):
    return Node(tuple(inputs), tuple(outputs), is_part=True)


def test_nothing_taken():
    assert measure_coverage(LINE) == Coverage(operators=4, claimed=0, partitions=0)


def test_everything_taken():
    graph = [*LINE, part([0, 10, 11, 12, 13], [4])]

    assert measure_coverage(graph) == Coverage(operators=4, claimed=4, partitions=1)


def test_the_middle_taken():
    graph = [*LINE, part([1, 11, 12], [3])]

    assert measure_coverage(graph) == Coverage(operators=4, claimed=2, partitions=1)


def test_several_parts():
    graph = [*LINE, part([0, 10], [1]), part([3, 13], [4])]

    assert measure_coverage(graph) == Coverage(operators=4, claimed=2, partitions=2)


def test_branch_within_a_part_is_counted_once():
    fork = [Node((0,), (1, 2)), Node((1,), (3,)), Node((2,), (4,)), Node((3, 4), (5,))]

    assert measure_coverage([*fork, part([0], [5])]).claimed == 4


def test_operator_beside_a_part_is_not_counted():
    fork = [Node((0,), (1,)), Node((0,), (2,)), Node((1, 2), (3,))]

    assert measure_coverage([*fork, part([0, 2], [3])]).claimed == 2


def test_optional_inputs_and_loops_do_no_harm():
    graph = [Node((0, -1), (1,)), Node((1, 2), (2,)), part([0], [2])]

    assert measure_coverage(graph) == Coverage(operators=2, claimed=2, partitions=1)


def test_part_that_hands_on_an_input_claims_nothing_for_it():
    graph = [*LINE, part([1], [1])]

    assert measure_coverage(graph) == Coverage(operators=4, claimed=0, partitions=1)


def test_model_without_operators():
    assert measure_coverage([]) == Coverage(operators=0, claimed=0, partitions=0)
