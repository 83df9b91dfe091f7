"""Changes to what the fleet shall serve."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.desired import Desired, Device, Group, Window, choose, encode_desired, parse_desired
from updater.publisher.assignments import (
    assign,
    block,
    parse_window,
    raise_floors,
    set_windows,
    unblock,
    with_next_serial,
)
from updater.publisher.errors import PublisherError

EMPTY = Desired(schema=1, serial=1)
CANARY = {"ring": "canary"}


def after(*changes) -> Desired:
    """The document after several publications; each is a model, version, percent and labels."""
    desired = EMPTY
    for model, version, percent, labels in changes:
        changed = assign(desired, {model: version}, percent=percent, labels=labels)
        desired = with_next_serial(changed)
    return desired


def rules(desired: Desired) -> list[tuple]:
    return [(group.models, group.percent, group.match) for group in desired.groups]


class TestAssign:
    def test_the_newest_stands_first(self):
        desired = after(("digits", 1, 100, {}), ("digits", 2, 10, CANARY))

        assert rules(desired) == [({"digits": 2}, 10, CANARY), ({"digits": 1}, 100, {})]

    def test_each_rollout_picks_its_devices_anew(self):
        desired = after(("digits", 2, 10, {}), ("digits", 3, 10, {}))

        assert [group.rollout_id for group in desired.groups] == ["r3", "r2"]

    def test_another_percentage_goes_on_with_the_same_rollout(self):
        desired = after(("digits", 1, 100, {}), ("digits", 2, 10, {}), ("digits", 2, 50, {}))

        assert rules(desired) == [({"digits": 2}, 50, {}), ({"digits": 1}, 100, {})]
        assert desired.groups[0].rollout_id == "r3"

    def test_everybody_leaves_nothing_to_older_rules(self):
        desired = after(
            ("digits", 1, 100, {}), ("digits", 2, 10, {}), ("digits", 3, 10, CANARY),
            ("digits", 2, 100, {}),
        )  # fmt: skip

        assert rules(desired) == [({"digits": 2}, 100, {})]

    def test_all_canaries_leave_the_others_alone(self):
        desired = after(("digits", 1, 100, {}), ("digits", 2, 100, CANARY))

        assert rules(desired) == [({"digits": 2}, 100, CANARY), ({"digits": 1}, 100, {})]

    def test_other_models_are_not_touched(self):
        desired = after(("faces", 1, 100, {}), ("digits", 1, 100, {}), ("digits", 2, 100, {}))

        assert rules(desired) == [({"digits": 2}, 100, {}), ({"faces": 1}, 100, {})]

    def test_an_operator_goes_back_with_a_newer_document(self):
        desired = after(("digits", 2, 100, {}), ("digits", 1, 100, {}))

        assert rules(desired) == [({"digits": 1}, 100, {})]
        assert desired.serial == 3

    def test_nought_percent_takes_it_back(self):
        desired = after(("digits", 1, 100, {}), ("digits", 2, 10, {}), ("digits", 2, 0, {}))

        assert rules(desired) == [({"digits": 1}, 100, {})]

    def test_nought_percent_of_nothing_is_a_mistake(self):
        with pytest.raises(PublisherError, match="digits=2 is not assigned to these devices"):
            after(("digits", 2, 0, {}))

    labels = st.sampled_from([{}, CANARY, {"site": "a"}, {**CANARY, "site": "a"}])
    groups = st.builds(
        Group,
        rollout_id=st.integers().map(str),
        models=st.dictionaries(
            st.sampled_from(["digits", "faces"]), st.integers(1, 3), min_size=1, max_size=2
        ),
        match=labels,
        percent=st.sampled_from([1.0, 33.33, 100.0]),
    )

    @given(st.lists(groups, max_size=6), labels, labels, st.integers(1, 500))
    def test_what_is_taken_out_changes_nothing_for_anybody(self, groups, match, its, number):
        desired = Desired(schema=1, serial=8, groups=tuple(groups))
        device = Device(f"box-{number}", its)

        changed = assign(desired, {"digits": 4}, percent=100.0, labels=match)

        new = Group("r9", {"digits": 4}, match)
        with_all = Desired(schema=1, serial=8, groups=(new, *groups))
        assert choose(changed, device, now=0) == choose(with_all, device, now=0)
        assert parse_desired(encode_desired(changed)) == changed


class TestTheRest:
    def test_blocked_digests_are_listed_once(self):
        desired = block(block(EMPTY, ["a" * 64]), ["b" * 64, "a" * 64])

        assert desired.blocked == ("a" * 64, "b" * 64)
        assert unblock(desired, ["a" * 64]).blocked == ("b" * 64,)

    def test_what_is_not_blocked_cannot_be_unblocked(self):
        with pytest.raises(PublisherError, match="not blocked"):
            unblock(EMPTY, ["a" * 64])

    def test_floors_rise(self):
        desired = raise_floors(raise_floors(EMPTY, {"digits": 2}), {"digits": 3, "faces": 1})

        assert desired.floors == {"digits": 3, "faces": 1}

    def test_floors_do_not_sink(self):
        with pytest.raises(PublisherError, match="the floor of digits is 3"):
            raise_floors(raise_floors(EMPTY, {"digits": 3}), {"digits": 2})

    def test_windows_replace_those_of_the_same_devices(self):
        night, day = (parse_window(text, {}) for text in ("mon-sun 22:00-04:00", "sat 08:00-18:00"))
        canary = parse_window("sun 00:00-00:00", CANARY)
        desired = set_windows(EMPTY, [canary], labels=CANARY)
        desired = set_windows(set_windows(desired, [night], labels={}), [day], labels={})

        assert desired.windows == (canary, day)
        assert set_windows(desired, [], labels=CANARY).windows == (day,)


class TestWindow:
    @pytest.mark.parametrize(
        ("text", "days"),
        [
            ("mon 22:00-04:00", ("mon",)),
            ("mon-wed 22:00-04:00", ("mon", "tue", "wed")),
            ("sun,fri-sat 22:00-04:00", ("fri", "sat", "sun")),
            ("sat-mon 22:00-04:00", ("mon", "sat", "sun")),
            (" MON-SUN 22:00-04:00 ", ("mon", "tue", "wed", "thu", "fri", "sat", "sun")),
        ],
    )
    def test_days_as_people_write_them(self, text, days):
        assert parse_window(text, CANARY) == Window(days, "22:00", "04:00", CANARY)

    @pytest.mark.parametrize(
        "text",
        ["", "mon", "22:00-04:00", "mon 22:00", "monday 22:00-04:00", "mon- 22:00-04:00",
         "mon 22:00-24:00", "mon 22-4", "mon, 22:00-04:00"],
    )  # fmt: skip
    def test_what_is_none_is_said_so(self, text):
        with pytest.raises(ValueError, match="expected days and times"):
            parse_window(text, {})
