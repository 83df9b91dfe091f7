"""Figures of inferd by itself: start-up, memory, too much load, a version swapped under load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.bounds import Row
from benchmarks.measure import percentile
from benchmarks.processes import Command, Server, ask, free_port, running
from benchmarks.programs import HTTP_CLIENT, HttpLoad, program, run
from benchmarks.runner import look_up
from benchmarks.wire import Request
from benchmarks.workloads import DIGITS, MOBILENET, ROOT, TINY, Form, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INFERCTL = Path(sys.executable).with_name("inferctl")

_OK = 200
_BUSY = (429, 503)
_NEW = 2

START_RUNS = 5
READY_BOUND_S = 1.5
MEMORY_BOUND_MB = 150
HEALTH_BOUND_MS = 100
GROWTH_BOUND_MIB = 10
OVERLOAD_FACTOR = 4
OVERLOAD_QUEUE = 16
CALM_S = 3
WARM_STORM_S = 3
STORM_S = 10

SWAP_CONNECTIONS = 8
SWAP_POLL_S = 0.2
SWAP_STEADY_S = 3.0
SWAP_S = 12
"""Steady, swap, and some seconds to spare for a slow machine."""
SWAP_P99_FACTOR = 3


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that is ready.

    Attributes:
        ready_s: from the start of the process to the first 200 of /readyz.
        folder: an empty one for whoever measures.
    """

    server: Server
    port: int
    ready_s: float
    folder: Path


@contextmanager
def serve(
    paths: list[Path], folder: Path, environment: dict[str, str] | None = None
) -> Iterator[Daemon]:
    """`inferctl serve` these on a free port until the block ends."""
    port = free_port()
    argv = (str(INFERCTL), "serve", *map(str, paths), "--http", f"127.0.0.1:{port}")
    log = folder / f"serve-{port}.log"

    def is_ready() -> bool:
        answer = ask(port, Request("/readyz", b"", method="GET"))
        return answer is not None and answer.status == _OK and json.loads(answer.body)["ready"]

    began = time.monotonic()
    with running(Command(argv, environment or {}), log, is_ready) as server:
        yield Daemon(server, port, time.monotonic() - began, folder)


def start_up(workload: Workload, folder: Path) -> Iterator[Row]:
    """How long `inferctl serve` takes from its start until /readyz is 200."""
    seconds = []
    for _ in range(START_RUNS):
        with serve([workload.model], folder) as daemon:
            seconds.append(daemon.ready_s)
    yield Row(
        f"inferctl serve {workload.model.stem}: ready after",
        median(seconds),
        "s",
        bound=READY_BOUND_S,
        note=f"median of {START_RUNS}, {min(seconds):.2f} to {max(seconds):.2f}",
    )


def memory(workload: Workload, folder: Path) -> Iterator[Row]:
    """Proportional set size of daemon, fork server and one worker after a few thousand requests."""
    with serve([workload.model], folder) as daemon:
        HttpLoad(daemon.port, raw_request(workload), folder, "memory")(2, CALM_S)
        megabytes = daemon.server.pss_bytes() / 1e6
    text = f"memory with {workload.model.stem}, after load"
    yield Row(text, megabytes, "MB", bound=MEMORY_BOUND_MB)


def overload(workload: Workload, folder: Path) -> Iterator[Row]:
    """Four times the capacity: what is accepted is on time, the rest is refused, health answers."""
    name = workload.model.stem
    environment = {"INFERD_DEFAULTS__QUEUE": str(OVERLOAD_QUEUE)}
    with serve([workload.model], folder, environment) as daemon:
        request = folder / "overload.request"
        calm = HttpLoad(daemon.port, raw_request(workload), folder, "overload")(4, CALM_S)
        capacity = calm.rate_per_s
        # The first storm opens the connections that the second one uses: what grows then stays.
        for seconds in (WARM_STORM_S, STORM_S):
            before = daemon.server.pss_bytes()
            storm = run(
                "benchmarks.openloop", str(daemon.port), str(request), "/healthz",
                "--rate", str(capacity * OVERLOAD_FACTOR), "--seconds", str(seconds),
            )  # fmt: skip
        grown_mib = (daemon.server.pss_bytes() - before) / 2**20
    load, health = storm["load"], storm["probe"]["statuses"]
    accepted = load["statuses"].get(str(_OK), {"count": 0, "p99_ms": None})
    counts = {int(status): each["count"] for status, each in load["statuses"].items()}
    offered = sum(counts.values()) / load["seconds"]
    strange = sum(count for status, count in counts.items() if status not in (_OK, *_BUSY))
    yield Row(f"{name}: capacity with 4 connections", capacity, "requests/s")
    yield Row(f"{name}: offered then", offered, "requests/s")
    yield Row("  accepted", accepted["count"] / load["seconds"], "requests/s")
    yield Row(
        "  p99 of the accepted",
        accepted["p99_ms"],
        "ms",
        bound=(OVERLOAD_QUEUE + 4) / capacity * 1e3 * 2,
        note=f"twice the queue of {OVERLOAD_QUEUE}",
    )
    yield Row("  answers but results and refusals", strange, "", bound=0, note=f"{counts}")
    healthy = health.get(str(_OK), {"slowest_ms": None})
    yield Row("  slowest /healthz meanwhile", healthy["slowest_ms"], "ms", bound=HEALTH_BOUND_MS)
    yield Row("  memory grown by it", grown_mib, "MiB", bound=GROWTH_BOUND_MIB)


