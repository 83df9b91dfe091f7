"""A server's own virtual environment below `.bench/`, made by pip once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Unavailable
from benchmarks.workloads import ROOT

HOME = ROOT / ".bench"
INSIDE = Path(__file__).with_name("inside")
"""What runs in these environments; nothing of it imports anything of ours from outside."""

_RUNTIME = ("ai-edge-litert>=2.3,<3", "pillow")
_INSTALL_TIMEOUT_S = 1800
_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Environment:
    """The newest release of a package, with the runtime that inferd uses beside it.

    Attributes:
        constraints: what else pip must keep to.
    """

    package: str
    constraints: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Of the virtual environment."""
        return HOME / self.package / "venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def install(self) -> str:
        """Make it unless it is there and whole; gives the package's version.

        Raises:
            Unavailable: pip could not; the message has pip's last words.
        """
        requirements = (self.package, *self.constraints, *_RUNTIME)
        stamp = self.folder / "installed.txt"
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != "\n".join(requirements):
            print(f"installing {self.package} into {self.folder.relative_to(ROOT)}", flush=True)
            _run(sys.executable, "-m", "venv", "--clear", str(self.folder))
            _run(str(self.python), "-m", "pip", "install", "--quiet", *requirements)
            stamp.write_text("\n".join(requirements), encoding="utf-8")
        return self.ask(f"import importlib.metadata as m; print(m.version({self.package!r}))")

    def ask(self, code: str) -> str:
        """What a piece of Python prints in it."""
        return _run(str(self.python), "-c", code).strip()


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"not installed within {_INSTALL_TIMEOUT_S} s") from None
    if done.returncode != 0:
        words = " ".join(done.stderr.split())[-_REASON_CHARS:]
        raise Unavailable(f"could not be installed: {words}")
    return done.stdout
