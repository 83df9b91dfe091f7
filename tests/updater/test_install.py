"""The whole way of an update: a real publisher, a real web server, a real daemon and real models.

Good releases are kept. Bad ones are turned back from, whatever is wrong with them, and put in
quarantine; the release before answers on.
"""

from __future__ import annotations

import threading

import pytest
from support import tflite_builder
from support.box import MODEL, SAMPLES, npy, running_box
from support.fleet import START

from updater.daemonlink import DaemonLink
from updater.install import Wish
from updater.publisher.assignments import raise_floors
from updater.state import State


@pytest.fixture
def box(tmp_path):
    with running_box(tmp_path) as box:
        yield box


@pytest.fixture
def publisher(box):
    return box.publisher


def test_a_first_release_comes_in_is_watched_and_kept(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))

    box.settle()

    assert box.current == 1
    assert box.ask(value=3.0) == [6.0]
    assert box.events()[0] == "assigned"
    assert {"fetch", "publish", "probed", "try begins", "watch", "commit", "done"} < set(
        box.events()
    )


def test_a_newer_release_takes_over_with_no_request_lost(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    answers: list[float | None] = []
    done = threading.Event()

    def load():
        while not done.is_set():
            answers.extend(box.ask(10))

    client = threading.Thread(target=load)
    client.start()
    box.settle()
    done.set()
    client.join()

    assert box.current == 2
    assert set(answers) == {2.0, 5.0}


def bad_at_load() -> bytes:
    return b"\x1c\x00\x00\x00TFL3 and nothing else"


BAD = {
    "does not load": (bad_at_load(), "", {}),
    "hangs at the first call": (
        tflite_builder.hangs_while_at_most(0.0),
        "[limits]\ntimeout_ms = 500\n",
        {},
    ),
    "answers wrongly": (
        tflite_builder.scale(5.0, batch=1),
        SAMPLES,
        {"x_npy": npy(1, 1, 1, 1), "y_npy": npy(2, 2, 2, 2)},
    ),
    "answers its samples with NaN": (tflite_builder.scale(float("nan"), batch=1), "", {}),
    "takes more memory than it says": (
        tflite_builder.hog(64),
        "[health]\nmax_memory_mib = 8\n",
        {},
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_release_never_answers_anybody_and_is_put_in_quarantine(box, publisher, fault):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    model, tables, files = BAD[fault]
    publisher.ship(2, model, tables, **files)

    box.settle()

    assert box.current == 1
    assert box.ask(5) == [2.0] * 5
    (case,) = box.quarantine.entries()
    assert (case.model, case.version) == (MODEL, 2)
    assert "try begins" not in box.events()[box.events().index("done") + 1 :]


def test_a_release_that_was_put_in_quarantine_is_not_tried_again(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, bad_at_load())
    box.settle()

    step = box.step()

    assert not step.moved
    assert "has failed here before" in step.waiting_for


def test_a_release_that_fails_on_real_traffic_is_turned_back_from(box, publisher):
    """Its sample is good; what clients send makes it divide by nothing."""
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    good = {"x_npy": npy(1, 1, 1, 1), "y_npy": npy(3e38, 3e38, 3e38, 3e38)}
    tables = SAMPLES + "tolerance = 1e37\n"
    publisher.ship(2, tflite_builder.scale(3e38, batch=1), tables, **good)
    box.step()
    box.run(until=State.PROBATION)
    assert box.current == 2

    box.ask(3, value=10.0)  # which overflows
    box.run(until=State.IDLE)

    assert box.current == 1
    assert box.ask() == [2.0]
    assert "NaN or infinity" in box.quarantine.entries()[0].reason


def test_a_release_that_loses_its_place_in_the_fleets_wish_is_dropped(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    box.step()
    publisher.fleet.assign(MODEL, 1)

    box.settle()

    assert box.current == 1
    assert not box.quarantine.entries()
    assert "abandon" in box.events()


def test_a_floor_that_rises_while_a_release_waits_keeps_it_out(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    box.step()
    box.run(until=State.WAIT_WINDOW)
    publisher.fleet.repository.assign(lambda wish: raise_floors(wish, {MODEL: 3}))

    box.step()

    assert (box.state, box.current) == (State.IDLE, 1)
    assert "the signed floor is 3" in box.step().waiting_for
    assert not box.quarantine.entries()


def test_an_operator_goes_back_and_the_release_stays_out(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    box.settle()

    assert box.installer.roll_back(MODEL, "the operator says so")
    box.run(until=State.IDLE)

    assert box.current == 1
    assert box.ask() == [2.0]
    assert "has failed here before" in box.step().waiting_for
    assert not box.installer.roll_back(MODEL, "there is nothing before")


def test_the_fleet_goes_back_by_wishing_the_older_release(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    box.settle()
    publisher.fleet.assign(MODEL, 1)

    box.settle()

    assert box.current == 1
    assert box.ask() == [2.0]
    assert not box.quarantine.entries()


def test_a_candidate_that_two_boots_did_not_survive_is_dropped(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()
    publisher.ship(2, tflite_builder.scale(5.0, batch=1))
    box.step()
    box.run(until=State.TRYING)
    box.start("boot-2")
    assert (box.state, box.journal.load(MODEL).tries) == (State.TRYING, 2)

    box.start("boot-3")
    assert box.state is State.ROLLING_BACK
    box.run(until=State.IDLE)

    assert box.current == 1
    assert box.quarantine.entries()[0].version == 2


def test_without_the_network_nothing_is_lost_and_it_goes_on_later(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    wish = box.wish()
    gone = Wish(wish.assignment, wish.target, "http://127.0.0.1:9/", wish.floor, wish.blocked)
    for _ in range(3):
        step = box.installer.step(MODEL, gone)
    assert box.state is State.DOWNLOADING
    assert step.waiting_for

    box.settle()

    assert box.current == 1


def test_without_the_daemon_nothing_is_switched(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.installer = box.start()
    box.installer._daemon = DaemonLink(box.root / "nobody.sock")
    for _ in range(6):
        step = box.step()

    assert box.state is State.VERIFIED
    assert "does not answer" in step.waiting_for
    assert box.current is None


def test_the_history_tells_it_all_and_is_unbroken(box, publisher):
    publisher.ship(1, tflite_builder.scale(2.0, batch=1))
    box.settle()

    lines = box.history.read(limit=100)
    assert lines[0].time == START
    assert lines[0].event["signed_by"]
    assert all(line.event["model"] == MODEL for line in lines)
    assert box.history.verify().broken is None
