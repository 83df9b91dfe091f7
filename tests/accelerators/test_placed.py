"""A model runs on the best device there is, and on the CPU when that fails; no call is lost.

Devices are the stand-in delegate in C, which fails as real drivers do.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import tflite_builder as models
from support.eventually import eventually
from support.workers import worker_processes

from accelerators.base import LoadSpec, Origin
from accelerators.errors import InvokeFailed, ModelRefused, WorkerLost, WorkerUnavailable
from accelerators.hardware import Hardware
from accelerators.hosts import DeviceHosts
from accelerators.inventory import DeviceInventory
from accelerators.placed import PlacedPool
from accelerators.placement import Placement, Verdict
from accelerators.registry import HardwareSettings
from accelerators.trials import TrialBook
from accelerators.turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from accelerators.base import CallResult
    from accelerators.forkserver import ForkServer
    from accelerators.registry import External
    from accelerators.supervisor import WorkerEvent

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8)


@dataclass
class Placed:
    """A started pool and what it told."""

    pool: PlacedPool
    events: list[WorkerEvent] = field(default_factory=list)
    moves: list[tuple[str, str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def ask(self, **inputs: Any) -> CallResult:
        """As the daemon's queue does: a call that was not begun goes to the next worker."""
        name = self.pool.report.signatures[0].name
        for _ in range(10):
            await self.until(lambda: self.pool.free_slots > 0)
            try:
                return await asyncio.wait_for(self.pool.call(name, inputs), 60)
            except WorkerLost as lost:
                if lost.started:
                    raise
        raise AssertionError("a call is lost ten times")

    @property
    def verdicts(self) -> dict[str, Verdict]:
        return {trial.device: trial.verdict for trial in self.pool.trials}


@pytest.fixture
async def place(forkserver: ForkServer, tmp_path: Path) -> AsyncIterator[Any]:
    """Starts a pool for model bytes: `place(model, wishes, externals, ...)`."""
    opened: list[Placed] = []
    inventories: list[DeviceInventory] = []
    numbers = itertools.count()

    async def start(
        model: bytes,
        wishes: tuple[str, ...],
        externals: tuple[External, ...],
        *,
        samples: tuple[dict[str, Any], ...] = (),
        placement: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Placed:
        path = tmp_path / f"model-{next(numbers)}.tflite"
        path.write_bytes(model)
        inventory = DeviceInventory(HardwareSettings(externals=externals), forkserver)
        await inventory.start()
        inventories.append(inventory)
        hardware = Hardware(
            forkserver=forkserver,
            inventory=inventory,
            hosts=DeviceHosts(forkserver),
            turns=Turns(),
            trials=TrialBook(tmp_path / "trials.json"),
        )

        async def read_samples(_report: object) -> tuple[dict[str, Any], ...]:
            return samples

        placed: Placed

        def on_event(event: WorkerEvent) -> None:
            placed.events.append(event)
            placed.changed.set()

        def on_move() -> None:
            report = placed.pool.report
            placed.moves.append((report.device, report.degraded_reason))
            placed.changed.set()

        pool = PlacedPool(
            LoadSpec(path, **fields),
            Placement(wishes, **(placement or {})),
            forkserver,
            hardware=hardware,
            samples=read_samples,
            on_capacity=lambda: placed.changed.set(),  # noqa: PLW0108 (it is made after)
            on_event=on_event,
            on_move=on_move,
        )
        placed = Placed(pool)
        opened.append(placed)
        await pool.start()
        return placed

    yield start
    for placed in opened:
        await placed.pool.stop()
    for inventory in inventories:
        await inventory.stop()


async def test_device_that_agrees_runs_the_model_and_answers_say_so(place, standin):
    placed = await place(models.mlp(), ("external",), (standin.external(),))

    result = await placed.ask(x=X)

    assert result.origin == Origin("external:standin", "external", degraded=False)
    report = placed.pool.report
    assert (report.device, report.requested_device) == ("external:standin", "external")
    assert report.degraded_reason == ""
    assert report.coverage is not None
    trial = next(t for t in placed.pool.trials if t.device == "external:standin")
    assert trial.difference is not None
    assert trial.difference < 1e-5
    assert trial.latency_s > 0


async def test_slower_device_is_not_used_and_that_is_not_degraded(place, standin):
    slow = standin.external(delay_us=20_000)
    placed = await place(models.mlp(), ("external", "cpu"), (slow,))

    result = await placed.ask(x=X)

    assert result.origin == Origin("cpu", "external", degraded=False)
    assert placed.verdicts["external:standin"] is Verdict.AGREES


async def test_wrong_answers_are_never_served(place, standin):
    placed = await place(models.mlp(), ("external",), (standin.external(fail="wrong"),))

    result = await placed.ask(x=X)

    assert result.origin == Origin("cpu", "external", degraded=True)
    assert "differ from the CPU's by" in placed.pool.report.degraded_reason
    assert placed.verdicts["external:standin"] is Verdict.DIFFERS


async def test_tolerance_is_the_models_own(place, standin):
    placed = await place(
        models.mlp(),
        ("external",),
        (standin.external(fail="wrong"),),
        placement={"tolerance": 0.5},
    )
    assert placed.pool.report.device == "external:standin"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"claim": "none"}, "none of the model's"),
        ({"fail": "create"}, "standin:"),
        ({"fail": "prepare"}, "standin:"),
        ({"fail": "invoke"}, "standin:"),
        ({"fail": "crash-create"}, "SIGSEGV"),
        ({"fail": "crash-invoke"}, "SIGSEGV"),
        ({"fail": "nan"}, "differ"),
    ],
)
async def test_device_that_is_no_good_leaves_the_model_to_the_cpu(place, standin, options, why):
    placed = await place(models.mlp(), ("external",), (standin.external(**options),))

    result = await placed.ask(x=X)

    assert result.origin == Origin("cpu", "external", degraded=True)
    assert why in placed.pool.report.degraded_reason


