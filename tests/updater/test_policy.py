"""May this signed bundle be installed here?"""

from __future__ import annotations

import pytest
from support.fleet import facts

from updater.errors import NotAllowed, Refusal
from updater.policy import DeviceFacts, check, runtime_fits
from updater.target import Target

SHA256 = "ab" * 32
HERE = DeviceFacts("amd64", "litert", "2.3.1", frozenset({"cpu", "gpu"}), 512)


def target(**changes: object) -> Target:
    its_facts = facts(version=5, **changes)
    return Target("digits/digits-5.bundle", "targets/x", 800, SHA256, "models-main", its_facts)


def refusal(its_target: Target, device: DeviceFacts = HERE, **state: object) -> Refusal:
    state = {"floor": 0, "blocked": (), "quarantined": (), **state}
    with pytest.raises(NotAllowed) as caught:
        check(its_target, device, **state)
    return caught.value.refusal


def test_what_fits_may_come_in():
    fitting = target(architectures=("arm64", "amd64"), accelerators=("gpu",), memory_mib=512)

    check(fitting, HERE, floor=5, blocked={"cd" * 32}, quarantined={"ef" * 32})


def test_a_blocked_digest_is_refused():
    assert refusal(target(), blocked={SHA256}) is Refusal.BLOCKED


def test_what_has_failed_here_is_refused():
    assert refusal(target(), quarantined={SHA256}) is Refusal.QUARANTINED


def test_below_the_floor_is_refused_whatever_its_version():
    assert refusal(target(release_counter=2), floor=3) is Refusal.BELOW_FLOOR


@pytest.mark.parametrize(
    "need",
    [
        {"architectures": ("arm64",)},
        {"runtime": "litert>=3"},
        {"runtime": "tflite>=2"},
        {"runtime": "no range"},
        {"accelerators": ("npu",)},
        {"memory_mib": 513},
    ],
)
def test_what_does_not_fit_is_refused(need):
    assert refusal(target(**need)) is Refusal.WRONG_DEVICE


def test_memory_that_nobody_knows_is_no_reason():
    check(
        target(memory_mib=10**6),
        DeviceFacts("amd64", "litert", "2.3.1"),
        floor=0,
        blocked=(),
        quarantined=(),
    )


def test_the_first_broken_rule_is_the_reason():
    misfit = target(release_counter=1, architectures=("arm64",))
    everything = {"floor": 9, "blocked": {SHA256}, "quarantined": {SHA256}}

    assert refusal(misfit, **everything) is Refusal.BLOCKED
    assert refusal(misfit, **{**everything, "blocked": ()}) is Refusal.BELOW_FLOOR
    assert refusal(misfit, quarantined={SHA256}) is Refusal.QUARANTINED


@pytest.mark.parametrize(
    ("wanted", "version", "fits"),
    [
        ("litert", "0.1", True),
        ("litert>=2.3,<3", "2.3", True),
        ("litert>=2.3,<3", "2.3.0", True),
        ("litert>=2.3,<3", "2.10.1", True),
        ("litert>=2.3,<3", "2.2.9", False),
        ("litert>=2.3,<3", "3.0.0", False),
        ("litert >= 2.3 , < 3", "2.4", True),
        ("litert==2.3", "2.3.0", True),
        ("litert==2.3", "2.3.1", False),
        ("litert!=2.3.1", "2.3.1", False),
        ("litert<=2.3", "2.3.0", True),
        ("litert>2.3", "2.3.0", False),
        ("litert>=2.3", "2.4.0rc1", True),
        ("tflite>=2", "2.4", False),
    ],
)
def test_ranges_of_the_runtime(wanted, version, fits):
    assert runtime_fits(wanted, "litert", version) is fits


@pytest.mark.parametrize(
    "wanted", ["", ">=2", "litert>=", "litert>=2,", "litert~=2", "litert>=2.x", "litert 2", "L>=2"]
)
def test_what_is_no_range_is_said_so(wanted):
    with pytest.raises(ValueError, match=r"expected|no bound"):
        runtime_fits(wanted, "litert", "2.3")


def test_a_runtime_without_a_version_is_said_so():
    with pytest.raises(ValueError, match="expected a version"):
        runtime_fits("litert>=2", "litert", "unknown")
