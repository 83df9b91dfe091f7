"""Metrics: every number Prometheus may ask for, under names that operators rely on.

Rules:
1. A label's value comes from a closed set. A model or version counts as known only after the
   registry said so; what a client asks for beyond that is counted with empty labels.
2. A model or version that is gone takes its series with it.
3. A request pays for counting, not for looking up: the children of each series are kept.

Not thread-safe: called from the event loop. docs/metrics.md lists every name; a test compares.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from daemon import errors
from daemon.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.tensors import Protocol

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


_Family = Counter | Gauge | Histogram
_AnyFamily = TypeVar("_AnyFamily", Counter, Gauge, Histogram)


class _ModelSeries:
    """The children of one model's series, made when first needed, and its known versions."""

    __slots__ = (
        "batch_size",
        "durations",
        "infos",
        "loads",
        "made",
        "queue_depth",
        "rejections",
        "requests",
        "restarts",
        "stages",
    )

    def __init__(self) -> None:
        self.requests: dict[tuple[int, Protocol, str], Counter] = {}
        self.durations: dict[Protocol, Histogram] = {}
        self.stages: tuple[Histogram, ...] = ()
        self.rejections: dict[str, Counter] = {}
        self.restarts: dict[str, Counter] = {}
        self.batch_size: Histogram | None = None
        self.queue_depth: Gauge | None = None
        self.infos: dict[int, tuple[str, ...]] = {}
        self.loads: dict[int, int] = {}
        self.made: set[tuple[_Family, tuple[str, ...]]] = set()

    def child(self, family: _AnyFamily, *labels: str) -> _AnyFamily:
        """The child of a series with these labels, remembered so that it can be dropped."""
        self.made.add((family, labels))
        return family.labels(*labels)

    def drop(self, family: _Family, *labels: str) -> None:
        """Drop one child."""
        self.made.discard((family, labels))
        family.remove(*labels)


