"""Lines that are cut, and what headers mean for the next try. Real answers: tests/updater/fetch."""

from __future__ import annotations

import socket

import pytest

from updater.errors import FetchFailed, FetchReason
from updater.web import Line, retry_after_s, shown

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


class TestLines:
    @pytest.fixture
    def line(self):
        line = Line()
        yield line
        line.close()

    @pytest.fixture
    def ends(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield ours, theirs

    def test_one_that_was_not_cut_goes_on(self, line):
        line.check()

    def test_the_first_reason_stays(self, line):
        first = FetchFailed(FetchReason.CANCELLED, "first")
        line.cut(first)
        line.cut(FetchFailed(FetchReason.TOO_SLOW, "second"))

        with pytest.raises(FetchFailed) as cut:
            line.check()

        assert cut.value is first

    def test_a_connection_ends_when_it_is_cut(self, line, ends):
        ours, theirs = ends
        line.add(ours)

        line.cut(FetchFailed(FetchReason.CANCELLED, ""))

        assert ours.recv(1) == theirs.recv(1) == b""

    def test_a_connection_that_is_made_afterwards_ends_at_once(self, line, ends):
        ours, theirs = ends
        line.cut(FetchFailed(FetchReason.CANCELLED, ""))

        line.add(ours)

        assert ours.recv(1) == theirs.recv(1) == b""

    def test_one_that_is_closed_leaves_connections_to_their_owner(self, line, ends):
        ours, theirs = ends
        line.add(ours)

        line.close()
        line.cut(FetchFailed(FetchReason.CANCELLED, ""))
        theirs.sendall(b"x")

        assert ours.recv(1) == b"x"


def test_a_text_from_outside_is_cut_and_moves_no_cursor():
    assert shown("\x1b[2J\u202e" + "x" * 1000) == "?[2J?" + "x" * 295
