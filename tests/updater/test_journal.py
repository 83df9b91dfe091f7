"""The journal: records that survive, damage that is named, bounds that hold."""

from __future__ import annotations

import dataclasses

import pytest

from updater import atomic, journal
from updater.errors import NoSpace
from updater.journal import Journal, Record
from updater.state import MAX_TRANSITIONS, Event, State

OLD, NEW = "a" * 64, "b" * 64
DAMAGE = {
    "empty": b"",
    "zeros": bytes(4096),
    "cut off": b'{"model":"digits","state":"tr',
    "garbage": bytes(range(256)),
    "another kind": b"[1, 2]",
    "a captive portal": b"<html><body>Log in</body></html>",
    "no state": b'{"model":"digits","state":"flying"}',
    "a negative count": b'{"model":"digits","tries":-1}',
    "no digest": b'{"model":"digits","digest":"../../etc/passwd"}',
    "no number": b'{"model":"digits","since":1e999}',
    "nested": b'{"model":"digits","x":' + b"[" * 50_000,
    "another model's": b'{"model":"faces"}',
    "huge": b'{"model":"digits"}' + b" " * 100_000,
}


def assigned(model: str = "digits", **changes) -> Record:
    facts = {
        "rollout_id": "spring",
        "serial": 7,
        "version": 2,
        "digest": NEW,
        "length": 1000,
        "target": "digits/digits-2.bundle",
        "previous": OLD,
        "now": 100.0,
    }
    return Record(model).assigned(**(facts | changes))


def trying() -> Record:
    record = assigned()
    for event in (Event.FETCH, Event.PUBLISH, Event.PROBED, Event.AWAIT_WINDOW):
        record = record.moved(event, now=101.0)
    return record.tried(Event.TRY, boot_id="boot-1", deaths=4, now=102.0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "journal"


def test_a_model_without_a_record_is_idle(folder):
    assert Journal(folder).load("digits") == Record("digits", State.IDLE)


def test_a_saved_record_is_what_the_next_start_finds(folder):
    record = dataclasses.replace(trying(), deaths=3, reason="a reason, with ü and \n")
    Journal(folder).save(record)

    assert Journal(folder).load("digits") == record


def test_the_last_record_counts(folder):
    Journal(folder).save(assigned())
    Journal(folder).save(trying())

    assert Journal(folder).load("digits").state is State.TRYING


def test_records_are_listed_by_model(folder):
    Journal(folder).save(assigned("faces"))
    Journal(folder).save(assigned("digits"))

    assert [record.model for record in Journal(folder).records()] == ["digits", "faces"]


def test_no_folder_means_no_records(folder):
    assert Journal(folder).records() == ()


def test_a_forgotten_model_is_idle_again(folder):
    Journal(folder).save(assigned())
    Journal(folder).forget("digits")

    assert Journal(folder).records() == ()


@pytest.mark.parametrize("raw", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_counts_as_none_and_says_so(folder, raw):
    folder.mkdir()
    (folder / "digits.json").write_bytes(raw)
    record = Journal(folder).load("digits")

    assert record == Record("digits", reason=record.reason)
    assert "damaged" in record.reason


@pytest.mark.parametrize("raw", DAMAGE.values(), ids=DAMAGE)
def test_recovery_puts_a_damaged_record_aside_and_names_it_once(folder, raw):
    folder.mkdir()
    (folder / "digits.json").write_bytes(raw)
    first, second = Journal(folder).recover(), Journal(folder).recover()

    assert set(first) == {"digits"}
    assert second == {}
    assert (folder / "digits.json.corrupt").read_bytes() == raw
    assert Journal(folder).load("digits") == Record("digits")


def test_a_folder_in_a_records_place_is_damage_too(folder):
    (folder / "digits.json").mkdir(parents=True)
    found = Journal(folder).recover()

    assert set(found) == {"digits"}


def test_a_record_that_may_not_be_read_is_no_damage(folder):
    """Somebody has made a mistake that he can undo; nothing is put aside."""
    folder.mkdir()
    (folder / "digits.json").symlink_to("digits.json")

    with pytest.raises(OSError, match="symbolic links"):
        Journal(folder).recover()
    assert (folder / "digits.json").is_symlink()


def test_files_that_no_model_can_have_are_none_of_ours(folder):
    Journal(folder).save(assigned())
    (folder / "a model.json").write_bytes(b"")

    assert Journal(folder).recover() == {}
    assert [record.model for record in Journal(folder).records()] == ["digits"]


def test_one_damaged_record_says_nothing_of_the_others(folder):
    Journal(folder).save(trying())
    (folder / "faces.json").write_bytes(b"")
    Journal(folder).recover()

    assert Journal(folder).records() == (trying(),)


def test_the_next_damage_takes_the_place_of_the_last(folder):
    folder.mkdir()
    for raw in (b"one", b"two"):
        (folder / "digits.json").write_bytes(raw)
        Journal(folder).recover()

    assert [path.name for path in folder.iterdir()] == ["digits.json.corrupt"]
    assert (folder / "digits.json.corrupt").read_bytes() == b"two"


def test_recovery_removes_what_a_cut_off_write_has_left(folder):
    Journal(folder).save(assigned())
    atomic.new_name(folder / "digits.json").write_bytes(b'{"model":"dig')
    Journal(folder).recover()

    assert [path.name for path in folder.iterdir()] == ["digits.json"]


def test_a_cut_off_write_is_no_model(folder):
    folder.mkdir()
    atomic.new_name(folder / "digits.json").write_bytes(b'{"model":"dig')

    assert Journal(folder).records() == ()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "a\0b", "a" * 101])
