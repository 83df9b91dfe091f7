"""Measures one workload: every server alone for its footprint, then all in turn under load."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import wrk
from benchmarks.broker import running_broker
from benchmarks.lanes import MQTT, MQTT_ECHO, RAW, UNIX
from benchmarks.machine import busy_percent
from benchmarks.measure import Absence, Footprint, Load, Measurement
from benchmarks.peers.echo import Echo
from benchmarks.peers.inferd import Inferd, mqtt_payload, predict_topic, socket_path
from benchmarks.processes import Command, Server, Unavailable, ask, free_port, running
from benchmarks.programs import HttpLoad, MqttLoad, program, run, run_load
from benchmarks.workloads import Case, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.peers.contender import Contender
    from benchmarks.wire import Request
    from benchmarks.workloads import Workload

CONNECTIONS = (1, 2, 8, 32)
FEW_CONNECTIONS = (1, 8)
"""Of lanes that are not compared with peers."""

_OK = 200
_ECHO_TOPIC = "bench/echo"
_FOOTPRINT_CONNECTIONS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How long.

    Attributes:
        seconds: of one load.
        rounds: each lane is measured so many times, in turn with the others.
        warm_s: of load before anything counts.
        starts: of which the median is the start-up time.
        connections: which of the lane's are measured; None for all.
    """

    seconds: int
    rounds: int
    warm_s: int
    starts: int
    connections: tuple[int, ...] | None = None

    def connections_of(self, lane: Lane) -> tuple[int, ...]:
        """Those that are measured."""
        if self.connections is None or lane.name == RAW:
            return lane.connections
        return tuple(each for each in lane.connections if each in self.connections)


@dataclass(frozen=True, slots=True)
class Lane:
    """A server and a way to it: one line of the table.

    Attributes:
        load: takes connections and seconds.
    """

    name: str
    load: Callable[[int, int], Load]
    connections: tuple[int, ...]


@dataclass(slots=True)
class Findings:
    """What was measured with one workload.

    Attributes:
        decode_ms: what Pillow's decode and resize of the picture takes in a plain process.
        idle_busy_percent: of the processors before each round, with all servers idle: what other
            programs took.
    """

    workload: str
    decode_ms: float | None = None
    measurements: list[Measurement] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    idle_busy_percent: list[float] = field(default_factory=list)


