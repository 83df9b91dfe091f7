"""How a daemon's own documents are shown to people."""

from __future__ import annotations

import pytest

from daemon.cli.reading import describe_devices, describe_models, describe_status
from daemon.cli.text import describe_duration


def make_status(**facts):
    return {
        "device": "box-7",
        "version": "1.2.3",
        "uptime_s": 65.0,
        "ready": True,
        "reasons": {},
        "models": 2,
        "versions": {"READY": 2, "UNAVAILABLE": 1},
        "mqtt": {"enabled": False},
        "updates": {"enabled": False},
        **facts,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (65, "1 min 5 s"), (3600, "1 h 0 min"), (273_600, "3 d 4 h")],
)
def test_durations_show_their_two_largest_units(seconds, text):
    assert describe_duration(seconds) == text


def test_status_counts_the_versions_by_state():
    assert "2 (2 READY, 1 UNAVAILABLE)" in describe_status(make_status())


def test_status_says_why_the_daemon_is_not_ready():
    text = describe_status(make_status(ready=False, reasons={"ssd": "no such operator"}))

    assert "ready    no\n  ssd    no such operator" in text


@pytest.mark.parametrize(
    ("mqtt", "text"),
    [
        ({"enabled": False}, "off"),
        ({"enabled": True, "connected": True}, "connected"),
        ({"enabled": True, "connected": False}, "not connected"),
    ],
)
def test_status_tells_the_three_states_of_mqtt_apart(mqtt, text):
    lines = describe_status(make_status(mqtt=mqtt)).splitlines()

    assert lines[4].split(maxsplit=1) == ["mqtt", text]


def test_status_says_whether_there_are_updates():
    assert "updates  off" in describe_status(make_status())


def test_a_model_that_never_loaded_is_listed_with_its_reason():
    version = {
        "version": "1",
        "state": "UNAVAILABLE",
        "reason": "not a model",
        "device": None,
        "input_kind": None,
        "output_kind": None,
    }

    text = describe_models({"models": [{"name": "bad", "versions": [version]}]})

    assert text.splitlines()[1].split() == ["bad", "1", "UNAVAILABLE", "not", "a", "model"]


def test_an_empty_box_says_so():
    assert describe_models({"models": []}) == "no models"


def make_device(**facts):
    return {
        "id": "cpu",
        "kind": "cpu",
        "name": "",
        "driver": "",
        "up": True,
        "problem": "",
        "next_step": "",
        "losses": 0,
        "facts": {},
        "models": [],
        **facts,
    }


def test_a_device_that_cannot_be_used_is_shown_with_why_and_what_to_do():
    stick = make_device(id="edgetpu", kind="edgetpu", up=False, problem="none", next_step="buy one")

    text = describe_devices({"devices": [make_device(models=["m/1"]), stick]})

    assert text.splitlines() == [
        "DEVICE   UP   NAME  DRIVER  FACTS  MODELS",
        "cpu      yes                       m/1",
        "edgetpu  no",
        "      none",
        "      -> buy one",
    ]


def test_devices_of_an_older_daemon_are_shown_too():
    older = {"id": "cpu", "kind": "cpu", "up": True, "facts": {"cores": 2}, "models": []}

    assert describe_devices({"devices": [older]}).splitlines()[1].split() == [
        *("cpu", "yes", "cores", "2")
    ]


def test_a_device_cannot_move_the_cursor():
    evil = make_device(name="\x1b[2J", up=False, problem="a\x1bb", next_step="c\rd")

    assert "\x1b" not in describe_devices({"devices": [evil]})
    assert "\r" not in describe_devices({"devices": [evil]})
