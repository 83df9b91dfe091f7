"""Cases of the benchmark, made without a model."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Footprint, Load, Measurement
from benchmarks.workloads import Case, Form, Tensor, Workload


def make_case(form: Form = Form.BINARY, *, rows: int = 1, file: Path | None = None) -> Case:
    """A model that takes rows of four int8 and gives two uint8; of a file the best class is 7."""
    workload = Workload("tiny", Path("tiny.tflite"), form, file=file, rows=rows)
    expected = (7,) if file else (1, 2) * rows
    return Case(workload, Tensor("x", "int8", (-1, 4)), Tensor("y", "uint8", (-1, 2)), expected)


def make_load(rate_per_s: float = 1000.0, p50_ms: float = 1.0, *, errors: int = 0) -> Load:
    return Load(rate_per_s, p50_ms, 2 * p50_ms, 3 * p50_ms, errors)


def measured(workload: str, lane: str, connections: int, *rounds: Load) -> Measurement:
    return Measurement(workload, lane, connections, rounds or (make_load(),))


def weighed(workload: str, lane: str, pss_mb: float) -> Footprint:
    return Footprint(workload, lane, start_s=1.0, pss_mb=pss_mb, processes=2)
