"""What must hold, as ratios inside one run, and whether it does. Pure.

A figure that was not measured is no figure that holds: its row says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from benchmarks.lanes import (
    ECHO,
    INFERD,
    INFERD_THREAD,
    LITSERVE,
    MLSERVER,
    MQTT,
    MQTT_ECHO,
    OURS,
    PEERS,
    RAW,
    TRITON,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from benchmarks.measure import Footprint, Load, Measurement


class Verdict(Enum):
    """Whether a bound holds."""

    HOLDS = "holds"
    FAILS = "FAILS"
    NOT_MEASURED = "not measured"
    NO_BOUND = ""
    """Nothing must hold; the figure is for information."""


class Limit(Enum):
    """Which way a bound goes."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure and what must hold of it.

    Attributes:
        value: None where it was not measured.
        unit: of value and bound; "x" for a ratio.
        bound: None where nothing must hold.
        note: what else there is to say.
    """

    text: str
    value: float | None
    unit: str = "x"
    limit: Limit = Limit.AT_MOST
    bound: float | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether it holds."""
        if self.value is None:
            return Verdict.NOT_MEASURED
        if self.bound is None:
            return Verdict.NO_BOUND
        holds = (
            self.value <= self.bound if self.limit is Limit.AT_MOST else self.value >= self.bound
        )
        return Verdict.HOLDS if holds else Verdict.FAILS


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that a run measured, to be looked up.

    Attributes:
        decode_ms: Pillow's own decode and resize in a plain process, by workload.
    """

    measurements: Sequence[Measurement]
    footprints: Sequence[Footprint]
    decode_ms: dict[str, float]

    def load(self, workload: str, lane: str, connections: int | None = None) -> Load | None:
        """The median of that load, at the only number of connections where none is given."""
        for each in self.measurements:
            if (each.workload, each.lane) == (workload, lane) and connections in (
                None,
                each.connections,
            ):
                return each.median
        return None

    def best_rate(self, workload: str, lane: str) -> float | None:
        """Good answers per second at the number of connections where they are the most."""
        rates = [
            each.median.rate_per_s
            for each in self.measurements
            if (each.workload, each.lane) == (workload, lane)
        ]
        return max(rates, default=None)

    def pss_mb(self, workload: str, lane: str) -> float | None:
        """Memory of a server that runs alone."""
        for each in self.footprints:
            if (each.workload, each.lane) == (workload, lane):
                return each.pss_mb
        return None


def _overhead(figures: Figures, workload: str) -> Iterator[Row]:
    raw, echo = figures.load(workload, RAW), figures.load(workload, ECHO, 1)
    for lane, bound in ((INFERD, 1.6), (INFERD_THREAD, 1.2)):
        ours = figures.load(workload, lane, 1)
        value = (ours.p50_ms - raw.p50_ms) / echo.p50_ms if ours and raw and echo else None
        text = f"{workload}, 1 connection: {lane}'s p50 less raw invoke, over {ECHO}'s"
        yield Row(text, value, bound=bound)


def _rates(figures: Figures, workload: str) -> Iterator[Row]:
    for connections in (8, 32):
        for lane, peer, bound in (
            (INFERD, TRITON, 1.3),
            (INFERD, MLSERVER, 6),
            (INFERD, LITSERVE, 4),
            (INFERD_THREAD, TRITON, 1.6),
        ):
            yield _rate_over(figures, workload, (lane, peer), connections, bound)


def _close_to_raw(figures: Figures, workload: str) -> Iterator[Row]:
    yield _rate_over(figures, workload, (INFERD, TRITON), 8, 1.2)
    ours, raw = figures.load(workload, INFERD, 8), figures.load(workload, RAW)
    value = ours.rate_per_s / raw.rate_per_s if ours and raw else None
    text = f"{workload}, 8 connections: rate over the raw loop's"
    yield Row(text, value, limit=Limit.AT_LEAST, bound=0.85)
    peer = figures.load(workload, TRITON, 8)
    value = ours.p99_ms / peer.p99_ms if ours and peer else None
    yield Row(f"{workload}, 8 connections: p99 over {TRITON}'s", value, bound=1)


def _latency(figures: Figures, workload: str) -> Iterator[Row]:
    ours, raw = figures.load(workload, INFERD, 1), figures.load(workload, RAW)
    yield Row(
        f"{workload}, 1 connection: p50 over raw invoke, 10 % and 0.3 ms allowed",
        ours.p50_ms - raw.p50_ms if ours and raw else None,
        "ms",
        bound=0.1 * raw.p50_ms + 0.3 if raw else None,
    )


def _all_cores(figures: Figures, workload: str) -> Iterator[Row]:
    ours, raw = figures.best_rate(workload, INFERD), figures.best_rate(workload, RAW)
    value = ours / raw if ours and raw else None
    text = f"{workload}: best rate over the raw loops' on all cores"
    yield Row(text, value, limit=Limit.AT_LEAST, bound=0.92)
    for peer in PEERS:
        theirs = figures.best_rate(workload, peer)
        value = ours / theirs if ours and theirs else None
        text = f"{workload}: best rate over {peer}'s"
        yield Row(text, value, limit=Limit.AT_LEAST, bound=1)


def _json(figures: Figures, workload: str) -> Iterator[Row]:
    yield _rate_over(figures, workload, (INFERD, TRITON), 8, 4)
    yield _rate_over(figures, workload, (INFERD, MLSERVER), 8, 6)


def _jpeg(figures: Figures, workload: str) -> Iterator[Row]:
    ours, raw = figures.load(workload, INFERD, 1), figures.load(workload, RAW)
    decode_ms = figures.decode_ms.get(workload)
    yield Row(
        f"{workload}, 1 connection: p50 over raw invoke",
        ours.p50_ms - raw.p50_ms if ours and raw else None,
        "ms",
        bound=max(6.0, 1.3 * decode_ms) if decode_ms else 6.0,
        note=f"Pillow alone decodes and resizes it in {decode_ms:.1f} ms" if decode_ms else "",
    )


def _mqtt(figures: Figures, workload: str) -> Iterator[Row]:
    ours, echo = (figures.load(workload, lane, 1) for lane in (MQTT, MQTT_ECHO))
    value = ours.p50_ms - echo.p50_ms if ours and echo else None
    yield Row(
        f"{workload}, 1 request under way: MQTT p50 over {MQTT_ECHO}'s", value, "ms", bound=1.5
    )
    yield _rate_over(figures, workload, (MQTT, MQTT_ECHO), 8, 0.5)


def _memory(figures: Figures, workload: str) -> Iterator[Row]:
    ours, peer = (figures.pss_mb(workload, lane) for lane in (INFERD, TRITON))
    value = ours / peer if ours and peer else None
    yield Row(f"{workload}: memory over {TRITON}'s server and stub", value, bound=1)
    yield Row(f"{workload}: memory of daemon and one worker", ours, "MB", bound=110)


def _errors(figures: Figures) -> Row:
    ours = [each.median.errors for each in figures.measurements if each.lane in OURS]
    return Row("inferd: failed answers in all loads", sum(ours) if ours else None, "", bound=0)


def _rate_over(
    figures: Figures, workload: str, lanes: tuple[str, str], connections: int, bound: float
) -> Row:
    ours, theirs = (figures.load(workload, each, connections) for each in lanes)
    value = ours.rate_per_s / theirs.rate_per_s if ours and theirs and theirs.rate_per_s else None
    text = f"{workload}, {connections} connections: {lanes[0]}'s rate over {lanes[1]}'s"
    return Row(text, value, limit=Limit.AT_LEAST, bound=bound)


_RULES: tuple[tuple[str, Callable[[Figures, str], Iterator[Row]]], ...] = (
    ("fc_mnist", _overhead),
    ("fc_mnist", _rates),
    ("cifar10_resnet8", _close_to_raw),
    ("mobilenet_v2", _latency),
    ("mobilenet_v2-all-cores", _all_cores),
    ("mobilenet_v2-json", _json),
    ("mobilenet_v2-jpeg", _jpeg),
    ("fc_mnist", _mqtt),
    ("fc_mnist", _memory),
)


def judge(figures: Figures, workloads: Collection[str]) -> list[Row]:
    """Every bound on these workloads."""
    chosen = [(workload, rule) for workload, rule in _RULES if workload in workloads]
    rows = [row for workload, rule in chosen for row in rule(figures, workload)]
    return [*rows, _errors(figures)] if workloads else rows
