"""The daemon's mark, read by the updater: deaths are counted, order is told from trouble."""

from __future__ import annotations

import json

import pytest

from updater.lives import Lives, Mark, read_mark

GRACE_S = 60.0
DAMAGE = {
    "empty": b"",
    "cut off": b'{"instance":"a',
    "garbage": bytes(range(256)),
    "another kind": b"[]",
    "deaths below none": b'{"instance":"a","pid":1,"deaths":-1,"clean":false}',
    "huge": b'{"instance":"a","pid":1,"deaths":1,"clean":false}' + b" " * 10_000,
}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "daemon.json"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lives(path, clock):
    return Lives(path, grace_s=GRACE_S, now=clock)


def mark(path, deaths: int, *, clean: bool = False) -> None:
    document = {"instance": "a" * 32, "pid": 7, "deaths": deaths, "clean": clean}
    path.write_text(json.dumps(document))


def test_the_mark_is_read_as_the_daemon_writes_it(path):
    mark(path, 2, clean=True)

    assert read_mark(path) == Mark("a" * 32, 7, deaths=2, clean=True)


@pytest.mark.parametrize("raw", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_mark_says_nothing(path, lives, raw):
    path.write_bytes(raw)

    assert read_mark(path) is None
    assert lives.deaths() == 0


def test_no_mark_says_nothing(path, lives):
    assert read_mark(path) is None
    assert (lives.deaths(), lives.deaths_since(0)) == (0, 0)


@pytest.mark.parametrize(
    ("remembered", "now", "since"),
    [(0, 0, 0), (0, 1, 1), (2, 2, 0), (2, 5, 3), (5, 0, 0), (5, 1, 1)],
)
def test_deaths_are_counted_from_those_remembered_or_from_a_new_beginning(
    path, lives, remembered, now, since
):
    mark(path, now)

    assert lives.deaths_since(remembered) == since


def test_silence_is_lost_only_after_the_grace(path, lives, clock):
    mark(path, 0)

    assert not lives.is_lost()
    clock.now += GRACE_S
    assert not lives.is_lost()
    clock.now += 0.1
    assert lives.is_lost()


def test_an_answer_ends_a_silence(path, lives, clock):
    mark(path, 0)
    lives.is_lost()
    clock.now += GRACE_S
    lives.answered()
    clock.now += GRACE_S

    assert not lives.is_lost()


def test_a_daemon_that_was_stopped_in_good_order_may_be_silent_for_ever(path, lives, clock):
    mark(path, 0, clean=True)
    lives.is_lost()
    clock.now += 1e6

    assert not lives.is_lost()


def test_a_daemon_that_never_left_a_mark_may_be_silent_for_ever(lives, clock):
    lives.is_lost()
    clock.now += 1e6

    assert not lives.is_lost()


def test_the_grace_begins_when_it_is_not_there_in_good_order_any_more(path, lives, clock):
    mark(path, 0, clean=True)
    lives.is_lost()
    clock.now += 1e6
    mark(path, 0)

    assert not lives.is_lost()
    clock.now += GRACE_S + 1
    assert lives.is_lost()