class Metrics:
    """Counts what happens and renders it for a scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register every series in `registry`, which must be empty of them."""
        # A second series for each counter that says when it began: Prometheus knows that already.
        disable_created_metrics()  # type: ignore[no-untyped-call] # not annotated there
        self._registry = registry
        self._models: dict[str, _ModelSeries] = {}
        self._nobody = _ModelSeries()
        self._requests = Counter(
            "inferd_requests_total",
            "Predictions asked for, by how they ended.",
            ("model", "version", "protocol", "outcome"),
            registry=registry,
        )
        self._durations = Histogram(
            "inferd_request_duration_seconds",
            "Time from a request's arrival to its answer, for outcomes ok, deadline and failed.",
            ("model", "protocol"),
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._stages = Histogram(
            "inferd_stage_duration_seconds",
            "Time of each stage of an answered request.",
            ("model", "stage"),
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._queue_depth = Gauge(
            "inferd_queue_depth",
            "Requests that wait or run now.",
            ("model",),
            registry=registry,
        )
        self._rejections = Counter(
            "inferd_queue_rejections_total",
            "Requests refused before any work was done for them.",
            ("model", "reason"),
            registry=registry,
        )
        self._batch_size = Histogram(
            "inferd_batch_size",
            "Rows of each invocation.",
            ("model",),
            buckets=BATCH_BUCKETS_ROWS,
            registry=registry,
        )
        self._restarts = Counter(
            "inferd_worker_restarts_total",
            "Workers that were replaced, by why.",
            ("model", "reason"),
            registry=registry,
        )
        self._model_info = Gauge(
            "inferd_model_info",
            "1 for each loaded version: what runs it, and whether that is what was asked for.",
            ("model", "version", "device", "requested_device", "degraded", "runtime"),
            registry=registry,
        )
        self._model_memory = Gauge(
            "inferd_model_memory_bytes",
            "Private memory of a model's newest worker after warm-up.",
            ("model",),
            registry=registry,
        )
        self._device_up = Gauge(
            "inferd_device_up",
            "1 while a device can be used.",
            ("device", "kind"),
            registry=registry,
        )
        build = Gauge(
            "inferd_build_info",
            "1: which inferd this is.",
            ("version",),
            registry=registry,
        )
        build.labels(VERSION).set(1)
        self._mqtt_connected: Gauge | None = None
        self._mqtt_outbox: Gauge | None = None

    def request(
        self, model: str, version: int, protocol: Protocol, outcome: str, duration_s: float
    ) -> None:
        """Count one prediction that ended.

        Args:
            model, version: as asked for or as answered; unknown ones get empty labels.
            outcome: an `Outcome`; anything else counts as failed.
            duration_s: from arrival to answer.
        """
        series = self._models.get(model)
        if series is None:
            series, model = self._nobody, ""
        counter = series.requests.get((version, protocol, outcome))
        if counter is None:
            known = version if version in series.loads else 0
            outcome = outcome if outcome in _VALUES else Outcome.FAILED
            counter = series.child(
                self._requests,
                model,
                str(known) if known else "",
                protocol.value,
                Outcome(outcome).value,
            )
            # Only known ones are kept: a client could fill the memory with version numbers.
            series.requests[known, protocol, outcome] = counter
        counter.inc()
        if outcome in _TIMED:
            duration = series.durations.get(protocol)
            if duration is None:
                duration = series.child(self._durations, model, protocol.value)
                series.durations[protocol] = duration
            duration.observe(duration_s)

    def stages(
        self, model: str, queue_s: float, preprocess_s: float, invoke_s: float, postprocess_s: float
    ) -> None:
        """Count where the time of an answered request went, in seconds."""
        series = self._models.get(model)
        if series is None:
            return
        if not series.stages:
            series.stages = tuple(series.child(self._stages, model, stage) for stage in _STAGES)
        queue, preprocess, invoke, postprocess = series.stages
        queue.observe(queue_s)
        preprocess.observe(preprocess_s)
        invoke.observe(invoke_s)
        postprocess.observe(postprocess_s)

    def queue_depth(self, model: str, requests: int) -> None:
        """Say how many requests of a model wait or run now."""
        series = self._models.get(model)
        if series is None:
            return
        if series.queue_depth is None:
            series.queue_depth = series.child(self._queue_depth, model)
        series.queue_depth.set(requests)

    def rejected(self, model: str, reason: str) -> None:
        """Count a refusal; `reason` is the value of a `RefusalReason`."""
        series = self._models.get(model)
        if series is None:
            return
        if reason not in series.rejections:
            series.rejections[reason] = series.child(self._rejections, model, reason)
        series.rejections[reason].inc()

    def batch(self, model: str, rows: int) -> None:
        """Count one invocation."""
        series = self._models.get(model)
        if series is None:
            return
        if series.batch_size is None:
            series.batch_size = series.child(self._batch_size, model)
        series.batch_size.observe(rows)

    def worker_restart(self, model: str, reason: str) -> None:
        """Count a worker that was replaced; `reason` is the value of a `DeathReason`."""
        series = self._models.get(model)
        if series is None:
            return
        if reason not in series.restarts:
            series.restarts[reason] = series.child(self._restarts, model, reason)
        series.restarts[reason].inc()

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
    ) -> None:
        """Say what runs a version that was loaded: once for each load, until `forget_version`."""
        series = self._know(model)
        series.loads[version] = series.loads.get(version, 0) + 1
        if before := series.infos.get(version):
            series.drop(self._model_info, *before)
        labels = (
            model,
            str(version),
            device,
            requested_device,
            str(degraded).lower(),
            runtime,
        )
        series.infos[version] = labels
        series.child(self._model_info, *labels).set(1)

    def set_model_memory(self, model: str, size_bytes: int) -> None:
        """Say what a model's newest worker takes."""
        series = self._models.get(model)
        if series is None:
            return
        series.child(self._model_memory, model).set(size_bytes)

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
        series.drop(self._model_info, *series.infos.pop(version))
        for key in [key for key in series.requests if key[0] == version]:
            del series.requests[key]
            _, protocol, outcome = key
            series.drop(self._requests, model, str(version), protocol.value, str(outcome))

    def forget_model(self, model: str) -> None:
        """Drop every series of a model that is gone."""
        series = self._models.pop(model, None)
        if series is None:
            return
        for family, labels in tuple(series.made):
            series.drop(family, *labels)

    def device_up(self, device: str, kind: str, up: bool) -> None:  # noqa: FBT001 (the value itself)
        """Say whether a device can be used."""
        self._device_up.labels(device, kind).set(up)

    def mqtt_connected(self, connected: bool) -> None:  # noqa: FBT001 (the value itself)
        """Say whether the broker is connected. Never called while MQTT is off: no series then."""
        if self._mqtt_connected is None:
            self._mqtt_connected = Gauge(
                "inferd_mqtt_connected",
                "1 while the MQTT broker is connected. Absent while MQTT is off.",
                registry=self._registry,
            )
        self._mqtt_connected.set(connected)

    def mqtt_outbox(self, messages: int) -> None:
        """Say how many results wait on disk for the broker. Never called while MQTT is off."""
        if self._mqtt_outbox is None:
            self._mqtt_outbox = Gauge(
                "inferd_mqtt_outbox_messages",
                "Results that wait on disk for the MQTT broker. Absent while MQTT is off.",
                registry=self._registry,
            )
        self._mqtt_outbox.set(messages)

    def render(self) -> tuple[bytes, str]:
        """The exposition for one scrape, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE

    def _know(self, model: str) -> _ModelSeries:
        return self._models.setdefault(model, _ModelSeries())


_VALUES = frozenset(outcome.value for outcome in Outcome)
