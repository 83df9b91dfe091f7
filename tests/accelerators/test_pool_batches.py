"""Rows are put together only where a probe at load has shown that it changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from support import tflite_builder as models


async def max_batch(open_pool, model, **fields) -> int:
    return (await open_pool(model, **fields)).pool.report.max_batch


async def test_model_whose_rows_are_open_is_probed_by_itself(open_pool):
    assert await max_batch(open_pool, models.mlp()) == 8


async def test_model_with_fixed_rows_is_not_probed_by_itself(open_pool):
    assert await max_batch(open_pool, models.mlp(batch=1)) == 1


async def test_one_switches_the_probe_off(open_pool):
    assert await max_batch(open_pool, models.mlp(), max_batch=1) == 1


async def test_fixed_rows_may_be_more_where_the_probe_agrees(open_pool):
    model = models.mlp(batch=1)
    bench = await open_pool(model, max_batch=4)
    x = np.random.default_rng(0).random((4, 8), np.float32)

    together = (await bench.call(x=x))["probabilities"]
    alone = [(await bench.call(x=x[n : n + 1]))["probabilities"] for n in range(4)]

    assert bench.pool.report.max_batch == 4
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5)


@pytest.mark.parametrize(
    "model",
    [models.softmax_over_all(), models.anchors(), models.hog(1)],
    ids=["wrong numbers", "rows in one", "sum over rows"],
)
async def test_model_that_mixes_rows_is_never_batched(open_pool, model):
    assert await max_batch(open_pool, model, max_batch=4) == 1


async def test_stateful_model_is_never_batched(open_pool):
    assert await max_batch(open_pool, models.accumulator(), max_batch=4) == 1


async def test_outputs_of_a_probed_model_have_open_rows_too(open_pool):
    bench = await open_pool(models.gather(), max_batch=4)

    assert bench.pool.report.max_batch == 4
    assert bench.pool.report.signatures[0].outputs[0].shape == (1, 2)


async def test_model_answers_as_before_after_its_probe(open_pool):
    bench = await open_pool(models.softmax_over_all(), max_batch=4)

    answer = (await bench.call(x=np.zeros((1, 8), np.float32)))["back"]

    np.testing.assert_allclose(answer, 0.125)
