"""How much of a model a delegate took, from the graph that it left. Pure.

A runtime keeps the model's operators and adds one for each part that a delegate runs. What it does
not say is which operators went into a part: those that lie between the part's inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerators.base import Coverage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a graph, by the numbers of its tensors; -1 stands for one that is left out.

    Attributes:
        is_part: it stands for operators that a delegate runs.
        name: of the operator; "" when it does not matter.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    is_part: bool = False
    name: str = ""


def measure_coverage(nodes: Sequence[Node]) -> Coverage:
    """Count what the parts stand for.

    An operator is not counted when nothing but operators of the same part uses what it gives, and
    those do not lead to an output: it makes no difference to any answer.
    """
    operators = [node for node in nodes if not node.is_part]
    parts = [node for node in nodes if node.is_part]
    makers = {tensor: place for place, node in enumerate(operators) for tensor in node.outputs}
    claimed: set[int] = set()
    for part in parts:
        given = set(part.inputs)
        wanted = [tensor for tensor in part.outputs if tensor not in given]
        while wanted:
            place = makers.get(wanted.pop())
            if place is None or place in claimed:
                continue
            claimed.add(place)
            wanted += [tensor for tensor in operators[place].inputs if tensor not in given]
    taken = each_once(operators[place].name for place in claimed)
    return Coverage(len(operators), len(claimed), len(parts), taken)


def each_once(names: Iterable[str]) -> tuple[str, ...]:
    """Names of operators as `Coverage.taken` has them."""
    return tuple(sorted({name for name in names if name}))
