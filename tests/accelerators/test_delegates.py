"""A delegate keeps what it took, or says that it has let go; the runtime alone would not."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys

import numpy as np
import pytest
from support import tflite_builder as models
from support.tflite_runtime import ROOT, armv7_requirements, python_with

from accelerators.base import Coverage
from accelerators.delegates import Delegate, NotCreated
from accelerators.delegatewatch import Watch
from accelerators.interpreter import DeviceFailure, Entry, Interpreter
from accelerators.outline import read_outline

IN_TFLITE_RUNTIME = """
import sys
from pathlib import Path
from accelerators.delegates import Delegate
from accelerators.interpreter import Interpreter
from accelerators.outline import read_outline
from accelerators.runtime import runtime

path, library, node = sys.argv[1:]
print(runtime())
runner = Interpreter(path, threads=1, delegate=Delegate(library, (("node", node),)))
print(runner.coverage)
(entry,), _ = runner.entries(read_outline(memoryview(Path(path).read_bytes())))
runner.allocate(entry)
Path(node).unlink()
try:
    runner.resize(entry, ((3, 8),))
except Exception as exc:
    print(type(exc).__name__, exc)
"""


def opened(standin, path, **options) -> tuple[Interpreter, Entry]:
    """An interpreter on the stand-in, with its default entry allocated."""
    delegate = Delegate(str(standin.library), standin.device(**options).options)
    runner = Interpreter(str(path), threads=1, delegate=delegate)
    (entry,), _ = runner.entries(read_outline(memoryview(path.read_bytes())))
    runner.allocate(entry)
    return runner, entry


@pytest.fixture
def path(save):
    return save(models.mlp())


@pytest.mark.parametrize("claim", ["all", "fc", "softmax"])
def test_device_that_fails_at_another_shape_is_found_out(standin, path, tmp_path, claim):
    node = tmp_path / "dsp0"
    node.touch()
    runner, entry = opened(standin, path, node=node, claim=claim)

    node.unlink()

    with pytest.raises(DeviceFailure, match="does not take the model with inputs of this shape"):
        runner.resize(entry, ((3, 8),))


def test_device_that_takes_nothing_of_another_shape_is_found_out(standin, path):
    runner, entry = opened(standin, path, rows_max=2)
    runner.resize(entry, ((2, 8),))

    with pytest.raises(DeviceFailure, match="does not take the model with inputs of this shape"):
        runner.resize(entry, ((3, 8),))


def test_device_that_takes_part_of_the_model_is_found_out_too(standin, path):
    runner, entry = opened(standin, path, rows_max=2, claim="fc")

    with pytest.raises(DeviceFailure, match="does not take the model with inputs of this shape"):
        runner.resize(entry, ((3, 8),))


def test_device_works_at_every_shape(standin, path, tmp_path):
    calls = tmp_path / "calls"
    runner, entry = opened(standin, path, calls=calls)

    for rows in (1, 5, 1, 3):
        if entry.shapes != ((rows, 8),):
            runner.resize(entry, ((rows, 8),))
        runner.run(entry, [np.ones((rows, 8), np.float32)])

    assert calls.stat().st_size == 4


def test_coverage_is_the_devices_own_and_not_the_runtimes(standin, path):
    runner, _ = opened(standin, path, claim="softmax")

    assert runner.coverage == Coverage(3, 1, 1, ("SOFTMAX",))


@pytest.mark.timeout(300)  # the environment may have to be made
def test_tflite_runtime_is_watched_as_well(standin, path, tmp_path):
    node = tmp_path / "dsp0"
    node.touch()

    done = subprocess.run(
        [python_with(*armv7_requirements()), "-c", IN_TFLITE_RUNTIME, path, standin.library, node],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.stdout.splitlines() == [
        "tflite 2.14.0",
        "Coverage(operators=3, claimed=3, partitions=1, taken=('FULLY_CONNECTED', 'SOFTMAX'))",
        "DeviceFailure the device does not take the model with inputs of this shape",
    ], done.stderr


def test_graphs_of_several_signatures_are_watched_one_by_one(standin, save):
    path = save(models.two_signatures())
    delegate = Delegate(str(standin.library), (("claim", "add"),))
    runner = Interpreter(str(path), threads=1, delegate=delegate)
    entries, _ = runner.entries(read_outline(memoryview(path.read_bytes())))

    for entry in entries:
        runner.allocate(entry)

    assert not delegate.let_go


def test_delegate_is_destroyed_after_its_interpreter(standin, path, tmp_path):
    lock = tmp_path / "lock"
    runner, entry = opened(standin, path, lock=lock)
    runner.run(entry, [np.ones((1, 8), np.float32)])

    del runner
    gc.collect()
    again = subprocess.run(
        [sys.executable, "-c", f"import fcntl; fcntl.flock(open({str(lock)!r}), 6)"], check=False
    )

    assert again.returncode == 0


def test_no_cycle_keeps_the_device_open(standin, tmp_path):
    lock = tmp_path / "lock"
    delegate = Delegate(str(standin.library), (("lock", str(lock)),))

    gc.disable()
    try:
        del delegate
        users = ctypes.c_int.in_dll(ctypes.CDLL(str(standin.library)), "standin_users").value
    finally:
        gc.enable()

    assert users == 0


def test_delegate_that_two_models_share_is_left_as_it_was(standin):
    delegate = Delegate(str(standin.library), ())
    words = (ctypes.c_void_p * 2).from_address(delegate.address)
    delegate._watch.end()
    original = words[1]

    first, second = Watch(delegate.address), Watch(delegate.address)
    assert words[1] != original
    first.end()
    second.end()

    assert words[1] == original


def test_what_a_library_says_is_kept_short_and_printable(standin):
    with pytest.raises(NotCreated) as caught:
        Delegate(str(standin.library), (("o" * 5000 + "\x1b", "1"),))

    assert caught.value.said == f"standin: unknown option '{'o' * 40}'"


@pytest.mark.parametrize("library", ["a\x00b", "", "/"])
def test_path_that_can_be_none(library):
    with pytest.raises(DeviceFailure):
        Delegate(library, ())
