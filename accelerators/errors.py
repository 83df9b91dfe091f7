"""The error tree of `accelerators`: one class per decision a caller can make."""

from __future__ import annotations

from enum import Enum


class AcceleratorError(Exception):
    """Base of every error this package raises."""


class LoadStage(Enum):
    """How far a model came before it was refused."""

    READ = "read"  # the file could not be read
    PARSE = "parse"  # the bytes are not a model the runtime accepts
    OPEN = "open"  # the device or its driver failed, or took none of the model
    ALLOCATE = "allocate"  # tensors could not be planned or an operator is missing
    WARM = "warm"  # the first invocation failed
    PROCESS = "process"  # the worker died, hung or outgrew its limits


class ModelRefused(AcceleratorError):
    """The model cannot be served. Do not try again until the file or the placement changes.

    Attributes:
        stage: how far it came.
        reason: one plain sentence for the operator, at most 500 characters.
    """

    def __init__(self, stage: LoadStage, reason: str) -> None:
        super().__init__(f"{stage.value}: {reason}")
        self.stage = stage
        self.reason = reason


class WorkerUnavailable(AcceleratorError):
    """No worker can be had now; the model itself was not judged. Try again later.

    Attributes:
        reason: one plain sentence for the operator, at most 500 characters.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InvokeFailed(AcceleratorError):
    """The runtime refused this input or failed in the middle; the worker lives on.

    The same input would fail again: tell the client, do not retry.
    """


class WorkerLost(AcceleratorError):
    """The worker that had this call is gone; a replacement is on its way.

    Attributes:
        started: False when the worker had not begun this call, so that a retry is free of risk.
        reason: how it died, in plain words ("killed by SIGSEGV").
    """

    def __init__(self, reason: str, *, started: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.started = started


class CallTimedOut(WorkerLost):
    """The call outlived the model's own time limit, and its worker was killed for it.

    Never retried: the same input would hang the next worker too.
    """
