"""Metrics: names, closed label sets, and series that go with their model."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from accelerators.forkserver import ForkServer
from accelerators.inventory import DeviceInventory
from accelerators.registry import HardwareSettings
from accelerators.supervisor import DeathReason
from daemon import errors, updates
from daemon.errors import RefusalReason
from daemon.metrics import CONTENT_TYPE, Metrics, Outcome, outcome_of
from daemon.tensors import Protocol
from daemon.updates import ModelUpdate, UpdateCount, UpdateReport
from daemon.version import VERSION


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def load(metrics: Metrics, model: str = "parts", version: int = 3) -> None:
    metrics.set_model_info(model, version, "cpu", "cpu", degraded=False, runtime="litert 2.3.0")


def ask(metrics: Metrics, model="parts", version=3, outcome="ok", duration_s=0.001) -> None:
    metrics.request(model, version, Protocol.NATIVE, outcome, duration_s)


def fill(metrics: Metrics, model: str = "parts") -> None:
    """Use every metric at least once."""
    load(metrics, model)
    ask(metrics, model)
    metrics.stages(model, 0.1, 0.2, 0.3, 0.4)
    metrics.rejected(model, RefusalReason.QUEUE_FULL.value)
    metrics.batch(model, 4)
    metrics.worker_restart(model, DeathReason.CRASH.value)
    metrics.watch_queue(model, "a queue", lambda: 2)
    metrics.set_model_memory(model, 1000)
    metrics.watch_devices(DeviceInventory(HardwareSettings(), ForkServer()))
    metrics.mqtt_connected(connected=True)
    metrics.mqtt_outbox(5)
    metrics.updates(
        UpdateReport(
            models=(ModelUpdate(model, "PROBATION", 4),),
            counts=(UpdateCount(model, "rolled_back", 2),),
            expires={"timestamp": 1.8e9},
        )
    )


def families(metrics: Metrics):
    return list(text_string_to_metric_families(metrics.render()[0].decode()))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """A sample's value; None where there is no such sample."""
    for family in families(metrics):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def test_the_exposition_is_prometheus_text(metrics):
    body, content_type = metrics.render()

    assert content_type == CONTENT_TYPE
    assert f'inferd_build_info{{version="{VERSION}"}} 1.0' in body.decode()


def test_a_request_is_counted_and_timed(metrics):
    load(metrics)

    ask(metrics, duration_s=0.25)

    counted = {"model": "parts", "version": "3", "protocol": "native", "outcome": "ok"}
    timed = {"model": "parts", "protocol": "native"}
    assert value(metrics, "inferd_requests_total", **counted) == 1
    assert value(metrics, "inferd_request_duration_seconds_sum", **timed) == 0.25


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.DEADLINE, Outcome.FAILED])
def test_what_was_worked_on_is_timed(metrics, outcome):
    load(metrics)

    ask(metrics, outcome=outcome)

    labels = {"model": "parts", "protocol": "native"}
    assert value(metrics, "inferd_request_duration_seconds_count", **labels) == 1


@pytest.mark.parametrize(
    "outcome", sorted(set(Outcome) - {Outcome.OK, Outcome.DEADLINE, Outcome.FAILED})
)
def test_what_was_refused_is_not_timed(metrics, outcome):
    load(metrics)

    ask(metrics, outcome=outcome)

    labels = {"model": "parts", "protocol": "native"}
    assert value(metrics, "inferd_request_duration_seconds_count", **labels) is None


def test_stages_go_to_their_own_histograms(metrics):
    load(metrics)

    metrics.stages("parts", 0.1, 0.2, 0.3, 0.4)

    name = "inferd_stage_duration_seconds_sum"
    stages = ("queue", "preprocess", "invoke", "postprocess")
    sums = [value(metrics, name, model="parts", stage=stage) for stage in stages]
    assert sums == [0.1, 0.2, 0.3, 0.4]


def test_histograms_reach_from_100_microseconds_to_10_seconds(metrics):
    fill(metrics)

    (family,) = [f for f in families(metrics) if f.name == "inferd_request_duration_seconds"]
    bounds = [sample.labels["le"] for sample in family.samples if "le" in sample.labels]
    assert (bounds[0], bounds[-2], bounds[-1]) == ("0.0001", "10.0", "+Inf")


