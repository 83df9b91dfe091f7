"""Which of the variants of a model goes into the bundle. Pure.

1. A variant that could not be made, or that no worker runs, cannot be chosen.
2. One that loses more than is allowed cannot be chosen; one that was not measured loses nothing
   that anybody knows of.
3. Of the others the smallest is taken; of two of one size the one that loses less, then the one
   that changes the model least.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Variant(Enum):
    """How a model's numbers are stored and computed with, from least to most change."""

    NONE = "none"  # as trained: float32
    FLOAT16 = "float16"  # weights as float16
    DYNAMIC = "dynamic"  # weights as int8; activations quantized at run time
    INT8 = "int8"  # weights and activations as int8, by ranges seen in representative data


class Measure(Enum):
    """By what a loss is told; each is 0..1 or more, and 0 is no loss."""

    ACCURACY = "accuracy"  # right answers of the original minus right answers of the variant
    AGREEMENT = "agreement"  # answers with another best class than the original's
    DIFFERENCE = "difference"  # largest difference of a number, over the range of its output


@dataclass(frozen=True, slots=True)
class Figures:
    """What one variant showed.

    Attributes:
        size_bytes: of its file; 0 when there is none.
        quality: right (accuracy) or equal (agreement) answers of all, 0..1; the largest difference
            from 0 on; None where nothing was measured.
        loss: as `Measure` says; None where nothing was measured.
        latency_ms: median time of an invocation on this machine; None where nothing was measured.
        problem: why it cannot be chosen whatever it loses; "" when it can.
    """

    variant: Variant
    size_bytes: int = 0
    quality: float | None = None
    loss: float | None = None
    latency_ms: float | None = None
    problem: str = ""


def choose(candidates: Sequence[Figures], *, max_loss: float) -> Figures | None:
    """The variant to take; None when none may be.

    Args:
        candidates: one of each variant at most.
        max_loss: the largest loss that is allowed, 0..1.
    """
    allowed = [each for each in candidates if not why_not(each, max_loss=max_loss)]
    order = list(Variant)
    return min(
        allowed,
        key=lambda each: (each.size_bytes, each.loss or 0.0, order.index(each.variant)),
        default=None,
    )


def why_not(figures: Figures, *, max_loss: float) -> str:
    """Why a variant cannot be chosen; "" when it can."""
    if figures.problem:
        return figures.problem
    if figures.loss is not None and figures.loss > max_loss:
        return f"loses {figures.loss:.4g}, allowed is {max_loss:.4g}"
    return ""
