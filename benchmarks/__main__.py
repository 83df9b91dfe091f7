"""`make bench`: measures inferd and its peers on this machine, in turn, in one run.

Prints tables and writes one JSON file; `--write-docs` puts its figures into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import alone, bounds, report, table, wrk
from benchmarks.machine import busy_percent, look_at_machine
from benchmarks.measure import Absence
from benchmarks.peers.litserve import LitServe
from benchmarks.peers.mlserver import MLServer
from benchmarks.peers.triton import Triton
from benchmarks.processes import Unavailable
from benchmarks.runner import Findings, Plan, Runner, contenders, prepare
from benchmarks.workloads import ROOT, TINY, WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.bounds import Row
    from benchmarks.peers.contender import Contender

RESULTS = ROOT / ".bench" / "results.json"
DOCUMENT = ROOT / "docs" / "performance.md"

PEERS: dict[str, Contender] = {"triton": Triton(), "mlserver": MLServer(), "litserve": LitServe()}
WORKLOADS_BY_NAME = {workload.name: workload for workload in (*WORKLOADS, TINY)}
DEFAULT_NAMES = (*(workload.name for workload in WORKLOADS), *alone.MEASUREMENTS)

QUICK = Plan(seconds=1, rounds=1, warm_s=1, starts=1, connections=(1, 2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; 0 when every bound holds, 1 when one does not."""
    options = _parse(arguments)
    if options.write_docs:
        report.write(options.json, DOCUMENT)
        return 0
    machine, before = look_at_machine(), busy_percent()
    print(machine.describe())
    if not wrk.is_installed():
        print("wrk is not installed: our own client loads HTTP too, and costs more")
    # Short: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        versions, findings, rows = _measure(options, Path(folder))
    idle = [before, *(each for one in findings for each in one.idle_busy_percent)]
    machine = replace(machine, load_after=os.getloadavg()[0], others_percent=median(idle))
    if not options.quick:
        asked = {found.workload for found in findings}
        rows = [*bounds.judge(_figures(findings), asked), *rows]
    print("\n" + table.as_text(table.bounds(rows)))
    print(machine.describe_load())
    document = {
        "machine": {**asdict(machine), "busy": machine.was_busy},
        "seconds": options.seconds,
        "rounds": options.rounds,
        "quick": options.quick,
        "versions": versions,
        "workloads": [asdict(each) for each in findings],
        "bounds": [
            {**asdict(row), "limit": row.limit.value, "verdict": row.verdict.value} for row in rows
        ],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row.verdict is bounds.Verdict.FAILS for row in rows) else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    names = [*WORKLOADS_BY_NAME, *alone.MEASUREMENTS]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s; '' is none")
    parser.add_argument("--seconds", type=int, default=2, help="of one load")
    parser.add_argument("--rounds", type=int, default=3, help="of loads, in turn")
    parser.add_argument("--quick", action="store_true", help="a smoke test: figures mean nothing")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--write-docs", action="store_true", help="its figures to docs; no more")
    options = parser.parse_args(arguments)
    options.peers = [each for each in options.peers.split(",") if each]
    for given, known in ((options.names, names), (options.peers, list(PEERS))):
        for name in given:
            if name not in known:
                parser.error(f"no {name!r}; there are {', '.join(known)}")
    if options.quick:
        options.names, options.peers = options.names or [TINY.name], []
    return options


def _measure(
    options: argparse.Namespace, folder: Path
) -> tuple[dict[str, str], list[Findings], list[Row]]:
    names = options.names or DEFAULT_NAMES
    workloads = [WORKLOADS_BY_NAME[name] for name in names if name in WORKLOADS_BY_NAME]
    plan = QUICK if options.quick else Plan(options.seconds, options.rounds, warm_s=1, starts=3)
    findings: list[Findings] = []
    versions: dict[str, str] = {}
    if workloads:
        wanted = contenders([PEERS[name] for name in options.peers])
        versions, absent = prepare(wanted)
        ready = [each for each in wanted if each.name in versions]
        runner = Runner(ready, absent, plan, folder, _tell)
        for workload in workloads:
            missing = workload.missing()
            found = _absent(workload.name, missing) if missing else runner.measure(workload)
            findings.append(found)
            _show(found)
    return versions, findings, list(_alone(names, folder))


def _alone(names: Iterable[str], folder: Path) -> Iterable[Row]:
    for name in names:
        if name not in alone.MEASUREMENTS:
            continue
        measure, workload = alone.MEASUREMENTS[name]
        if workload.missing():
            yield bounds.Row(f"{name}: {workload.model.name} is not here", None)
            continue
        _tell(name)
        place = folder / name
        place.mkdir()
        try:
            yield from measure(workload, place)
        except Unavailable as problem:
            yield bounds.Row(f"{name}: {problem}", None)


def _absent(workload: str, missing: Path) -> Findings:
    reason = f"{missing.name} is not here"
    return Findings(workload, absences=[Absence(workload, workload, reason)])


def _figures(findings: Sequence[Findings]) -> bounds.Figures:
    return bounds.Figures(
        measurements=[each for one in findings for each in one.measurements],
        footprints=[each for one in findings for each in one.footprints],
        decode_ms={one.workload: one.decode_ms for one in findings if one.decode_ms is not None},
    )


def _show(found: Findings) -> None:
    print(f"\n{found.workload}")
    print(table.as_text(table.comparison(found.measurements, found.absences)))
    if found.footprints:
        print(table.as_text(table.footprints(found.footprints)))
    print(flush=True)


def _tell(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