def test_gauges_hold_the_last_value(metrics):
    load(metrics)

    metrics.set_model_memory("parts", 7)
    metrics.set_model_memory("parts", 5)

    assert value(metrics, "inferd_model_memory_bytes", model="parts") == 5


def test_the_queues_of_a_models_versions_count_together_as_they_are_when_asked(metrics):
    load(metrics)
    waiting = {"old": 3, "new": 1}
    for version in ("old", "new"):
        metrics.watch_queue("parts", version, lambda version=version: waiting[version])
    waiting["new"] = 5
    assert value(metrics, "inferd_queue_depth", model="parts") == 8

    metrics.unwatch_queue("parts", "old")

    assert value(metrics, "inferd_queue_depth", model="parts") == 5


def test_an_observation_on_a_bound_falls_under_it_as_prometheus_counts(metrics):
    load(metrics)
    for duration_s in (0.0001, 0.00010001, 10.0, 11.0):
        ask(metrics, duration_s=duration_s)

    name = "inferd_request_duration_seconds_bucket"
    labels = {"model": "parts", "protocol": "native"}
    counts = [value(metrics, name, **labels, le=le) for le in ("0.0001", "0.00025", "10.0", "+Inf")]
    assert counts == [1, 2, 3, 4]


def test_mqtt_has_no_series_while_it_is_off(metrics):
    assert b"mqtt" not in metrics.render()[0]


def test_updates_have_no_series_while_there_is_no_updater(metrics):
    assert b"update" not in metrics.render()[0]


def test_what_the_updater_said_last_is_repeated(metrics):
    fill(metrics)
    metrics.updates(UpdateReport(models=(ModelUpdate("parts", "IDLE"),)))

    assert value(metrics, "inferd_update_state", model="parts", state="IDLE") == 1
    assert value(metrics, "inferd_update_state", model="parts", state="PROBATION") is None


def test_mqtt_tells_when_it_is_cut_off(metrics):
    metrics.mqtt_connected(connected=True)
    metrics.mqtt_connected(connected=False)
    metrics.mqtt_outbox(4)

    assert value(metrics, "inferd_mqtt_connected") == 0
    assert value(metrics, "inferd_mqtt_outbox_messages") == 4


# Closed label sets


def test_an_unknown_model_never_makes_a_label(metrics):
    for number in range(100):
        ask(metrics, model=f"evil-{number}", outcome="not_found")

    body = metrics.render()[0].decode()
    assert "evil" not in body
    labels = {"model": "", "version": "", "protocol": "native", "outcome": "not_found"}
    assert value(metrics, "inferd_requests_total", **labels) == 100


def test_an_unknown_version_never_makes_a_label(metrics):
    load(metrics)

    for version in range(100, 200):
        ask(metrics, version=version, outcome="not_found")

    labels = {"model": "parts", "version": "", "protocol": "native", "outcome": "not_found"}
    assert value(metrics, "inferd_requests_total", **labels) == 100


def test_an_unknown_outcome_counts_as_failed(metrics):
    load(metrics)

    ask(metrics, outcome="surprise")
    ask(metrics, outcome="surprise")

    labels = {"model": "parts", "version": "3", "protocol": "native", "outcome": "failed"}
    assert value(metrics, "inferd_requests_total", **labels) == 2


def test_a_model_that_was_never_loaded_can_be_counted_by_name(metrics):
    metrics.know_model("broken")

    ask(metrics, model="broken", version=0, outcome="unavailable")

    labels = {"model": "broken", "version": "", "protocol": "native", "outcome": "unavailable"}
    assert value(metrics, "inferd_requests_total", **labels) == 1


def test_nothing_but_the_registry_makes_a_model_known(metrics):
    metrics.stages("evil", 1, 1, 1, 1)
    metrics.watch_queue("evil", "a queue", lambda: 1)
    metrics.rejected("evil", "queue_full")
    metrics.batch("evil", 1)
    metrics.worker_restart("evil", "crash")
    metrics.set_model_memory("evil", 1)

    assert b"evil" not in metrics.render()[0]


# Forgetting


def test_a_model_that_is_gone_takes_all_its_series_with_it(metrics):
    empty = metrics.render()[0]
    fill(metrics)
    load(metrics, version=4)
    ask(metrics, version=4)

    metrics.forget_model("parts")
    metrics.updates(UpdateReport())

    assert b"parts" not in metrics.render()[0]
    assert empty.count(b"parts") == 0