def test_a_name_that_is_no_plain_file_name_is_refused(folder, name):
    with pytest.raises(ValueError, match="no model name"):
        Journal(folder).save(Record(name))


def test_the_journal_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(journal, "_MAX_MODELS", 2)
    Journal(folder).save(assigned("one"))
    Journal(folder).save(assigned("two"))
    Journal(folder).save(assigned("two", serial=8))

    with pytest.raises(NoSpace, match="2 models"):
        Journal(folder).save(assigned("three"))


def test_a_record_that_could_not_be_read_again_is_not_written(folder):
    Journal(folder).save(assigned())

    with pytest.raises(ValueError, match="at most"):
        Journal(folder).save(assigned(target="x" * 100_000))
    assert Journal(folder).load("digits") == assigned()


def test_a_reason_is_cut_and_made_writable(folder):
    record = assigned().moved(Event.ABANDON, now=1.0, reason="\ud800" + "x" * 5000)
    Journal(folder).save(record)

    assert len(Journal(folder).load("digits").reason) == 1000


def test_the_full_length_of_every_text_fits_in_a_record(folder):
    """Control characters are the longest when they are escaped."""
    long = "\x01" * 1000
    texts = {"rollout_id": long, "target": long, "signed_by": long, "metadata": long}
    record = assigned(**texts).moved(Event.ABANDON, now=1.0, reason=long)
    Journal(folder).save(record)

    assert Journal(folder).load("digits") == record


def test_a_move_is_counted_and_dated():
    record = assigned().moved(Event.FETCH, now=105.0, reason="why")

    assert (record.state, record.transitions, record.since, record.reason) == (
        State.DOWNLOADING,
        2,
        105.0,
        "why",
    )


def test_the_same_serial_again_goes_on_counting():
    once = assigned().moved(Event.ABANDON, now=101.0)
    again = once.assigned(**_assignment(serial=7))

    assert again.transitions == 3


def test_another_serial_counts_from_the_start():
    once = assigned().moved(Event.ABANDON, now=101.0)
    again = once.assigned(**_assignment(serial=8))

    assert again.transitions == 1


def test_a_new_update_knows_nothing_of_the_tries_before():
    record = trying().moved(Event.ROLL_BACK, now=1.0).moved(Event.DONE, now=2.0)
    again = record.assigned(**_assignment(serial=8))

    assert (again.tries, again.boot_id) == (0, "")


