"""`make bench`: measures the daemon on this machine; prints one table and writes one JSON file."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict, dataclass, replace
from os import getloadavg
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from benchmarks.load import closed_loop, make_request, open_loop
from benchmarks.machine import look_at_machine
from benchmarks.raw import time_raw_invoke
from benchmarks.server import Server, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.load import Outcome

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "models" / "models"
DIGITS = SHARED / "fc_mnist_qat_uint8.tflite"
MOBILENET = SHARED / "mobilenet_v2_1.0_224_quant.tflite"
DEMO = ROOT / "examples" / "demo" / "fashion"

START_RUNS = 5
READY_BOUND_S = 1.5
MEMORY_BOUND_MB = 150
HEALTH_BOUND_MS = 100
GROWTH_BOUND_MIB = 10
OVERLOAD_FACTOR = 4
OVERLOAD_QUEUE = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        bound: what must hold, in words; "" where nothing must.
        holds: None where nothing must, or where it could not be measured.
    """

    name: str
    value: str
    bound: str = ""
    holds: bool | None = None


def start_up(model: Path) -> Iterator[Row]:
    """How long `inferctl serve` takes from its start until /readyz is 200."""
    seconds = []
    for _ in range(START_RUNS):
        with serve([model]) as server:
            seconds.append(server.ready_s)
    value = median(seconds)
    yield Row(
        f"inferctl serve {model.stem}: ready",
        f"{value:.2f} s (median of {START_RUNS}, {min(seconds):.2f} to {max(seconds):.2f})",
        f"{READY_BOUND_S} s",
        value <= READY_BOUND_S,
    )


def memory(model: Path) -> Iterator[Row]:
    """Proportional set size of daemon, fork server and one worker after a thousand requests."""
    request = raw_request(model)
    with serve([model]) as server:
        asyncio.run(closed_loop(server.port, request, connections=2, seconds=5))
        value = server.pss_mib()
    megabytes = value * 2**20 / 1e6
    yield Row(
        f"memory with {model.stem}, after load",
        f"{megabytes:.0f} MB proportional",
        f"{MEMORY_BOUND_MB} MB",
        megabytes <= MEMORY_BOUND_MB,
    )


def latency(model: Path) -> Iterator[Row]:
    """Raw tensor over HTTP next to a bare invoke() loop."""
    raw_s = time_raw_invoke(model)
    yield Row(f"{model.stem}: bare invoke()", f"p50 {raw_s * 1e6:.0f} us")
    request = raw_request(model)
    with serve([model]) as server:
        for connections in (1, 8, 32):
            outcome = asyncio.run(
                closed_loop(server.port, request, connections=connections, seconds=5)
            )
            yield Row(
                f"{model.stem}: HTTP raw tensor, {connections} connections", describe(outcome)
            )


def describe(outcome: Outcome) -> str:
    """Rate and latencies of a load's good answers."""
    rate = outcome.count(200) / outcome.seconds
    p50, p99 = outcome.percentile_ms(200, 50), outcome.percentile_ms(200, 99)
    return f"{rate:.0f}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms"


