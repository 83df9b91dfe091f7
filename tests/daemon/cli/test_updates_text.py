"""How the updater's own documents are shown to people."""

from __future__ import annotations

import time

import pytest

from daemon.cli.following import describe_rest, is_moving
from daemon.cli.updatetext import (
    describe_chain,
    describe_history,
    describe_quarantine,
    describe_report,
    describe_status,
    expiry_rows,
)
from updater.state import Event, State

NOW = 1_760_000_000.0
DAY_S = 86_400


def make_model(**facts):
    return {
        "model": "digits",
        "state": "idle",
        "version": 0,
        "current_version": 2,
        "current": "",
        "previous": "",
        "bytes": 0,
        "length": 0,
        "waiting_for": "",
        "reason": "",
        "rollout_id": "",
        "serial": 0,
        "since": NOW - 90,
        **facts,
    }


def make_status(*models, **facts):
    return {
        "device": "press-7",
        "source": "https://updates.example.com",
        "checked_at": NOW - 60,
        "next_check_in_s": 840.0,
        "is_busy": False,
        "problem": "",
        "clock_good": True,
        "expires": {},
        "versions": {},
        "models": list(models),
        **facts,
    }


def make_report(**facts):
    return {"enabled": True, "checked_at": NOW - 60, "problem": "", "expires": {}, "models": []} | (
        facts
    )


def make_line(sequence=1, **event):
    return {"sequence": sequence, "time": NOW, "event": {"model": "digits", "version": 2} | event}


def test_the_last_look_and_the_next_one_are_told():
    text = describe_status(make_status(), NOW)

    assert "looked  1 min 0 s ago, next in 14 min 0 s" in text


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"checked_at": 0.0}, "never with success"),
        ({"next_check_in_s": 0.0}, "looking now"),
        ({"problem": "no route"}, "problem  no route"),
        ({"clock_good": False}, "cannot be right"),
        ({"source": ""}, "[updates] source is not set"),
    ],
)
def test_what_is_not_as_it_should_be_is_told(facts, words):
    assert words in describe_status(make_status(**facts), NOW)


def test_a_models_row_says_what_serves_what_comes_and_what_it_waits_for():
    model = make_model(state="wait_window", version=3, waiting_for="a maintenance window")

    row = describe_status(make_status(model), NOW).splitlines()[-1]

    assert row.split("  ")[0] == "digits"
    assert "wait window" in row
    assert "1 min 30 s" in row
    assert row.endswith("a maintenance window")


def test_a_model_that_no_release_serves_yet_has_a_dash():
    row = describe_status(make_status(make_model(current_version=0)), NOW).splitlines()[-1]

    assert row.split()[1] == "-"


@pytest.mark.parametrize(
    ("role", "days", "begins"),
    [
        ("timestamp", 6.0, None),
        ("timestamp", 0.5, "expires"),
        ("targets", 40.0, None),
        ("targets", 20.0, "expires"),
        ("root", -1.0, "expired"),
    ],
)
def test_what_expires_soon_is_told_in_time(role, days, begins):
    rows = expiry_rows({role: NOW + days * DAY_S}, NOW)

    assert [name for name, _ in rows] == ([begins] if begins else [])


def test_every_event_of_the_updater_has_a_line_of_its_own():
    lines = describe_history([make_line(event=event.value) for event in Event]).splitlines()

    assert len({line.partition("digits")[2] for line in lines[1:]}) == len(Event)


def test_an_events_time_is_local():
    text = describe_history([make_line(event="commit")])

    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW)) in text


def test_who_signed_an_update_is_in_its_first_line():
    text = describe_history([make_line(event="assigned", signed_by="models-main", serial=7)])

    assert "signed_by=models-main" in text
    assert "serial=7" in text


def test_a_reason_that_moves_the_cursor_is_made_harmless():
    assert "\x1b" not in describe_history([make_line(event="roll_back", reason="\x1b[2J")])


def test_a_broken_chain_names_the_place():
    broken = {"file": "history.jsonl", "line": 4, "problem": "not bound to the line before it"}
    chain = {"first": 1, "last": 9, "digest": "ab", "torn_bytes": 0, "broken": broken}

    assert describe_chain(chain) == (
        "BROKEN at history.jsonl line 4: not bound to the line before it"
    )


def test_an_unbroken_chain_names_its_span_and_its_digest():
    chain = {"first": 3, "last": 9, "digest": "ab" * 32, "torn_bytes": 0, "broken": None}

    assert describe_chain(chain) == f"unbroken: events 3 to 9, sha256 of the last {'ab' * 32}"


def test_a_case_says_how_often_it_has_failed():
    case = {
        "digest": "cd" * 32,
        "runtime": "2.3.1",
        "model": "digits",
        "version": 3,
        "reason": "its worker died 1 times",
        "since": NOW,
        "failures": 2,
    }

    row = describe_quarantine([case]).splitlines()[1]

    assert row.startswith("cdcdcdcdcdcd  digits  3")
    assert "2 times" in row


@pytest.mark.parametrize("state", State)
def test_every_state_either_moves_or_rests(state):
    resting = {State.IDLE, State.WAIT_WINDOW, State.PROBATION}

    assert is_moving(make_model(state=state.value)) == (state not in resting)


def test_what_waits_is_named_with_the_reason():
    models = [
        make_model(),
        make_model(model="a", state="probation", version=3, waiting_for="its probation"),
        make_model(model="b", waiting_for="b version 4 is blocked by the fleet"),
    ]

    assert describe_rest(models) == [
        "a version 3 serves, and is watched: its probation",
        "b: not taken: b version 4 is blocked by the fleet",
    ]


class TestReport:
    """What the daemon repeats of it in `inferctl status`."""

    def test_no_updater_is_off(self):
        assert describe_report({"enabled": False}, NOW) == [
            ("updates", "off: no updater has said anything")
        ]

    def test_the_last_look_is_told(self):
        assert describe_report(make_report(), NOW) == [("updates", "looked 1 min 0 s ago")]

    def test_what_is_under_way_is_told_with_its_progress(self):
        model = {
            "model": "digits",
            "state": "DOWNLOADING",
            "version": 3,
            "progress": 0.3,
            "reason": "12 of 40 MB of its bundle",
        }

        rows = describe_report(make_report(models=[model]), NOW)

        assert rows[1] == ("  digits", "version 3 downloading, 30%: 12 of 40 MB of its bundle")

    def test_trouble_and_expiry_are_told(self):
        report = make_report(problem="no route", expires={"root": NOW + DAY_S})

        names = [name for name, _ in describe_report(report, NOW)]

        assert names == ["updates", "  problem", "  expires"]