class Runner:
    """Measures workloads with the same contenders.

    Args:
        contenders: those that could be prepared.
        absent: name and reason of those that could not.
        folder: an empty one, for everything that is written.
        tell: takes a line about what happens now.
    """

    def __init__(
        self,
        contenders: Sequence[Contender],
        absent: Sequence[tuple[str, str]],
        plan: Plan,
        folder: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._contenders = contenders
        self._absent = absent
        self._plan = plan
        self._folder = folder
        self._tell = tell

    def measure(self, workload: Workload) -> Findings:
        """Everything about one workload."""
        case, decode_ms = look_up(workload)
        findings = Findings(workload.name, decode_ms)
        findings.absences += [Absence(workload.name, *each) for each in self._absent]
        if workload.has_footprint:
            for contender in self._contenders:
                self._weigh(contender, case, findings)
        with ExitStack() as stack:
            lanes = self._open_lanes(case, stack, findings)
            self._race(lanes, findings)
        return findings

    def _weigh(self, contender: Contender, case: Case, findings: Findings) -> None:
        """Start-up and memory of one server, with no other beside it."""
        workload = case.workload.name
        self._tell(f"{workload}: {contender.name} alone")
        starts_s, pss_bytes, processes = [], 0, 0
        try:
            for _ in range(self._plan.starts):
                began = time.monotonic()
                with self._started(contender, case) as started:
                    starts_s.append(time.monotonic() - began)
                    started.load(_FOOTPRINT_CONNECTIONS, self._plan.warm_s)
                    pss_bytes, processes = started.server.pss_bytes(), len(started.server.pids())
        except Unavailable as problem:
            findings.absences.append(Absence(workload, f"{contender.name} alone", str(problem)))
            return
        footprint = Footprint(
            workload, contender.name, median(starts_s), pss_bytes / 1e6, processes
        )
        findings.footprints.append(footprint)

    def _open_lanes(self, case: Case, stack: ExitStack, findings: Findings) -> list[Lane]:
        """Start everybody; who does not start is noted."""
        workload = case.workload
        lanes = [Lane(RAW, _raw_load(workload), (workload.instances,))]

        def note(lane: str, problem: Unavailable) -> None:
            findings.absences.append(Absence(workload.name, lane, str(problem)))

        try:
            broker_port = stack.enter_context(running_broker(self._make_folder("broker")))
        except Unavailable as problem:
            broker_port = 0
            note(MQTT, problem)
        for contender in self._contenders:
            self._tell(f"{workload.name}: starting {contender.name}")
            is_inferd = isinstance(contender, Inferd) and contender.isolation == "process"
            try:
                who = Inferd(broker_port=broker_port) if is_inferd else contender
                started = stack.enter_context(self._started(who, case))
            except Unavailable as problem:
                note(contender.name, problem)
                continue
            lanes.append(Lane(contender.name, started.load, CONNECTIONS))
            if is_inferd:
                lanes += self._more_ways_in(case, started, broker_port)
        if broker_port:
            lanes.append(self._mqtt_echo(case, stack, broker_port))
        return lanes

    def _more_ways_in(self, case: Case, started: _Started, broker_port: int) -> list[Lane]:
        request = Inferd().request(case)
        unix = HttpLoad(socket_path(started.folder), request, self._folder, "unix")
        lanes = [Lane(UNIX, unix, FEW_CONNECTIONS)]
        if broker_port:
            topic, payload = predict_topic(case.workload), mqtt_payload(case)
            mqtt = MqttLoad(broker_port, topic, payload, self._folder, "mqtt")
            lanes.append(Lane(MQTT, mqtt, FEW_CONNECTIONS))
        return lanes

    def _mqtt_echo(self, case: Case, stack: ExitStack, broker_port: int) -> Lane:
        folder = self._make_folder("mqttecho")
        client = MqttLoad(broker_port, _ECHO_TOPIC, mqtt_payload(case), folder, "echo")
        command = Command(program("benchmarks.mqttecho", str(broker_port), _ECHO_TOPIC))
        stack.enter_context(running(command, folder / "log", lambda: True))
        return Lane(MQTT_ECHO, client, FEW_CONNECTIONS)

    def _race(self, lanes: list[Lane], findings: Findings) -> None:
        """Every lane in turn, so often; what disturbs the machine disturbs all alike."""
        loads: dict[tuple[str, int], list[Load]] = {
            (lane.name, each): [] for lane in lanes for each in self._plan.connections_of(lane)
        }
        failed = {lane.name for lane in lanes if not self._is_warm(lane, findings)}
        widths = sorted({each for lane in lanes for each in self._plan.connections_of(lane)})
        for number in range(self._plan.rounds):
            self._tell(f"{findings.workload}: round {number + 1} of {self._plan.rounds}")
            findings.idle_busy_percent.append(busy_percent())
            for connections in widths:
                # The other way round every other time: nobody always follows the same neighbour.
                for lane in lanes if number % 2 == 0 else reversed(lanes):
                    if connections not in self._plan.connections_of(lane) or lane.name in failed:
                        continue
                    load = self._try(lane, connections, self._plan.seconds, findings)
                    if load is None:
                        failed.add(lane.name)
                    else:
                        loads[lane.name, connections].append(load)
        findings.measurements += [
            Measurement(findings.workload, lane, connections, tuple(rounds))
            for (lane, connections), rounds in loads.items()
            if rounds
        ]

    def _is_warm(self, lane: Lane, findings: Findings) -> bool:
        return self._try(lane, min(lane.connections), self._plan.warm_s, findings) is not None

    def _try(self, lane: Lane, connections: int, seconds: int, findings: Findings) -> Load | None:
        """A load; one that fails is noted."""
        try:
            return lane.load(connections, seconds)
        except Unavailable as problem:
            findings.absences.append(Absence(findings.workload, lane.name, str(problem)))
            return None

    @contextmanager
    def _started(self, contender: Contender, case: Case) -> Iterator[_Started]:
        """It answers rightly until the block ends.

        Raises:
            Unavailable: it does not start, or answers wrongly.
        """
        folder = self._make_folder(contender.name)
        port = free_port()
        request = contender.request(case)
        command = contender.command(case, folder, port)
        with running(command, folder / "log", lambda: _answers(port, request)) as server:
            answer = ask(port, request)
            if answer is None or answer.status != _OK or not contender.is_right(case, answer):
                raise Unavailable(f"it answers wrongly: {answer and answer.body[:200]!r}")
            client = wrk.Wrk if wrk.is_installed() else HttpLoad
            yield _Started(server, folder, client(port, request, folder, "load"))

    def _make_folder(self, name: str) -> Path:
        """A new one; names are kept short, for the path of a unix socket has 107 bytes at most."""
        number = sum(1 for _ in self._folder.iterdir())
        folder = self._folder / f"{number}-{name.replace(' ', '-')}"
        folder.mkdir()
        return folder


@dataclass(frozen=True, slots=True)
class _Started:
    server: Server
    folder: Path
    load: Callable[[int, int], Load]


def look_up(workload: Workload) -> tuple[Case, float | None]:
    """What the raw runtime says of it, and how long the picture takes to decode if it has one."""
    known = run("benchmarks.raw", *_raw_arguments(workload))
    source, sink = (
        Tensor(each["name"], each["dtype"], tuple(each["dims"]))
        for each in (known["source"], known["sink"])
    )
    return Case(workload, source, sink, tuple(known["expected"])), known["decode_ms"]


def contenders(peers: Sequence[Contender]) -> list[Contender]:
    """Everybody over HTTP: the baseline, us, and these peers."""
    return [Echo(), Inferd(), Inferd("thread"), *peers]


def prepare(wanted: Sequence[Contender]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Install them.

    Returns:
        The version of each that is there, by name, and name and reason of each that is not.
    """
    versions: dict[str, str] = {}
    absent = []
    for contender in wanted:
        try:
            versions[contender.name] = contender.prepare()
        except Unavailable as problem:
            absent.append((contender.name, str(problem)))
    return versions, absent


def _answers(port: int, request: Request) -> bool:
    answer = ask(port, request)
    return answer is not None and answer.status == _OK


def _raw_arguments(workload: Workload) -> list[str]:
    arguments = [str(workload.model), workload.form.value, "--rows", str(workload.rows)]
    arguments += ["--instances", str(workload.instances)]
    return [*arguments, "--file", str(workload.file)] if workload.file else arguments


def _raw_load(workload: Workload) -> Callable[[int, int], Load]:
    def load(_: int, seconds: int) -> Load:
        more = ("--seconds", str(seconds))
        return run_load("benchmarks.raw", *_raw_arguments(workload), *more)

    return load
