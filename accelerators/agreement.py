"""Agreement: how far a device's answers are from the CPU's. Pure.

The difference of two outputs is the largest of any element, as a share of the output's range:
- Quantized numbers have the range of their type: 255 steps for 8 bits.
- Real numbers have the largest absolute value that the CPU gave for this output in any of the
  calls, so that a share means the same for scores and for pixels.
- Whole numbers and strings without a scale are counts, classes or indexes: they agree or not.
NaN and infinity agree with themselves, and differ from all else by everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from accelerators.base import Array, TensorSpec

_ALL = 1.0


def all_finite(tensors: Mapping[str, Array]) -> bool:
    """Whether no tensor of real numbers holds NaN or infinity."""
    return all(array.dtype.kind != "f" or np.isfinite(array).all() for array in tensors.values())


def difference(spec: TensorSpec, expected: Sequence[Array], got: Sequence[Array]) -> float:
    """How far an output is from the expected one over several calls; 0 is equal.

    Args:
        spec: of the output.
        expected, got: what the CPU and the device gave for the same inputs, call by call.
    """
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(expected, got, strict=True)):
        return _ALL
    if not any(array.size for array in expected):
        return 0.0
    if spec.quantization is None and expected[0].dtype.kind != "f":
        same = all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))
        return 0.0 if same else _ALL
    pairs = [
        (a.astype(np.float64), b.astype(np.float64)) for a, b in zip(expected, got, strict=True)
    ]
    if not all(_odd_ones_agree(a, b) for a, b in pairs):
        return _ALL
    whole = _range(spec, [a for a, _ in pairs])
    finite = [(a[np.isfinite(a)], b[np.isfinite(a)]) for a, b in pairs]
    largest = max((_largest(a - b) for a, b in finite), default=0.0)
    return largest / whole if whole else (_ALL if largest else 0.0)


def _odd_ones_agree(a: Array, b: Array) -> bool:
    """Whether NaN and infinity are at the same places."""
    odd = ~(np.isfinite(a) & np.isfinite(b))
    return bool(np.array_equal(a[odd], b[odd], equal_nan=True))


def _range(spec: TensorSpec, expected: Sequence[Array]) -> float:
    if spec.quantization is not None:
        return float(256**spec.datatype.itemsize - 1)
    return max((_largest(array[np.isfinite(array)]) for array in expected), default=0.0)


def _largest(array: Array) -> float:
    return float(np.abs(array).max()) if array.size else 0.0
