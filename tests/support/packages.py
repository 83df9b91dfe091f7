"""Builds the Debian package and a signed repository of it, for the machines that install it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
KEPT = REPOSITORY / "build" / "system"
"""What takes long to make stays here."""
SIGNER = "packages@inferd.invalid"


@dataclass(frozen=True)
class Packages:
    """Two versions, and a signed repository that has the first one only."""

    folder: Path
    first: Path
    second: Path
    gnupg: Path

    def publish(self, *packages: Path) -> None:
        """Add packages to the repository that machines see as http://127.0.0.1:8000/apt."""
        program = REPOSITORY / "packaging/build_apt_repo.py"
        subprocess.run(
            (sys.executable, program, "--key", SIGNER, "--out", self.folder / "apt", *packages),
            env={**os.environ, "GNUPGHOME": str(self.gnupg)},
            check=True,
            capture_output=True,
        )


def build_package(*options: str, revision: str = "") -> Path:
    """Build one, packed fast."""
    program = REPOSITORY / "packaging/build_deb.py"
    uv = str(Path(sys.executable).with_name("uv"))
    command = (sys.executable, program, "--uv", uv, "--xz-level", "0", "--out", KEPT)
    done = subprocess.run(
        (*command, "--revision", revision, *options), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])
