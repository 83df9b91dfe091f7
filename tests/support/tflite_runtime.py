"""Environments with tflite-runtime in place of LiteRT, as a 32-bit ARM machine gets them.

Made once with pip, from what pyproject.toml says, and kept below build/.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
_FOLDER = ROOT / "build" / "tflite-runtime"
_INSTALL_TIMEOUT_S = 240


def armv7_requirements() -> list[str]:
    """What pip installs with this project on 32-bit ARM."""
    return requirements_for("armv7l")


def requirements_for(machine: str) -> list[str]:
    """What pip installs with this project on a machine, by its `platform_machine`."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = map(Requirement, tomllib.loads(text)["project"]["dependencies"])
    facts = {"platform_machine": machine}
    chosen = [each for each in wanted if each.marker is None or each.marker.evaluate(facts)]
    return [f"{each.name}{each.specifier}" for each in chosen]


def python_with(*requirements: str) -> Path:
    """The Python of a virtual environment with these; skips the test where it cannot be had."""
    if sys.version_info[:2] != (3, 11) or platform.machine() not in {"x86_64", "aarch64"}:
        pytest.skip("tflite-runtime 2.14.0 has no wheel for this Python or processor")
    name = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
    folder = _FOLDER / name
    python = folder / "bin" / "python"
    complete = folder / "complete"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may run side by side
        if complete.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", folder)
        _run(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *requirements)
        complete.touch()
    return python


def _run(*command: str | Path) -> None:
    """Run a step; skips the test when it fails: without a network there is no environment."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"no environment with tflite-runtime within {_INSTALL_TIMEOUT_S} s")
    if done.returncode:
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), "no reason is given")
        pytest.skip(f"no environment with tflite-runtime can be made: {reason}")
