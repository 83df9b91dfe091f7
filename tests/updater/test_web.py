"""What a server's headers mean for the next try. How connections end is in test_fetch.py."""

from __future__ import annotations

import pytest

from updater.web import retry_after_s

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
TWO_MINUTES_LATER = "Wed, 21 Oct 2015 07:30:00 GMT"
DATE_S = 1445412480.0


def waits_s(text: str, **headers: str) -> float | None:
    return retry_after_s({"Retry-After": text, **headers}, now=DATE_S)


def test_seconds_are_taken_as_they_are():
    assert waits_s("120") == 120


def test_a_time_is_told_by_the_servers_own_clock():
    assert retry_after_s({"Retry-After": TWO_MINUTES_LATER, "Date": DATE}, now=0.0) == 120


def test_a_time_is_told_by_the_devices_clock_when_the_server_does_not_say_its_own():
    assert waits_s(TWO_MINUTES_LATER) == 120


def test_a_time_that_has_passed_is_now():
    assert waits_s(DATE, Date=TWO_MINUTES_LATER) == 0


@pytest.mark.parametrize("text", ["86401", "999999999", "Wed, 21 Oct 2065 07:28:00 GMT"])
def test_nobody_is_told_to_wait_for_longer_than_a_day(text):
    assert waits_s(text) == 86_400


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "1.5", "٣", "1" * 5000, "Wed, 99 Oct 2015 07:28:00 GMT", "\0"]
)
def test_anything_else_says_nothing(text):
    assert waits_s(text) is None


def test_no_header_says_nothing():
    assert retry_after_s({}, now=DATE_S) is None
