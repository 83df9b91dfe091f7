"""Models on a GPU: SwiftShader's, or with INFERD_TEST_GPU=real the machine's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tflite_builder as build
from support.accelerated import GPU, REAL_GPU, gpu_environment, in_child, largest_difference

from accelerators import gpu
from accelerators.base import Device, Isolation
from accelerators.driverlook import ask_driver
from accelerators.errors import InvokeFailed, LoadStage, ModelRefused, WorkerLost
from accelerators.registry import HardwareSettings
from accelerators.vulkan import NoVulkan, list_adapters

STEPS = 9  # of 255: kernels that reckon with reals round otherwise than those with whole numbers
SOFTWARE = os.environ.get(REAL_GPU) != "real"
LOOK_AND_OPEN = """
import json, sys
from accelerators import gpu
from accelerators.base import Device
from accelerators.interpreter import DeviceFailure
from accelerators.outline import Outline

looked = gpu.look(Device("gpu", "gpu"))
opened = ""
try:
    gpu.open_compiled(sys.argv[1], 1, Device("gpu", "gpu")).entries(Outline())
except DeviceFailure as exc:
    opened = str(exc)
print(json.dumps([looked.problem, looked.next_step, opened]))
"""
OLD_MESA = Path("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json")


@pytest.fixture(autouse=True)
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the fork server's environment, and so of every worker's."""
    for name, value in gpu_environment().items():
        monkeypatch.setenv(name, value)


# Real models, real inputs.


@pytest.mark.shared
async def test_pictures_get_the_cpus_answers(open_pool, shared_models):
    path = shared_models / "models" / "mobilenet_v2_1.0_224_quant.tflite"
    on_gpu, on_cpu = await open_pool(path, device=GPU), await open_pool(path)
    pictures = sorted((shared_models / "golden").glob("mnv2_quant-*.input.npy"))

    assert on_gpu.pool.report.device == "gpu"
    coverage = on_gpu.pool.report.coverage
    assert (coverage.operators, coverage.claimed, coverage.partitions) == (66, 66, 1)
    assert {"ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "SOFTMAX"} <= set(coverage.taken)
    assert pictures
    for picture in pictures:
        inputs = {"input": np.load(picture)}
        ours, theirs = await on_gpu.call(**inputs), await on_cpu.call(**inputs)
        assert largest_difference(ours, theirs) <= STEPS
        assert [v.argmax() for v in ours.values()] == [v.argmax() for v in theirs.values()]


@pytest.mark.shared
async def test_every_signature_runs(open_pool, shared_models):
    path = shared_models / "models" / "multi_signature_add_mul_sub.tflite"
    bench = await open_pool(path, device=GPU)
    names = [signature.name for signature in bench.pool.report.signatures]
    a, b = np.full((10, 10), 5, np.float32), np.full((10, 10), 3, np.float32)

    answers = {name: (await bench.call(name, a=a, b=b))["output"] for name in names}

    expected = {"add": 8.0, "mul": 15.0, "sub": 2.0}
    assert {name: float(answer[9, 9]) for name, answer in answers.items()} == expected


@pytest.mark.shared
async def test_a_model_that_the_runtime_aborts_on_is_refused_with_its_last_words(
    open_pool, shared_models
):
    with pytest.raises(ModelRefused, match=r"Check failed|does not take all"):
        await open_pool(shared_models / "models" / "yamnet_classifier_meta.tflite", device=GPU)


@pytest.mark.shared
async def test_operators_that_the_gpu_does_not_have_are_named(open_pool, shared_models):
    path = shared_models / "models" / "mobilenet_v1_0.25_224_float_meta.tflite"

    with pytest.raises(ModelRefused, match=r"SQUEEZE \(Operation is not supported\)"):
        await open_pool(path, device=GPU)


# Models made here.


async def test_reals_are_reckoned_with_as_many_bits_as_on_the_cpu(open_pool):
    on_gpu, on_cpu = await open_pool(build.mlp(), device=GPU), await open_pool(build.mlp())
    x = np.random.default_rng(5).normal(size=(1, 8)).astype(np.float32)

    assert largest_difference(await on_gpu.call(x=x), await on_cpu.call(x=x)) < 1e-5


async def test_rows_of_any_number_in_any_order(open_pool):
    bench = await open_pool(build.scale(3.0), device=GPU)
    assert bench.pool.report.max_batch == 8
    assert bench.pool.report.signatures[0].inputs[0].shape == (-1, 4)

    for rows in (1, 4, 2, 8, 1, 3):
        x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
        np.testing.assert_allclose((await bench.call(x=x))["y"], 3 * x, rtol=1e-6)


async def test_a_picture_of_any_size(open_pool):
    bench = await open_pool(build.free_picture(), device=GPU)

    for height, width in ((5, 7), (32, 16), (5, 7)):
        x = np.random.default_rng(width).normal(size=(1, height, width, 3)).astype(np.float32)
        np.testing.assert_allclose((await bench.call(x=x))["y"], x + 1, rtol=1e-6)


async def test_two_models_in_two_workers_at_once(open_pool, tmp_path):
    paths = [tmp_path / f"{factor}.tflite" for factor in (2, 5)]
    for path, factor in zip(paths, (2, 5), strict=True):
        path.write_bytes(build.scale(factor))
    two, five = [await open_pool(path, device=GPU) for path in paths]
    x = np.ones((1, 4), np.float32)

    async def ask(bench: Any, factor: int) -> None:
        for _ in range(20):
            np.testing.assert_array_equal((await bench.call(x=x))["y"], factor * x)

    await asyncio.gather(ask(two, 2), ask(five, 5))


@pytest.mark.parametrize("model", [build.anchors(), build.softmax_over_all()], ids=["loud", "mute"])
async def test_rows_that_a_model_was_not_made_for_are_found_out_and_do_no_harm(open_pool, model):
    bench, on_cpu = await open_pool(model, device=GPU, max_batch=4), await open_pool(model)
    x = np.random.default_rng(3).normal(size=(1, 8)).astype(np.float32)

    assert bench.pool.report.max_batch == 1
    for _ in range(3):
        assert largest_difference(await bench.call(x=x), await on_cpu.call(x=x)) < 1e-5


# What it does not take.


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (build.strings(), "'a' is BYTES, and the GPU can have"),
        (build.where(), "'y' is INT64, and the GPU can have"),
        (build.repeat(), "does not take all of the model"),
        (build.custom("Strange"), "unresolved custom op: Strange"),
        (build.custom("edgetpu-custom-op"), "compiled for the Edge TPU"),
        (build.accumulator(), "keeps variables"),
        (b"\x1c\0\0\0TFL3" + bytes(range(256)), "Flatbuffer"),
    ],
    ids=["strings", "int64", "dynamic", "custom", "edgetpu", "stateful", "damaged"],
)
async def test_what_a_gpu_cannot_run_is_refused_in_plain_words(open_pool, model, reason):
    with pytest.raises(ModelRefused, match=reason):
        await open_pool(model, device=GPU)


