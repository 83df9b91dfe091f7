"""GPUs and NPUs for tests: a real one where one is meant, else software that acts as one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.swiftshader import NotHad, swiftshader_manifest

from accelerators.base import Device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerators.base import Array

REAL_GPU = "INFERD_TEST_GPU"
"""Set to "real", the tests use whatever GPU the machine's own Vulkan drivers have."""

GPU = Device("gpu", "gpu")
OPENVINO_CPU = Device("npu", "npu", options=(("openvino_device", "cpu"),))

_ROOT = Path(__file__).resolve().parents[2]
_CHILD_TIMEOUT_S = 100.0


def gpu_environment() -> dict[str, str]:
    """What a process needs in its environment to find the GPU; or a skip."""
    if os.environ.get(REAL_GPU) == "real":
        return {}
    try:
        return {"VK_DRIVER_FILES": str(swiftshader_manifest())}
    except NotHad as reason:
        pytest.skip(str(reason))


def need_openvino() -> None:
    """Skip where OpenVINO is not installed."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs OpenVINO: pip install --editable '.[npu]', on x86-64")


def largest_difference(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    """Of two answers, in their own numbers."""
    assert a.keys() == b.keys()
    assert {k: (v.shape, v.dtype) for k, v in a.items()} == {
        k: (v.shape, v.dtype) for k, v in b.items()
    }
    return max(float(np.abs(a[k].astype(np.float64) - b[k].astype(np.float64)).max()) for k in a)


def in_child(code: str, *arguments: str | Path, **environment: str) -> Any:
    """Run code in a process whose stderr is a pipe, as a worker's is; what it prints, from JSON."""
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=theirs,
            cwd=_ROOT,
            env={**os.environ, **environment},
            timeout=_CHILD_TIMEOUT_S,
            check=False,
        )
        os.close(theirs)
        said = b""
        while part := os.read(ours, 1 << 16):
            said += part
    finally:
        os.close(ours)
    assert done.returncode == 0, said.decode("utf-8", "replace")[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
