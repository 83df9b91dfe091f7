"""What time it is, on a box whose clock may be anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.signedtime import LONGEST_LIFE_S, Reference, read_time, reference_time, write_time

SIGNED = 1_760_000_000.0


@pytest.mark.parametrize("ahead_s", [0, 86_400, LONGEST_LIFE_S])
def test_a_clock_after_the_newest_signature_is_believed(ahead_s):
    assert reference_time(SIGNED + ahead_s, signed=SIGNED) == Reference(SIGNED + ahead_s, True)


@pytest.mark.parametrize("clock", [0, -1, SIGNED - 1, SIGNED + LONGEST_LIFE_S + 1, 1e12])
def test_any_other_clock_has_not_been_set(clock):
    assert reference_time(clock, signed=SIGNED) == Reference(SIGNED, False)


@pytest.mark.parametrize("clock", [0, SIGNED, 1e12])
def test_before_anything_was_signed_the_clock_is_all_there_is(clock):
    assert reference_time(clock, signed=0) == Reference(clock, True)


@given(st.floats(-1e12, 1e12), st.floats(1, 4e9))
def test_time_is_never_before_the_newest_signature(clock, signed):
    assert reference_time(clock, signed=signed).now >= signed


@given(st.integers(0, 253_402_300_799))
def test_what_is_written_is_read(seconds):
    assert read_time(write_time(seconds)) == seconds


@pytest.mark.parametrize(
    "text", [None, 5, "", "2025-01-31", "2025-13-01T00:00:00Z", "2025-01-31T12:00:00+02:00", []]
)
def test_what_is_no_time_is_none(text):
    assert read_time(text) is None