def overload(model: Path) -> Iterator[Row]:
    """Four times the capacity: what is accepted is on time, the rest is refused, health answers."""
    request = raw_request(model)
    environment = {"INFERD_DEFAULTS__QUEUE": str(OVERLOAD_QUEUE)}
    with serve([model], environment) as server:
        calm = asyncio.run(closed_loop(server.port, request, connections=4, seconds=5))
        capacity = calm.count(200) / calm.seconds
        before_mib = server.pss_mib()
        storm, health = asyncio.run(_storm(server, request, capacity * OVERLOAD_FACTOR))
        after_mib = server.pss_mib()
    p99 = storm.percentile_ms(200, 99)
    bound_ms = (OVERLOAD_QUEUE + 4) / capacity * 1e3 * 2
    offered = sum(map(len, storm.latencies_s.values())) / storm.seconds
    yield Row(f"{model.stem}: capacity", f"{capacity:.0f}/s")
    yield Row(
        f"offered {offered / capacity:.1f} times that: accepted",
        f"{storm.count(200) / storm.seconds:.0f}/s, p99 {p99:.1f} ms",
        f"{bound_ms:.0f} ms (twice the queue of {OVERLOAD_QUEUE})",
        p99 <= bound_ms,
    )
    refused = {status: n for status in storm.latencies_s if (n := storm.count(status))}
    refused.pop(200, None)
    yield Row(
        "refused",
        f"{refused}, p99 {storm.percentile_ms(429, 99):.1f} ms",
        "only 429",
        set(refused) == {429},
    )
    worst = health.percentile_ms(200, 100)
    yield Row(
        "/healthz meanwhile, slowest",
        f"{worst:.1f} ms",
        f"{HEALTH_BOUND_MS} ms",
        worst <= HEALTH_BOUND_MS,
    )
    grown = after_mib - before_mib
    yield Row(
        "memory grown by it",
        f"{grown:+.1f} MiB",
        f"{GROWTH_BOUND_MIB} MiB",
        grown <= GROWTH_BOUND_MIB,
    )


async def _storm(server: Server, request: bytes, rate_per_s: float) -> tuple[Outcome, Outcome]:
    seconds = 10.0
    probe = make_request("GET", "/healthz")
    return await asyncio.gather(
        open_loop(server.port, request, rate_per_s=rate_per_s, seconds=seconds, connections=256),
        open_loop(server.port, probe, rate_per_s=20, seconds=seconds, connections=4),
    )


def raw_request(model: Path) -> bytes:
    """One row of the model's input as raw bytes, to the native endpoint."""
    file = model / "model.tflite" if model.is_dir() else model
    details = Interpreter(model_path=str(file)).get_input_details()[0]
    row = np.random.default_rng(0).integers(0, 127, details["shape"]).astype(details["dtype"])
    headers = "Content-Type: application/octet-stream\r\n"
    return make_request("POST", f"/api/models/{model.stem}/predict", row.tobytes(), headers)


MEASUREMENTS: dict[str, tuple[Callable[[Path], Iterator[Row]], Path]] = {
    "start-demo": (start_up, DEMO),
    "start-digits": (start_up, DIGITS),
    "memory": (memory, MOBILENET),
    "latency-digits": (latency, DIGITS),
    "latency-mobilenet": (latency, MOBILENET),
    "overload": (overload, MOBILENET),
}


def main() -> int:
    """Measure what was asked for; 0 when every bound holds, 1 when one does not."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*MEASUREMENTS, []], help="default: all")
    parser.add_argument("--json", type=Path, default=ROOT / ".bench" / "results.json")
    options = parser.parse_args()
    machine = look_at_machine()
    print(f"{machine.date}; {machine.processor}, {machine.cpus} CPUs; {machine.system}")
    rows: list[Row] = []
    for name in options.names or MEASUREMENTS:
        measure, model = MEASUREMENTS[name]
        if not model.exists():
            rows.append(Row(name, f"not measured: {model.name} is not here"))
            show(rows[-1])
            continue
        for row in measure(model):
            rows.append(row)
            show(row)
    machine = replace(machine, load_after=getloadavg()[0])
    busy = " (BUSY: figures are not to be trusted)" if machine.was_busy else ""
    print(f"load before {machine.load_before:.2f}, after {machine.load_after:.2f}{busy}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine.as_dict(), "rows": [asdict(row) for row in rows]}
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row.holds is False for row in rows) else 0


def show(row: Row) -> None:
    """One line of the table."""
    verdict = {True: "holds", False: "FAILS", None: ""}[row.holds]
    bound = f"at most {row.bound}" if row.bound else ""
    print(f"{row.name:55} {row.value:45} {bound:38} {verdict}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
