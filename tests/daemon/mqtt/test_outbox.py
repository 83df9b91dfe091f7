"""The outbox keeps what it has promised, through kills, torn files and damage."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.mqtt.messages import Publication
from daemon.mqtt.outbox import Outbox, OutboxUnusable

REPOSITORY = Path(__file__).resolve().parents[3]


def _result(number, size=10):
    return Publication(
        f"t/{number}", bytes([number % 256]) * size, correlation=b"c", request_id=str(number)
    )


def _opened(path, **bounds):
    outbox = Outbox(path, **{"max_messages": 1000, "max_bytes": 10**7, **bounds})
    outbox.open()
    return outbox


def _ids(outbox):
    return [stored.publication.request_id for stored in outbox.peek(after_row=0, limit=10000)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "outbox.db"


@pytest.fixture
def outbox(path):
    outbox = _opened(path)
    yield outbox
    outbox.close()


def test_nothing_is_written_before_the_first_result_has_to_wait(outbox, path):
    assert outbox.peek(after_row=0, limit=10) == ()
    outbox.remove([1])

    assert not path.parent.exists()


def test_results_come_back_whole_and_in_order(outbox):
    first = Publication(
        "a/b", b"\0\xff", content_type="application/json", correlation=b"\0", request_id="x"
    )
    outbox.append([first, _result(2)])
    outbox.append([_result(3)])

    stored = outbox.peek(after_row=0, limit=10)

    assert [s.publication for s in stored] == [first, _result(2), _result(3)]


def test_peek_goes_on_behind_a_row(outbox):
    outbox.append([_result(n) for n in range(5)])
    first, second = outbox.peek(after_row=0, limit=2)

    rest = outbox.peek(after_row=second.row, limit=2)

    assert [s.publication.request_id for s in (first, second, *rest)] == ["0", "1", "2", "3"]


def test_removed_results_are_gone_and_counted(outbox):
    outbox.append([_result(n) for n in range(4)])
    rows = [stored.row for stored in outbox.peek(after_row=0, limit=2)]

    outbox.remove(rows)

    assert _ids(outbox) == ["2", "3"]
    assert len(outbox) == 2


def test_rows_are_never_used_twice(outbox):
    outbox.append([_result(1)])
    (stored,) = outbox.peek(after_row=0, limit=1)
    outbox.remove([stored.row])

    outbox.append([_result(2)])

    assert outbox.peek(after_row=0, limit=1)[0].row > stored.row


def test_what_waits_is_there_after_a_restart(outbox, path):
    outbox.append([_result(n, size=100) for n in range(3)])
    counted = (len(outbox), outbox.size_bytes)
    outbox.close()

    again = _opened(path)

    assert (len(again), again.size_bytes) == counted
    assert _ids(again) == ["0", "1", "2"]
    again.close()


def test_a_full_outbox_keeps_the_oldest(path):
    outbox = _opened(path, max_messages=3)

    assert outbox.append([_result(1), _result(2)]) == 2
    assert outbox.append([_result(3), _result(4)]) == 1
    assert outbox.append([_result(5)]) == 0

    assert _ids(outbox) == ["1", "2", "3"]
    outbox.close()


def test_bytes_are_bounded_too_and_a_removal_makes_room(path):
    outbox = _opened(path, max_bytes=2500)
    assert outbox.append([_result(n, size=1000) for n in range(3)]) == 2

    outbox.remove([outbox.peek(after_row=0, limit=1)[0].row])

    assert outbox.append([_result(9, size=1000)]) == 1
    assert _ids(outbox) == ["1", "9"]
    outbox.close()


@pytest.mark.parametrize("damage", [b"", b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 8176])
def test_a_damaged_file_is_moved_aside_and_a_fresh_one_works(path, damage, caplog):
    outbox = _opened(path)
    outbox.append([_result(1)])
    outbox.close()
    path.write_bytes(damage)

    again = _opened(path)

    assert len(again) == 0
    assert again.append([_result(2)]) == 1
    assert _ids(again) == ["2"]
    again.close()
    aside = path.with_name("outbox.db.corrupt")
    assert not damage or (aside.read_bytes() == damage and "outbox damaged" in caplog.text)


def test_damage_in_the_middle_is_found_at_the_start(path, caplog):
    outbox = _opened(path)
    outbox.append([_result(n, size=3000) for n in range(50)])
    outbox.close()
    raw = bytearray(path.read_bytes())
    raw[4096:12288] = os.urandom(8192)
    path.write_bytes(raw)

    again = _opened(path)

    assert "outbox damaged" in caplog.text
    assert again.append([_result(1)]) == 1
    again.close()


def test_a_file_of_another_version_is_not_touched_but_moved_aside(path, caplog):
    path.parent.mkdir()
    with sqlite3.connect(path) as foreign:
        foreign.execute("PRAGMA user_version = 99")
        foreign.execute("CREATE TABLE result (whatever)")
    foreign.close()

    outbox = _opened(path)

    assert outbox.append([_result(1)]) == 1
    assert "another version" in caplog.text
    outbox.close()


def test_a_second_process_on_the_same_file_is_told_so(outbox, path):
    outbox.append([_result(1)])

    with pytest.raises(OutboxUnusable):
        _opened(path)
    assert _ids(outbox) == ["1"]


def test_a_folder_that_cannot_be_made_is_an_error_that_may_pass(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    outbox = Outbox(tmp_path / "file" / "outbox.db", max_messages=10, max_bytes=1000)

    with pytest.raises(OutboxUnusable):
        outbox.append([_result(1)])
    assert len(outbox) == 0


# The child tells each number once `append` has returned, and acknowledges every third.
_CHILD = """
import sys
from pathlib import Path
from daemon.mqtt.messages import Publication
from daemon.mqtt.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]), max_messages=100000, max_bytes=10**9)
outbox.open()
for number in range(100000):
    outbox.append([Publication(f"t/{number}", b"x" * 500, request_id=str(number))])
    print(number, flush=True)
