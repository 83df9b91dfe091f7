"""Metrics: every number Prometheus may ask for, under names that operators rely on.

Rules:
1. A label's value comes from a closed set. A model or version counts as known only after the
   registry said so; what a client asks for beyond that is counted with empty labels.
2. A model or version that is gone takes its series with it.
3. A request pays for counting and nothing else: a number is added to, no lock is taken, no label is
   looked up twice. The Prometheus text is made when it is asked for.

Not thread-safe: called from the event loop. docs/metrics.md lists every name; a test compares.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from daemon import errors
from daemon.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import Metric

    from accelerators.inventory import DeviceInventory
    from daemon.tensors import Protocol
    from daemon.updates import UpdateReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

DURATION_BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
BATCH_BUCKETS_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_STAGES = ("queue", "preprocess", "invoke", "postprocess")


class Outcome(StrEnum):
    """How a request ended; the `outcome` label of inferd_requests_total."""

    OK = "ok"  # answered
    BAD_REQUEST = "bad_request"  # the request is at fault
    NOT_FOUND = "not_found"  # no such model, version, label or signature
    UNAVAILABLE = "unavailable"  # the model is known and cannot answer now
    OVERLOADED = "overloaded"  # refused at once, before any work
    DEADLINE = "deadline"  # its deadline passed first
    CANCELLED = "cancelled"  # the client left
    FAILED = "failed"  # the model, a worker or the daemon failed


_OUTCOMES: Mapping[type[BaseException], Outcome] = {
    BaseException: Outcome.FAILED,
    errors.RequestError: Outcome.BAD_REQUEST,
    errors.NotFound: Outcome.NOT_FOUND,
    errors.ModelUnavailable: Outcome.UNAVAILABLE,
    errors.Overloaded: Outcome.OVERLOADED,
    errors.DeadlineExceeded: Outcome.DEADLINE,
}

_TIMED = frozenset({Outcome.OK, Outcome.DEADLINE, Outcome.FAILED})
"""Outcomes whose duration is observed: refusals take microseconds and would hide slow answers."""


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of a request that ended in this error."""
    return next(_OUTCOMES[kind] for kind in type(error).__mro__ if kind in _OUTCOMES)


@dataclass(frozen=True, slots=True, eq=False)
class _Family:
    """What one name stands for; `bounds` for histograms only."""

    kind: type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]
    name: str
    meaning: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