async def test_device_that_hangs_leaves_the_model_to_the_cpu(place, standin):
    placed = await place(
        models.mlp(),
        ("external",),
        (standin.external(fail="hang-invoke"),),
        load_timeout_s=2.0,
    )
    assert (await placed.ask(x=X)).origin.device == "cpu"
    assert "did not come back within 2 s" in placed.pool.report.degraded_reason


async def test_required_device_that_is_no_good_is_a_refusal(place, standin):
    with pytest.raises(ModelRefused, match=r"placement.required asks for external.*differ"):
        await place(
            models.mlp(),
            ("external",),
            (standin.external(fail="wrong"),),
            placement={"required": True},
        )


async def test_required_device_that_is_away_may_come(place, standin, tmp_path):
    node = str(tmp_path / "node")
    with pytest.raises(WorkerUnavailable, match=r"placement.required asks for external"):
        await place(
            models.mlp(),
            ("external",),
            (standin.external(node=node),),
            placement={"required": True},
        )


async def test_without_any_such_device_the_cpu_serves_and_says_why(place):
    placed = await place(models.mlp(), ("external", "cpu"), ())

    result = await placed.ask(x=X)

    assert result.origin == Origin("cpu", "external", degraded=True)
    assert "no external delegate is named" in placed.pool.report.degraded_reason


@pytest.mark.parametrize("failure", ["invoke", "crash-invoke"])
async def test_device_that_fails_later_costs_no_call(place, standin, tmp_path, failure):
    trouble = tmp_path / "trouble"
    placed = await place(
        models.mlp(), ("external",), (standin.external(fail=failure, when=trouble),)
    )
    before = await placed.ask(x=X)
    trouble.touch()

    results = [await placed.ask(x=X) for _ in range(50)]

    assert {result.origin.device for result in results} == {"cpu"}
    assert all(result.origin.degraded for result in results)
    for result in results:
        np.testing.assert_allclose(
            result.outputs["probabilities"], before.outputs["probabilities"], atol=1e-6
        )
    assert placed.verdicts["external:standin"] is Verdict.FAILED
    trouble.unlink()
    await placed.until(lambda: placed.pool.report.device == "external:standin")
    assert not (await placed.ask(x=X)).origin.degraded


