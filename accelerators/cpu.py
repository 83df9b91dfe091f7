"""The CPU: the runtime's own kernels and XNNPACK."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerators.base import CPU

if TYPE_CHECKING:
    from accelerators.base import Device
    from accelerators.interpreter import Interpreter
    from accelerators.outline import Outline
    from accelerators.registry import HardwareSettings


def find(_settings: HardwareSettings) -> tuple[Device, ...]:
    """The CPU, which is always there."""
    return (CPU,)


def check(outline: Outline) -> str:
    """Why the CPU cannot run this file, as one sentence; "" when it may try."""
    if outline.edgetpu:
        return (
            "the model is compiled for the Edge TPU (unresolved custom op: edgetpu-custom-op), and "
            "the CPU cannot run it: name the file it was compiled from as placement.cpu_model"
        )
    return ""


def open_interpreter(path: str, threads: int, _device: Device) -> Interpreter:
    """An interpreter for the file; nothing is allocated yet.

    Raises:
        RuntimeFailure: the runtime does not accept the file.
    """
    # Only a worker needs the runtime: the daemon must not import it.
    from accelerators.interpreter import Interpreter  # noqa: PLC0415

    return Interpreter(path, threads=threads)
