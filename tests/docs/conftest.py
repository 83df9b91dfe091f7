"""What tests of documents share."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.inferctl import ENVIRONMENT, TIMEOUT_S

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def shell():
    """Run a line as a reader would paste it; returns what it prints."""

    def run(line: str, *, cwd: Path) -> str:
        path = f"{os.environ['PATH']}:/usr/sbin"
        return subprocess.run(
            ["bash", "-euc", line],
            cwd=cwd,
            env={**ENVIRONMENT, "PATH": path},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        ).stdout

    return run