_REQUESTS = _Family(
    CounterMetricFamily,
    "inferd_requests_total",
    "Predictions asked for, by how they ended.",
    ("model", "version", "protocol", "outcome"),
)
_DURATIONS = _Family(
    HistogramMetricFamily,
    "inferd_request_duration_seconds",
    "Time from a request's arrival to its answer, for outcomes ok, deadline and failed.",
    ("model", "protocol"),
    DURATION_BUCKETS_S,
)
_STAGE_DURATIONS = _Family(
    HistogramMetricFamily,
    "inferd_stage_duration_seconds",
    "Time of each stage of an answered request.",
    ("model", "stage"),
    DURATION_BUCKETS_S,
)
_QUEUE_DEPTH = _Family(
    GaugeMetricFamily, "inferd_queue_depth", "Requests that wait or run now.", ("model",)
)
_REJECTIONS = _Family(
    CounterMetricFamily,
    "inferd_queue_rejections_total",
    "Requests refused before any work was done for them.",
    ("model", "reason"),
)
_BATCH_SIZE = _Family(
    HistogramMetricFamily,
    "inferd_batch_size",
    "Rows of each invocation.",
    ("model",),
    BATCH_BUCKETS_ROWS,
)
_RESTARTS = _Family(
    CounterMetricFamily,
    "inferd_worker_restarts_total",
    "Workers that were replaced, by why.",
    ("model", "reason"),
)
_MODEL_INFO = _Family(
    GaugeMetricFamily,
    "inferd_model_info",
    "1 for each loaded version: what runs it, and whether that is what was asked for.",
    ("model", "version", "device", "requested_device", "degraded", "runtime"),
)
_MODEL_MEMORY = _Family(
    GaugeMetricFamily,
    "inferd_model_memory_bytes",
    "Private memory of a model's newest worker after warm-up.",
    ("model",),
)
_DEVICE_UP = _Family(
    GaugeMetricFamily,
    "inferd_device_up",
    "1 while a device can be used.",
    ("device", "kind"),
)
_DEVICE_LOSSES = _Family(
    CounterMetricFamily,
    "inferd_device_losses_total",
    "How often a device that could be used no longer could.",
    ("device", "kind"),
)
_BUILD_INFO = _Family(
    GaugeMetricFamily, "inferd_build_info", "1: which inferd this is.", ("version",)
)
_MQTT_CONNECTED = _Family(
    GaugeMetricFamily,
    "inferd_mqtt_connected",
    "1 while the MQTT broker is connected. Absent while MQTT is off.",
)
_MQTT_OUTBOX = _Family(
    GaugeMetricFamily,
    "inferd_mqtt_outbox_messages",
    "Results and events of updates that wait on disk for the MQTT broker. Absent while MQTT is "
    "off.",
)
_UPDATE_STATE = _Family(
    GaugeMetricFamily,
    "inferd_update_state",
    "1 for the state that a model's update is in. Absent while there is no updater.",
    ("model", "state"),
)
_UPDATES = _Family(
    CounterMetricFamily,
    "inferd_updates_total",
    "Updates that have ended, by how. Absent while there is no updater.",
    ("model", "outcome"),
)
_TRUST_EXPIRY = _Family(
    GaugeMetricFamily,
    "inferd_trust_expiry_timestamp_seconds",
    "When the trusted metadata of a role expires. Absent while there is no updater.",
    ("role",),
)
_FAMILIES = (
    *(_BUILD_INFO, _REQUESTS, _DURATIONS, _STAGE_DURATIONS, _QUEUE_DEPTH, _REJECTIONS),
    *(_BATCH_SIZE, _RESTARTS, _MODEL_INFO, _MODEL_MEMORY, _DEVICE_UP, _DEVICE_LOSSES),
    *(_MQTT_CONNECTED, _MQTT_OUTBOX, _UPDATE_STATE, _UPDATES, _TRUST_EXPIRY),
)
_OFF_UNTIL_USED = frozenset({_MQTT_CONNECTED, _MQTT_OUTBOX, _UPDATE_STATE, _UPDATES, _TRUST_EXPIRY})


class _Number:
    """A counter or gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class _Histogram:
    """How many observations fell under each bound, the last place for those above all."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum: float = 0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Prometheus' cumulative buckets, and the sum."""
        bounds = (*map(str, map(float, self._bounds)), "+Inf")
        return list(zip(bounds, accumulate(self._counts), strict=True)), self._sum


class _ModelSeries:
    """What is counted of one model; each series is made when first needed."""

    __slots__ = (
        "batch_size",
        "durations",
        "infos",
        "loads",
        "numbers",
        "queues",
        "requests",
        "stages",
    )

    def __init__(self) -> None:
        self.requests: dict[tuple[int, Protocol, str], _Number] = {}
        self.durations: dict[Protocol, _Histogram] = {}
        self.stages: tuple[_Histogram, ...] = ()
        self.batch_size: _Histogram | None = None
        self.numbers: dict[
            tuple[_Family, str], _Number
        ] = {}  # by reason, or "" where there is none
        self.queues: dict[object, Callable[[], int]] = {}
        self.infos: dict[int, tuple[str, ...]] = {}
        self.loads: dict[int, int] = {}

    def number(self, family: _Family, label: str = "") -> _Number:
        """The number of a family that has no other label than the model and this one."""
        number = self.numbers.get((family, label))
        if number is None:
            number = self.numbers[family, label] = _Number()
        return number


