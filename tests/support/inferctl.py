"""Runs `inferctl` as a person does: as a process, judged by its output and exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "daemon.cli.main")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
TIMEOUT_S = 100


def inferctl(
    *arguments: str | Path, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**ENVIRONMENT, **environment},
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def run_python(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program that uses our code, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=ENVIRONMENT,
    )


@dataclass(frozen=True)
class Serving:
    """`inferctl serve` that is ready. `said` is what it printed until then."""

    process: subprocess.Popen[str]
    url: str
    said: str


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Serving]:
    """Serve on a free port until the block ends; then Ctrl-C must end it in good order."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--http", "127.0.0.1:0", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    with process:
        try:
            said = _read_until_ready(process)
            url = re.search(r"http://[0-9.:]+", said)
            assert url, said
            yield Serving(process, url.group(), said)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == 0


def _read_until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            return "".join(lines)
    raise AssertionError(f"it ended with {process.wait()}: {''.join(lines)}")