def test_other_models_keep_their_series(metrics):
    fill(metrics, "parts")
    fill(metrics, "other")
    before = metrics.render()[0].count(b'"other"')

    metrics.forget_model("parts")

    assert metrics.render()[0].count(b'"other"') == before > 20


def test_a_late_call_does_not_bring_a_model_back(metrics):
    fill(metrics)
    metrics.updates(UpdateReport())
    metrics.forget_model("parts")

    ask(metrics)
    metrics.watch_queue("parts", "a queue", lambda: 0)
    metrics.stages("parts", 1, 1, 1, 1)

    assert b"parts" not in metrics.render()[0]


def test_a_version_that_is_gone_takes_its_series_with_it(metrics):
    load(metrics, version=3)
    load(metrics, version=4)
    ask(metrics, version=3)
    ask(metrics, version=4)

    metrics.forget_version("parts", 3)

    body = metrics.render()[0].decode()
    assert 'version="3"' not in body
    assert body.count('version="4"') == 2


def test_a_version_loaded_anew_outlives_the_end_of_its_former_load(metrics):
    load(metrics)
    load(metrics)

    metrics.forget_version("parts", 3)
    ask(metrics)

    assert metrics.render()[0].decode().count('version="3"') == 2


def test_a_version_has_one_info_whatever_runs_it(metrics):
    load(metrics)
    metrics.set_model_info("parts", 3, "cpu", "edgetpu", degraded=True, runtime="litert 2.3.0")

    infos = [line for line in metrics.render()[0].decode().splitlines() if "_info{" in line]
    assert len([line for line in infos if "parts" in line]) == 1
    assert any('degraded="true"' in line for line in infos)


def test_forgetting_what_is_not_known_does_nothing(metrics):
    before = metrics.render()[0]

    metrics.forget_model("parts")
    metrics.forget_version("parts", 3)

    assert metrics.render()[0] == before


# Outcomes


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (errors.Malformed("x"), Outcome.BAD_REQUEST),
        (errors.TooLarge("x", limit=1, unit="bytes"), Outcome.BAD_REQUEST),
        (errors.ModelNotFound("x"), Outcome.NOT_FOUND),
        (errors.SignatureNotFound("m", "x", ()), Outcome.NOT_FOUND),
        (errors.ModelUnavailable("x", "y"), Outcome.UNAVAILABLE),
        (errors.Overloaded("x", reason=RefusalReason.QUEUE_FULL), Outcome.OVERLOADED),
        (errors.DeadlineExceeded("x"), Outcome.DEADLINE),
        (errors.WorkerCrashed("x"), Outcome.FAILED),
        (errors.PredictionFailed("x"), Outcome.FAILED),
        (KeyError("a bug"), Outcome.FAILED),
    ],
)
def test_an_error_has_one_outcome(error, outcome):
    assert outcome_of(error) is outcome


# docs/metrics.md


@pytest.fixture
def document(repository) -> str:
    return (repository / "docs" / "metrics.md").read_text()


def test_the_document_lists_every_metric_with_type_labels_and_meaning(metrics, document):
    fill(metrics)
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) ?\| [\w ]+ \| (.+) \|$", document, re.MULTILINE
    )
    documented = {
        name: (kind, frozenset(labels.replace(",", " ").split()), meaning)
        for name, kind, labels, meaning in rows
    }

    actual = {}
    for family in families(metrics):
        labels = {label for s in family.samples for label in s.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        actual[name] = (family.type, frozenset(labels), family.documentation)
    assert documented == actual


@pytest.mark.parametrize(
    ("label", "values"),
    [
        ("`protocol`", {protocol.value for protocol in Protocol}),
        ("`outcome`", {outcome.value for outcome in Outcome}),
        ("`reason` of rejections", {reason.value for reason in RefusalReason}),
        ("`reason` of restarts", {reason.value for reason in DeathReason}),
        ("`stage`", {"queue", "preprocess", "invoke", "postprocess"}),
        ("`outcome` of updates", set(get_args(updates.Outcome))),
        ("`state`", set(get_args(updates.State))),
    ],
)
def test_the_document_lists_every_value_of_a_closed_label(document, label, values):
    listed = re.findall(rf"^\| {re.escape(label)} \| `(\w+)` \| .+ \|$", document, re.MULTILINE)

    assert set(listed) == values
