"""The journal and the history as one: every move is told once, whatever came between."""

from __future__ import annotations

import dataclasses

import pytest
from support.installbox import BROKEN, InstallBox, World, prepare, snapshot
from support.powercut import scratch_folder
from support.releases import MODEL

from updater import atomic, moves
from updater.journal import Record
from updater.state import State


@pytest.fixture
def world():
    with scratch_folder() as folder:
        world = World(folder)
        world.publish(1, 2, BROKEN)
        (folder / "root").mkdir()
        prepare(folder / "root", world)
        world.reboot()
        with world.daemon(folder / "root"):
            yield world


@pytest.fixture
def root(world):
    return world.run.parent / "root"


@pytest.fixture
def box(world, root):
    box = InstallBox(root, world).start()
    yield box
    box.transfers.stop()


def forget_the_last_line(box: InstallBox) -> dict[str, object]:
    """As when power is lost between the record and its line; returns what is not told."""
    path = box.state_folder / "history.jsonl"
    *kept, _ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept))
    return moves.told(box.record)


def told(box: InstallBox, what: str) -> list[dict[str, object]]:
    return [event for event in box.events() if event["event"] == what]


def test_an_auditor_reads_who_signed_what_by_which_metadata(box, world):
    box.update(2)

    assert box.moves(2)[0] == {
        "model": MODEL,
        "event": "assigned",
        "state": "assigned",
        "version": 2,
        "digest": world.digest(2),
        "rollout_id": "spring",
        "serial": 2,
        "transition": 1,
        "target": "digits/digits-2.bundle",
        "length": world.wish(2).target.length,
        "signed_by": "models-digits",
        "metadata": "root 1, targets 4",
        "previous": world.digest(1),
    }


def test_an_auditor_reads_every_change_of_state_and_why(box):
    box.update(BROKEN)
    changes = [(event["transition"], event["state"]) for event in box.moves(BROKEN)]

    assert changes[0] == (1, "assigned")
    assert [number for number, _ in changes] == list(range(1, len(changes) + 1))
    assert "NaN or infinity" in box.moves(BROKEN)[-1]["reason"]


def test_tries_are_told_with_their_number(box):
    box.update(2)

    assert [event["tries"] for event in box.moves(2) if "tries" in event] == [1, 1]


def test_what_has_not_moved_cannot_be_told():
    with pytest.raises(RuntimeError, match="has not moved"):
        moves.told(Record(MODEL))


@pytest.mark.parametrize("state", [state for state in State if state is not State.ROLLING_BACK])
def test_a_line_that_is_missing_is_told_at_the_start_and_once(box, root, world, state):
    box.go_to(state, 2) if state is not State.IDLE else box.update(2)
    missing = forget_the_last_line(box)

    for _ in range(2):
        InstallBox(root, world).start()
        assert box.events()[-1] == missing
        assert box.events().count(missing) == 1
    assert box.history.verify().broken is None


def test_a_line_that_is_older_than_those_that_are_read_is_not_missed(box, root, world, monkeypatch):
    box.clock.now += 100
    for number in range(6):
        box.installer._moves.note("another", "release removed", digest=str(number))
    monkeypatch.setattr(moves, "_LOOK_BACK", 5)
    before = box.events()

    InstallBox(root, world).start()

    assert box.events() == before


def test_a_refusal_is_told_once_and_again_for_another_reason(box, root, world):
    box.update(BROKEN)
    for _ in range(3):
        box.step(BROKEN)
    again = InstallBox(root, world).start()
    again.step(BROKEN)
    floored = dataclasses.replace(world.wish(BROKEN), floor=99)
    again.installer.step(MODEL, floored)

    reasons = [str(event["reason"]) for event in told(box, "refused")]
    assert len(reasons) == 2
    assert "has failed here before" in reasons[0]
    assert "floor" in reasons[1]
    assert box.installer.outcomes[MODEL, "refused"] == 1


def test_refusals_are_bounded(box, monkeypatch):
    monkeypatch.setattr(moves, "_MAX_REFUSALS", 2)
    refuse = box.installer._moves.refuse
    new = [refuse(MODEL, version=1, digest=digest, reason="no") for digest in "abcab"]

    assert new == [True, True, True, True, True]
    assert not refuse(MODEL, version=1, digest="b", reason="no")


def break_journal(box: InstallBox) -> None:
    (box.state_folder / "journal" / f"{MODEL}.json").write_bytes(bytes(100))


def break_quarantine(box: InstallBox) -> None:
    (box.state_folder / "quarantine.json").write_bytes(b"{")


def break_history(box: InstallBox) -> None:
    path = box.state_folder / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], b"{}\n", *lines[2:]]))


DAMAGE = {
    "journal damaged": break_journal,
    "quarantine damaged": break_quarantine,
    "history damaged": break_history,
}


@pytest.mark.parametrize(("what", "damage"), DAMAGE.items(), ids=DAMAGE)
def test_damage_is_told_once_and_the_updater_goes_on(box, root, world, what, damage):
    box.update(BROKEN)
    damage(box)
    for _ in range(3):
        again = InstallBox(root, world).start()

    (event,) = told(box, what)
    assert event["reason"]
    again.update(2)
    again.transfers.stop()
    assert again.serves == 2


def test_a_start_where_all_is_well_changes_nothing(box, root, world):
    box.update(2)
    before = snapshot(root)

    InstallBox(root, world).start()

    assert snapshot(root) == before


def test_what_cut_off_writes_have_left_is_removed(box, root, world):
    left = [
        atomic.new_name(box.state_folder / "quarantine.json"),
        atomic.new_name(box.state_folder / "journal" / f"{MODEL}.json"),
        box.staging / ("a" * 64 + ".part"),
        box.ballast / MODEL,
    ]
    for path in left:
        path.write_bytes(b"x")

    InstallBox(root, world).start()

    assert not [path for path in left if path.exists()]
