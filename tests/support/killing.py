"""Kills a process with SIGKILL before a chosen durable step, as often as a test likes.

A fresh interpreter imports once and then forks for each try, so that a try takes milliseconds:

    with Killer() as killer:
        killed = killer.run("support.diskbox:update_to_two", root, step=7)

What the function did is on the disk, what it would have done next is not: no handler, no `finally`
and no destructor has run.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Self

from updater import atomic

if TYPE_CHECKING:
    from types import TracebackType


class Killer:
    """The process that forks."""

    def __enter__(self) -> Self:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(self, function: str, root: Path, *, step: int) -> bool:
        """Call `MODULE:FUNCTION` with `root` and kill it before its step `step`, from 0.

        Returns:
            Whether it was killed; if not, it has returned.
        """
        print(json.dumps([function, str(root), step]), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        assert status in {0, -signal.SIGKILL}, f"{function} failed, see its traceback"
        return status != 0


def main() -> None:
    """Read tries from stdin, one JSON list on a line; answer each with its exit status."""
    for line in sys.stdin:
        function, root, step = json.loads(line)
        module, _, name = function.partition(":")
        chosen = getattr(importlib.import_module(module), name)
        child = os.fork()
        if child == 0:
            _call(chosen, Path(root), step)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _call(function, root: Path, step: int) -> None:
    steps = iter(range(step))

    def kill(_step: str, _path: Path) -> None:
        if next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    atomic.on_step = kill
    try:
        function(root)
    except BaseException:  # noqa: BLE001 - the top of a child
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