async def test_a_thread_of_the_daemon_gets_no_driver(open_pool):
    with pytest.raises(ModelRefused, match="needs a process of its own") as refused:
        await open_pool(build.scale(), device=GPU, isolation=Isolation.THREAD)
    assert refused.value.stage is LoadStage.OPEN


async def test_another_gpu_than_the_one_that_was_meant_is_not_taken(open_pool):
    with pytest.raises(ModelRefused, match=r"took another GPU, .+, instead of Card 9000"):
        await open_pool(build.scale(), device=Device("gpu", "gpu", name="Card 9000"))


# Faults.


@pytest.mark.skipif(not SOFTWARE, reason="the memory of a real GPU is not the process' own")
async def test_a_worker_that_ran_out_of_memory_answers_again_when_there_is_some(open_pool):
    bench = await open_pool(build.free_picture(), device=GPU, memory_mib=2048)
    x = np.ones((1, 8, 8, 3), np.float32)
    np.testing.assert_array_equal((await bench.call(x=x))["y"], x + 1)
    pid = bench.pool.pids[0]
    limits = resource.prlimit(pid, resource.RLIMIT_DATA)
    resource.prlimit(pid, resource.RLIMIT_DATA, (1 << 20, limits[1]))

    with pytest.raises((InvokeFailed, WorkerLost)):
        await bench.call(x=np.ones((1, 2048, 2048, 3), np.float32))

    with contextlib.suppress(ProcessLookupError):  # it may have died of it: then there is a new one
        resource.prlimit(pid, resource.RLIMIT_DATA, limits)
    await bench.until(lambda: bench.pool.alive > 0)
    np.testing.assert_array_equal((await bench.call(x=x))["y"], x + 1)


