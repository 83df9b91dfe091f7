"""What was seen signed, and what may never be undercut."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.errors import TrustReason, Untrusted
from updater.floors import (
    Authority,
    Floor,
    Floors,
    SignedRole,
    check_versions,
    for_anchor,
    held,
    raised,
)

LATER = 1e9


def role(version: int, *signers: str, issued_at: float | None = None) -> SignedRole:
    return SignedRole(version, LATER, issued_at, dict.fromkeys(signers or ("k",), ""))


def authority(*keys: str, threshold: int = 1) -> Authority:
    return Authority(frozenset(keys), threshold)


def floors(**values: int) -> Floors:
    """Of roles, each signed by a key of its own name."""
    return Floors(roles={name: Floor(value, (name,)) for name, value in values.items()})


ALL = {"root": 2, "timestamp": 9, "snapshot": 8, "targets": 7, "fleet": 6, "models-main": 5}


class TestVersions:
    @pytest.mark.parametrize("version", [9, 10])
    def test_the_same_or_a_newer_version_passes(self, version):
        check_versions(floors(timestamp=9), {"timestamp": role(version)})

    def test_an_older_version_is_refused(self):
        with pytest.raises(Untrusted) as caught:
            check_versions(floors(**ALL), {"root": role(2), "models-main": role(4)})

        assert (caught.value.reason, caught.value.role) == (TrustReason.ROLLBACK, "models-main")

    def test_a_role_that_was_never_seen_passes(self):
        check_versions(floors(timestamp=9), {"models-new": role(1)})

    def test_a_floor_rises_with_what_is_verified(self):
        assert raised(floors(timestamp=9), {"timestamp": role(12, "a", "b")}).roles == {
            "timestamp": Floor(12, ("a", "b"))
        }

    def test_a_floor_never_sinks(self):
        assert raised(floors(timestamp=9), {"timestamp": role(8)}) == floors(timestamp=9)

    @given(st.lists(st.tuples(st.sampled_from(["timestamp", "fleet"]), st.integers(1, 50))))
    def test_floors_are_the_highest_that_was_seen(self, seen):
        state = Floors()
        for name, version in seen:
            state = raised(state, {name: role(version)})

        assert {name: floor.value for name, floor in state.roles.items()} == {
            name: max(version for each, version in seen if each == name) for name, _ in seen
        }


class TestRevocation:
    def test_a_floor_stands_with_its_keys(self):
        keys = {name: authority(name, "other") for name in ALL}

        assert held(floors(**ALL), keys) == floors(**ALL)

    def test_without_word_of_a_role_its_floor_stands(self):
        assert held(floors(**ALL), {}) == floors(**ALL)

    def test_a_floor_falls_with_the_key_that_signed_it(self):
        assert "fleet" not in held(floors(**ALL), {"fleet": authority("new")}).roles

    def test_a_floor_falls_when_its_keys_reach_the_threshold_no_more(self):
        assert (
            "fleet" not in held(floors(fleet=6), {"fleet": authority("fleet", threshold=2)}).roles
        )

    def test_timestamp_and_snapshot_fall_together(self):
        left = held(floors(**ALL), {"timestamp": authority("new")})

        assert set(left.roles) == {"root", "targets", "fleet", "models-main"}

    def test_the_snapshot_takes_what_it_lists_with_it(self):
        left = held(floors(**ALL), {"snapshot": authority("new")})

        assert set(left.roles) == {"root"}

    def test_the_roots_floor_is_no_matter_of_keys(self):
        assert held(floors(root=2), {"root": authority("new")}) == floors(root=2)

    def test_counters_fall_with_the_fleets_key(self):
        state = raised(Floors(), {"fleet": role(1, "stolen")}, {"digits": 99})

        assert held(state, {"fleet": authority("stolen")}).counters == state.counters
        assert held(state, {"fleet": authority("new")}).counters == {}


class TestCounters:
    def test_they_only_rise(self):
        state = raised(Floors(), {"fleet": role(1)}, {"digits": 3, "faces": 1})

        lower = raised(state, {"fleet": role(2)}, {"digits": 2})

        assert {model: floor.value for model, floor in lower.counters.items()} == {
            "digits": 3,
            "faces": 1,
        }

    def test_more_models_than_are_kept_are_refused(self):
        state = raised(Floors(), {"fleet": role(1)}, {f"m{number}": 1 for number in range(2000)})

        with pytest.raises(Untrusted) as caught:
            raised(state, {"fleet": role(2)}, {"one-more": 1})

        assert caught.value.reason is TrustReason.TOO_LARGE


class TestTime:
    def test_it_is_what_root_and_targets_say(self):
        roles = {"root": role(1, issued_at=100), "targets": role(1, issued_at=200)}

        assert raised(Floors(), roles).signed_time == 200

    @pytest.mark.parametrize("name", ["timestamp", "snapshot", "fleet", "models-main"])
    def test_others_have_no_say(self, name):
        assert raised(Floors(), {name: role(1, issued_at=100)}).signed_time == 0

    def test_it_never_goes_back(self):
        before = Floors(signed_time=300)

        assert raised(before, {"root": role(1, issued_at=100)}).signed_time == 300

    def test_a_time_after_something_expires_is_a_wrong_clock(self):
        roles = {"root": role(1, issued_at=LATER + 1), "targets": role(1, issued_at=200)}

        assert raised(Floors(), roles).signed_time == 200


class TestAnchor:
    def test_under_the_same_anchor_all_floors_stand(self):
        before = msgspec.structs.replace(floors(root=3), anchor="a")

        assert for_anchor(before, "a", is_followed=False) == before

    def test_under_one_that_was_followed_too(self):
        before = msgspec.structs.replace(floors(root=3), anchor="a")

        assert for_anchor(before, "b", is_followed=True).roles == before.roles

    def test_under_another_the_roots_floor_and_the_time_fall(self):
        before = floors(root=3, timestamp=9)
        before = msgspec.structs.replace(before, anchor="a", signed_time=5.0)

        after = for_anchor(before, "b", is_followed=False)

        assert (after.anchor, set(after.roles), after.signed_time) == ("b", {"timestamp"}, 0)
