"""The bare runtime: what a prediction is and costs without any server. A program.

Set the input, invoke, get the output, in a loop; several instances are so many processes at once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.measure import Load, load_from
from benchmarks.peers.inside.predictor import Predictor, Settings, decode_jpeg
from benchmarks.workloads import FILE_FORMS, Form, Workload, make_body, with_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Barrier

_WARM_CALLS = 20
_DECODES = 20
_START_TIMEOUT_S = 60


def make_predictor(workload: Workload) -> Predictor:
    """An interpreter for the workload's requests."""
    return Predictor(Settings(str(workload.model_file), workload.form.value, workload.rows))


def read_body(workload: Workload, predictor: Predictor) -> bytes:
    """What every server is sent."""
    source, _ = predictor.describe()
    return make_body(workload, source.dtype, with_rows(source.dims, workload.rows))


def describe(workload: Workload, predictor: Predictor) -> dict[str, object]:
    """The tensors, and what any server must answer."""
    source, sink = predictor.describe()
    body = read_body(workload, predictor)
    if workload.form in FILE_FORMS:
        expected = [int(predictor.answer(body)["index"][0])]
    else:
        expected = predictor.predict_bytes(body).reshape(-1).tolist()
    return {"source": asdict(source), "sink": asdict(sink), "expected": expected}


def decode_ms(workload: Workload, predictor: Predictor) -> float | None:
    """What Pillow's own decode and resize takes in the same process, for a picture."""
    if workload.form is not Form.JPEG or workload.file is None:
        return None
    file = workload.file.read_bytes()
    seconds = []
    for _ in range(_DECODES):
        began = time.perf_counter()
        decode_jpeg(file, predictor.shape)
        seconds.append(time.perf_counter() - began)
    return median(seconds) * 1e3


def loop(workload: Workload, seconds: float, wait_for_others: Callable[[], object]) -> Load:
    """Predict again and again in this process, warm."""
    predictor = make_predictor(workload)
    interpreter, source, sinks = predictor.interpreter, predictor.source, predictor.sinks
    values = predictor.read(read_body(workload, predictor))
    latencies_s: list[float] = []

    def call() -> None:
        began = time.perf_counter()
        interpreter.set_tensor(source, values)
        interpreter.invoke()
        for sink in sinks:
            interpreter.get_tensor(sink)
        latencies_s.append(time.perf_counter() - began)

    for _ in range(_WARM_CALLS):
        call()
    latencies_s.clear()
    wait_for_others()
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        call()
    return load_from(latencies_s, elapsed, errors=0)


def loops(workload: Workload, seconds: float) -> Load:
    """So many processes at the same time: the rates added up, the slowest's latencies."""
    instances = workload.instances
    if instances == 1:
        return loop(workload, seconds, lambda: None)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(instances, timeout=_START_TIMEOUT_S), context.SimpleQueue()
    processes = [
        context.Process(target=_one_of, args=(workload, seconds, barrier, results))
        for _ in range(instances)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    each: list[Load] = [results.get() for process in processes if process.exitcode == 0]
    return Load(
        rate_per_s=sum(load.rate_per_s for load in each),
        p50_ms=max(load.p50_ms for load in each),
        p90_ms=max(load.p90_ms for load in each),
        p99_ms=max(load.p99_ms for load in each),
        errors=instances - len(each),
    )


def _one_of(
    workload: Workload, seconds: float, barrier: Barrier, results: SimpleQueue[Load]
) -> None:
    results.put(loop(workload, seconds, barrier.wait))


def main() -> int:
    """Print what was asked for as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("form", type=Form)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="measure; else describe")
    options = parser.parse_args()
    workload = Workload(
        "", options.model, options.form, options.file, options.rows, options.instances
    )
    if options.seconds is not None:
        print(json.dumps(asdict(loops(workload, options.seconds))))
        return 0
    predictor = make_predictor(workload)
    known = describe(workload, predictor)
    print(json.dumps({**known, "decode_ms": decode_ms(workload, predictor)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
