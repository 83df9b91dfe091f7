"""Each event reaches the reporter, in order, at least once, whatever comes between."""

from __future__ import annotations

import pytest

from updater.errors import DaemonUnavailable
from updater.history import History
from updater.outbox import MOST_LINES, Outbox


class Fleet:
    """Somebody who takes events.

    Attributes:
        taken: numbers, in the order of their coming.
        most: so many are taken at a time.
    """

    name = "fleet"

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.calls = 0
        self.most = MOST_LINES
        self.is_away = False

    def deliver(self, lines):
        self.calls += 1
        if self.is_away:
            raise DaemonUnavailable("not now")
        taken = [line.sequence for line in lines[: self.most]]
        self.taken += taken
        return taken[-1] if taken else 0


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "history.jsonl", max_bytes=2000, max_files=2)


@pytest.fixture
def fleet():
    return Fleet()


@pytest.fixture
def outbox(tmp_path, history, fleet):
    (tmp_path / "outbox").mkdir()
    return Outbox(tmp_path / "outbox", history, fleet)


def note(history, count=1):
    for _ in range(count):
        history.append({"event": "done"}, now=1.0)


def hand_over_all(outbox):
    while outbox.hand_over():
        pass


def files(tmp_path):
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "outbox").iterdir()}


def test_events_are_handed_over_in_order_and_once(outbox, history, fleet):
    note(history, 3)
    hand_over_all(outbox)
    note(history, 2)

    hand_over_all(outbox)

    assert fleet.taken == [1, 2, 3, 4, 5]


def test_without_events_nobody_is_asked_and_nothing_is_written(outbox, history, fleet, tmp_path):
    note(history)
    hand_over_all(outbox)
    before, calls = files(tmp_path), fleet.calls

    hand_over_all(outbox)

    assert (files(tmp_path), fleet.calls) == (before, calls)


def test_an_empty_history_is_nothing_to_hand_over(outbox, fleet):
    assert not outbox.hand_over()
    assert fleet.calls == 0


def test_no_more_are_handed_over_at_a_time_than_are_taken(tmp_path, fleet):
    history = History(tmp_path / "long.jsonl")
    (tmp_path / "outbox").mkdir()
    note(history, MOST_LINES + 1)

    hand_over_all(Outbox(tmp_path / "outbox", history, fleet))

    assert fleet.taken == list(range(1, MOST_LINES + 2))


def test_what_was_not_taken_comes_again(outbox, history, fleet):
    note(history, 3)
    fleet.is_away = True
    with pytest.raises(DaemonUnavailable):
        outbox.hand_over()

    fleet.is_away = False
    hand_over_all(outbox)

    assert fleet.taken == [1, 2, 3]


def test_a_part_of_it_may_be_taken(outbox, history, fleet):
    note(history, 5)
    fleet.most = 2

    hand_over_all(outbox)

    assert fleet.taken == [1, 2, 3, 4, 5]


def test_a_reporter_that_takes_nothing_is_not_asked_without_end(outbox, history, fleet):
    note(history)
    fleet.most = 0

    assert not outbox.hand_over()


def test_another_life_goes_on_where_the_last_one_was(outbox, history, fleet, tmp_path):
    note(history, 2)
    hand_over_all(outbox)
    note(history)

    hand_over_all(Outbox(tmp_path / "outbox", history, fleet))

    assert fleet.taken == [1, 2, 3]


def test_power_lost_after_they_were_taken_hands_them_over_once_more(
    outbox, history, fleet, tmp_path
):
    note(history, 2)
    hand_over_all(outbox)

    (tmp_path / "outbox" / "fleet.json").unlink()
    hand_over_all(outbox)

    assert fleet.taken == [1, 2, 1, 2]


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, b"{", b'{"sequence": -1}', b"[]"])
def test_a_damaged_cursor_is_put_aside_and_nothing_is_left_out(
    outbox, history, fleet, tmp_path, damage
):
    note(history, 2)
    (tmp_path / "outbox" / "fleet.json").write_bytes(damage)

    hand_over_all(outbox)

    assert fleet.taken == [1, 2]
    assert (tmp_path / "outbox" / "fleet.json.corrupt").read_bytes() == damage


def test_a_history_that_was_lost_is_reported_anew(outbox, history, fleet, tmp_path):
    note(history, 5)
    hand_over_all(outbox)
    for path in tmp_path.glob("history*"):
        path.unlink()
    note(history, 2)

    hand_over_all(outbox)

    assert fleet.taken[5:] == [1, 2]


def test_what_was_rotated_away_leaves_a_gap_and_the_rest_goes_on(outbox, history, fleet):
    note(history)
    hand_over_all(outbox)
    note(history, 100)

    hand_over_all(outbox)

    assert fleet.taken[-1] == 101
    assert fleet.taken[1] > 2
    assert fleet.taken[1:] == list(range(fleet.taken[1], 102))


def test_a_reporter_cannot_take_more_than_it_was_given(outbox, history, fleet):
    note(history, 2)
    fleet.deliver = lambda _lines: 10**9
    hand_over_all(outbox)
    del fleet.deliver
    note(history)

    hand_over_all(outbox)

    assert fleet.taken == [3]