def test_an_error_that_is_only_written_is_one_and_the_next_run_is_good(save):
    ran = in_child(
        """
import json, os, sys
import numpy as np
from accelerators.base import Device
from accelerators.gpu import open_compiled
from accelerators.interpreter import DeviceFailure
from accelerators.outline import Outline

runner = open_compiled(sys.argv[1], 1, Device("gpu", "gpu"))
(entry,), _ = runner.entries(Outline(inputs=((0,),), outputs=((1,),)))
runner.allocate(entry)
x = np.ones((1, 4), np.float32)
os.write(2, b"ERROR: [queue.cc:1] the device is lost\\n")
failures = []
try:
    runner.run(entry, [x])
except DeviceFailure as exc:
    failures.append(str(exc))
runner.run(entry, [x])
answer = runner.results(entry)[0].tolist()
for bad in (x.astype(np.int8), x[:, :2], x.astype(np.float16)):
    try:
        runner.run(entry, [bad])
    except DeviceFailure as exc:
        failures.append(str(exc))
print(json.dumps([failures, answer]))
""",
        save(build.scale(2.0)),
    )

    assert ran[0] == [
        "the GPU failed: the device is lost",
        "input 'x' is int8 [1, 4], and the model takes float32 [1, 4]",
        "input 'x' is float32 [1, 2], and the model takes float32 [1, 4]",
        "input 'x' is float16 [1, 4], and the model takes float32 [1, 4]",
    ]
    assert ran[1] == [[2.0, 2.0, 2.0, 2.0]]


def test_made_and_dropped_many_times_nothing_piles_up(save):
    first, last = in_child(
        """
import gc, json, os, sys
import numpy as np
from accelerators.base import Device
from accelerators.gpu import open_compiled
from accelerators.outline import Outline

def used():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    return [pages * 4 // 1024, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))]

kept = []
for number in range(20):
    runner = open_compiled(sys.argv[1], 1, Device("gpu", "gpu"))
    (entry,), _ = runner.entries(Outline(inputs=((0,),), outputs=((1,),)))
    runner.allocate(entry)
    runner.run(entry, [np.ones((1, 8), np.float32)])
    del runner
    kept.append(used())
print(json.dumps([kept[4], kept[-1]]))
""",
        save(build.mlp()),
    )

    assert last[0] - first[0] < 30, "MiB in 15 rounds"
    assert last[1] <= first[1]
    assert last[2] <= first[2]


async def test_a_worker_gets_by_with_what_the_kind_says_of_its_driver(open_pool):
    """Under the limit that a placement sets: the model's own megabytes, and the driver's."""
    bench = await open_pool(build.mlp(), device=GPU, memory_mib=32 + gpu.MEMORY_MIB)

    assert (await bench.call(x=np.ones((1, 8), np.float32)))["probabilities"].shape == (1, 4)


# What is here.


async def test_a_driver_tells_what_it_drives(forkserver):
    (found,) = gpu.find(HardwareSettings())
    looked = await ask_driver(found, forkserver)

    assert found.problem == ""
    assert looked.up
    assert looked.name
    assert "Vulkan 1." in looked.driver
    if SOFTWARE:
        assert looked.name.endswith(", in software")


def test_drivers_that_the_environment_names_count_when_they_are_there(monkeypatch, tmp_path):
    nowhere = tmp_path / "none.json"
    monkeypatch.setenv("VK_DRIVER_FILES", str(nowhere))
    (found,) = gpu.find(HardwareSettings())
    assert found.problem == "no driver that the environment names is there"

    there = _written(tmp_path / "there.json", b"{}")
    monkeypatch.setenv("VK_DRIVER_FILES", f"{nowhere}:{there}")
    (found,) = gpu.find(HardwareSettings(root=tmp_path))
    assert (found.problem, found.driver) == ("", "there")

    _written(tmp_path / "etc/vulkan/icd.d/installed.json", b"{}")
    monkeypatch.delenv("VK_DRIVER_FILES")
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    monkeypatch.setenv("VK_ADD_DRIVER_FILES", str(there))
    (found,) = gpu.find(HardwareSettings(root=tmp_path))
    assert (found.problem, found.driver) == ("", "there, installed")


