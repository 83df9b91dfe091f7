"""Tryouts: what is known of one model on each device it may have, and what is found out next.

A device is examined (accelerators/examination.py) when it is wished for and here, once: what was
measured counts until its driver, the runtime or the file changes. After a failure what was measured
counts no more, and the device is examined anew after a while that grows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from accelerators.backoff import Backoff
from accelerators.errors import LoadStage, ModelRefused, WorkerUnavailable
from accelerators.examination import examine
from accelerators.placement import CPU_TRIED, Decision, Trial, Verdict, absent, decide
from accelerators.trials import trial_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from accelerators.away import Away
    from accelerators.base import Device, ModelReport
    from accelerators.examination import Reference
    from accelerators.hardware import Hardware
    from accelerators.placement import Placement

_log = logging.getLogger(f"inferd.{__name__}")

_AGAIN_LEAST_S, _AGAIN_MOST_S = 1.0, 10.0
"""Before a device that has served and failed is tried again; it doubles with quick failures."""

_REFUSED_AGAIN_S = 600.0
"""Before one that does not take the model is asked again, and at most for one that never served:
somebody may have mended its driver."""

_REASON_MAX = 500


class Tryouts:
    """See above. For use on the event loop only."""

    def __init__(
        self,
        placement: Placement,
        hardware: Hardware,
        open_: Callable[[Device], Awaitable[Away]],
        *,
        digest: str,
        report: ModelReport | None,
        reference: Reference | None,
        time_limit_s: float,
    ) -> None:
        """Store only.

        Args:
            open_: gives a started pool; raises ModelRefused, WorkerUnavailable.
            digest: of the file that devices run.
            report: of the CPU; None where the CPU cannot run the model.
            reference: what the CPU answers; None with `report`.
            time_limit_s: for the calls of one examination.
        """
        self._placement = placement
        self._hardware = hardware
        self._open = open_
        self._digest = digest
        self._report = report
        self._reference = reference
        self._time_limit_s = time_limit_s
        self._cpu = reference.cpu if reference else CPU_TRIED
        self._trials: dict[str, Trial] = {}
        self._due: dict[str, float] = {}  # monotonic; when one that failed may be tried again
        self._backoffs: dict[str, Backoff] = {}

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Of each device, the CPU first."""
        return (self._cpu, *self._trials.values())

    @property
    def may_pass(self) -> bool:
        """Whether a device that is not to be had now may be had later."""
        passing = (Verdict.ABSENT, Verdict.FAILED, Verdict.UNTRIED)
        return any(trial.verdict in passing for trial in self._trials.values())

    def decide(self) -> Decision:
        """Where the model is to run, by what is known."""
        known = {
            wish: [trial for trial in self._trials.values() if _is_of(trial.device, wish)]
            for wish in self._placement.accelerators
        }
        return decide(self._placement, known, self._cpu)

    def refuse_cpu(self, reason: str) -> None:
        """The CPU cannot run the model."""
        self._cpu = Trial("cpu", Verdict.REFUSED, reason[:_REASON_MAX])

    def failed(self, device_id: str, reason: str, *, lived_s: float) -> None:
        """A device has failed that has served for so many seconds."""
        self._trials[device_id] = Trial(device_id, Verdict.FAILED, reason[:_REASON_MAX])
        self._put_off(device_id, longest_s=_AGAIN_MOST_S, lived_s=lived_s)

    def changed(self, device_ids: frozenset[str]) -> None:
        """The kernel or the driver says something new: what was wrong may be mended."""
        soon = time.monotonic() + _AGAIN_MOST_S
        for device_id in device_ids & self._due.keys():
            self._due[device_id] = min(self._due[device_id], soon)

    def due_in_s(self, since: float) -> float | None:
        """Seconds until something is to be tried again; None when nothing is.

        Args:
            since: when `examine` was begun last, monotonic seconds: what has become due meanwhile
                was not examined, and is due at once.
        """
        first = min((at for at in self._due.values() if at > since), default=None)
        return None if first is None else max(0.0, first - time.monotonic())

    async def examine(self, serving: str, candidates: dict[str, Away]) -> None:
        """Examine what is due.

        Args:
            serving: id of the device that serves now, which is not examined while it is up.
            candidates: gets a started pool for each device that was examined and agrees; the
                caller closes them.
        """
        for wish in self._placement.accelerators:
            if wish != "cpu":
                await self._examine_wish(wish, serving, candidates)

    async def reopen(self, device_id: str) -> Away | None:
        """A pool on a device that was measured before; None when it does not open any more."""
        here = [d for d in self._hardware.inventory.devices() if d.id == device_id]
        if not here or not here[0].up:
            self._trials.pop(device_id, None)
            return None
        try:
            return await self._open(here[0])
        except (ModelRefused, WorkerUnavailable) as exc:
            self._hardware.trials.forget(self._key(here[0]))
            self._trials[device_id] = self._refused(here[0], exc)
            return None

    async def _examine_wish(self, wish: str, serving: str, candidates: dict[str, Away]) -> None:
        """Examine a wish's devices until one will do."""
        devices = self._hardware.inventory.of_kind(wish)
        gone = {id_ for id_ in self._trials if _is_of(id_, wish)} - {d.id for d in devices}
        for device_id in gone:
            del self._trials[device_id]
        for device in devices:
            is_known = device.id in candidates or (device.id == serving and device.up)
            if not is_known:
                self._trials[device.id] = await self._trial(device, candidates)
            if self._trials[device.id].verdict is Verdict.AGREES:
                return

    async def _trial(self, device: Device, candidates: dict[str, Away]) -> Trial:
        """What is known of a device, or is found out now."""
        if (known := self._known(device)) is not None:
            return known
        self._trials.setdefault(device.id, Trial(device.id, Verdict.UNTRIED, "it is being tried"))
        try:
            away = await self._open(device)
        except (ModelRefused, WorkerUnavailable) as exc:
            return self._refused(device, exc)
        try:
            trial = await self._examine(away)
        except BaseException:
            await away.close()
            raise
        self._hardware.trials.put(self._key(device), trial)
        trial = self._judge(trial)
        if trial.verdict is Verdict.AGREES:
            self._due.pop(device.id, None)
            candidates[device.id] = away
            return trial
        await away.close()
        self._tell_not_used(trial, passes=trial.verdict is Verdict.FAILED)
        return trial

    def _known(self, device: Device) -> Trial | None:
        """What counts already; None when the device is to be examined."""
        if not device.up:
            return absent(device)
        if time.monotonic() < self._due.get(device.id, 0.0):
            known = self._trials.get(device.id)
            if known is not None and known.verdict is not Verdict.ABSENT:
                return known
            return Trial(device.id, Verdict.FAILED, "it has failed and is tried again soon")
        remembered = self._hardware.trials.get(self._key(device))
        if remembered is None or device.id in self._backoffs:
            return None
        return self._judge(remembered)

    def _refused(self, device: Device, error: ModelRefused | WorkerUnavailable) -> Trial:
        """It does not take the model, or not now."""
        passes = isinstance(error, WorkerUnavailable) or error.stage is LoadStage.PROCESS
        trial = Trial(device.id, Verdict.FAILED if passes else Verdict.REFUSED, error.reason)
        self._tell_not_used(trial, passes=passes)
        return trial

    def _tell_not_used(self, trial: Trial, *, passes: bool) -> None:
        if passes:
            self._put_off(trial.device, longest_s=_REFUSED_AGAIN_S, lived_s=0.0)
        else:
            self._due[trial.device] = time.monotonic() + _REFUSED_AGAIN_S
        _log.warning("device not used device=%s reason=%s", trial.device, trial.reason)

    async def _examine(self, away: Away) -> Trial:
        cases = self._reference.cases if self._reference else ()
        try:
            async with asyncio.timeout(self._time_limit_s):
                return await examine(away.call, away.pool.report, cases, expected=self._report)
        except TimeoutError:
            reason = f"it was not done with its trial after {self._time_limit_s:g} s"
            return Trial(away.device.id, Verdict.FAILED, reason)

    def _judge(self, trial: Trial) -> Trial:
        """By the tolerance of now: what was measured may have been so with another."""
        if trial.difference is None:
            return trial
        if trial.difference <= self._placement.tolerance:
            return replace(trial, verdict=Verdict.AGREES, reason="")
        reason = (
            f"its answers differ from the CPU's by {trial.difference:.2%} of their range, "
            f"placement.tolerance allows {self._placement.tolerance:.2%}"
        )
        return replace(trial, verdict=Verdict.DIFFERS, reason=reason)

    def _put_off(self, device_id: str, *, longest_s: float, lived_s: float) -> None:
        """Try a device again after a while that grows while failures come quickly."""
        backoff = self._backoffs.setdefault(device_id, Backoff())
        delay_s = max(_AGAIN_LEAST_S, backoff.delay_s(lived_s, longest_s=longest_s))
        self._due[device_id] = time.monotonic() + delay_s

    def _key(self, device: Device) -> str:
        cpu_digest = self._report.digest if self._report else ""
        runtime = self._report.runtime if self._report else ""
        return trial_key(self._digest, cpu_digest, runtime, device)


def _is_of(device_id: str, wish: str) -> bool:
    """Whether a device is one of those that a wish means."""
    return device_id == wish or device_id.startswith(f"{wish}:")