"""


@pytest.mark.parametrize("told", [1, 7, 40, 133])
def test_what_append_has_promised_survives_kill_9(path, told):
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path)], stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as child:
        promised = [int(child.stdout.readline()) for _ in range(told)]
        child.send_signal(signal.SIGKILL)

    outbox = _opened(path, max_messages=100000, max_bytes=10**9)
    found = [int(number) for number in _ids(outbox)]
    outbox.close()

    assert found[: len(promised)] == promised
    assert found == list(range(len(found)))


def test_a_log_cut_anywhere_leaves_the_results_before_the_cut(path, tmp_path):
    outbox = _opened(path)
    for number in range(12):
        outbox.append([_result(number, size=2000)])
    wal = path.with_name("outbox.db-wal").read_bytes()
    shutil.copytree(path.parent, tmp_path / "copy")
    outbox.close()

    counts = [
        _surviving(tmp_path / "copy", tmp_path / f"cut{cut}", wal[:cut])
        for cut in sorted(random.Random(7).sample(range(len(wal)), 25))
    ]

    assert counts == sorted(counts)
    assert counts[0] < 12


def _surviving(template, folder, wal):
    """How many results are there when power is lost with this much of the log on disk."""
    shutil.copytree(template, folder)
    (folder / "outbox.db-wal").write_bytes(wal)
    (folder / "outbox.db-shm").unlink(missing_ok=True)
    outbox = _opened(folder / "outbox.db")
    ids = _ids(outbox)
    assert ids == [str(number) for number in range(len(ids))]
    outbox.append([_result(99)])
    outbox.close()
    return len(ids)


def test_a_result_whose_removal_was_cut_off_leaves_once_more(path, tmp_path):
    outbox = _opened(path)
    outbox.append([_result(1), _result(2)])
    shutil.copytree(path.parent, tmp_path / "before")  # power lost before the removal's commit
    outbox.remove([outbox.peek(after_row=0, limit=1)[0].row])
    outbox.close()

    again = _opened(tmp_path / "before" / path.name)

    assert _ids(again) == ["1", "2"]
    again.close()
