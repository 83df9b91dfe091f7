"""A look in a thread of its own: it ends when it is not wanted, and says how it ended."""

from __future__ import annotations

import queue
import threading

import pytest
from support.fleet import Device, Fleet, Server

from updater.looks import Looks, Order, look

WAIT_S = 30


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path / "fleet")
    fleet.ship("digits", 1)
    return fleet


@pytest.fixture
def server(fleet):
    with Server(fleet.path).running() as server:
        yield server


@pytest.fixture
def device(tmp_path, fleet):
    return Device(tmp_path / "device", fleet)


@pytest.fixture
def outcomes():
    return queue.Queue()


@pytest.fixture
def looks(device, outcomes):
    looks = Looks(device.trust, outcomes.put)
    yield looks
    looks.stop()


def never() -> bool:
    return False


def hold_up(server) -> tuple[threading.Event, threading.Event]:
    """The server answers nothing until the second event is set; the first: it was asked."""
    asked, go_on = threading.Event(), threading.Event()

    def hold(handler):
        asked.set()
        go_on.wait()
        handler.close_connection = True

    server.answers[""] = hold
    return asked, go_on


def test_what_it_finds_is_told_once(looks, outcomes, server):
    looks.begin(Order(server.url))

    outcome = outcomes.get(timeout=WAIT_S)

    assert outcome.problem == ""
    assert outcome.view.versions["root"] == 1
    assert outcomes.empty()
    assert not looks.is_busy


def test_one_at_a_time(looks, outcomes, server):
    asked, go_on = hold_up(server)
    looks.begin(Order(server.url))
    assert asked.wait(WAIT_S)

    with pytest.raises(RuntimeError):
        looks.begin(Order(server.url))

    go_on.set()
    outcomes.get(timeout=WAIT_S)


def test_another_may_begin_when_one_has_ended(looks, outcomes, server):
    for _ in range(3):
        looks.begin(Order(server.url))
        assert outcomes.get(timeout=WAIT_S).view is not None


def test_what_is_not_wanted_any_more_ends_while_the_server_is_silent(
    looks, outcomes, server, device
):
    asked, go_on = hold_up(server)
    looks.begin(Order(server.url))
    assert asked.wait(WAIT_S)

    looks.stop()

    outcome = outcomes.get_nowait()
    assert (outcome.view, outcome.was_cancelled) == (None, True)
    assert not go_on.is_set()
    assert not (device.folder / "tuf/work").exists()
    go_on.set()


def test_a_server_that_asks_for_patience_is_passed_on(device, server):
    server.answer("", b"", status=503, Retry_After="77")

    outcome = look(device.trust, Order(server.url), never)

    assert (outcome.view, outcome.retry_after_s) == (None, 77.0)
    assert "503" in outcome.problem


def test_what_cannot_be_believed_is_a_problem_and_no_exception(device, server):
    server.answer("/metadata/timestamp.json", b"<html>Please accept our terms.</html>")

    outcome = look(device.trust, Order(server.url), never)

    assert outcome.view is None
    assert not outcome.was_cancelled
    assert "timestamp" in outcome.problem


def test_a_disk_that_refuses_is_a_problem_and_no_exception(device, server):
    (device.folder / "tuf").write_text("no folder")

    outcome = look(device.trust, Order(server.url), never)

    assert outcome.view is None
    assert "tuf" in outcome.problem


def test_stopping_when_nothing_is_under_way_is_fine(looks):
    looks.cancel()
    looks.stop()
