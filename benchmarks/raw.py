"""The bare runtime: what a prediction costs without any server."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from ai_edge_litert.interpreter import Interpreter

if TYPE_CHECKING:
    from pathlib import Path

_WARM_CALLS = 20
_MEASURE_S = 2.0


def time_raw_invoke(model: Path, *, threads: int = 1) -> float:
    """Median seconds of set_tensor + invoke + get_tensor on one row, in this process."""
    file = model / "model.tflite" if model.is_dir() else model
    interpreter = Interpreter(model_path=str(file), num_threads=threads)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]
    sink = interpreter.get_output_details()[0]["index"]
    row = np.zeros(source["shape"], source["dtype"])

    def call() -> float:
        began = time.perf_counter()
        interpreter.set_tensor(source["index"], row)
        interpreter.invoke()
        interpreter.get_tensor(sink)
        return time.perf_counter() - began

    for _ in range(_WARM_CALLS):
        call()
    ends = time.perf_counter() + _MEASURE_S
    seconds = []
    while time.perf_counter() < ends:
        seconds.append(call())
    return median(seconds)
