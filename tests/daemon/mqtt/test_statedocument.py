"""The state document says enough and never too much."""

import json

from hypothesis import given
from hypothesis import strategies as st

from daemon.models.status import ModelStatus, Readiness, VersionState, VersionStatus
from daemon.mqtt.statedocument import MAX_STATE_BYTES, state_document


def _model(name, reason=""):
    return ModelStatus(
        name=name,
        versions=(VersionStatus(version=3, state=VersionState.UNAVAILABLE, reason=reason),),
        labels={"stable": 3},
    )


def _state(*models, ready=True, reasons=None):
    readiness = Readiness(ready=ready, reasons=reasons or {})
    return state_document("box-1", "1.2.3", models, readiness)


def test_versions_health_and_reasons_are_in_it():
    document = json.loads(_state(_model("m", "no such file"), ready=False, reasons={"m": "gone"}))

    assert document["device"] == "box-1"
    assert document["version"] == "1.2.3"
    assert document["ready"] is False
    assert document["reasons"] == {"m": "gone"}
    assert document["truncated"] is False
    assert document["models"] == [
        {
            "name": "m",
            "wanted": True,
            "labels": {"stable": 3},
            "versions": [
                {
                    "version": "3",
                    "state": "UNAVAILABLE",
                    "reason": "no such file",
                    "device": None,
                    "requested_device": None,
                    "degraded": False,
                }
            ],
        }
    ]


def test_equal_facts_give_equal_bytes():
    one = _state(_model("m"), reasons={"a": "x", "b": "y"})
    other = _state(_model("m"), reasons={"b": "y", "a": "x"})

    assert one == other


def test_long_reasons_are_cut_before_models_are_left_out():
    document = json.loads(_state(*(_model(f"m{n}", "x" * 500) for n in range(20))))

    assert document["truncated"] is True
    assert len(document["models"]) == 20


@given(st.integers(0, 300), st.integers(0, 400))
def test_it_stays_below_the_bound_whatever_there_is(models, reason_chars):
    reason = '"' * reason_chars
    raw = _state(
        *(_model(f"model-{n}", reason) for n in range(models)),
        reasons={f"model-{n}": reason for n in range(models)},
    )

    assert len(raw) < MAX_STATE_BYTES
    assert json.loads(raw)["device"] == "box-1"