class Metrics(Collector):
    """Counts what happens and renders it for a scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register in `registry`."""
        self._registry = registry
        self._models: dict[str, _ModelSeries] = {}
        self._nobody = _ModelSeries()
        self._numbers: dict[tuple[_Family, tuple[str, ...]], _Number] = {}
        self._number(_BUILD_INFO, VERSION).value = 1
        self._updates: UpdateReport | None = None
        self._inventory: DeviceInventory | None = None
        registry.register(self)

    def request(
        self, model: str, version: int, protocol: Protocol, outcome: str, duration_s: float
    ) -> None:
        """Count one prediction that ended.

        Args:
            model, version: as asked for or as answered; unknown ones get empty labels.
            outcome: an `Outcome`; anything else counts as failed.
            duration_s: from arrival to answer.
        """
        series = self._models.get(model, self._nobody)
        number = series.requests.get((version, protocol, outcome))
        if number is None:
            # Only known ones are kept: a client could fill the memory with version numbers.
            known = version if version in series.loads else 0
            outcome = outcome if outcome in _VALUES else Outcome.FAILED
            number = series.requests.setdefault((known, protocol, outcome), _Number())
        number.value += 1
        if outcome in _TIMED:
            duration = series.durations.get(protocol)
            if duration is None:
                duration = series.durations[protocol] = _Histogram(DURATION_BUCKETS_S)
            duration.observe(duration_s)

    def stages(
        self, model: str, queue_s: float, preprocess_s: float, invoke_s: float, postprocess_s: float
    ) -> None:
        """Count where the time of an answered request went, in seconds."""
        series = self._models.get(model)
        if series is None:
            return
        if not series.stages:
            series.stages = tuple(_Histogram(DURATION_BUCKETS_S) for _ in _STAGES)
        queue, preprocess, invoke, postprocess = series.stages
        queue.observe(queue_s)
        preprocess.observe(preprocess_s)
        invoke.observe(invoke_s)
        postprocess.observe(postprocess_s)

    def watch_queue(self, model: str, owner: object, depth: Callable[[], int]) -> None:
        """Ask `depth` at each scrape how many requests wait or run in one of a model's queues."""
        series = self._models.get(model)
        if series is not None:
            series.queues[owner] = depth

    def unwatch_queue(self, model: str, owner: object) -> None:
        """The queue is gone."""
        series = self._models.get(model)
        if series is not None:
            series.queues.pop(owner, None)

    def rejected(self, model: str, reason: str) -> None:
        """Count a refusal; `reason` is the value of a `RefusalReason`."""
        series = self._models.get(model)
        if series is not None:
            series.number(_REJECTIONS, reason).value += 1

    def batch(self, model: str, rows: int) -> None:
        """Count one invocation."""
        series = self._models.get(model)
        if series is None:
            return
        if series.batch_size is None:
            series.batch_size = _Histogram(BATCH_BUCKETS_ROWS)
        series.batch_size.observe(rows)

    def worker_restart(self, model: str, reason: str) -> None:
        """Count a worker that was replaced; `reason` is the value of a `DeathReason`."""
        series = self._models.get(model)
        if series is not None:
            series.number(_RESTARTS, reason).value += 1

    def know_model(self, model: str) -> None:
        """Let requests for this model be counted under its name, loaded or not."""
        self._know(model)

    def set_model_info(  # noqa: PLR0917 (in the order of the labels)
        self,
        model: str,
        version: int,
        device: str,
        requested_device: str,
        degraded: bool,  # noqa: FBT001 (a label's value)
        runtime: str,
        *,
        moved: bool = False,
    ) -> None:
        """Say what runs a version that was loaded: once for each load, until `forget_version`.

        Args:
            moved: it is a load of which was told before, on another device now.
        """
        series = self._know(model)
        if moved and version not in series.loads:
            return
        if not moved:
            series.loads[version] = series.loads.get(version, 0) + 1
        degraded_label = str(degraded).lower()
        series.infos[version] = (
            *(model, str(version), device),
            *(requested_device, degraded_label, runtime),
        )

    def set_model_memory(self, model: str, size_bytes: int) -> None:
        """Say what a model's newest worker takes."""
        series = self._models.get(model)
        if series is not None:
            series.number(_MODEL_MEMORY).value = size_bytes

    def forget_version(self, model: str, version: int) -> None:
        """End one load of a version; with the last, its series go.

        A file that was replaced under the same number is loaded before the old one is stopped.
        """
        series = self._models.get(model)
        if series is None or version not in series.loads:
            return
        series.loads[version] -= 1
        if series.loads[version] > 0:
            return
        del series.loads[version]
        del series.infos[version]
        for key in [key for key in series.requests if key[0] == version]:
            del series.requests[key]

    def forget_model(self, model: str) -> None:
        """Drop every series of a model that is gone."""
        self._models.pop(model, None)

    def watch_devices(self, inventory: DeviceInventory) -> None:
        """Ask at each scrape which devices can be used."""
        self._inventory = inventory

    def mqtt_connected(self, connected: bool) -> None:  # noqa: FBT001 (the value itself)
        """Say whether the broker is connected. Never called while MQTT is off: no series then."""
        self._number(_MQTT_CONNECTED).value = connected

    def mqtt_outbox(self, messages: int) -> None:
        """Say how many results wait on disk for the broker. Never called while MQTT is off."""
        self._number(_MQTT_OUTBOX).value = messages

    def updates(self, report: UpdateReport) -> None:
        """Repeat what the updater says of itself. Never called while there is none."""
        self._updates = report

    def render(self) -> tuple[bytes, str]:
        """The exposition for one scrape, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE

    def describe(self) -> Iterable[Metric]:
        """Names and meanings, for the registry to find clashes."""
        return [family.kind(family.name, family.meaning) for family in _FAMILIES]

    def collect(self) -> Iterable[Metric]:
        """Every family with its series as they are now; Prometheus' own interface."""
        found: dict[_Family, Any] = {
            family: family.kind(family.name, family.meaning, labels=family.labels)
            for family in _FAMILIES
        }
        for (family, labels), number in self._numbers.items():
            found[family].add_metric(labels, number.value)
        if self._inventory is not None:
            _collect_devices(found, self._inventory)
        if self._updates is not None:
            _collect_updates(found, self._updates)
        for model, series in (("", self._nobody), *self._models.items()):
            _collect_model(found, model, series)
        return [
            metric
            for family, metric in found.items()
            if metric.samples or family not in _OFF_UNTIL_USED
        ]

    def _know(self, model: str) -> _ModelSeries:
        return self._models.setdefault(model, _ModelSeries())

    def _number(self, family: _Family, *labels: str) -> _Number:
        return self._numbers.setdefault((family, labels), _Number())


