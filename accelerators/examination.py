"""Examination: what a device makes of a model, measured against the CPU.

Both are workers like those that serve, and answer ordinary calls: the model's health samples where
it has some, else invented inputs. What is measured is what a client would wait for: the worker's
time from taking a call up to being done with it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from accelerators.agreement import difference
from accelerators.errors import AcceleratorError, InvokeFailed
from accelerators.placement import Trial, Verdict
from accelerators.seeds import SEED, invented, waves

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from accelerators.base import Array, CallResult, DataType, ModelReport, SignatureSpec
    from accelerators.supervisor import WorkerPool

    Call = Callable[[str, Mapping[str, Array]], asyncio.Future[CallResult]]
    """Signature and inputs to what becomes of the call, as `WorkerPool.call`."""

_INVENTED = (invented, waves, invented, waves, invented, waves)
"""Inputs for each signature: few could agree by chance. Measured: a model that the GPU gets wrong
agreed on every third one."""
_SAMPLES_MAX = 8
_BYTES_MAX = 64 << 20
"""Of inputs and answers that are remembered; one case is kept in any case."""
_CALLS_MOST = 20
_MEASURE_S = 0.5
"""Enough calls for a median, and no more than a start can bear: one, where that takes longer."""
_REFERENCE_S = 5.0
"""After this no more inputs are put to the CPU than one for each signature."""
_SIZES = (1, 64, 256)
"""Tried for dimensions the caller chooses, as at the load (accelerators/engine.py)."""


@dataclass(frozen=True, slots=True)
class Case:
    """A call, and the CPU's answer to it."""

    signature: SignatureSpec
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Reference:
    """What devices are compared with.

    Attributes:
        cases: () where the CPU cannot run the model.
        cpu: the CPU's own trial.
    """

    cases: tuple[Case, ...]
    cpu: Trial


async def make_reference(
    pool: WorkerPool, samples: Sequence[Mapping[str, Array]], *, cpu_latency_s: float = 0.0
) -> Reference:
    """Ask the CPU; nobody else uses the pool meanwhile.

    Args:
        samples: inputs of the default signature; invented ones are used where there are none.
        cpu_latency_s: as measured before; 0 to measure.

    Raises:
        WorkerLost: its worker died of it.
    """
    report = pool.report
    cases: list[Case] = []
    size_bytes = 0
    enough_at = time.monotonic() + _REFERENCE_S
    for signature in report.signatures:
        is_default = signature is report.signatures[0]
        given = samples[:_SAMPLES_MAX] if is_default else ()
        for case in await _answered(pool.call, signature, given, enough_at):
            size_bytes += sum(a.nbytes for a in (*case.inputs.values(), *case.expected.values()))
            if size_bytes <= _BYTES_MAX or not cases:
                cases.append(case)
    latency_s = cpu_latency_s
    if not latency_s and cases:
        latency_s = await _measure(pool.call, cases)
    cpu = Trial(report.device, Verdict.AGREES, "", latency_s, report.memory_bytes, 0.0)
    return Reference(tuple(cases), cpu)


async def examine(
    call: Call, report: ModelReport, cases: Sequence[Case], *, expected: ModelReport | None
) -> Trial:
    """Put a device's worker to the test.

    Args:
        call: to its pool.
        report: of its worker.
        cases: what to ask, and what the CPU answers.
        expected: the CPU's report; None where there is none, and nothing to compare with.

    Returns:
        AGREES with the `difference` it has, which is the caller's to judge; or why not.
    """
    problem = _misfit(report, expected) if expected else ""
    if problem:
        return Trial(report.device, Verdict.REFUSED, problem, coverage=report.coverage)
    try:
        largest = await _compare(call, cases)
        latency_s = await _measure(call, cases) if cases else report.warm_s
    except AcceleratorError as exc:
        return Trial(report.device, Verdict.FAILED, f"it failed on trial: {exc}"[:500])
    return Trial(
        report.device,
        Verdict.AGREES,
        latency_s=latency_s,
        memory_bytes=report.memory_bytes,
        difference=largest if cases else None,
        coverage=report.coverage,
    )


async def _answered(
    call: Call, signature: SignatureSpec, given: Sequence[Mapping[str, Array]], enough_at: float
) -> list[Case]:
    """Cases of one signature; none where the CPU refuses every input that we can think of."""
    cases: list[Case] = []
    for inputs in given:
        if cases and time.monotonic() > enough_at:
            break
        try:
            result = await call(signature.name, inputs)
        except InvokeFailed:
            continue
        cases.append(Case(signature, inputs, result.outputs))
    if cases:
        return cases
    for size in _SIZES:
        rng = Random(SEED)  # noqa: S311 (nobody gains by guessing it)
        try:
            for invent in _INVENTED:
                if cases and time.monotonic() > enough_at:
                    break
                inputs = _invented_inputs(signature, size, partial(invent, rng=rng))
                result = await call(signature.name, inputs)
                cases.append(Case(signature, inputs, result.outputs))
        except InvokeFailed:
            cases.clear()
        else:
            break
    return cases


def _invented_inputs(
    signature: SignatureSpec,
    size: int,
    invent: Callable[[DataType, tuple[int, ...]], Array],
) -> dict[str, Array]:
    return {
        spec.name: np.ascontiguousarray(
            invent(
                spec.datatype,
                tuple(
                    (size if place else 1) if length == -1 else length
                    for place, length in enumerate(spec.shape)
                ),
            )
        )
        for spec in signature.inputs
    }


async def _compare(call: Call, cases: Sequence[Case]) -> float:
    """The largest difference of any output of any signature.

    Raises:
        AcceleratorError: a call failed.
    """
    largest = 0.0
    got = [(case, (await call(case.signature.name, case.inputs)).outputs) for case in cases]
    for signature in dict.fromkeys(case.signature for case in cases):
        pairs = [(case.expected, outputs) for case, outputs in got if case.signature is signature]
        for spec in signature.outputs:
            name = spec.name
            apart = difference(spec, [a[name] for a, _ in pairs], [b[name] for _, b in pairs])
            largest = max(largest, apart)
    return largest


async def _measure(call: Call, cases: Sequence[Case]) -> float:
    """Seconds that a call of the default signature takes, at the median.

    Raises:
        AcceleratorError: a call failed.
    """
    first = [case for case in cases if case.signature is cases[0].signature]
    times: list[float] = []
    began = time.monotonic()
    while len(times) < _CALLS_MOST:
        case = first[len(times) % len(first)]
        result = await call(case.signature.name, case.inputs)
        times.append(result.finished_at - result.started_at)
        if time.monotonic() - began > _MEASURE_S:
            break
    return statistics.median(times)


def _misfit(report: ModelReport, expected: ModelReport) -> str:
    """Why clients could not be served from it as they are from the CPU; "" when they could."""
    if report.signatures != expected.signatures:
        for ours, theirs in zip(report.signatures, expected.signatures, strict=False):
            if ours != theirs:
                return f"it offers the signature '{ours.name}' otherwise than the CPU does"
        return "it does not offer all signatures of the model"
    if report.max_batch < expected.max_batch:
        return (
            f"it takes {report.max_batch} rows in a call where the CPU takes {expected.max_batch}; "
            f"batching.max_size = {report.max_batch} would do"
        )
    return ""