def test_without_a_gpu_the_kind_and_the_worker_say_so(tmp_path):
    said = in_child(
        LOOK_AND_OPEN,
        _written(tmp_path / "m.tflite", build.scale()),
        VK_DRIVER_FILES=str(tmp_path / "none.json"),
        VK_ICD_FILENAMES="",
    )

    assert said[0].startswith("no Vulkan driver finds a GPU it can use")
    assert "Vulkan driver" in said[1]
    assert said[2] == "no GPU is here: no Vulkan driver finds one"


@pytest.mark.skipif(not OLD_MESA.exists(), reason="needs Debian's mesa-vulkan-drivers")
def test_what_a_driver_lacks_is_named_before_and_after_it_is_opened(tmp_path):
    said = in_child(
        LOOK_AND_OPEN,
        _written(tmp_path / "m.tflite", build.scale()),
        VK_DRIVER_FILES=str(OLD_MESA),
    )

    if not said[2]:
        pytest.skip("this Mesa has all that is needed")
    assert said[0].startswith("its driver lacks what the runtime needs: shader")
    assert "ArrayDynamicIndexing" in said[0]
    assert "update the driver" in said[1]
    assert said[2].startswith("the GPU's driver lacks what the runtime needs: shader")


def test_a_runtime_without_its_library_for_gpus_says_so(tmp_path):
    said = in_child(
        """
import json, sys
from accelerators import compiled
from accelerators.base import Device
from accelerators.gpu import open_compiled
from accelerators.interpreter import DeviceFailure
from accelerators.outline import Outline

make = compiled.Environment.create
compiled.Environment.create = lambda: make(runtime_path=sys.argv[2])
try:
    open_compiled(sys.argv[1], 1, Device("gpu", "gpu")).entries(Outline())
except DeviceFailure as exc:
    print(json.dumps(str(exc)))
""",
        _written(tmp_path / "m.tflite", build.scale()),
        tmp_path,
    )

    assert said == "the runtime's library for GPUs, libLiteRtWebGpuAccelerator.so, does not load"


def test_without_vulkans_loader_there_is_nothing_to_ask():
    with pytest.raises(NoVulkan) as failure:
        list_adapters("libnot-vulkan.so.1")
    assert not failure.value.has_loader


def test_a_loader_of_vulkan_that_is_broken_is_named(tmp_path):
    _written(tmp_path / "libvulkan.so.1", b"broken")

    problem, next_step, opened = in_child(
        LOOK_AND_OPEN,
        _written(tmp_path / "m.tflite", build.scale()),
        LD_LIBRARY_PATH=str(tmp_path),
    )

    assert problem.startswith("the Vulkan loader cannot be loaded")
    assert next_step == "apt-get install libvulkan1"
    assert opened == "no GPU is here: no Vulkan driver finds one"


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        ([], "no Vulkan driver is installed"),
        (["usr/share/vulkan/icd.d/some_icd.json"], ""),
        (["sys/class/drm/renderD128"], "this service is not let in to it"),
        (["sys/class/drm/renderD128", "dev/dri/renderD128"], "no Vulkan driver is installed"),
        (["dev/dri/renderD128", "etc/vulkan/icd.d/nvidia_icd.json"], ""),
        (["dev/nvidiactl", "etc/vulkan/icd.d/nvidia_icd.json"], ""),
    ],
)
def test_what_files_tell(tmp_path, monkeypatch, paths, problem):
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    for each in paths:
        _written(tmp_path / each, b"")

    (device,) = gpu.find(HardwareSettings(root=tmp_path))

    assert (device.id, device.kind) == ("gpu", "gpu")
    assert problem in device.problem
    assert bool(device.problem) == bool(problem) == bool(device.next_step)
    names = [Path(each) for each in paths if not each.startswith("sys")]
    assert all(p.stem in device.driver for p in names)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_node_that_may_not_be_opened(tmp_path, monkeypatch):
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    _written(tmp_path / "etc/vulkan/icd.d/nvidia_icd.json", b"")
    _written(tmp_path / "dev/dri/renderD128", b"").chmod(0)

    (device,) = gpu.find(HardwareSettings(root=tmp_path))

    assert "no permission" in device.problem


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
