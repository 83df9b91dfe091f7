"""The runtime is the best one that is installed and works, and why no other is used is said."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from accelerators.runtime import LITERT, RUNTIMES, TFLITE, Candidate, NoRuntime, choose, runtime
from updater.device import RUNTIMES as TOLD_RUNTIMES

if TYPE_CHECKING:
    from pathlib import Path

INTERPRETER = "from ai_edge_litert.interpreter import Interpreter as Real\n"
FAILING = "def Interpreter(**_): raise"


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Puts a runtime's package where Python finds it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(interpreter: str, *, start: str = "__version__ = '1.5'") -> Candidate:
        package = tmp_path / "strange_runtime"
        package.mkdir()
        (package / "__init__.py").write_text(start)
        (package / "interpreter.py").write_text(interpreter)
        return Candidate("strange", "strange_runtime", "strange-runtime")

    yield write
    for name in [name for name in sys.modules if name.startswith("strange_runtime")]:
        del sys.modules[name]


def test_litert_is_used_where_it_works():
    chosen = choose((LITERT, TFLITE))

    assert str(chosen) == f"litert {metadata.version('ai-edge-litert')}"
    assert (chosen.faults, chosen.absent) == ((), ())
    assert str(runtime()) == str(chosen)


def test_one_that_is_not_installed_is_passed_over_and_named():
    chosen = choose((Candidate("no", "no_such_runtime", "no-such-runtime"), LITERT))

    assert (chosen.name, chosen.faults, chosen.absent) == ("litert", (), ("no-such-runtime",))


@pytest.mark.parametrize(
    ("interpreter", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        (
            f"{FAILING} RuntimeError('odd\\x07\\nmachine')",
            "RuntimeError: odd? machine",
        ),
        ("", "AttributeError: module 'strange_runtime.interpreter' has no"),
        (
            (
                f"{INTERPRETER}class Interpreter(Real):\n"
                "    def get_tensor(self, index): return super().get_tensor(index) + 1\n"
            ),
            "ArithmeticError: [[0. 1. 2. 3.]] + [[0. 1. 2. 3.]] gives [[1. 3. 5. 7.]]",
        ),
        (
            (
                "def Interpreter(**_):\n"
                "    try: raise ImportError('numpy.core.multiarray failed to import')\n"
                "    except ImportError as exc: raise SystemError('exception set') from exc\n"
            ),
            "it is built for NumPy 1, here is NumPy",
        ),
    ],
    ids=["import", "creation", "incomplete", "wrong answer", "old NumPy"],
)
def test_one_that_does_not_work_is_passed_over_with_its_reason(install, interpreter, reason):
    chosen = choose((install(interpreter), LITERT))

    (fault,) = chosen.faults
    assert (chosen.name, chosen.absent) == ("litert", ())
    assert fault.startswith(f"strange-runtime 1.5 does not work: {reason}")
    assert fault.isprintable()


def test_a_package_that_cannot_even_begin_has_no_version(install):
    broken = install("", start="raise OSError('no libc')")

    assert choose((broken, LITERT)).faults == ("strange-runtime does not work: OSError: no libc",)


def test_a_long_reason_is_cut(install):
    broken = install(f"{FAILING} RuntimeError('x' * 10_000)")

    (fault,) = choose((broken, LITERT)).faults
    assert len(fault) < 300


def test_without_any_each_is_named_with_its_reason(install):
    broken = install(f"{FAILING} RuntimeError('odd machine')")

    with pytest.raises(NoRuntime) as caught:
        choose((Candidate("no", "no_such_runtime", "no-such-runtime"), broken))

    assert str(caught.value) == (
        "no TFLite runtime can be used: strange-runtime 1.5 does not work: "
        "RuntimeError: odd machine; no-such-runtime is not installed"
    )


def test_want_of_memory_is_not_held_against_a_runtime(install):
    with pytest.raises(MemoryError):
        choose((install(f"{FAILING} MemoryError"), LITERT))


def test_the_updater_knows_the_same_runtimes_by_the_same_names():
    assert [(each.distribution, each.name) for each in RUNTIMES] == list(TOLD_RUNTIMES.items())
