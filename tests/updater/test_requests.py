"""Whoever asks gets an answer, within bounds, and what was given up is not done."""

from __future__ import annotations

import threading

import pytest

from updater.requests import Busy, Requests, answer

WAIT_S = 30


@pytest.fixture
def woken():
    return threading.Event()


@pytest.fixture
def requests(woken):
    return Requests(woken.set)


def test_what_is_asked_is_done_by_who_obeys(requests, woken):
    asked = requests.ask(threading.get_ident)
    assert woken.is_set()
    assert requests.are_waiting

    obeying = threading.Thread(target=requests.obey)
    obeying.start()
    obeying.join(WAIT_S)

    assert requests.result(asked, WAIT_S) == obeying.ident
    assert not requests.are_waiting


def test_what_goes_wrong_is_the_askers(requests):
    asked = requests.ask(lambda: 1 // 0)
    requests.obey()

    with pytest.raises(ZeroDivisionError):
        requests.result(asked, WAIT_S)


def test_what_was_given_up_is_not_done(requests):
    done: list[int] = []
    asked = requests.ask(lambda: done.append(1))

    with pytest.raises(Busy, match="ask again"):
        requests.result(asked, 0)
    requests.obey()

    assert done == []


def test_the_queue_is_short(requests):
    for _ in range(16):
        requests.ask(int)

    with pytest.raises(Busy, match="at once"):
        requests.ask(int)

    requests.obey()
    requests.ask(int)


def test_a_stop_tells_those_who_wait(requests):
    told: list[str] = []
    asked = requests.ask(int)

    def wait() -> None:
        try:
            requests.result(asked, WAIT_S)
        except Busy as exc:
            told.append(str(exc))

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not requests._asked:
        pass
    requests.stop()
    waiting.join(WAIT_S)

    assert told == ["the updater stops"]


def test_after_a_stop_nobody_waits(requests):
    requests.stop()

    with pytest.raises(Busy):
        requests.result(requests.ask(int), WAIT_S)


def test_an_answer_to_somebody_who_has_gone_is_lost_in_silence(requests):
    asked = requests.ask(int)
    asked.cancel()

    answer(asked, int)

    assert asked.cancelled()