async def test_hanging_call_costs_itself_and_no_other(place, standin, tmp_path):
    trouble = tmp_path / "trouble"
    placed = await place(
        models.mlp(),
        ("external",),
        (standin.external(fail="hang-invoke", when=trouble),),
        call_timeout_s=0.5,
    )
    trouble.touch()
    name = placed.pool.report.signatures[0].name
    hung = placed.pool.call(name, {"x": X})
    behind = placed.pool.call(name, {"x": X})

    with pytest.raises(WorkerLost, match=r"took longer than 0\.5 s"):
        await asyncio.wait_for(hung, 60)
    with pytest.raises(WorkerLost) as lost:
        await asyncio.wait_for(behind, 60)
    assert lost.value.started is False
    assert (await placed.ask(x=X)).origin == Origin("cpu", "external", degraded=True)


async def test_answers_that_hold_nan_again_and_again_end_a_device(place, standin, tmp_path):
    trouble = tmp_path / "trouble"
    placed = await place(models.mlp(), ("external",), (standin.external(fail="nan", when=trouble),))
    trouble.touch()
    for _ in range(3):
        result = await placed.ask(x=X)
        assert np.isnan(result.outputs["probabilities"]).any()
        placed.pool.answered(result.origin, is_finite=False)

    await placed.until(lambda: placed.pool.report.device == "cpu")
    result = await placed.ask(x=X)

    assert result.origin == Origin("cpu", "external", degraded=True)
    assert np.isfinite(result.outputs["probabilities"]).all()


async def test_nan_that_the_cpu_gives_too_is_not_the_devices_fault(place, standin):
    placed = await place(models.mlp(), ("external",), (standin.external(),))
    huge = np.full_like(X, 3e38)
    for _ in range(9):
        result = await placed.ask(x=huge)
        finite = bool(np.isfinite(result.outputs["probabilities"]).all())
        assert not finite
        placed.pool.answered(result.origin, is_finite=finite)

    assert (await placed.ask(x=X)).origin.device == "external:standin"
    assert placed.verdicts["external:standin"] is Verdict.AGREES


async def test_many_bad_inputs_at_once_do_not_drive_a_model_off_its_device(place, standin):
    placed = await place(models.gather_scaled(), ("external",), (standin.external(),), instances=4)
    name = placed.pool.report.signatures[0].name
    bad = {"index": np.array([99], np.int32)}
    calls = [placed.pool.call(name, bad) for _ in range(placed.pool.free_slots)]
    assert len(calls) == 8

    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)

    assert {type(outcome) for outcome in outcomes} == {InvokeFailed}
    result = await placed.ask(index=np.array([1], np.int32))
    assert result.origin.device == "external:standin"


async def test_bad_inputs_do_not_take_a_required_model_down(place, standin):
    placed = await place(
        models.gather_scaled(), ("external",), (standin.external(),), placement={"required": True}
    )
    for _ in range(5):
        with pytest.raises(InvokeFailed):
            await placed.ask(index=np.array([99], np.int32))

    result = await placed.ask(index=np.array([1], np.int32))
    assert result.origin == Origin("external:standin", "external")
    assert placed.events == []


async def test_cpu_that_could_not_start_once_is_tried_again(place, standin, tmp_path):
    node = tmp_path / "node"
    node.touch()
    placed = await place(models.mlp(), ("external",), (standin.external(node=str(node)),))
    (file,) = tmp_path.glob("model-*.tflite")
    file.rename(tmp_path / "away")
    node.unlink()
    await placed.until(lambda: any(event.retry_in_s > 0 for event in placed.events))
    assert placed.pool.alive == 0

    (tmp_path / "away").rename(file)

    await placed.until(lambda: placed.pool.alive > 0)
    assert (await placed.ask(x=X)).origin == Origin("cpu", "external", degraded=True)


async def test_two_wishes_for_one_device_open_it_once(place, standin, tmp_path):
    trouble = tmp_path / "trouble"
    placed = await place(
        models.mlp(),
        ("external:standin", "external"),
        (standin.external(fail="invoke", when=trouble),),
    )
    workers = len(worker_processes())
    for _ in range(2):
        trouble.touch()
        assert (await placed.ask(x=X)).origin.device == "cpu"
        trouble.unlink()
        await placed.until(lambda: placed.pool.report.device == "external:standin")
    # The CPU's is spared for a while.
    await eventually(lambda: len(worker_processes()) <= workers + 1)


async def test_other_options_of_a_delegate_are_measured_anew(place, standin):
    first = await place(models.mlp(), ("external",), (standin.external(fail="wrong"),))
    assert first.pool.report.device == "cpu"
    await first.pool.stop()

    mended = await place(models.mlp(), ("external",), (standin.external(),))

    assert mended.pool.report.device == "external:standin"