def swap(workload: Workload, folder: Path) -> Iterator[Row]:
    """A second version appears under full load: no request fails, and none waits long for it."""
    name = workload.model.stem
    versions = folder / name
    for version in ("1", f".{_NEW}"):  # a name with a dot is not looked at yet
        (versions / version).mkdir(parents=True)
        shutil.copy(workload.model_file, versions / version / "model.tflite")
    environment = {"INFERD_MODELS__POLL_INTERVAL_S": str(SWAP_POLL_S)}
    with serve([versions], folder, environment) as daemon:
        load = HttpLoad(daemon.port, raw_request(workload), folder, "swap")
        load(SWAP_CONNECTIONS, 1)
        samples = folder / "swap.samples"
        command = program(
            HTTP_CLIENT, *load.arguments(SWAP_CONNECTIONS, SWAP_S), "--samples", str(samples)
        )
        began = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as client:
            time.sleep(SWAP_STEADY_S)
            (versions / f".{_NEW}").rename(versions / str(_NEW))
            swap_began = _wait_for(lambda: _NEW in _versions(daemon.port, name))
            swap_ended = _wait_for(lambda: _versions(daemon.port, name) == [_NEW])
            client.wait()
    answers = json.loads(samples.read_text(encoding="utf-8"))
    steady = [each for each in answers if began < each[0] and each[1] < swap_began - SWAP_POLL_S]
    during = [each for each in answers if each[1] >= swap_began and each[0] <= swap_ended]
    failed = sum(status != _OK for *_, status in answers)
    steady_ms, during_ms = (_p99_ms(each) for each in (steady, during))
    yield Row(f"{name}: requests that failed around a swap of versions", failed, "", bound=0)
    yield Row(
        f"{name}: p99 during the swap over the steady p99",
        during_ms / steady_ms,
        bound=SWAP_P99_FACTOR,
        note=f"{steady_ms:.2f} and {during_ms:.2f} ms; {len(answers)} answers, "
        f"{len(during)} in the swap of {swap_ended - swap_began:.2f} s",
    )


def raw_request(workload: Workload) -> Request:
    """The workload's tensor as raw bytes, to the native endpoint."""
    case, _ = look_up(workload)
    headers = {"Content-Type": "application/octet-stream"}
    return Request(f"/api/models/{workload.model.stem}/predict", case.body(), headers)


def _versions(port: int, name: str) -> list[int]:
    """Those that are listed, in order."""
    answer = ask(port, Request(f"/api/models/{name}", b"", method="GET"))
    document = json.loads(answer.body) if answer is not None else {"versions": []}
    return sorted(
        int(each["version"])
        for each in document["versions"]
        if each["state"] in ("LOADING", "READY", "UNLOADING")
    )


def _wait_for(is_so: Callable[[], bool]) -> float:
    """When it became so; the end of the load where it did not."""
    deadline = time.monotonic() + SWAP_S - SWAP_STEADY_S
    while time.monotonic() < deadline and not is_so():
        time.sleep(0.01)
    return time.monotonic()


def _p99_ms(answers: list[tuple[float, float, int]]) -> float:
    return percentile(sorted(ended - began for began, ended, _ in answers), 99) * 1e3


_DIGITS_RAW = Workload("digits", DIGITS, Form.BINARY)
_MOBILENET_RAW = Workload("mobilenet", MOBILENET, Form.BINARY)

MEASUREMENTS: dict[str, tuple[Callable[[Workload, Path], Iterator[Row]], Workload]] = {
    "start-demo": (start_up, TINY),
    "start-digits": (start_up, _DIGITS_RAW),
    "memory": (memory, _MOBILENET_RAW),
    "overload": (overload, _MOBILENET_RAW),
    "swap": (swap, _DIGITS_RAW),
}
