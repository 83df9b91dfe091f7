"""A model that cannot be served is refused with the stage and a reason a person understands."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from support import tflite_builder as models

from accelerators.base import Device, Isolation
from accelerators.errors import LoadStage, ModelRefused


async def refusal(open_pool, model, **fields) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        await open_pool(model, **fields)
    assert len(caught.value.reason) <= 500
    return caught.value


async def test_missing_file(open_pool, tmp_path):
    refused = await refusal(open_pool, tmp_path / "no.tflite")

    assert refused.stage is LoadStage.READ
    assert "no.tflite: No such file or directory" in refused.reason


async def test_folder(open_pool, tmp_path):
    refused = await refusal(open_pool, tmp_path)

    assert (refused.stage, "Is a directory" in refused.reason) == (LoadStage.READ, True)


async def test_empty_file(open_pool):
    refused = await refusal(open_pool, b"")

    assert (refused.stage, "empty" in refused.reason) == (LoadStage.PARSE, True)


async def test_garbage(open_pool):
    refused = await refusal(open_pool, b"this is not a model at all")

    assert refused.stage is LoadStage.PARSE
    assert "not a valid Flatbuffer" in refused.reason


async def test_edgetpu_file_on_the_cpu_says_what_to_name_instead(open_pool):
    refused = await refusal(open_pool, models.custom("edgetpu-custom-op"))

    assert refused.stage is LoadStage.ALLOCATE
    assert "compiled for the Edge TPU" in refused.reason
    assert "name the file it was compiled from as placement.cpu_model" in refused.reason


async def test_custom_operator_is_named(open_pool):
    refused = await refusal(open_pool, models.custom("MyOwnOp"))

    assert refused.stage is LoadStage.ALLOCATE
    assert "unresolved custom op: MyOwnOp" in refused.reason


async def test_tensorflow_operators_are_named(open_pool):
    refused = await refusal(open_pool, models.custom("FlexErf"))

    assert refused.stage is LoadStage.ALLOCATE
    assert "Erf" in refused.reason
    assert "Select TensorFlow op" in refused.reason


async def test_single_string_input(open_pool):
    refused = await refusal(open_pool, models.strings(()))

    assert refused.stage is LoadStage.ALLOCATE
    assert "single string" in refused.reason


async def test_model_that_needs_more_memory_than_it_may_take(open_pool):
    refused = await refusal(open_pool, models.hog(512), memory_mib=128)

    assert refused.stage is LoadStage.ALLOCATE
    assert "more than the 128 MiB of memory" in refused.reason


async def test_same_model_with_enough_memory_is_served(open_pool, ones):
    bench = await open_pool(models.hog(64), memory_mib=256)

    assert (await bench.call(x=ones(1, 1024)))["y"][0, 0] == 64 * 256


async def test_first_invocation_that_never_ends(open_pool):
    refused = await refusal(open_pool, models.hangs_while_at_most(1.0), load_timeout_s=1.0)

    assert refused.stage is LoadStage.PROCESS
    assert "did not come back within 1 s during the first invocation" in refused.reason


async def test_model_that_hangs_on_zero_alone_is_served(open_pool):
    bench = await open_pool(models.hangs_while_at_most(0.0))

    assert (await bench.call(x=np.array([3], np.float32)))["y"].tolist() == [3]


async def test_device_of_an_unknown_kind(open_pool):
    refused = await refusal(open_pool, models.scale(), device=Device("quantum:1", "quantum"))

    assert refused.stage is LoadStage.ALLOCATE
    assert refused.reason == "there is no kind 'quantum'"


async def test_device_in_a_thread_of_the_daemon(open_pool, standin):
    device = standin.device("dsp")

    refused = await refusal(open_pool, models.scale(), device=device, isolation=Isolation.THREAD)

    assert refused.stage is LoadStage.OPEN
    assert "external:dsp needs a process of its own" in refused.reason


async def test_refusal_leaves_the_fork_server_to_others(open_pool, ones):
    await refusal(open_pool, b"garbage")

    bench = await open_pool(models.scale())

    assert (await bench.call(x=ones(1, 4)))["y"].shape == (1, 4)


async def test_damaged_metadata_does_not_stop_the_model(open_pool):
    packed = models.metadata([], [])[:12]
    bench = await open_pool(models.with_metadata(packed, {}))

    assert bench.pool.report.metadata.outputs == ()
    assert "metadata is damaged" in bench.pool.report.notes[0]


def mutations(count: int) -> list[bytes]:
    """Damaged copies of two models: cut, flipped and overwritten, the same ones each time."""
    rng = random.Random(20240607)
    originals = [models.mlp((8, 4)), models.counter()]
    damaged = []
    for number in range(count):
        data = bytearray(originals[number % 2])
        kind = number % 3
        if kind == 0:
            del data[rng.randrange(len(data)) :]
        elif kind == 1:
            for _ in range(rng.randrange(1, 5)):
                data[rng.randrange(8, len(data))] ^= 1 << rng.randrange(8)
        else:
            at = rng.randrange(8, len(data) - 4)
            struct.pack_into("<I", data, at, rng.choice([0, 1, 2**31 - 1, 2**32 - 1]))
        damaged.append(bytes(data))
    return damaged


async def test_damaged_files_never_hurt_a_good_neighbour(open_pool, save, ones, tmp_path):
    good = tmp_path / "good.tflite"
    good.write_bytes(models.scale())
    neighbour = await open_pool(good)
    pids = neighbour.pool.pids
    served = refused = 0

    for data in mutations(60):
        try:
            bench = await open_pool(data, load_timeout_s=10.0, memory_mib=256)
        except ModelRefused:
            refused += 1
        else:
            served += 1
            await bench.pool.stop()
        assert (await neighbour.call(x=ones(1, 4)))["y"].tolist() == [[2, 2, 2, 2]]

    assert neighbour.pool.pids == pids
    assert refused > 20
    assert served + refused == 60
