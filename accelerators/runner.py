"""Runner: what runs one model on one device, whichever way. For use by one thread at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerators.base import Array, Coverage
    from accelerators.interpreter import Entry, Port
    from accelerators.outline import Outline


class Runner(Protocol):
    """`accelerators.interpreter.Interpreter` and what else has its ways.

    Every method raises RuntimeFailure when the runtime or the device fails, and OutOfMemory, which
    is one, for want of memory.
    """

    @property
    def coverage(self) -> Coverage | None:
        """How much of the model the device took; None on the CPU."""

    @property
    def complaints(self) -> int:
        """Characters of the messages that have piled up in the runtime."""

    def entries(self, outline: Outline) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
        """The callables that can be offered, default first, and why others cannot."""

    def shape(self, entry: Entry, port: Port) -> tuple[int, ...]:
        """The shape a tensor has now."""

    def allocate(self, entry: Entry) -> None:
        """Plan the entry's tensors with `entry.start` as input shapes."""

    def resize(self, entry: Entry, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Plan the entry's tensors with other input shapes."""

    def run(self, entry: Entry, inputs: Sequence[Array]) -> float:
        """Set the inputs, whose shapes must be `entry.shapes`, and invoke; seconds inside."""

    def results(self, entry: Entry) -> list[Array]:
        """The outputs of the last run, which may be views: copy them before the next call."""
