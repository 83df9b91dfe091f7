"""The history: a chain that shows what was done to it, through torn lines, damage and rotation."""

from __future__ import annotations

import hashlib
import json

import pytest
from support.powercut import watched

from updater.history import Break, History

ZEROS = "0" * 64


class Cut(BaseException):
    """The process ends here."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def fill(path, count: int, **bounds: int) -> History:
    history = History(path, **bounds)
    for number in range(count):
        history.append({"model": "digits", "event": f"event {number}"}, now=100.0 + number)
    return history


def lines(path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def files(path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir())


def change(path, line: int, old: bytes, new: bytes) -> None:
    changed = lines(path)
    assert old in changed[line]
    changed[line] = changed[line].replace(old, new)
    path.write_bytes(b"".join(changed))


def test_a_new_history_is_empty_and_whole(path):
    chain = History(path).verify()

    assert (chain.first, chain.last, chain.digest, chain.broken) == (0, 0, ZEROS, None)


def test_a_history_whose_folder_is_not_there_is_empty(path):
    chain = History(path.parent / "missing" / path.name).recover()

    assert (chain.last, chain.broken) == (0, None)


def test_a_line_holds_its_number_the_time_the_event_and_the_digest_of_the_line_before(path):
    fill(path, 2)
    first, second = path.read_bytes().splitlines()

    assert json.loads(first)["previous"] == ZEROS
    assert json.loads(second) == {
        "sequence": 2,
        "time": 101.0,
        "previous": hashlib.sha256(first).hexdigest(),
        "event": {"model": "digits", "event": "event 1"},
        "cut_bytes": 0,
    }


def test_every_process_takes_up_where_the_last_one_ended(path):
    for number in range(3):
        History(path).append({"number": number}, now=1.0)

    assert [line.sequence for line in History(path).read(limit=10)] == [1, 2, 3]
    assert History(path).verify().broken is None


def test_the_last_events_are_read_oldest_first(path):
    history = fill(path, 5)

    assert [line.sequence for line in history.read(limit=2)] == [4, 5]


def test_a_clock_that_goes_backwards_breaks_nothing(path):
    history = fill(path, 2)
    history.append({"clock": "set"}, now=-1000.0)

    assert history.verify().broken is None


def test_facts_of_every_kind_come_back(path):
    event = {"text": "ü\n\x00", "number": 7, "share": 0.5, "good": True, "none": None}
    History(path).append(event, now=1.0)

    assert History(path).read(limit=1)[0].event == event


def test_a_long_text_is_cut_and_what_json_cannot_hold_is_replaced(path):
    History(path).append({"reason": "\udcff" + "x" * 5000}, now=1.0)

    assert History(path).read(limit=1)[0].event["reason"] == "?" + "x" * 999


def test_an_event_too_large_for_a_line_is_refused(path):
    with pytest.raises(ValueError, match="a line holds"):
        History(path).append({str(key): "x" * 1000 for key in range(100)}, now=1.0)
    assert not path.exists()


@pytest.mark.parametrize("kept", [1, 20, -1], ids=["a byte", "some", "all but the line break"])
def test_a_torn_last_line_is_cut_and_the_next_line_says_so(path, kept):
    fill(path, 3)
    whole = lines(path)
    path.write_bytes(b"".join(whole[:2]) + whole[2][:kept])
    torn_bytes = len(whole[2][:kept])
    before = History(path).verify()
    line = History(path).append({"event": "after"}, now=1.0)

    assert (before.last, before.torn_bytes, before.broken) == (2, torn_bytes, None)
    assert (line.sequence, line.cut_bytes) == (3, torn_bytes)
    assert lines(path)[:2] == whole[:2]
    assert History(path).verify().broken is None
    assert History(path).verify().torn_bytes == 0


def test_a_history_of_one_torn_line_begins_again(path):
    path.write_bytes(b'{"seq')
    line = History(path).append({"event": "first"}, now=1.0)

    assert (line.sequence, line.previous, line.cut_bytes) == (1, ZEROS, 5)
    assert History(path).verify().broken is None


def test_zeros_at_the_end_are_cut_like_a_torn_line(path):
    fill(path, 2)
    with path.open("ab") as file:
        file.write(bytes(4096))
    line = History(path).append({"event": "after"}, now=1.0)

    assert (line.sequence, line.cut_bytes) == (3, 4096)
    assert History(path).verify().broken is None


@pytest.mark.parametrize("name", ["write", "fsync", "rename", "fsync-folder"])
def test_a_cut_while_a_torn_line_is_cut_never_makes_the_cut_silent(path, name):
    fill(path, 2)
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)

    def stop(step, _path):
        if step == name:
            raise Cut

    with watched(stop), pytest.raises(Cut):
        History(path).append({"event": "after"}, now=1.0)
    assert path.read_bytes() == torn or History(path).read(limit=1)[0].cut_bytes > 0


def test_a_changed_line_breaks_the_chain_at_the_next(path):
    fill(path, 5)
    change(path, 1, b"event 1", b"event X")

    assert History(path).verify().broken == Break(
        "history.jsonl", 3, "not bound to the line before it"
    )


def test_a_line_taken_out_breaks_the_chain(path):
    fill(path, 5)
    path.write_bytes(b"".join(lines(path)[:1] + lines(path)[2:]))

    assert History(path).verify().broken.line == 2


def test_a_line_put_in_twice_breaks_the_chain(path):
    fill(path, 3)
    path.write_bytes(b"".join(lines(path)[:2] + lines(path)[1:]))

    assert History(path).verify().broken.line == 3


def test_lines_in_another_order_break_the_chain(path):
    fill(path, 3)
    first, second, third = lines(path)
    path.write_bytes(first + third + second)

    assert History(path).verify().broken.line == 2


def test_a_beginning_taken_from_the_first_file_is_noticed(path):
    fill(path, 3)
    change(path, 0, ZEROS.encode(), b"1" * 64)

    assert History(path).verify().broken.line == 1


def test_another_number_breaks_the_chain_even_when_the_digests_are_made_to_fit(path):
    fill(path, 1)
    first = lines(path)[0].rstrip(b"\n")
    forged = {
        "sequence": 5,
        "time": 1.0,
        "previous": hashlib.sha256(first).hexdigest(),
        "event": {},
        "cut_bytes": 0,
    }
    path.write_bytes(first + b"\n" + json.dumps(forged).encode() + b"\n")

    assert History(path).verify().broken.problem == "number 5 follows number 1"


@pytest.mark.parametrize(
    "garbage", [b"\n", b"garbage\n", bytes(range(10)) + b"\n", b"{}\n", b"[" * 9999 + b"\n"]
)
def test_a_whole_line_of_garbage_is_a_break_and_stays_one(path, garbage):
    """Only what has no line break can be our own unfinished line."""
    fill(path, 2)
    with path.open("ab") as file:
        file.write(garbage)
    broken = History(path).verify().broken
    line = History(path).append({"event": "after"}, now=1.0)

    assert (broken.line, broken.problem) == (3, "no line of a history")
    assert (line.sequence, line.cut_bytes) == (4, 0)
    assert History(path).verify().broken == broken


def test_damage_in_the_middle_is_reported_through_everything_that_follows(path):
    fill(path, 5, max_bytes=2000)
    change(path, 1, b"event 1", b"event X")
    broken = History(path).verify().broken
    history = fill(path, 20, max_bytes=2000)

    assert broken.line == 3
    assert history.verify().broken.problem == broken.problem


def test_what_can_be_read_of_a_damaged_history_is_read(path):
    fill(path, 3)
    change(path, 1, b"{", b"garbage")

    assert [line.sequence for line in History(path).read(limit=10)] == [1, 3]


def test_a_full_file_is_set_aside_under_its_last_number_and_the_chain_goes_on(path):
    history = fill(path, 10, max_bytes=400)
    full = path.with_name("history-000000000003.jsonl")
    last_of_old = full.read_bytes().splitlines()[-1]
    next_file = path.with_name("history-000000000006.jsonl").read_bytes().splitlines()

    assert json.loads(last_of_old)["sequence"] == 3
    assert json.loads(next_file[0])["previous"] == hashlib.sha256(last_of_old).hexdigest()
    assert history.verify().broken is None
    assert [line.sequence for line in history.read(limit=99)] == list(range(1, 11))


def test_the_oldest_files_go_and_the_rest_is_still_a_chain(path):
    history = fill(path, 60, max_bytes=400, max_files=2)
    chain = history.verify()

    assert len(files(path)) == 3
    assert (chain.last, chain.broken) == (60, None)
    assert chain.first > 40


def test_a_history_is_bounded(path):
    fill(path, 200, max_bytes=1000, max_files=3)

    assert sum(one.stat().st_size for one in path.parent.iterdir()) < 4 * 1500


def test_a_file_missing_in_the_middle_breaks_the_chain(path):
    history = fill(path, 20, max_bytes=400)
    path.with_name("history-000000000006.jsonl").unlink()

    assert history.verify().broken == Break(
        "history-000000000009.jsonl", 1, "not bound to the line before it"
    )


def test_lines_missing_at_the_end_of_a_full_file_break_the_chain(path):
    history = fill(path, 4, max_bytes=400)
    path.unlink()
    full = path.with_name("history-000000000003.jsonl")
    full.write_bytes(b"".join(lines(full)[:2]))

    assert history.verify().broken == Break(full.name, 2, "ends after number 2, its name says 3")


@pytest.mark.parametrize("raw", [b"", b"garbage"], ids=["emptied", "garbage"])
def test_a_full_file_that_is_damaged_is_reported_and_numbers_are_never_used_twice(path, raw):
    history = fill(path, 3, max_bytes=400)
    full = path.with_name("history-000000000003.jsonl")
    path.rename(full)
    full.write_bytes(raw)
    line = history.append({"event": "after"}, now=1.0)

    assert line.sequence == 4
    assert history.verify().broken.file == full.name


@pytest.mark.parametrize("name", ["fsync", "rename", "fsync-folder", "append", "unlink"])
def test_a_cut_at_any_step_of_a_rotation_loses_nothing(path, name):
    history = fill(path, 9, max_bytes=400, max_files=2)
    before = history.verify()

    def stop(step, _path):
        if step == name:
            raise Cut

    with watched(stop), pytest.raises(Cut):
        history.append({"event": "cut"}, now=1.0)
    after = history.verify()
    line = history.append({"event": "after"}, now=1.0)

    assert (after.broken, after.last) == (None, before.last)
    assert line.sequence == before.last + 1
    assert fill(path, 3, max_bytes=400, max_files=2).verify().broken is None
    assert len(files(path)) <= 3


def test_a_file_that_cannot_be_read_is_put_aside_and_reported_once(path):
    """A folder stands for a sector that cannot be read: both are refused by read()."""
    fill(path, 4, max_bytes=400)
    path.unlink()
    path.mkdir()
    first, second = History(path).recover(), History(path).recover()
    line = History(path).append({"event": "after"}, now=1.0)

    assert (first.broken.file, first.broken.line) == ("history.jsonl", 0)
    assert "put aside as history.jsonl.corrupt" in first.broken.problem
    assert (second.last, second.broken) == (3, None)
    assert line.sequence == 4


def test_a_file_that_may_not_be_read_stays_where_it_is(path):
    path.symlink_to(path.name)

    with pytest.raises(OSError, match="symbolic links"):
        History(path).recover()
    assert path.is_symlink()


def test_other_files_beside_it_are_none_of_its_own(path):
    (path.parent / "history-old.jsonl").write_bytes(b"garbage")
    (path.parent / "history-000000000003.jsonl.corrupt").write_bytes(b"garbage")
    history = fill(path, 3)

    assert history.verify().broken is None


def test_events_after_a_number_are_read_through_full_files(tmp_path):
    history = History(tmp_path / "history.jsonl", max_bytes=1000, max_files=50)
    for _ in range(40):
        history.append({"event": "done"}, now=1.0)

    assert len(list(tmp_path.iterdir())) > 3
    assert [line.sequence for line in history.after(0, limit=1000)] == list(range(1, 41))
    assert [line.sequence for line in history.after(17, limit=3)] == [18, 19, 20]
    assert history.after(40, limit=10) == ()


def test_the_last_number_is_known_after_a_rotation_too(tmp_path):
    history = History(tmp_path / "history.jsonl", max_bytes=1)
    assert history.last() == 0
    history.append({"event": "done"}, now=1.0)
    history.append({"event": "done"}, now=1.0)

    assert history.last() == 2
