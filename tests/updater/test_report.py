"""What the updater says of itself is what the daemon takes, within its bounds."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest

from daemon.updates import UpdateReport
from updater.journal import Record
from updater.report import ModelStatus, Status, daemon_document, model_status, status_document
from updater.state import State

DIGEST, BEFORE = "a" * 64, "b" * 64
RECORD = Record(
    "digits",
    State.DOWNLOADING,
    rollout_id="r1",
    serial=7,
    version=2,
    digest=DIGEST,
    length=400,
    previous=BEFORE,
    since=5.0,
)


def stand(record: Record = RECORD, *, arrived: int = 100, waiting_for: str = "") -> ModelStatus:
    return model_status(
        record, current=BEFORE, current_version=1, arrived_bytes=arrived, waiting_for=waiting_for
    )


def status(*models: ModelStatus) -> Status:
    return Status(
        device="box-1",
        source="http://fleet/",
        checked_at=9.0,
        next_check_in_s=None,
        is_busy=False,
        problem="",
        clock_good=True,
        expires={"root": 10.0},
        versions={"root": 1},
        models=models,
    )


def told(*models: ModelStatus, **outcomes: int) -> UpdateReport:
    """The document, as the daemon reads it."""
    counts = {("digits", outcome): count for outcome, count in outcomes.items()}
    return msgspec.convert(daemon_document(status(*models), counts), UpdateReport)


def test_a_download_shows_how_far_it_is():
    found = stand()

    assert (found.state, found.version, found.bytes, found.length) == ("downloading", 2, 100, 400)


def test_a_model_at_rest_has_no_candidate_and_keeps_its_last_reason():
    found = stand(replace(RECORD, state=State.IDLE, reason="it answered NaN"))

    assert (found.version, found.bytes, found.length) == (0, 0, 0)
    assert (found.current_version, found.reason) == (1, "it answered NaN")


@pytest.mark.parametrize("state", [State.VERIFIED, State.TRYING, State.PROBATION])
def test_what_has_arrived_stays_arrived(state):
    found = stand(replace(RECORD, state=state), arrived=0)

    assert found.bytes == found.length == 400


def test_the_status_is_json_as_it_stands():
    document = json.loads(json.dumps(status_document(status(stand()))))

    assert document["models"][0]["model"] == "digits"
    assert document["next_check_in_s"] is None


@pytest.mark.parametrize("state", list(State))
def test_the_daemon_takes_every_state(state):
    (found,) = told(stand(replace(RECORD, state=state))).models

    assert found.state == state.name


def test_the_daemon_is_told_progress_and_what_keeps_it():
    (found,) = told(stand(waiting_for="the network")).models

    assert (found.progress, found.reason) == (0.25, "the network")


def test_the_daemon_is_told_how_updates_have_ended():
    (count,) = told(committed=3).counts

    assert (count.model, count.outcome, count.count) == ("digits", "committed", 3)


def test_however_much_there_is_the_daemon_takes_the_report():
    models = [replace(stand(waiting_for="x" * 9000), model=f"m{n}") for n in range(1200)]
    full = replace(
        status(*models),
        problem="y" * 9000,
        expires={f"role-{n}": 1.0 for n in range(200)},
    )
    outcomes = {(f"m{n}", "refused"): 1 for n in range(5000)}

    report = msgspec.convert(daemon_document(full, outcomes), UpdateReport)

    assert (len(report.models), len(report.counts), len(report.expires)) == (1000, 4000, 64)
    assert len(report.problem) == len(report.models[0].reason) == 500


def test_a_part_that_is_too_long_is_no_more_than_all():
    (found,) = told(stand(arrived=10**9)).models

    assert found.progress == 1.0
