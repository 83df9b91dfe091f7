"""SwiftShader: a Vulkan driver in software, from Debian's chromium-common; kept below build/.

It has what the runtime needs of a GPU, on any machine. Run as a program, fetches it.
"""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[2] / "build" / "swiftshader"
_PACKAGE = "chromium-common"
_LIBRARY, _MANIFEST = "libvk_swiftshader.so", "vk_swiftshader_icd.json"
_TIMEOUT_S = 100.0
_LOADER = "libvulkan.so.1"


class NotHad(Exception):
    """It cannot be had here; the message says why."""


def swiftshader_manifest() -> Path:
    """The file by which Vulkan's loader finds the driver.

    Raises:
        NotHad: neither is it here, nor can it be fetched; or nothing could load it.
    """
    try:
        ctypes.CDLL(_LOADER)
    except OSError as exc:
        raise NotHad(f"needs {_LOADER}: apt-get install libvulkan1") from exc
    manifest = _FOLDER / _MANIFEST
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may run side by side
        if not manifest.exists():
            with tempfile.TemporaryDirectory(dir=_FOLDER) as folder:
                _fetch(Path(folder))
    return manifest


def _fetch(folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NotHad("needs SwiftShader, which is fetched with apt-get and dpkg")
    try:
        _run(folder, "apt-get", "-qq", "download", _PACKAGE)
    except NotHad:
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        own = ("-o", f"Dir::State::Lists={lists}")
        _run(folder, "apt-get", "-qq", *own, "update")
        _run(folder, "apt-get", "-qq", *own, "download", _PACKAGE)
    package = next(folder.glob("*.deb"))
    _run(folder, "dpkg", "-x", package.name, "tree")
    for name in (_LIBRARY, _MANIFEST):  # the manifest last: it says that all is there
        shutil.copy(folder / "tree/usr/lib/chromium" / name, folder / name)
        (folder / name).replace(_FOLDER / name)


def _run(folder: Path, *command: str) -> None:
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.CalledProcessError as exc:
        said = (exc.stderr.strip().splitlines() or ["nothing"])[-1]
        raise NotHad(f"needs SwiftShader; {' '.join(command[:1])} says: {said[:200]}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NotHad(f"needs SwiftShader, which cannot be fetched: {exc}") from exc


if __name__ == "__main__":
    try:
        swiftshader_manifest()
    except NotHad as reason:
        print(f"setup: {reason}; going on without: tests of GPUs are skipped")  # noqa: T201
