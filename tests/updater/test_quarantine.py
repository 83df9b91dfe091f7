"""The quarantine: by digest and runtime, through restarts and damage, bounded."""

from __future__ import annotations

import pytest
from support.powercut import watched

from updater.quarantine import _MAX_CASES, Quarantine

BAD, WORSE = "a" * 64, "b" * 64
DAMAGE = {
    "empty": b"",
    "zeros": bytes(512),
    "cut off": b'{"cases":[{"digest":"aaa',
    "garbage": bytes(range(256)),
    "another kind": b'{"cases":{}}',
    "no digest": b'{"cases":[{"digest":"x","runtime":"","model":"m","version":1,'
    b'"reason":"","since":1.0}]}',
    "huge": b" " * 3_000_000,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "quarantine.json"


def add(path, digest=BAD, runtime="2.3.1", now=100.0, **changes) -> None:
    facts = {"model": "digits", "version": 3, "reason": "crashed at load"} | changes
    Quarantine(path).add(digest, runtime=runtime, now=now, **facts)


def test_nothing_is_in_a_new_quarantine(path):
    assert Quarantine(path).entries() == ()
    assert Quarantine(path).find(BAD) is None


def test_a_case_outlives_a_restart(path):
    add(path)
    case = Quarantine(path).find(BAD, runtime="2.3.1")

    assert (case.model, case.version, case.reason, case.since) == (
        "digits",
        3,
        "crashed at load",
        100.0,
    )


def test_another_bundle_has_its_own_chance(path):
    add(path)

    assert Quarantine(path).find(WORSE, runtime="2.3.1") is None


def test_another_runtime_gives_a_bundle_another_chance(path):
    add(path, runtime="2.3.1")

    assert Quarantine(path).find(BAD, runtime="2.4.0") is None


@pytest.mark.parametrize(("failed_on", "asked_on"), [("", "2.4.0"), ("2.3.1", ""), ("", "")])
def test_where_a_runtime_is_not_known_the_case_stands(path, failed_on, asked_on):
    add(path, runtime=failed_on)

    assert Quarantine(path).find(BAD, runtime=asked_on)


def test_a_second_failure_is_counted_and_not_listed_twice(path):
    add(path, now=100.0, reason="first")
    add(path, now=200.0, reason="second")
    (case,) = Quarantine(path).entries()

    assert (case.failures, case.since, case.reason) == (2, 200.0, "second")


def test_one_bundle_is_cleared_on_every_runtime(path):
    add(path, runtime="1")
    add(path, runtime="2")
    add(path, digest=WORSE)
    cleared = Quarantine(path).clear(BAD)

    assert len(cleared) == 2
    assert [case.digest for case in Quarantine(path).entries()] == [WORSE]


def test_all_are_cleared(path):
    add(path)
    add(path, digest=WORSE)
    Quarantine(path).clear()

    assert Quarantine(path).entries() == ()


def test_clearing_what_is_not_in_writes_nothing(path):
    assert Quarantine(path).clear(BAD) == ()
    assert not path.exists()


def test_the_longest_in_makes_room_when_the_quarantine_is_full(path):
    for number in range(_MAX_CASES + 1):
        add(path, digest=f"{number:064x}")

    assert len(Quarantine(path).entries()) == _MAX_CASES
    assert Quarantine(path).find(f"{0:064x}") is None
    assert Quarantine(path).find(f"{_MAX_CASES:064x}")


def test_a_full_quarantine_of_the_longest_reasons_can_be_read_again(path, monkeypatch):
    monkeypatch.setattr("updater.quarantine._MAX_CASES", 3)
    monkeypatch.setattr("updater.quarantine._MAX_BYTES", 3 * 8 * 1024)
    for number in range(3):
        add(path, digest=f"{number:064x}", reason="\x01" * 5000, model="m" * 100)

    assert len(Quarantine(path).entries()) == 3


def test_what_is_no_digest_is_refused(path):
    with pytest.raises(ValueError, match="no sha256"):
        add(path, digest="../x")


@pytest.mark.parametrize("raw", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_put_aside_and_named_once(path, raw):
    path.write_bytes(raw)
    first, second = Quarantine(path).recover(), Quarantine(path).recover()

    assert first
    assert second is None
    assert path.with_name("quarantine.json.corrupt").read_bytes() == raw


def test_a_damaged_file_holds_nothing_and_hinders_nothing(path):
    path.write_bytes(b"")

    assert Quarantine(path).entries() == ()
    add(path)
    assert Quarantine(path).find(BAD)


def test_recovery_leaves_a_good_file_alone(path):
    add(path)
    before = path.read_bytes()

    assert Quarantine(path).recover() is None
    assert path.read_bytes() == before


def test_recovery_makes_durable_what_a_kill_may_have_left_unsynced(path):
    add(path)
    taken: list[tuple[str, str]] = []
    with watched(lambda step, where: taken.append((step, where.name))):
        Quarantine(path).recover()

    assert taken == [("fsync-folder", path.parent.name)]
