"""Runs a four-number model the way the daemon runs models, and prints what came of it.

`inferctl doctor` runs this module in a process of its own: a runtime that does not fit the machine
may end the process that tries it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import numpy as np

from accelerators.base import LoadSpec
from accelerators.errors import AcceleratorError
from accelerators.forkserver import ForkServer
from accelerators.runtime import SELF_TEST_MODEL, runtime
from accelerators.supervisor import WorkerPool

if TYPE_CHECKING:
    from accelerators.supervisor import WorkerEvent


def main() -> int:
    """Print what was found and return 0, or `{"problem"}` and return 1.

    Found are "runtime" and "device", and of runtimes that are better than this one "faults", why
    installed ones do not work, and "absent", those that are not installed.
    """
    try:
        used, device = asyncio.run(run_model())
    except (AcceleratorError, OSError) as error:
        print(json.dumps({"problem": str(error)}))
        return 1
    better = {"faults": runtime().faults, "absent": runtime().absent}
    print(json.dumps({"runtime": used, "device": device, **better}))
    return 0


async def run_model() -> tuple[str, str]:
    """Load the model in a worker, call it, and check its answer.

    Returns:
        The runtime's name and version, and the device.

    Raises:
        AcceleratorError: it cannot be loaded or called, or answers wrongly.
    """
    forkserver = ForkServer()
    await forkserver.start()
    pool = WorkerPool(LoadSpec(SELF_TEST_MODEL), forkserver, on_capacity=_nothing, on_event=_ignore)
    try:
        report = await pool.start()
        signature = report.signatures[0]
        given = np.arange(4, dtype=np.float32).reshape(1, 4)
        result = await pool.call(signature.name, {signature.inputs[0].name: given})
        answer = result.outputs[signature.outputs[0].name]
        if not np.array_equal(answer, given + given):
            raise AcceleratorError(f"the runtime computes wrongly: {given} + {given} = {answer}")
        return report.runtime, report.device
    finally:
        await pool.stop()
        await forkserver.stop()


def _nothing() -> None:
    """Capacity does not matter to a single call."""


def _ignore(_event: WorkerEvent) -> None:
    """A worker's death fails the call, which says so itself."""


if __name__ == "__main__":
    sys.exit(main())