async def test_call_that_cannot_be_handed_over_does_not_block_the_device(place, standin, tmp_path):
    device = standin.external(exclusive=True, lock=tmp_path / "lock")
    first = await place(models.scale(), ("external",), (device,), memory_mib=64)
    name = first.pool.report.signatures[0].name
    huge = np.ones((12 << 20, 4), np.float32)  # more than a slot may take

    with pytest.raises(InvokeFailed):
        await asyncio.wait_for(first.pool.call(name, {"x": huge}), 60)
    away = first.pool._away

    assert away is None or away.turn._device._line.running == 0


async def test_input_that_nothing_can_take_is_not_the_devices_fault(place, standin):
    placed = await place(models.gather_scaled(), ("external",), (standin.external(),))
    assert placed.pool.report.device == "external:standin"

    for _ in range(3):
        with pytest.raises(InvokeFailed):
            await placed.ask(index=np.array([99], np.int32))

    result = await placed.ask(index=np.array([1], np.int32))
    assert result.origin.device == "external:standin"
    np.testing.assert_array_equal(result.outputs["y"], [[4, 6]])
    assert placed.verdicts["external:standin"] is Verdict.AGREES


async def test_device_that_is_pulled_out_and_put_back(place, standin, tmp_path):
    node = tmp_path / "node"
    node.touch()
    placed = await place(models.mlp(), ("external",), (standin.external(node=str(node)),))
    for _ in range(2):
        assert (await placed.ask(x=X)).origin.device == "external:standin"
        node.unlink()
        await placed.until(lambda: placed.pool.report.device == "cpu")
        result = await placed.ask(x=X)
        assert result.origin == Origin("cpu", "external", degraded=True)
        node.touch()
        await placed.until(lambda: placed.pool.report.device == "external:standin")
    assert [device for device, _ in placed.moves][-1] == "external:standin"


async def test_what_was_measured_is_remembered(place, standin, tmp_path):
    calls = tmp_path / "calls"
    first = await place(models.mlp(), ("external",), (standin.external(calls=calls),))
    measured = calls.stat().st_size
    trial = next(t for t in first.pool.trials if t.device == "external:standin")
    await first.pool.stop()

    second = await place(models.mlp(), ("external",), (standin.external(calls=calls),))

    assert second.pool.report.device == "external:standin"
    assert calls.stat().st_size - measured < measured / 2  # it warmed up, and measured nothing
    assert trial in second.pool.trials


async def test_device_that_was_slower_is_not_opened_again(place, standin, tmp_path):
    calls = tmp_path / "calls"
    slow = standin.external(delay_us=20_000, calls=calls)
    first = await place(models.mlp(), ("external", "cpu"), (slow,))
    await first.pool.stop()
    before = calls.stat().st_size

    second = await place(models.mlp(), ("external", "cpu"), (slow,))

    assert second.pool.report.device == "cpu"
    assert calls.stat().st_size == before


async def test_model_that_keeps_state_stays_on_the_cpu(place, standin):
    placed = await place(models.accumulator(), ("external",), (standin.external(),))
    assert placed.pool.report.device == "cpu"
    assert "keeps state" in placed.pool.report.degraded_reason


async def test_samples_are_what_devices_are_compared_by(place, standin):
    placed = await place(
        models.mlp(), ("external",), (standin.external(),), samples=({"x": X}, {"x": 2 * X})
    )
    assert placed.pool.report.device == "external:standin"


async def test_damaged_file_is_refused_whatever_is_wished_for(place, standin):
    with pytest.raises(ModelRefused, match="not a TFLite model"):
        await place(b"garbage" * 10, ("external", "cpu"), (standin.external(),))


async def test_nothing_is_left_when_stopped_in_the_middle_of_a_move(place, standin, tmp_path):
    node = tmp_path / "node"
    node.touch()
    placed = await place(models.mlp(), ("external",), (standin.external(node=str(node)),))
    pending = placed.pool.call(placed.pool.report.signatures[0].name, {"x": X})
    node.unlink()
    await placed.until(lambda: placed.verdicts["external:standin"] is not Verdict.AGREES)
    await placed.pool.stop()
    await asyncio.wait([pending])
    assert placed.pool.alive == 0
