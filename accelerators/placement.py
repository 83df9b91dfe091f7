"""Placement: which of the devices that a model may have is to run it. Pure.

1. A device counts when it is here, takes the model, and its answers agree with the CPU's.
2. Of those that are wished for, the fastest runs the model. A device that is not faster by a tenth
   is not worth leaving an earlier wish for.
3. The CPU is also what runs the model when no wish can be met, unless the operator requires one.
4. It is degraded when a wish before the one that is met could not be met; a wish that is only
   slower was met well enough to be measured, and nothing is amiss.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path  # noqa: TC003 (dataclass fields are evaluated by tools)
from typing import TYPE_CHECKING

from accelerators.base import Coverage  # noqa: TC001 (as Path)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from accelerators.base import Device

_WORTH = 0.9
"""Of an earlier wish's time, below which a later one is worth taking."""

_REASON_MAX = 500


@dataclass(frozen=True, slots=True)
class Placement:
    """What an operator wishes.

    Attributes:
        accelerators: kinds, or "external:NAME", in order of wish; never empty.
        required: only these may run the model.
        tolerance: largest difference of an answer from the CPU's, as a share of the range of each
            output; 0..1.
        cpu_model: the file that the CPU runs; None for the model's own.
    """

    accelerators: tuple[str, ...] = ("cpu",)
    required: bool = False
    tolerance: float = 0.05
    cpu_model: Path | None = None

    @property
    def needs_devices(self) -> bool:
        """Whether anything but the CPU is wished for."""
        return any(wish != "cpu" for wish in self.accelerators)

    @property
    def allows_cpu(self) -> bool:
        """Whether the CPU may run the model when nothing else can."""
        return not self.required or "cpu" in self.accelerators


class Verdict(Enum):
    """What a trial of a device has shown."""

    AGREES = "agrees"  # it may run the model
    DIFFERS = "differs"  # its answers are not the CPU's
    REFUSED = "refused"  # it does not take the model
    FAILED = "failed"  # it crashed, hung or failed, on trial or later
    ABSENT = "absent"  # it is not here, or cannot be used
    UNTRIED = "untried"  # nothing is known yet


@dataclass(frozen=True, slots=True)
class Trial:
    """What is known of one model on one device.

    Attributes:
        device: its id.
        reason: in one sentence, where it may not run the model; "" where it may.
        latency_s: median of a call in the worker; 0 when not measured.
        memory_bytes: of the worker; 0 when not known.
        difference: largest from the CPU's answers, as a share of the range; None when not compared.
    """

    device: str
    verdict: Verdict
    reason: str = ""
    latency_s: float = 0.0
    memory_bytes: int = 0
    difference: float | None = None
    coverage: Coverage | None = None


CPU_TRIED = Trial("cpu", Verdict.AGREES)
"""Of a CPU that needs no trial."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a model is to run.

    Attributes:
        device: id; "" when nothing may run it.
        degraded_reason: why an earlier wish is not met; "" when none is missed.
    """

    device: str
    degraded_reason: str = ""


def decide(placement: Placement, trials: Mapping[str, Sequence[Trial]], cpu: Trial) -> Decision:
    """Choose by the rules above.

    Args:
        trials: by wish, of each of its devices; a wish that is not there has none.
        cpu: of the CPU.
    """
    chosen: Trial | None = None
    missed: list[str] = []
    missed_before: list[str] = []
    for wish in placement.accelerators:
        known = (cpu,) if wish == "cpu" else trials.get(wish, ())
        good = [trial for trial in known if trial.verdict is Verdict.AGREES]
        if not good:
            missed.append(_why(wish, known))
            continue
        best = min(good, key=lambda trial: trial.latency_s)
        if chosen is None or best.latency_s < chosen.latency_s * _WORTH:
            chosen, missed_before = best, list(missed)
    if chosen is None and placement.allows_cpu and cpu.verdict is Verdict.AGREES:
        chosen, missed_before = cpu, missed
    if chosen is None:
        if placement.allows_cpu and "cpu" not in placement.accelerators:
            missed.append(_why("cpu", (cpu,)))
        return Decision("", _joined(missed))
    return Decision(chosen.device, _joined(missed_before))


def absent(device: Device) -> Trial:
    """Of a device that cannot be used now."""
    return Trial(device.id, Verdict.ABSENT, device.problem)


def _why(wish: str, trials: Sequence[Trial]) -> str:
    """Why a wish is not met; with several devices, what is wrong with each."""
    if not trials:
        return f"{wish}: there is no such device"
    reasons = dict.fromkeys(f"{trial.device}: {trial.reason}" for trial in trials)
    return "; ".join(reasons)


def _joined(reasons: Sequence[str]) -> str:
    return "; ".join(reasons)[:_REASON_MAX]
