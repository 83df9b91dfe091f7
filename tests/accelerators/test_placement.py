"""Which device runs a model: the fastest wish that agrees, the CPU when none does, and why."""

from __future__ import annotations

import pytest

from accelerators.base import Device
from accelerators.placement import Decision, Placement, Trial, Verdict, absent, decide

CPU = Trial("cpu", Verdict.AGREES, latency_s=0.010)


def good(device: str, milliseconds: float) -> Trial:
    return Trial(device, Verdict.AGREES, latency_s=milliseconds / 1e3)


def bad(device: str, reason: str = "it is broken") -> Trial:
    return Trial(device, Verdict.FAILED, reason)


def test_fastest_of_the_wishes_wins_whatever_their_order():
    trials = {"edgetpu": [good("edgetpu:a", 4)], "gpu": [good("gpu", 2)]}
    for wishes in (("edgetpu", "gpu", "cpu"), ("cpu", "gpu", "edgetpu")):
        assert decide(Placement(wishes), trials, CPU) == Decision("gpu")


@pytest.mark.parametrize(("cpu_ms", "device"), [(1.85, "gpu"), (1.75, "cpu")])
def test_later_wish_must_be_a_tenth_faster(cpu_ms, device):
    decision = decide(Placement(("gpu", "cpu")), {"gpu": [good("gpu", 2)]}, good("cpu", cpu_ms))
    assert decision == Decision(device)


def test_cpu_competes_only_where_it_is_wished_for():
    slow = {"gpu": [good("gpu", 500)]}
    assert decide(Placement(("gpu",)), slow, CPU) == Decision("gpu")
    assert decide(Placement(("gpu", "cpu")), slow, CPU) == Decision("cpu")


def test_missed_wish_before_the_one_that_is_met_is_degraded():
    trials = {"edgetpu": [bad("edgetpu:a")], "gpu": [good("gpu", 2)]}
    decision = decide(Placement(("edgetpu", "gpu")), trials, CPU)
    assert decision == Decision("gpu", "edgetpu:a: it is broken")


def test_missed_wish_after_the_one_that_is_met_is_no_matter():
    trials = {"gpu": [good("gpu", 2)], "npu": [bad("npu")]}
    assert decide(Placement(("gpu", "npu")), trials, CPU) == Decision("gpu")


def test_slower_wish_is_not_a_missed_one():
    trials = {"gpu": [good("gpu", 50)]}
    assert decide(Placement(("gpu", "cpu")), trials, CPU) == Decision("cpu")


def test_cpu_takes_what_no_wish_can_and_every_reason_is_told():
    trials = {"edgetpu": [bad("edgetpu:a"), bad("edgetpu:b", "it is gone")], "npu": []}
    decision = decide(Placement(("edgetpu", "npu")), trials, CPU)
    assert decision.device == "cpu"
    assert decision.degraded_reason == (
        "edgetpu:a: it is broken; edgetpu:b: it is gone; npu: there is no such device"
    )


def test_one_good_device_of_several_meets_the_wish():
    trials = {"edgetpu": [bad("edgetpu:a"), good("edgetpu:b", 3)]}
    assert decide(Placement(("edgetpu",)), trials, CPU) == Decision("edgetpu:b")


@pytest.mark.parametrize("verdict", [each for each in Verdict if each is not Verdict.AGREES])
def test_nothing_but_agreement_runs_a_model(verdict):
    trials = {"gpu": [Trial("gpu", verdict, "why", latency_s=0.001)]}
    assert decide(Placement(("gpu",)), trials, CPU) == Decision("cpu", "gpu: why")


def test_required_wish_that_is_not_met_leaves_nothing():
    placement = Placement(("gpu",), required=True)
    assert decide(placement, {"gpu": [bad("gpu")]}, CPU) == Decision("", "gpu: it is broken")


def test_required_wishes_may_hold_the_cpu():
    placement = Placement(("gpu", "cpu"), required=True)
    assert placement.allows_cpu
    assert decide(placement, {}, CPU) == Decision("cpu", "gpu: there is no such device")


def test_file_that_the_cpu_cannot_run_says_so_too():
    cpu = Trial("cpu", Verdict.REFUSED, "it lacks an operator")
    decision = decide(Placement(("edgetpu",)), {"edgetpu": [bad("edgetpu:a")]}, cpu)
    assert decision == Decision("", "edgetpu:a: it is broken; cpu: it lacks an operator")


def test_reasons_together_are_bounded():
    trials = {"edgetpu": [bad(f"edgetpu:{n}", "x" * 100) for n in range(50)]}
    assert len(decide(Placement(("edgetpu",)), trials, CPU).degraded_reason) == 500


def test_device_that_is_away_has_its_problem_for_a_reason():
    trial = absent(Device("gpu", "gpu", problem="no driver"))
    assert (trial.verdict, trial.reason) == (Verdict.ABSENT, "no driver")


@pytest.mark.parametrize(
    ("wishes", "needs"), [(("cpu",), False), (("cpu", "gpu"), True), (("external:x",), True)]
)
def test_placement_knows_whether_it_needs_devices(wishes, needs):
    assert Placement(wishes).needs_devices is needs
