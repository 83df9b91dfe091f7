"""An external delegate serves what it takes; however it fails, the reason is told and nothing dies.

The delegate is a stand-in in C; the failures are those of real drivers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import tflite_builder as models
from support.standin import NO_COMPILER, Standin, build_standin
from support.workers import worker_processes

from accelerators import external
from accelerators.agreement import difference
from accelerators.base import Coverage, Origin
from accelerators.calls import DeathReason
from accelerators.errors import CallTimedOut, InvokeFailed, LoadStage, ModelRefused, WorkerLost
from accelerators.registry import HardwareSettings

if TYPE_CHECKING:
    from pathlib import Path

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8)


async def refusal(open_pool, device, model=None, **fields) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        await open_pool(model or models.mlp(), device=device, **fields)
    assert len(caught.value.reason) <= 500
    assert worker_processes() == []
    return caught.value


def compiled(folder: Path, source: str, name: str, *flags: str) -> Path:
    """A shared library of a few lines of C."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip(NO_COMPILER)
    path = folder / name
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", path, *flags]
    subprocess.run(command, input=source.encode(), check=True)
    return path


async def test_model_runs_on_the_device_and_says_so(open_pool, standin, tmp_path):
    cpu = await open_pool(models.mlp())
    expected = await cpu.call(x=X)

    bench = await open_pool(models.mlp(), device=standin.device(calls=tmp_path / "calls"))
    result = await bench.pool.call("serving_default", {"x": X})

    assert (tmp_path / "calls").stat().st_size > 0
    assert result.origin == Origin("external:standin", "external:standin")
    np.testing.assert_allclose(
        result.outputs["probabilities"], expected["probabilities"], atol=1e-6
    )


async def test_device_is_closed_in_an_orderly_way(open_pool, standin, tmp_path):
    closed = tmp_path / "closed"
    device = standin.device(closed=closed)
    bench = await open_pool(models.mlp(batch=1), device=device, instances=2)
    assert not closed.exists()

    await bench.pool.stop()

    assert closed.stat().st_size == 2


async def test_report_names_the_device_and_what_it_took(open_pool, standin):
    bench = await open_pool(models.mlp(), device=standin.device("dsp", claim="fc"))
    report = bench.pool.report

    assert (report.device, report.degraded) == ("external:dsp", False)
    assert report.coverage == Coverage(3, 2, 1, ("FULLY_CONNECTED",))


async def test_device_takes_other_numbers_of_rows_too(open_pool, standin):
    rows = np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8)
    cpu = await open_pool(models.mlp())
    expected = await cpu.call(x=rows)

    bench = await open_pool(models.mlp(), device=standin.device())

    assert bench.pool.report.max_batch == 8
    np.testing.assert_allclose(
        (await bench.call(x=rows))["probabilities"], expected["probabilities"], atol=1e-6
    )


async def test_pictures_of_a_real_model(open_pool, standin, shared_models):
    path = shared_models / "models" / "mobilenet_v1_0.25_224_float_meta.tflite"
    picture = np.random.default_rng(1).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    cpu = await open_pool(path)
    name = cpu.pool.report.signatures[0].inputs[0].name
    expected = await cpu.call(**{name: picture})

    bench = await open_pool(path, device=standin.device())
    answer = await bench.call(**{name: picture})

    assert bench.pool.report.coverage == Coverage(31, 16, 16, ("CONV_2D", "SOFTMAX"))
    for output, array in expected.items():
        np.testing.assert_allclose(answer[output], array, atol=1e-5)


async def test_stateful_model_keeps_its_state_on_the_device(open_pool, standin, ones):
    bench = await open_pool(models.counter(), device=standin.device(claim="add"))

    totals = [(await bench.call("add", x=ones(1)))["y"][0] for _ in range(3)]

    assert totals == [1, 2, 3]


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        ("create", "its driver {} cannot open it: standin: the device refuses"),
        ("create-silent", "its driver {} cannot open it, and does not say why"),
        ("prepare", "its driver fails with the model, or is built for another version of TFLite"),
    ],
)
async def test_device_that_cannot_be_opened(open_pool, standin, fail, reason):
    refused = await refusal(open_pool, standin.device(fail=fail))

    assert refused.stage is LoadStage.OPEN
    assert refused.reason.startswith(reason.format(standin.library))


async def test_delegate_that_takes_nothing_is_refused(open_pool, standin):
    refused = await refusal(open_pool, standin.device(claim="none"))

    assert refused.stage is LoadStage.OPEN
    assert refused.reason == "it took none of the model's 3 operators"


async def test_delegate_refuses_an_option(open_pool, standin):
    refused = await refusal(open_pool, standin.device(speed="high"))

    assert "standin: unknown option 'speed'" in refused.reason