def _collect_devices(found: Mapping[_Family, Any], inventory: DeviceInventory) -> None:
    losses = inventory.losses()
    for device in inventory.known():
        labels = (device.id, device.kind)
        found[_DEVICE_UP].add_metric(labels, device.up)
        found[_DEVICE_LOSSES].add_metric(labels, losses.get(device.id, 0))


def _collect_updates(found: Mapping[_Family, Any], report: UpdateReport) -> None:
    for update in report.models:
        found[_UPDATE_STATE].add_metric((update.model, update.state), 1)
    for count in report.counts:
        found[_UPDATES].add_metric((count.model, count.outcome), count.count)
    for role, expires_at in report.expires.items():
        found[_TRUST_EXPIRY].add_metric((role,), expires_at)


def _collect_model(found: Mapping[_Family, Any], model: str, series: _ModelSeries) -> None:
    for (version, protocol, outcome), number in series.requests.items():
        labels = (model, str(version) if version else "", protocol.value, str(outcome))
        found[_REQUESTS].add_metric(labels, number.value)
    for protocol, histogram in series.durations.items():
        found[_DURATIONS].add_metric((model, protocol.value), *histogram.buckets())
    for stage, histogram in zip(_STAGES, series.stages, strict=False):  # none, or all
        found[_STAGE_DURATIONS].add_metric((model, stage), *histogram.buckets())
    if series.batch_size is not None:
        found[_BATCH_SIZE].add_metric((model,), *series.batch_size.buckets())
    if series.queues:
        found[_QUEUE_DEPTH].add_metric((model,), sum(depth() for depth in series.queues.values()))
    for (family, label), number in series.numbers.items():
        found[family].add_metric((model, label) if label else (model,), number.value)
    for info in series.infos.values():
        found[_MODEL_INFO].add_metric(info, 1)


_VALUES = frozenset(outcome.value for outcome in Outcome)
