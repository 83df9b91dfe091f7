"""What a model file says of itself, before any runtime sees it. Pure.

Not checked: whether an operator of the table is really used, and whether the runtime has it; the
runtime says so when it allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from accelerators.flatbuffer import Buffer, Table

IDENTIFIER = b"TFL3"
_OPERATORS_MAX = 10_000
_SUBGRAPHS_MAX = 10_000
_TENSORS_MAX = 500_000
_PORTS_MAX = 10_000

# Source: the runtime's schema, BuiltinOperator.
_CUSTOM = 32
_VAR_HANDLE, _READ_VARIABLE, _ASSIGN_VARIABLE = 142, 143, 144
_STATE = frozenset({_VAR_HANDLE, _READ_VARIABLE, _ASSIGN_VARIABLE})

_EDGETPU = "edgetpu-custom-op"


@dataclass(frozen=True, slots=True)
class Outline:
    """What a file holds.

    Attributes:
        custom: codes of the custom operators, in file order.
        stateful: it has variables that live from one call to the next.
        inputs, outputs: tensor indexes by subgraph, in the order the subgraph declares them.
    """

    custom: tuple[str, ...] = ()
    stateful: bool = False
    inputs: tuple[tuple[int, ...], ...] = ()
    outputs: tuple[tuple[int, ...], ...] = ()

    @property
    def edgetpu(self) -> bool:
        """True for a file made by the Edge TPU compiler."""
        return _EDGETPU in self.custom

    @property
    def flex(self) -> tuple[str, ...]:
        """TensorFlow operators that only the Flex delegate has."""
        return tuple(code.removeprefix("Flex") for code in self.custom if code.startswith("Flex"))


def read_outline(data: memoryview) -> Outline:
    """The outline of a model file.

    Raises:
        DamagedFile: the bytes are not a model file, or a damaged one.
    """
    model = Buffer(data).root()
    codes = model.tables(1, limit=_OPERATORS_MAX)
    subgraphs = model.tables(2, limit=_SUBGRAPHS_MAX)
    custom = tuple(code.text(1) for code in codes if _builtin(code) == _CUSTOM)
    stateful = any(_builtin(code) in _STATE for code in codes)
    return Outline(
        custom,
        stateful or any(_has_variable(subgraph) for subgraph in subgraphs),
        tuple(_indexes(subgraph, 1) for subgraph in subgraphs),
        tuple(_indexes(subgraph, 2) for subgraph in subgraphs),
    )


def _builtin(code: Table) -> int:
    """The operator's number: new files have it in slot 3, old ones in slot 0."""
    return max(code.integer(3, "i"), code.integer(0, "b"))


def _has_variable(subgraph: Table) -> bool:
    return any(tensor.integer(5, "B") for tensor in subgraph.tables(0, limit=_TENSORS_MAX))


def _indexes(subgraph: Table, slot: int) -> tuple[int, ...]:
    return tuple(int(index) for index in subgraph.numbers(slot, "i", limit=_PORTS_MAX))
