"""Session: one interpreter of one model, kept fit to be called.

After any failed resize, and when memory ran out, the interpreter is made anew: the runtime is not
to be trusted then. A stateful model loses its state by a failed resize; for want of memory it is
ended, because it would answer as if nothing had happened, and one that leaks would never be found
out. Another model's is also made anew when the runtime has piled up many complaints, which it never
lets go.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, BinaryIO

from accelerators.errors import InvokeFailed
from accelerators.interpreter import DeviceFailure, OutOfMemory, RuntimeFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerators.base import Array
    from accelerators.interpreter import Entry
    from accelerators.runner import Runner

_COMPLAINTS_MAX = 64 << 10  # characters: hundreds of failed calls


class Session:
    """One model in this process. One thread at a time."""

    def __init__(
        self,
        file: BinaryIO,
        open_: Callable[[], Runner],
        runner: Runner,
        entries: tuple[Entry, ...],
        *,
        stateful: bool,
    ) -> None:
        self._file = file
        self._open = open_
        self._runner = runner
        self._entries = entries
        self._stateful = stateful
        self._rows_max = 1

    def run(self, signature: int, inputs: Sequence[Array]) -> tuple[list[Array], float]:
        """Invoke a signature, by its place in the report, with inputs in the report's order.

        Returns:
            The outputs in the report's order and the seconds inside invoke. The arrays are views
            into the runtime, valid until the next call: copy them and let them go.

        Raises:
            InvokeFailed: an input has a shape the model does not take, or the runtime failed.
            MemoryError: there is not even enough to set the model up again, or its state is lost.
            DeviceFailure: the device does not take the model again; the session is of no use more.
        """
        # Recovery waits until the exception is gone: its frames keep the old interpreter alive.
        with contextlib.suppress(OutOfMemory):
            return self._run(signature, inputs)
        if self._stateful:
            raise MemoryError("its state is lost")
        self._recover()
        # What earlier calls left behind is gone now: that may have been all that was missing.
        with contextlib.suppress(OutOfMemory):
            return self._run(signature, inputs)
        self._recover()
        raise InvokeFailed("the call needs more memory than the model may take")

    def _run(self, signature: int, inputs: Sequence[Array]) -> tuple[list[Array], float]:
        entry = self._entries[signature]
        shapes = tuple([array.shape for array in inputs])
        if shapes != entry.shapes:
            self._reshape(signature, entry, shapes)
        try:
            seconds = self._runner.run(entry, inputs)
            return self._runner.results(entry), seconds
        except OutOfMemory:
            raise
        except RuntimeFailure as exc:
            reason = str(exc)
        if self._runner.complaints > _COMPLAINTS_MAX and not self._stateful:
            self._recover()
        raise InvokeFailed(reason)

    def renew(self) -> None:
        """Make the interpreter anew, with the variables the file starts with.

        Raises:
            RuntimeFailure: the runtime does not accept the file any more.
        """
        del self._runner  # first, so that never two are in memory
        self._runner = self._open()
        for entry in self._entries:
            self._runner.allocate(entry)

    def close(self) -> None:
        """Let the model and its file go."""
        self._entries = ()
        del self._runner
        self._file.close()

    def allow_rows(self, rows: int) -> None:
        """Accept up to so many rows where the first dimension is fixed."""
        self._rows_max = rows

    def _reshape(self, signature: int, entry: Entry, shapes: tuple[tuple[int, ...], ...]) -> None:
        rows = self._rows_max if signature == 0 else 1
        _check_shapes(entry, shapes, rows)
        try:
            self._runner.resize(entry, shapes)
        except OutOfMemory:
            raise
        except RuntimeFailure as exc:
            reason = str(exc)
        else:
            return
        self._recover()
        raise InvokeFailed(f"the model cannot take inputs of this shape: {reason}")

    def _recover(self) -> None:
        try:
            self.renew()
        except DeviceFailure:
            raise
        except RuntimeFailure as exc:
            # Nothing is left to serve with: end this worker, the next one starts clean.
            raise MemoryError(f"the model cannot be set up again: {exc}") from exc


def path_of(file: BinaryIO) -> str:
    """A path to the very file that is open, whatever its name points to by now."""
    return f"/proc/self/fd/{file.fileno()}"


def _check_shapes(entry: Entry, shapes: tuple[tuple[int, ...], ...], rows_max: int) -> None:
    """Compare with the description; `rows_max` is what a fixed first dimension of 1 may become.

    Raises:
        InvokeFailed: a shape does not fit.
    """
    for port, shape in zip(entry.inputs, shapes, strict=True):
        spec = port.spec
        fits = len(shape) == len(spec.shape) and all(
            size == wanted or (wanted == -1 and size > 0)
            for size, wanted in zip(shape[1:], spec.shape[1:], strict=True)
        )
        if fits and spec.shape:
            wanted, size = spec.shape[0], shape[0]
            fits = size == wanted or (size > 0 and (wanted == -1 or size <= rows_max))
        if not fits:
            raise InvokeFailed(
                f"input '{spec.name}' has shape {list(shape)}, the model takes {list(spec.shape)}"
            )
