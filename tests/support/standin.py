"""A stand-in for an accelerator: standin.c, built by the C compiler that is here.

Options of its delegate, by name:
    claim: the float32 operators it takes, of "fc,add,mul,conv,softmax", or "all" (the default), or
        "none"; "custom" is the operator of compiled Edge TPU models, computed here as y = 2 * x.
    fail: how it fails: "create" (with a message), "create-silent", "prepare", "invoke", "nan",
        "wrong" (answers off by 10 %), and "crash-STAGE" or "hang-STAGE" with a STAGE of create,
        prepare and invoke.
    when: a path: it fails only while that is there.
    node: a path: the device itself. Without it, or with another there than was opened, it is lost.
    lock: a path: one process at a time may have the device.
    calls, closed: paths: files that grow by a byte, with each invocation of each part that it took,
        and when it is closed in an orderly way.
    rows_max: it takes no operator with more rows than this.
    delay_us, switch_us: how long an invocation takes; how much longer after another model's.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from accelerators.base import Device
from accelerators.registry import External

_SOURCE = Path(__file__).with_suffix(".c")
NO_COMPILER = "needs a C compiler (cc)"


@dataclass(frozen=True)
class Standin:
    """The library, and what a test says to use it."""

    library: Path

    def device(
        self, name: str = "standin", *, exclusive: bool = False, **options: object
    ) -> Device:
        """For `LoadSpec.device`: as `accelerators.external` finds it."""
        return Device(
            f"external:{name}",
            "external",
            name=name,
            library=str(self.library),
            options=_texts(options),
            exclusive=exclusive,
        )

    def external(
        self, name: str = "standin", *, node: str = "", exclusive: bool = False, **options: object
    ) -> External:
        """For `HardwareSettings.externals`."""
        return External(name, str(self.library), _texts(options), node, exclusive)


def _texts(options: dict[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(value)) for key, value in options.items())


def build_standin(library: Path, *flags: str) -> Path:
    """Compile it to `library`, or skip the test.

    Args:
        flags: "-DEDGETPU" for a stand-in of libedgetpu; "-DOLD_ABI" for a build for TFLite 2.5,
            which kills its process, or with "-O0" only breaks the model.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip(NO_COMPILER)
    command = [compiler, "-O2", "-fPIC", "-shared", *flags, "-o", library, _SOURCE, "-lm"]
    subprocess.run(command, check=True)
    return library
