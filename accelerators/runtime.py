"""Which TFLite runtime runs the models: the first of `RUNTIMES` that is installed and works.

One can be installed, be imported without complaint and still not work: tflite-runtime 2.14 beside
NumPy 2 fails only when it makes its first interpreter. So the process that is to use it tries it
first, with a model of four numbers. That takes half a millisecond, most of which the first real
model would have taken. The fork server only imports: with tflite-runtime, a process that is forked
while an interpreter has threads hangs.

The two have the same calls, also the private ones that name a subgraph.
Source: measured on LiteRT 2.3.0 and tflite-runtime 2.14.0.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

SELF_TEST_MODEL = Path(__file__).with_name("selftest.tflite")
"""y = x + x over float32 (1, 4); tests/support/selftest_model.py makes it."""

_REASON_MAX = 200  # characters of what a runtime says about itself


@dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime that may be installed.

    Attributes:
        name: what reports and manifests call it.
        package: what is imported.
        distribution: what is installed.
    """

    name: str
    package: str
    distribution: str


LITERT = Candidate("litert", "ai_edge_litert", "ai-edge-litert")
TFLITE = Candidate("tflite", "tflite_runtime", "tflite-runtime")
RUNTIMES = (LITERT, TFLITE)
"""Best first: LiteRT checks a file before it uses it, and is many times faster with int8 models;
tflite-runtime is there for 32-bit ARM."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """One that works.

    Attributes:
        name, version: "litert", "2.3.0".
        interpreter: its class Interpreter.
        faults: why better ones, which are installed, are not used; one sentence each.
        absent: better ones that are not installed, by distribution.
    """

    name: str
    version: str
    interpreter: Any
    faults: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class NoRuntime(Exception):
    """None is installed and works; the message says why for each."""


@cache
def runtime() -> Runtime:
    """The runtime of this process. The same at every call; a failure is not remembered.

    Raises:
        NoRuntime: there is none.
        MemoryError: there is not enough to try one.
    """
    return choose(RUNTIMES)


def preload() -> None:
    """Import what `runtime` will most likely choose, and make nothing. Raises nothing."""
    for candidate in RUNTIMES:
        try:
            importlib.import_module(f"{candidate.package}.interpreter")
        except Exception:  # noqa: BLE001, S112 (`runtime` will say it)
            continue
        return


def choose(candidates: Iterable[Candidate]) -> Runtime:
    """The first that is installed and passes its self-test.

    Raises:
        NoRuntime: there is none.
        MemoryError: there is not enough to try one.
    """
    faults: list[str] = []
    absent: list[str] = []
    for candidate in candidates:
        if importlib.util.find_spec(candidate.package) is None:
            absent.append(candidate.distribution)
            continue
        version = ""
        try:
            package = importlib.import_module(candidate.package)
            version = str(getattr(package, "__version__", ""))
            module = importlib.import_module(f"{candidate.package}.interpreter")
            interpreter = module.Interpreter
            _test(interpreter)
        except MemoryError:
            raise
        except Exception as exc:  # noqa: BLE001 (a runtime's start can raise anything)
            what = f"{candidate.distribution} {version}".strip()
            faults.append(f"{what} does not work: {_explain(exc)}")
            continue
        better = (tuple(faults), tuple(absent))
        return Runtime(candidate.name, version or "0", interpreter, *better)
    reasons = [*faults, *(f"{name} is not installed" for name in absent)]
    raise NoRuntime(f"no TFLite runtime can be used: {'; '.join(reasons)}")


def _test(runtime_class: Any) -> None:  # noqa: ANN401 (a class Interpreter)
    """Run the tiny model.

    Raises:
        Exception: the runtime does not work, in its own words.
    """
    # As bytes: older runtimes take no other form.
    interpreter = runtime_class(model_content=SELF_TEST_MODEL.read_bytes(), num_threads=1)
    interpreter.allocate_tensors()
    given = np.arange(4, dtype=np.float32).reshape(1, 4)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], given)
    interpreter.invoke()
    answer = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    if not np.array_equal(answer, given + given):
        raise ArithmeticError(f"{given} + {given} gives {answer}")


def _explain(exc: BaseException) -> str:
    """What lies at the bottom of a failure."""
    causes = [exc]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    said = " ".join(str(each) for each in causes)
    if np.__version__ >= "2" and ("multiarray" in said or "_ARRAY_API" in said):
        return f"it is built for NumPy 1, here is NumPy {np.__version__}: install 'numpy<2'"
    text = " ".join(f"{type(causes[-1]).__name__}: {causes[-1]}".split())
    return "".join(c if c.isprintable() else "?" for c in text[:_REASON_MAX])