def test_an_update_under_way_is_not_assigned_over():
    with pytest.raises(RuntimeError, match="ASSIGN cannot happen in TRYING"):
        trying().assigned(**_assignment(serial=8))


def test_a_serial_that_has_moved_too_often_can_only_turn_back():
    record = dataclasses.replace(assigned(), transitions=MAX_TRANSITIONS - 2)

    assert not record.may(Event.FETCH)
    with pytest.raises(RuntimeError, match="no room"):
        record.moved(Event.FETCH, now=1.0)
    assert record.moved(Event.ROLL_BACK, now=1.0).moved(Event.DONE, now=2.0).state is State.IDLE


def test_a_try_is_counted_with_its_boot():
    record = trying()
    again = record.tried(Event.RETRY, boot_id="boot-2", deaths=5, now=3.0)

    assert (record.tries, record.boot_id, record.deaths) == (1, "boot-1", 4)
    assert (again.tries, again.boot_id, again.deaths) == (2, "boot-2", 5)


def test_probes_are_counted_by_themselves():
    record = assigned().moved(Event.FETCH, now=1.0).moved(Event.PUBLISH, now=1.0)
    probed = record.tried(Event.PROBE, boot_id="boot-1", deaths=0, now=2.0)
    again = probed.tried(Event.PROBE, boot_id="boot-2", deaths=0, now=3.0)
    for event in (Event.PROBED, Event.AWAIT_WINDOW):
        again = again.moved(event, now=4.0)

    assert (record.tries, probed.tries, again.tries) == (0, 1, 2)
    assert again.tried(Event.TRY, boot_id="boot-2", deaths=0, now=5.0).tries == 1


def test_each_death_after_the_first_has_used_up_a_try_too():
    assert trying().after_restart(boot_id="boot-1", deaths=2) is Event.ROLL_BACK


def test_an_operators_word_is_a_move_like_any_other():
    idle = trying().moved(Event.ROLL_BACK, now=1.0).moved(Event.DONE, now=2.0)
    back = idle.recalled(now=3.0, reason="he says so")

    assert (back.state, back.reason) == (State.ROLLING_BACK, "he says so")
    assert back.transitions == idle.transitions + 1


@pytest.mark.parametrize("moves", [MAX_TRANSITIONS - 2, MAX_TRANSITIONS - 1, MAX_TRANSITIONS])
def test_an_operators_word_begins_a_new_count_where_it_would_not_lead_to_the_end(moves):
    idle = trying().moved(Event.ROLL_BACK, now=1.0).moved(Event.DONE, now=2.0)
    used_up = dataclasses.replace(idle, transitions=moves)
    back = used_up.recalled(now=3.0, reason="he says so")

    assert back.transitions == 1
    assert back.moved(Event.DONE, now=4.0).state is State.IDLE


def test_a_new_boot_ends_a_try():
    assert trying().after_restart(boot_id="boot-2") is Event.RETRY


def test_the_daemons_death_ends_a_try():
    assert trying().after_restart(boot_id="boot-1", deaths=1) is Event.RETRY


def test_a_restart_in_the_same_boot_with_the_daemon_alive_goes_on():
    assert trying().after_restart(boot_id="boot-1") is None


def test_a_second_end_drops_the_candidate():
    again = trying().tried(Event.RETRY, boot_id="boot-2", deaths=5, now=3.0)

    assert again.after_restart(boot_id="boot-3") is Event.ROLL_BACK


def test_the_releases_that_are_needed_are_the_candidate_and_the_previous():
    assert trying().needed == {OLD, NEW}


def test_in_idle_only_the_previous_release_is_needed():
    idle = trying().moved(Event.ROLL_BACK, now=1.0).moved(Event.DONE, now=2.0)

    assert idle.needed == {OLD}


def test_a_first_installation_needs_nothing_before_it():
    assert assigned(previous="").needed == {NEW}


def _assignment(*, serial: int) -> dict[str, object]:
    return {
        "rollout_id": "spring",
        "serial": serial,
        "version": 2,
        "digest": NEW,
        "length": 1000,
        "target": "digits/digits-2.bundle",
        "previous": OLD,
        "now": 110.0,
    }