async def test_library_that_is_not_there(open_pool, tmp_path):
    path = tmp_path / "libgone.so"
    refused = await refusal(open_pool, Standin(path).device())

    assert (refused.stage, refused.reason) == (LoadStage.OPEN, f"its driver {path} is not here")


async def test_library_that_lacks_another(open_pool, tmp_path):
    needed = compiled(tmp_path, "int needed(void) { return 1; }", "libneeded.so")
    driver = compiled(
        tmp_path,
        "int needed(void); int use(void) { return needed(); }",
        "libdriver.so",
        f"-L{tmp_path}",
        "-lneeded",
    )
    needed.unlink()

    refused = await refusal(open_pool, Standin(driver).device())

    assert refused.reason == f"its driver {driver} needs libneeded.so, which is not here"


async def test_library_that_is_no_library(open_pool, tmp_path):
    path = tmp_path / "libtext.so"
    path.write_text("not a library at all, though long enough to have a header of one\n" * 10)

    refused = await refusal(open_pool, Standin(path).device())

    assert refused.reason == f"its driver cannot be loaded: {path}: invalid ELF header"


async def test_library_without_the_interface(open_pool, tmp_path):
    path = compiled(tmp_path, "int other(void) { return 1; }", "libother.so")

    refused = await refusal(open_pool, Standin(path).device())

    missing = "tflite_plugin_create_delegate"
    assert refused.reason == f"its driver {path} is no TFLite delegate: it lacks {missing}"


@pytest.mark.parametrize(
    ("stage", "doing"),
    [
        ("create", "while it opened the device; most likely it is built for an older TFLite"),
        ("prepare", "while it opened the device; most likely it is built for an older TFLite"),
        ("invoke", "during the first invocation"),
    ],
)
async def test_driver_that_crashes_at_the_load(open_pool, standin, stage, doing):
    refused = await refusal(open_pool, standin.device(fail=f"crash-{stage}"))

    assert refused.stage is LoadStage.PROCESS
    assert refused.reason.startswith(f"the runtime was killed by SIGSEGV {doing}")


async def test_driver_built_for_an_older_runtime_says_what_is_wrong_with_it(open_pool, tmp_path):
    library = build_standin(tmp_path / "libold.so", "-DOLD_ABI")

    refused = await refusal(open_pool, Standin(library).device())

    assert refused.stage is LoadStage.PROCESS
    assert "killed by SIGSEGV while it opened the device" in refused.reason
    assert "built for an older TFLite" in refused.reason


async def test_driver_built_for_an_older_runtime_that_happens_to_survive(open_pool, tmp_path):
    library = build_standin(tmp_path / "libold.so", "-DOLD_ABI", "-O0")

    refused = await refusal(open_pool, Standin(library).device())

    assert refused.stage is LoadStage.OPEN
    assert "is built for another version of TFLite" in refused.reason


@pytest.mark.parametrize(
    ("stage", "doing"),
    [
        ("create", "while it opened the device"),
        ("invoke", "during the first invocation"),
    ],
)
async def test_driver_that_hangs_at_the_load(open_pool, standin, stage, doing):
    device = standin.device(fail=f"hang-{stage}")

    refused = await refusal(open_pool, device, load_timeout_s=5.0)

    assert refused.stage is LoadStage.PROCESS
    assert refused.reason == f"the runtime did not come back within 5 s {doing}"


async def test_device_that_fails_at_the_first_invocation(open_pool, standin):
    refused = await refusal(open_pool, standin.device(fail="invoke"))

    assert refused.stage is LoadStage.WARM
    assert refused.reason.startswith("the first invocation failed: standin: device lost")


async def test_device_that_fails_while_it_serves_fails_the_call_alone(open_pool, standin, tmp_path):
    broken = tmp_path / "broken"
    bench = await open_pool(models.mlp(), device=standin.device(fail="invoke", when=broken))
    pids = bench.pool.pids

    broken.touch()
    with pytest.raises(InvokeFailed, match="standin: device lost"):
        await bench.call(x=X)
    broken.unlink()

    assert (await bench.call(x=X))["probabilities"].shape == (1, 4)
    assert bench.pool.pids == pids


async def test_driver_that_crashes_while_it_serves_is_replaced(open_pool, standin, tmp_path):
    broken = tmp_path / "broken"
    bench = await open_pool(models.mlp(), device=standin.device(fail="crash-invoke", when=broken))

    broken.touch()
    with pytest.raises(WorkerLost, match="killed by SIGSEGV") as caught:
        await bench.call(x=X)
    broken.unlink()

    assert caught.value.started
    assert (await bench.call(x=X))["probabilities"].shape == (1, 4)


