"""Real workers under load, and what is told of them."""

from __future__ import annotations

import asyncio
import os

import numpy as np
import pytest
from support import tflite_builder as build
from support.eventually import eventually
from support.tables import read_tables
from support.workers import worker_processes

from accelerators.forkserver import ForkServer
from daemon.cli.machine import Disturbance, look_at_machine, memory_of
from daemon.cli.measuring import LEAST_ANSWERS, NotMeasured, Stand
from daemon.cli.modelsource import find_source
from daemon.cli.outcome import CommandError
from daemon.cli.tuning import Outcome, Setting
from daemon.config import Config

SECONDS = 0.1
ONE = Setting(1, 1, 1)


@pytest.fixture
async def forkserver():
    server = ForkServer()
    await server.start()
    yield server
    await server.stop()
    assert worker_processes() == []


@pytest.fixture
def stand(forkserver, tmp_path):
    """Makes a stand for a model's bytes, with keys of `[defaults]` by name."""

    def make(data, **defaults):
        path = tmp_path / "model.tflite"
        path.write_bytes(data)
        config = read_tables(Config, {"models": {"folders": []}, "defaults": defaults})
        return Stand(find_source(str(path), config), forkserver)

    return make


def row(width):
    return {"x": np.ones((1, width), np.float32)}


async def test_every_answer_of_the_time_is_counted(stand):
    figures = await stand(build.mlp()).measure(Setting(1, 1, 4), [row(8)], 8, SECONDS)

    assert figures.answers >= LEAST_ANSWERS
    assert 0 < figures.p50_ms <= figures.p99_ms
    assert figures.rows_per_s > 0


async def test_more_instances_are_more_workers_that_take_more_memory(stand):
    at = stand(build.mlp())

    one = await at.measure(ONE, [row(8)], 2, SECONDS)
    three = await at.measure(Setting(3, 1, 1), [row(8)], 2, SECONDS)

    assert 0 < one.memory_bytes < three.memory_bytes


async def test_a_request_that_may_wait_for_others_waits(stand):
    patient = Setting(1, 1, 8, 20.0)

    figures = await stand(build.mlp()).measure(patient, [row(8)], 1, SECONDS)

    assert figures.p50_ms >= 20.0
    assert figures.answers >= LEAST_ANSWERS


async def test_a_setting_without_an_answer_in_its_time_is_measured_for_longer(stand):
    patient = Setting(1, 1, 8, 20.0)

    figures = await stand(build.mlp()).measure(patient, [row(8)], 1, 0.01)

    assert figures.answers >= LEAST_ANSWERS


async def test_batches_that_are_not_proven_are_not_measured(stand):
    with pytest.raises(NotMeasured, match="4 rows") as caught:
        await stand(build.softmax_over_all()).measure(Setting(1, 1, 4), [row(8)], 4, SECONDS)

    assert caught.value.outcome is Outcome.UNPROVEN


async def test_a_model_that_needs_more_than_it_may_take_is_not_measured(stand):
    with pytest.raises(NotMeasured, match="32 MiB") as caught:
        await stand(build.hog(200), memory_mib=32).measure(ONE, [row(1024)], 1, SECONDS)

    assert caught.value.outcome is Outcome.MEMORY


async def test_an_input_that_the_model_fails_on_ends_the_run_with_its_reason(stand):
    wrong = {"x": np.ones((1, 1024), np.float32), "tiles": np.array([-1, 1], np.int32)}

    with pytest.raises(NotMeasured, match="failed on this input") as caught:
        await stand(build.hog(1, on_call=True)).measure(ONE, [wrong], 1, SECONDS)

    assert caught.value.outcome is Outcome.FAILED


async def test_a_worker_that_dies_ends_the_run_with_its_reason(stand):
    run = asyncio.create_task(stand(build.mlp()).measure(ONE, [row(8)], 4, 60.0))
    await eventually(worker_processes)
    (worker,) = worker_processes()
    await eventually(lambda: worker.cpu_times().user > 0.02)  # it has loaded and answers

    worker.kill()

    with pytest.raises(NotMeasured, match="a worker died under load"):
        await run


async def test_a_measurement_that_is_broken_off_leaves_no_worker(stand):
    run = asyncio.create_task(stand(build.mlp()).measure(ONE, [row(8)], 4, 60.0))
    await eventually(worker_processes)

    run.cancel()

    with pytest.raises(asyncio.CancelledError):
        await run
    assert worker_processes() == []


async def test_a_first_look_finds_out_what_can_be_tried(stand):
    look = await stand(build.mlp(batch=1)).look()

    assert look.report.max_batch == 1
    assert look.can_batch
    assert look.load_s > 0
    assert look.memory_bytes > 0


async def test_a_first_look_at_a_model_whose_rows_mix_finds_no_batches(stand):
    assert not (await stand(build.softmax_over_all()).look()).can_batch


async def test_a_first_look_at_a_stateful_model_finds_no_batches(stand):
    look = await stand(build.accumulator()).look()

    assert look.report.stateful
    assert not look.can_batch


async def test_a_model_that_cannot_be_served_is_refused_with_the_reason(stand):
    with pytest.raises(CommandError, match=r"cannot be served: .*not a TFLite model"):
        await stand(b"no model at all").look()


async def test_a_model_is_measured_in_workers_whatever_its_isolation(stand):
    at = stand(build.mlp(), isolation="thread")

    assert (await at.measure(ONE, [row(8)], 1, SECONDS)).memory_bytes > 0


async def test_inputs_that_the_model_answers_are_not_refused(stand):
    assert await stand(build.mlp()).why_refused(row(8)) == ""


async def test_inputs_that_the_model_does_not_answer_are_refused_with_its_reason(stand):
    wrong = {"x": np.ones((1, 1024), np.float32), "tiles": np.array([-1, 1], np.int32)}

    assert "failed" in await stand(build.hog(1, on_call=True)).why_refused(wrong)


def test_memory_of_a_process_that_is_gone_is_nothing():
    assert memory_of([2**22 + 1]) == 0
    assert memory_of([os.getpid()]) > 2**20


def test_what_others_take_is_a_share():
    others = Disturbance([])

    assert 0 <= others.percent() <= 100


def test_a_machine_has_processors_and_memory():
    machine = look_at_machine()

    assert machine.processors >= 1
    assert machine.available_bytes > 0
    assert 0 <= machine.busy_percent <= 100
