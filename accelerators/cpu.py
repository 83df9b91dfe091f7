"""The CPU: the runtime's own kernels and XNNPACK."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerators.interpreter import Interpreter

if TYPE_CHECKING:
    from accelerators.outline import Outline


def check(outline: Outline) -> str:
    """Why the CPU cannot run this file, as one sentence; "" when it may try."""
    if outline.edgetpu:
        return (
            "the model is compiled for the Edge TPU (unresolved custom op: edgetpu-custom-op) "
            "and no Edge TPU is here; serve the file it was compiled from"
        )
    return ""


def open_interpreter(path: str, threads: int) -> Interpreter:
    """An interpreter for the file; nothing is allocated yet.

    Raises:
        RuntimeFailure: the runtime does not accept the file.
    """
    return Interpreter(path, threads=threads)
