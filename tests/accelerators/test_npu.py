"""Models on an NPU by way of OpenVINO, whose plug-in for the CPU stands in for the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import tflite_builder as build
from support.accelerated import OPENVINO_CPU, in_child, largest_difference, need_openvino

from accelerators import npu
from accelerators.base import Device
from accelerators.driverlook import ask_driver
from accelerators.errors import ModelRefused
from accelerators.registry import HardwareSettings

STEPS = 9  # of 255: OpenVINO reckons with 16 bits where the processor can
REALS = 0.02


@pytest.fixture(autouse=True)
def openvino() -> None:
    need_openvino()


@pytest.mark.shared
async def test_pictures_get_the_cpus_answers(open_pool, shared_models):
    path = shared_models / "models" / "mobilenet_v2_1.0_224_quant.tflite"
    on_npu, on_cpu = await open_pool(path, device=OPENVINO_CPU), await open_pool(path)
    pictures = sorted((shared_models / "golden").glob("mnv2_quant-*.input.npy"))

    assert on_npu.pool.report.device == "npu"
    coverage = on_npu.pool.report.coverage
    assert (coverage.operators, coverage.claimed, coverage.partitions) == (66, 66, 1)
    assert {"ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "SOFTMAX"} <= set(coverage.taken)
    assert pictures
    for picture in pictures:
        inputs = {"input": np.load(picture)}
        ours, theirs = await on_npu.call(**inputs), await on_cpu.call(**inputs)
        assert largest_difference(ours, theirs) <= STEPS
        assert [v.argmax() for v in ours.values()] == [v.argmax() for v in theirs.values()]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            "yamnet_classifier_meta",
            "takes 45 of the model's 47 operators, not: RFFT2D, COMPLEX_ABS",
        ),
        ("mobilenet_v1_0.25_224_float_meta", "takes 30 of the model's 31 operators, not: SQUEEZE"),
        ("multi_signature_add_mul_sub", "compiles one piece for OpenVINO's CPU"),
        ("deeplabv3_mnv2_dm05_pascal_quant", "'ArgMax' is INT64, and the NPU can have"),
    ],
)
async def test_what_it_does_not_take_is_named(open_pool, shared_models, model, reason):
    with pytest.raises(ModelRefused, match=reason):
        await open_pool(shared_models / "models" / f"{model}.tflite", device=OPENVINO_CPU)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (build.strings(), "'a' is BYTES, and the NPU can have"),
        (build.free_picture(), r"inputs have open ones \(\[-1, -1, -1, 3\]\)"),
        (build.repeat(), "the size of output 'y' is not known before it is there"),
        (build.custom("edgetpu-custom-op"), "compiled for the Edge TPU"),
        (build.accumulator(), "keeps variables"),
        (b"\x1c\0\0\0TFL3" + bytes(range(256)), "Flatbuffer"),
    ],
    ids=["strings", "open", "dynamic", "edgetpu", "stateful", "damaged"],
)
async def test_what_it_cannot_run_is_refused_in_plain_words(open_pool, model, reason):
    with pytest.raises(ModelRefused, match=reason):
        await open_pool(model, device=OPENVINO_CPU)


async def test_rows_are_run_one_by_one_where_they_stand_alone(open_pool):
    """The device itself goes on with the number of rows it was compiled for, without a word."""
    bench = await open_pool(build.mlp(), device=OPENVINO_CPU)
    on_cpu = await open_pool(build.mlp())
    assert bench.pool.report.max_batch == 8
    assert bench.pool.report.signatures == on_cpu.pool.report.signatures

    for rows in (1, 5, 2, 8, 1):
        x = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
        assert largest_difference(await bench.call(x=x), await on_cpu.call(x=x)) < REALS


async def test_rows_that_depend_on_each_other_are_not_taken_apart(open_pool):
    with pytest.raises(ModelRefused, match="convert the model with fixed sizes"):
        await open_pool(build.mixed_rows(), device=OPENVINO_CPU)


async def test_two_inputs_with_different_rows_are_refused_and_the_next_call_is_good(open_pool):
    bench = await open_pool(build.sum_of_two(), device=OPENVINO_CPU)
    one, two = np.ones((1, 4), np.float32), np.ones((2, 4), np.float32)

    with pytest.raises(Exception, match="different numbers of rows"):
        await bench.call(a=one, b=two)

    np.testing.assert_array_equal((await bench.call(a=two, b=two))["y"], 2 * two)


def test_made_and_dropped_many_times_nothing_piles_up(save):
    first, last = in_child(
        """
import gc, json, os, sys
import numpy as np
from accelerators.base import Device
from accelerators.npu import open_compiled
from accelerators.outline import Outline

def used():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    return [pages * 4 // 1024, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))]

kept = []
device = Device("npu", "npu", options=(("openvino_device", "cpu"),))
for number in range(20):
    runner = open_compiled(sys.argv[1], 1, device)
    (entry,), _ = runner.entries(Outline(inputs=((0,),), outputs=((1,),)))
    runner.allocate(entry)
    runner.run(entry, [np.ones((1, 8), np.float32)])
    del runner
    kept.append(used())
print(json.dumps([kept[4], kept[-1]]))
""",
        save(build.mlp(batch=1)),
    )

    assert last[0] - first[0] < 30, "MiB in 15 rounds"
    assert last[1] <= first[1]
    assert last[2] <= first[2]


async def test_a_worker_gets_by_with_what_the_kind_says_of_its_driver(open_pool):
    bench = await open_pool(build.mlp(), device=OPENVINO_CPU, memory_mib=32 + npu.MEMORY_MIB)

    assert (await bench.call(x=np.ones((1, 8), np.float32)))["probabilities"].shape == (1, 4)


async def test_openvino_tells_what_it_drives(forkserver):
    (found,) = npu.find(HardwareSettings(openvino_device="cpu"))
    looked = await ask_driver(found, forkserver)

    assert found.problem == ""
    assert looked.up
    assert looked.name.endswith("the CPU by way of OpenVINO")
    assert looked.driver.startswith("OpenVINO 2026.")


@pytest.mark.skipif(any(Path("/dev/accel").glob("accel*")), reason="an NPU is here")
async def test_where_no_npu_is_a_look_and_a_worker_say_so(forkserver, open_pool):
    absent = Device("npu", "npu", options=(("openvino_device", "npu"),))

    looked = await ask_driver(absent, forkserver)

    assert looked.problem.startswith("OpenVINO finds no NPU (it finds: CPU")
    assert looked.next_step
    with pytest.raises(ModelRefused, match="OpenVINO cannot compile the model for its NPU"):
        await open_pool(build.mlp(), device=absent)


@pytest.mark.parametrize(
    ("wanted", "paths", "problem"),
    [
        ("npu", [], "no NPU is here: there is no /dev/accel/accel0"),
        ("gpu", [], "no GPU is here: there is no /dev/dri/renderD0"),
        (
            "npu",
            ["sys/class/accel/accel0"],
            "the kernel has the NPU, and this service is not let in",
        ),
        ("npu", ["sys/class/accel/accel0", "dev/accel/accel0"], ""),
        ("cpu", [], ""),
    ],
)
def test_what_files_tell(tmp_path, wanted, paths, problem):
    for each in paths:
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).touch()

    (device,) = npu.find(HardwareSettings(openvino_device=wanted, root=tmp_path))

    assert (device.id, device.kind) == ("npu", "npu")
    assert problem in device.problem
    assert bool(device.problem) == bool(problem) == bool(device.next_step)
    assert dict(device.options) == {"openvino_device": wanted}
