"""A small ext4 of its own whose power is cut before each durable step of a scenario.

The disk is a file, mounted through a loop device. Before each step (`updater.atomic.on_step`) the
file is copied: what is in the copy is what would be on the disk if the power went at that moment,
because what was written and not synced is still in the kernel's memory. Each copy can then be
mounted, recovered and looked at.

    disk = PowerCut(scratch, options="noauto_da_alloc,data=writeback")
    disk.make(prepare)
    for cut in disk.record(scenario):
        with cut.mounted() as root:
            ...
        for again in cut.disk_then(folder).record(recovery):
            ...

What a scenario promises (`promise(fact)`, after a call has returned) is in the cuts that follow:
it must be true on each of their disks. So a missing sync shows even where nothing is broken.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from updater import atomic

Promise = Callable[[object], None]
Scenario = Callable[[Path, Promise], None]

MIB = 1 << 20
_SBIN = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_BLOCK = 64 * 1024
# Seconds between commits, more than a test takes: nothing is written but what is synced.
_PATIENT = "commit=3000"


def why_not() -> str | None:
    """Why this machine cannot mount images; None when it can."""
    if os.geteuid() != 0:
        return "a power cut needs root to mount an image"
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if not _program(name)]
    if missing:
        return f"a power cut needs {', '.join(missing)}"
    if not Path("/dev/loop-control").exists():
        return "a power cut needs loop devices"
    with tempfile.TemporaryDirectory() as folder:
        try:
            PowerCut(Path(folder)).make(lambda _root: None)
        except subprocess.CalledProcessError as exc:
            return f"a power cut needs to mount an image: {exc.stderr.strip()}"
    return None


@dataclass(frozen=True)
class Cut:
    """The disk as a power cut before one step has left it.

    Attributes:
        step, path: the step that was not taken; "end" when the scenario was through.
        promises: what the scenario had promised before.
    """

    disk: PowerCut
    number: int
    step: str
    path: str
    promises: tuple[object, ...]

    def __str__(self) -> str:
        return f"cut {self.number}, before {self.step} {self.path}"

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """The disk after the power has come back. What is done to it is gone afterwards."""
        copy = self.disk.scratch / "after.img"
        _copy(self.image, copy)
        with self.disk.mounted(copy) as root:
            yield root

    def disk_then(self, scratch: Path) -> PowerCut:
        """The disk after the power has come back, to cut it again."""
        disk = PowerCut(scratch, options=self.disk.options)
        _copy(self.image, disk.image)
        return disk

    @property
    def image(self) -> Path:
        """The copy."""
        return self.disk.scratch / f"cut-{self.number}.img"


class PowerCut:
    """One disk and its cuts.

    Args:
        scratch: where images and the mount point are; best in memory.
        options: mount options; "" for those of everybody.
    """

    def __init__(self, scratch: Path, *, options: str = "", size_bytes: int = 16 * MIB) -> None:
        self.scratch = scratch
        self.image = scratch / "disk.img"
        self._point = scratch / "disk"
        self.options = options
        self._size_bytes = size_bytes

    def make(self, prepare: Callable[[Path], None]) -> None:
        """A new disk, and what is on it before; all of that has reached it."""
        self.image.unlink(missing_ok=True)
        with self.image.open("wb") as file:
            file.truncate(self._size_bytes)
        extended = "lazy_itable_init=0,lazy_journal_init=0"  # nothing is written behind our back
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", extended, str(self.image))
        with self.mounted() as root:
            prepare(root)

    def record(self, scenario: Scenario) -> tuple[Cut, ...]:
        """Run a scenario once and cut the power before each of its steps, and at its end."""
        cuts: list[Cut] = []
        promises: list[object] = []

        def cut(step: str, path: Path) -> None:
            if path.is_relative_to(root):
                where = str(path.relative_to(root))
                cuts.append(self.cut(len(cuts), step, where, tuple(promises)))

        with self.mounted() as root:
            with watched(cut):
                scenario(root, promises.append)
            cut("end", root)
        return tuple(cuts)

    def cut(
        self, number: int = 0, step: str = "end", path: str = "", promises: tuple[object, ...] = ()
    ) -> Cut:
        """Cut the power now; the disk goes on as if it had not been."""
        cut = Cut(self, number, step, path, promises)
        _copy(self.image, cut.image)
        return cut

    @contextlib.contextmanager
    def mounted(self, image: Path | None = None) -> Iterator[Path]:
        """Mount the disk, or a copy of it."""
        options = ",".join(filter(None, ("loop", _PATIENT, self.options)))
        self._point.mkdir(exist_ok=True)
        _run("mount", "-t", "ext4", "-o", options, str(image or self.image), str(self._point))
        try:
            yield self._point
        finally:
            _run("umount", str(self._point))


@contextlib.contextmanager
def watched(hook: Callable[[str, Path], None]) -> Iterator[None]:
    """Call `hook` before each durable step."""
    before = atomic.on_step
    atomic.on_step = hook
    try:
        yield
    finally:
        atomic.on_step = before


class Stopped(BaseException):
    """The process ends here, and the kernel lives on."""


def stopped_before(step: int, scenario: Scenario, root: Path) -> bool:
    """Run a scenario and end it before its step `step`, from 0; whether there was such a step.

    Nothing has been synced since, as after a kill, and what follows can run in this process.
    """
    steps = iter(range(step))

    def stop(_step: str, _path: Path) -> None:
        if next(steps, None) is None:
            raise Stopped

    try:
        with watched(stop):
            scenario(root, lambda _fact: None)
    except Stopped:
        return True
    return False


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for images, in memory where that can be had: a sync then costs next to nothing."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def _copy(source: Path, destination: Path) -> None:
    """Copy an image, leaving out blocks of zeros."""
    # A file of its own: a container that was started meanwhile may still have the old one mounted.
    destination.unlink(missing_ok=True)
    zeros = bytes(_BLOCK)
    with source.open("rb") as old, destination.open("wb") as new:
        while block := old.read(_BLOCK):
            if block == zeros[: len(block)]:
                new.seek(len(block), os.SEEK_CUR)
            else:
                new.write(block)
        new.truncate()


def _program(name: str) -> str | None:
    return shutil.which(name, path=_SBIN)


def _run(name: str, *arguments: str) -> None:
    program = _program(name) or name
    subprocess.run((program, *arguments), check=True, capture_output=True, text=True)
