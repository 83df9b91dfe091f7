"""The state document says enough and never too much."""

import json

from hypothesis import given
from hypothesis import strategies as st

from accelerators.base import CPU, Device
from daemon.models.status import ModelStatus, Readiness, VersionState, VersionStatus
from daemon.mqtt.statedocument import (
    MAX_STATE_BYTES,
    REASONS_INTERVAL_S,
    StateNews,
    state_document,
)
from daemon.updates import ModelUpdate, UpdateReport


def _model(name, reason=""):
    return ModelStatus(
        name=name,
        versions=(VersionStatus(version=3, state=VersionState.UNAVAILABLE, reason=reason),),
        labels={"stable": 3},
    )


def _state(*models, ready=True, reasons=None, updates=None, devices=()):
    readiness = Readiness(ready=ready, reasons=reasons or {})
    return state_document("box-1", "1.2.3", models, readiness, updates, devices=devices)


def _update(model, state="DOWNLOADING", reason=""):
    return ModelUpdate(model=model, state=state, version=2, progress=0.5, reason=reason)


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


def test_devices_are_in_it_with_what_is_wrong_with_them():
    stick = Device("edgetpu:usb-1-1", "edgetpu", problem="it is gone", next_step="look for it")

    document = json.loads(_state(devices=(CPU, stick)))

    assert document["devices"] == [
        {"id": "cpu", "kind": "cpu", "up": True, "problem": "", "next_step": ""},
        {
            "id": "edgetpu:usb-1-1",
            "kind": "edgetpu",
            "up": False,
            "problem": "it is gone",
            "next_step": "look for it",
        },
    ]


def test_a_long_list_of_devices_is_cut():
    devices = tuple(Device(f"external:{n}", "external", problem="x" * 500) for n in range(60))

    raw = _state(_model("m"), devices=devices)

    document = json.loads(raw)
    assert len(raw) < MAX_STATE_BYTES
    assert document["truncated"] is True
    assert [each["name"] for each in document["models"]] == ["m"]
    assert 0 < len(document["devices"]) < 60


def test_equal_facts_give_equal_bytes():
    one = _state(_model("m"), reasons={"a": "x", "b": "y"})
    other = _state(_model("m"), reasons={"b": "y", "a": "x"})

    assert one == other


def test_long_reasons_are_cut_before_models_are_left_out():
    document = json.loads(_state(*(_model(f"m{n}", "x" * 500) for n in range(20))))

    assert document["truncated"] is True
    assert len(document["models"]) == 20


def test_updates_are_in_it_as_the_updater_told_them():
    report = UpdateReport(models=(_update("m", reason="a slow server"),), problem="no network")

    document = json.loads(_state(updates=report))

    assert document["updates"] == {
        "problem": "no network",
        "models": [{"model": "m", "state": "DOWNLOADING", "version": 2, "reason": "a slow server"}],
    }


def test_without_an_updater_there_are_no_updates():
    assert json.loads(_state())["updates"] is None


def test_equal_updates_give_equal_bytes_in_whatever_order_and_at_whatever_time_they_are_told():
    one = UpdateReport(models=(_update("a"), _update("b")), checked_at=1.0, expires={"root": 5.0})
    other = UpdateReport(models=(_update("b"), _update("a")), checked_at=2.0)

    assert _state(updates=one) == _state(updates=other)


def test_updates_at_rest_are_left_out_before_busy_ones():
    at_rest = [_update(f"a{n}", "IDLE", "x" * 100) for n in range(50)]
    report = UpdateReport(models=(*at_rest, _update("z", "PROBATION")))

    document = json.loads(_state(_model("m"), updates=report))

    assert document["truncated"] is True
    assert [update["model"] for update in document["updates"]["models"]] == ["z"]
    assert [model["name"] for model in document["models"]] == ["m"]


def test_a_state_is_news_once():
    news = StateNews()

    assert news.is_news(b"a", lambda: b"a", now=0.0)
    assert not news.is_news(b"a", lambda: b"a", now=1000.0)
    assert news.is_news(b"b", lambda: b"b", now=1000.0)


def test_what_only_differs_in_the_reasons_of_updates_is_news_once_a_minute():
    news = StateNews()
    news.is_news(b"1 of 40 MB", lambda: b"core", now=100.0)

    heard = [
        news.is_news(b"%d of 40 MB" % n, lambda: b"core", now=100.0 + n) for n in range(2, 100)
    ]

    assert heard.index(True) == REASONS_INTERVAL_S - 2
    assert sum(heard) == 1
    assert news.is_news(b"40 of 40 MB", lambda: b"verified", now=200.0)


def test_after_a_reconnect_every_state_is_news():
    news = StateNews()
    news.is_news(b"a", lambda: b"a", now=0.0)

    news.forget()

    assert news.is_news(b"a", lambda: b"a", now=0.0)


@given(st.integers(0, 300), st.integers(0, 400), st.integers(0, 300))
def test_it_stays_below_the_bound_whatever_there_is(models, reason_chars, updates):
    reason = '"' * reason_chars
    raw = _state(
        *(_model(f"model-{n}", reason) for n in range(models)),
        reasons={f"model-{n}": reason for n in range(models)},
        updates=UpdateReport(
            models=tuple(_update(f"model-{n}", reason=reason) for n in range(updates)),
            problem=reason,
        ),
    )

    assert len(raw) < MAX_STATE_BYTES
    assert json.loads(raw)["device"] == "box-1"
