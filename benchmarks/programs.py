"""The benchmark's own programs: run as processes, so that nothing they import weighs on anybody.

This process itself imports nothing but the standard library: what it shared with a server would be
taken off that server's proportional set size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.measure import Load
from benchmarks.workloads import ROOT


def program(module: str, *arguments: str) -> tuple[str, ...]:
    """The command of one of them."""
    return (sys.executable, "-m", module, *arguments)


def run(module: str, *arguments: str) -> dict[str, Any]:
    """Run one to its end: the JSON that it prints.

    Raises:
        subprocess.CalledProcessError: it failed; its own words are on our stderr.
    """
    done = subprocess.run(
        program(module, *arguments), check=True, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def run_load(module: str, *arguments: str) -> Load:
    """Run one that prints the figures of a load."""
    return Load(**run(module, *arguments))
