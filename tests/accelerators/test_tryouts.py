"""When a device that has failed is tried again."""

from __future__ import annotations

import time

import pytest

from accelerators.placement import Placement
from accelerators.tryouts import Tryouts


@pytest.fixture
def tryouts():
    """Of a model that wishes for one device; nothing is opened in these tests."""
    return Tryouts(
        Placement(("external:dsp",)),
        None,
        None,
        digest="",
        report=None,
        reference=None,
        time_limit_s=1.0,
    )


def test_device_that_has_failed_is_due_after_a_while(tryouts):
    begun = time.monotonic()

    tryouts.failed("external:dsp", "it is gone", lived_s=60.0)

    assert 0 < tryouts.due_in_s(begun) <= 1.0


def test_what_becomes_due_while_something_else_was_done_is_not_forgotten(tryouts, monkeypatch):
    monkeypatch.setattr("accelerators.tryouts._AGAIN_LEAST_S", 0.0)
    begun = time.monotonic()

    tryouts.failed("external:dsp", "it is gone", lived_s=60.0)

    assert tryouts.due_in_s(begun) == 0.0
    assert tryouts.due_in_s(time.monotonic()) is None


def test_nothing_is_due_when_nothing_has_failed(tryouts):
    assert tryouts.due_in_s(time.monotonic()) is None
