"""fleet/desired.json: who gets what, and when."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.desired import (
    BUCKETS,
    MAX_DESIRED_BYTES,
    WEEKDAYS,
    Desired,
    Device,
    Group,
    Window,
    bucket,
    choose,
    encode_desired,
    parse_desired,
)
from updater.errors import TrustReason, Untrusted

NOW = datetime(2025, 10, 9, 12, 0, tzinfo=UTC).timestamp()  # a Thursday
CANARY = Device("box-1", {"ring": "canary", "site": "berlin"})

words = st.text(min_size=1, max_size=20)
labels = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3)
devices = st.builds(Device, words, labels, st.integers(-43200, 50400))
percents = st.integers(0, 10_000).map(lambda share: share / 100)
groups = st.builds(
    Group,
    rollout_id=words,
    models=st.dictionaries(
        st.sampled_from(["digits", "faces"]), st.integers(1, 9), min_size=1, max_size=2
    ),
    match=labels,
    percent=percents,
)
distinct_groups = st.lists(groups, min_size=1, max_size=5, unique_by=lambda group: group.rollout_id)
times = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
windows = st.builds(
    Window,
    days=st.lists(st.sampled_from(WEEKDAYS), min_size=1, max_size=7, unique=True).map(tuple),
    start=times,
    end=times,
    match=labels,
)
wishes = st.builds(
    Desired,
    schema=st.just(1),
    serial=st.integers(1, 99),
    groups=st.lists(groups, max_size=5).map(tuple),
    windows=st.lists(windows, max_size=3).map(tuple),
)
moments = st.floats(0, 4e9)


def wish(*groups: Group, windows: tuple[Window, ...] = ()) -> Desired:
    return Desired(schema=1, serial=7, groups=groups, windows=windows)


def versions(desired: Desired, device: Device) -> dict[str, int]:
    return {model: each.version for model, each in choose(desired, device, now=NOW).items()}


class TestDocument:
    @given(wishes)
    def test_what_is_written_is_read(self, desired):
        assert parse_desired(encode_desired(desired)) == desired

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"[]",
            b"{}",
            b"\xff",
            b"[" * 100_000,
            b'{"schema":2,"serial":1}',
            b'{"schema":1,"serial":0}',
            b'{"schema":1,"serial":true}',
            b'{"schema":1,"serial":1,"pins":[]}',
            b'{"schema":1,"serial":1,"blocked":["abc"]}',
            b'{"schema":1,"serial":1,"floors":{"digits":-1}}',
            b'{"schema":1,"serial":1,"floors":{"../digits":1}}',
            b'{"schema":1,"serial":1,"groups":[{"rollout_id":"r","models":{}}]}',
            b'{"schema":1,"serial":1,"groups":[{"rollout_id":"r","models":{"a/b":1}}]}',
            b'{"schema":1,"serial":1,"groups":[{"rollout_id":"r","models":{"a":0}}]}',
            b'{"schema":1,"serial":1,"groups":[{"rollout_id":"r","models":{"a":1},"percent":101}]}',
            b'{"schema":1,"serial":1,"groups":[{"rollout_id":"r","models":{"a":1},"percent":NaN}]}',
            b'{"schema":1,"serial":1,"windows":[{"days":["mon"],"start":"24:00","end":"01:00"}]}',
            b'{"schema":1,"serial":1,"windows":[{"days":[],"start":"22:00","end":"01:00"}]}',
        ],
    )
    def test_what_cannot_be_followed_is_refused(self, raw):
        with pytest.raises(Untrusted) as caught:
            parse_desired(raw)

        assert (caught.value.reason, caught.value.role) == (TrustReason.MALFORMED, "fleet")

    def test_a_document_beyond_the_limit_is_refused(self):
        with pytest.raises(Untrusted) as caught:
            parse_desired(b" " * (MAX_DESIRED_BYTES + 1))

        assert caught.value.reason is TrustReason.TOO_LARGE


class TestGroups:
    def test_the_first_group_that_matches_decides(self):
        desired = wish(
            Group("r2", {"digits": 2}, {"ring": "canary"}), Group("r1", {"digits": 1, "faces": 1})
        )

        assert versions(desired, CANARY) == {"digits": 2, "faces": 1}
        assert versions(desired, Device("box-2")) == {"digits": 1, "faces": 1}

    def test_every_label_of_a_group_must_be_there(self):
        desired = wish(Group("r", {"digits": 2}, {"ring": "canary", "site": "paris"}))

        assert versions(desired, CANARY) == {}

    def test_who_is_not_in_the_share_falls_to_the_next_group(self):
        desired = wish(Group("r2", {"digits": 2}, percent=0), Group("r1", {"digits": 1}))

        assert versions(desired, CANARY) == {"digits": 1}

    def test_an_assignment_says_by_what_it_came(self):
        (assignment,) = choose(wish(Group("r", {"digits": 2})), CANARY, now=NOW).values()

        assert (assignment.rollout_id, assignment.serial) == ("r", 7)

    def test_the_bucket_is_the_documented_one(self):
        """The contract: sha256(rollout id + device id), so that anybody can compute it."""
        digest = hashlib.sha256(b"r1box-1").hexdigest()

        assert bucket("r1", "box-1") == int(digest, 16) % 10_000

    def test_shares_come_out_as_they_are_asked_for(self):
        inside = sum(bucket("r1", f"box-{number}") < 1000 for number in range(10_000))

        assert 900 < inside < 1100  # 10 % of 10000; 30 is one standard deviation

    @given(words, words)
    def test_everybody_has_a_bucket(self, rollout_id, device_id):
        assert 0 <= bucket(rollout_id, device_id) < BUCKETS

    @given(wishes, devices, moments)
    def test_every_device_decides_alike(self, desired, device, now):
        """Also from another copy of the document, and whatever the order of its labels."""
        again = parse_desired(encode_desired(desired))
        turned = Device(device.id, dict(reversed(device.labels.items())), device.utc_offset_s)

        assert choose(again, turned, now=now) == choose(desired, device, now=now)

    @given(distinct_groups, devices, percents, st.data())
    def test_raising_a_percentage_takes_no_device_out(self, groups, device, percent, data):
        place = data.draw(st.integers(0, len(groups) - 1))
        group = groups[place]
        more = msgspec.structs.replace(group, percent=max(percent, group.percent))
        raised = [*groups[:place], more, *groups[place + 1 :]]
        before = choose(wish(*groups), device, now=NOW)
        after = choose(wish(*raised), device, now=NOW)

        inside = {
            model: each for model, each in before.items() if each.rollout_id == group.rollout_id
        }
        assert inside.items() <= after.items()
        assert before.keys() <= after.keys()


def at(weekday: str, clock_time: str, device: Device = CANARY) -> float:
    """A moment of that week, in the device's local time."""
    hours, minutes = map(int, clock_time.split(":"))
    monday = datetime(2025, 10, 6, tzinfo=UTC).timestamp()
    days = WEEKDAYS.index(weekday)
    return monday + days * 86400 + hours * 3600 + minutes * 60 - device.utc_offset_s


