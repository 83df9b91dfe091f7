"""What trials have shown outlives the daemon, and a damaged file is only a measurement lost."""

from __future__ import annotations

import json

import pytest

from accelerators.base import Coverage, Device
from accelerators.placement import Trial, Verdict
from accelerators.trials import TrialBook, trial_key

GOOD = Trial("gpu", Verdict.AGREES, "", 0.002, 1 << 20, 0.001, Coverage(60, 58, 2))
WRONG = Trial("gpu", Verdict.DIFFERS, "too far", 0.002, 1 << 20, 0.5)


def test_trials_are_found_again(tmp_path):
    path = tmp_path / "devices" / "trials.json"
    book = TrialBook(path)
    book.put("a", GOOD)
    book.put("b", WRONG)

    again = TrialBook(path)

    assert (again.get("a"), again.get("b"), again.get("c")) == (GOOD, WRONG, None)


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.ABSENT, Verdict.REFUSED])
def test_what_may_pass_is_not_kept(tmp_path, verdict):
    book = TrialBook(tmp_path / "trials.json")
    book.put("a", Trial("gpu", verdict, "why"))
    assert book.get("a") is None


def test_forgotten_trial_stays_forgotten(tmp_path):
    path = tmp_path / "trials.json"
    book = TrialBook(path)
    book.put("a", GOOD)
    book.forget("a")
    assert TrialBook(path).get("a") is None


def test_oldest_trials_go_first(tmp_path):
    path = tmp_path / "trials.json"
    book = TrialBook(path)
    for number in range(510):
        book.put(str(number), GOOD)
    again = TrialBook(path)
    assert again.get("9") is None
    assert again.get("10") == GOOD
    assert again.get("509") == GOOD


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff",
        b"[]",
        b'{"schema": 2, "trials": {}}',
        b'{"schema": 1}',
        b'{"schema": 1, "trials": []}',
        b'{"schema": 1, "trials": {"a": {"device": 5}}}',
        b'{"schema": 1, "trials": {"a": null}}',
        b"[" * 100_000,
        b" " * (2 << 20),
    ],
)
def test_damaged_file_is_measured_anew(tmp_path, content, caplog):
    path = tmp_path / "trials.json"
    path.write_bytes(content)
    book = TrialBook(path)
    assert book.get("a") is None
    assert "measured anew" in caplog.text

    book.put("a", GOOD)
    assert TrialBook(path).get("a") == GOOD


def test_disk_that_refuses_is_no_reason_to_fail(tmp_path, caplog):
    (tmp_path / "devices").write_text("a file where the folder should be")
    book = TrialBook(tmp_path / "devices" / "trials.json")
    book.put("a", GOOD)
    assert book.get("a") == GOOD
    assert "cannot be kept" in caplog.text


def test_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "trials.json"
    TrialBook(path).put("a", GOOD)
    before = path.stat().st_ino
    TrialBook(path).put("b", GOOD)
    assert path.stat().st_ino != before
    assert json.loads(path.read_text())["schema"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["trials.json"]


def test_another_driver_or_file_is_another_trial():
    gpu = Device("gpu", "gpu", name="A", driver="1")
    keys = {
        trial_key("x", "x", "litert 1", gpu),
        trial_key("y", "x", "litert 1", gpu),
        trial_key("x", "y", "litert 1", gpu),
        trial_key("x", "x", "litert 2", gpu),
        trial_key("x", "x", "litert 1", Device("gpu", "gpu", name="A", driver="2")),
        trial_key("x", "x", "litert 1", Device("gpu", "gpu", name="B", driver="1")),
    }
    assert len(keys) == 6