async def test_driver_that_hangs_while_it_serves_is_killed(open_pool, standin, tmp_path):
    broken = tmp_path / "broken"
    device = standin.device(fail="hang-invoke", when=broken)
    bench = await open_pool(models.mlp(), device=device, call_timeout_s=2.0)
    pids = bench.pool.pids

    broken.touch()
    with pytest.raises(CallTimedOut):
        await bench.call(x=X)
    broken.unlink()

    assert (await bench.call(x=X))["probabilities"].shape == (1, 4)
    assert bench.pool.pids != pids


async def test_device_that_is_not_there(open_pool, standin, tmp_path):
    refused = await refusal(open_pool, standin.device(node=tmp_path / "dsp0"))

    assert refused.reason.endswith("cannot open it: standin: no device")


async def test_device_that_came_back_is_another_one(open_pool, standin, tmp_path):
    node = tmp_path / "dsp0"
    node.touch()
    bench = await open_pool(models.mlp(), device=standin.device(node=node))

    node.unlink()
    with pytest.raises(InvokeFailed, match="device lost"):
        await bench.call(x=X)
    (tmp_path / "other").touch()
    (tmp_path / "other").rename(node)

    with pytest.raises(InvokeFailed, match="device lost"):
        await bench.call(x=X)


async def test_device_lost_between_two_shapes_ends_its_worker_with_that_reason(
    open_pool, standin, tmp_path
):
    node = tmp_path / "dsp0"
    node.touch()
    bench = await open_pool(models.mlp(), device=standin.device(node=node))
    await bench.call(x=X)

    node.unlink()
    with pytest.raises(InvokeFailed, match=r"the device failed.*standin: no device"):
        await bench.call(x=np.ones((3, 8), np.float32))
    await bench.until(lambda: bool(bench.events))

    assert bench.events[0].reason is DeathReason.CRASH
    assert bench.events[0].detail == "stopped: its device failed"


async def test_only_one_process_may_have_some_devices(open_pool, standin, tmp_path):
    device = standin.device(lock=tmp_path / "lock")
    first = await open_pool(models.mlp(), device=device)

    refused = await refusal_beside(open_pool, device)
    await first.pool.stop()
    second = await open_pool(models.mlp(), device=device)

    assert "standin: another process has the device" in refused.reason
    assert (await second.call(x=X))["probabilities"].shape == (1, 4)


async def refusal_beside(open_pool, device) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        await open_pool(models.mlp(), device=device)
    return caught.value


async def distance(open_pool, device) -> float:
    """Of the device's answer from the CPU's, as a share of the range of the output."""
    cpu = await open_pool(models.mlp())
    bench = await open_pool(models.mlp(), device=device)
    (output,) = cpu.pool.report.signatures[0].outputs
    expected, answer = await cpu.call(x=X), await bench.call(x=X)
    return difference(output, [expected[output.name]], [answer[output.name]])


@pytest.mark.parametrize("fail", ["wrong", "nan"])
async def test_false_answers_are_found_out_by_comparing(open_pool, standin, fail):
    assert not await distance(open_pool, standin.device(fail=fail)) < 0.05


async def test_right_answers_agree(open_pool, standin):
    assert await distance(open_pool, standin.device()) < 1e-4


def found(standin, **fields):
    return external.find(HardwareSettings(externals=(standin.external("dsp", **fields),)))[0]


def test_nothing_configured():
    (device,) = external.find(HardwareSettings())

    assert (device.id, device.up) == ("external", False)
    assert "[[accelerators.external]]" in device.next_step


def test_configured_delegate_is_found(standin):
    device = found(standin, exclusive=True, claim="fc")

    assert device.up
    assert (device.id, device.kind, device.exclusive) == ("external:dsp", "external", True)
    assert (device.library, device.options) == (str(standin.library), (("claim", "fc"),))


def test_other_library_under_the_same_name_is_another_driver(standin, tmp_path):
    library = tmp_path / "lib.so"
    shutil.copy(standin.library, library)
    before = found(Standin(library)).driver

    os.utime(library, (1, 1))

    assert found(Standin(library)).driver != before


def test_configured_library_that_is_missing(tmp_path):
    device = found(Standin(tmp_path / "libgone.so"))

    assert device.problem == (
        f"its driver {tmp_path / 'libgone.so'} cannot be had: No such file or directory"
    )
    assert "inferd.toml" in device.next_step


def test_node_tells_whether_the_device_is_here(standin, tmp_path):
    settings = HardwareSettings(externals=(standin.external(node="/dev/dsp0"),), root=tmp_path)
    (absent,) = external.find(settings)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "dsp0").touch()

    assert absent.problem == "it is not here: there is no /dev/dsp0"
    assert external.find(settings)[0].up


def test_driver_without_the_interface_is_known_before_any_model_is_loaded(standin, tmp_path):
    other = compiled(tmp_path, "int other(void) { return 1; }", "libother.so")

    looked = external.look(found(Standin(other)))

    assert "is no TFLite delegate" in looked.problem
    assert "'dsp'" in looked.next_step
    assert external.look(found(standin)).up