NIGHTS = Window(days=("mon", "tue", "wed", "thu", "fri"), start="22:00", end="04:00")
ALL_SUNDAY = Window(days=("sun",), start="00:00", end="00:00")


def opening(now: float, *windows: Window, device: Device = CANARY) -> tuple[bool, float]:
    (assignment,) = choose(wish(Group("r", {"a": 1}), windows=windows), device, now=now).values()
    return assignment.window_open, assignment.opens_at


class TestWindows:
    def test_without_a_window_it_is_always_open(self):
        assert opening(NOW) == (True, NOW)

    @pytest.mark.parametrize(
        ("weekday", "clock_time", "is_open"),
        [
            ("mon", "21:59", False),
            ("mon", "22:00", True),
            ("tue", "03:59", True),
            ("tue", "04:00", False),
            ("fri", "23:00", True),
            ("sat", "03:59", True),
            ("sat", "22:30", False),
            ("mon", "03:00", False),
        ],
    )
    def test_it_goes_on_over_midnight(self, weekday, clock_time, is_open):
        assert opening(at(weekday, clock_time), NIGHTS)[0] is is_open

    def test_a_closed_one_says_when_it_opens(self):
        assert opening(at("sat", "12:00"), NIGHTS) == (False, at("mon", "22:00") + 7 * 86400)

    def test_a_whole_day(self):
        assert opening(at("sun", "23:59"), ALL_SUNDAY)[0]
        assert not opening(at("sat", "23:59"), ALL_SUNDAY)[0]

    def test_any_of_several_opens_it(self):
        assert opening(at("sun", "12:00"), NIGHTS, ALL_SUNDAY)[0]

    def test_windows_of_others_do_not_count(self):
        others = msgspec.structs.replace(NIGHTS, match={"site": "paris"})

        assert opening(at("mon", "12:00"), others)[0]

    def test_times_are_the_devices_own(self):
        tokyo = Device("box", {}, 9 * 3600)

        assert opening(at("mon", "22:00", tokyo), NIGHTS, device=tokyo)[0]
        assert not opening(at("mon", "22:00"), NIGHTS, device=tokyo)[0]

    @given(windows, devices, moments)
    def test_when_it_opens_it_is_open(self, window, device, now):
        everybody = msgspec.structs.replace(window, match={})

        is_open, opens_at = opening(now, everybody, device=device)

        assert is_open == (opens_at <= now)
        assert opens_at - now <= 8 * 86400
        assert opening(opens_at, everybody, device=device)[0]
