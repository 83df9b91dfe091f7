"""What this machine says of itself."""

from __future__ import annotations

import os
import re
import time
from importlib import metadata

import pytest

from updater.device import read_boot_id, read_facts, utc_offset_s
from updater.policy import runtime_fits

JANUARY, JULY = 1_736_000_000.0, 1_752_000_000.0


@pytest.fixture
def zone():
    """Sets the machine's time zone, as an operator may while the service runs."""
    before = os.environ.get("TZ")
    yield lambda name: os.environ.__setitem__("TZ", name)
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_the_facts_are_what_policy_understands():
    facts = read_facts()

    assert re.fullmatch(r"[a-z0-9]+", facts.architecture)
    assert "cpu" in facts.accelerators
    assert facts.memory_mib > 100
    assert facts.runtime_version == metadata.version("ai-edge-litert")
    assert runtime_fits("litert>=2", facts.runtime, facts.runtime_version)


def test_a_boot_has_one_id():
    assert read_boot_id() == read_boot_id()
    assert len(read_boot_id()) == 36


def test_local_time_is_of_that_time_of_the_year(zone):
    zone("Europe/Berlin")

    assert (utc_offset_s(JANUARY), utc_offset_s(JULY)) == (3600, 7200)


def test_a_zone_that_is_changed_is_taken_up(zone):
    zone("UTC")
    assert utc_offset_s(JANUARY) == 0

    zone("Asia/Kolkata")

    assert utc_offset_s(JANUARY) == 19_800
