"""Reads what a process asked the kernel to do, and finds what a worse disk than ext4 could lose.

Any file system may keep what is synced and lose the rest, in any order. Two rules are enough then:
1. What is renamed is synced before: its content, and all below it when it is a folder.
2. When a promise is made (`promise`, called by the process itself) nothing is left to sync: no
   content, no folder in which a name has come, gone or changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_CALLS = (
    "open,openat,write,writev,pwrite64,ftruncate,truncate,fchmod,chmod,fchmodat,fsync,fdatasync,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,"
    "sync,syncfs"
)
_PROMISE = "PROMISE"
_LINE = re.compile(r"^\d+ +(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"^\d+<(?P<path>[^>]*)>")
_CONTENT = {"write", "writev", "pwrite64", "ftruncate", "fchmod"}
_SYNC = {"fsync", "fdatasync"}
_MAKE = {"mkdir", "mkdirat", "symlink", "symlinkat", "link", "linkat"}
_REMOVE = {"unlink", "unlinkat", "rmdir"}


def why_not() -> str | None:
    """Why this machine cannot trace a process; None when it can."""
    if shutil.which("strace") is None:
        return "the order of syncs is read with strace"
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else "strace may not trace here"


def promise(root: Path) -> None:
    """Say, where strace can hear it, that everything so far is durable."""
    try:
        (root / _PROMISE).rmdir()
    except FileNotFoundError:
        return


def trace(command: Sequence[str | Path], log: Path) -> list[str]:
    """Run a command; the calls it made, in order."""
    strace = ("strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={_CALLS}")
    done = subprocess.run((*strace, *command), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


class SyncOrder:
    """The two rules, for everything below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._unsynced: dict[Path, str] = {}
        self.promises = 0
        self.renames = 0

    def problems(self, lines: Iterable[str]) -> Iterator[str]:
        """What breaks a rule, in order."""
        for line in lines:
            match = _LINE.match(line)
            if match is None:
                continue
            call, arguments = match["call"], match["arguments"]
            assert call not in {"sync", "syncfs"}, "the whole machine is not ours to sync"
            if _PROMISE in arguments:
                self.promises += 1
                yield from (f"promised, but {path}: {why}" for path, why in self._unsynced.items())
                self._unsynced.clear()
            elif int(match["result"]) >= 0:
                yield from self._call(call, arguments)

    def _call(self, call: str, arguments: str) -> Iterator[str]:
        paths = [Path(path) for path in _PATH.findall(arguments) if path]
        descriptor = _DESCRIPTOR.match(arguments)
        if descriptor:
            self._on_descriptor(call, Path(descriptor["path"]))
        elif call in {"open", "openat"} and "O_CREAT" in arguments:
            self._changed(paths[-1].parent, f"{paths[-1].name} may be new")
        elif call in _MAKE:
            self._changed(paths[-1].parent, f"{paths[-1].name} is new")
        elif call in {"chmod", "fchmodat"}:
            self._changed(paths[-1], "another mode")
        elif call in _REMOVE:
            self._forget(paths[-1])
            self._changed(paths[-1].parent, f"{paths[-1].name} is gone")
        elif call.startswith("rename"):
            yield from self._renamed(*paths)

    def _on_descriptor(self, call: str, path: Path) -> None:
        if call in _SYNC:
            self._unsynced.pop(path, None)
        elif call in _CONTENT:
            self._changed(path, "content or mode")

    def _renamed(self, source: Path, destination: Path) -> Iterator[str]:
        if destination.is_relative_to(self._root):
            self.renames += 1
        for path, why in self._unsynced.items():
            if path.is_relative_to(source):
                yield f"{source.name} is renamed to {destination.name}, but {path}: {why}"
        self._forget(source)
        self._changed(source.parent, f"{source.name} has another name")
        self._changed(destination.parent, f"{destination.name} is new")

    def _changed(self, path: Path, why: str) -> None:
        if path.is_relative_to(self._root):
            self._unsynced[path] = why

    def _forget(self, gone: Path) -> None:
        for path in [path for path in self._unsynced if path.is_relative_to(gone)]:
            del self._unsynced[path]
