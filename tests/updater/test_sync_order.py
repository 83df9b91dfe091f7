"""Nothing is renamed or promised before it is synced, on whatever file system.

ext4 keeps the order of names by itself, so cutting its power shows less than POSIX allows to be
lost. Here the system calls of a real run are read instead.
"""

from __future__ import annotations

import shutil
import sys

import pytest
from support import syncorder
from support.diskbox import prepare
from support.powercut import scratch_folder
from support.syncorder import SyncOrder

WHY_NOT = syncorder.why_not()

RUN = """
import os, stat, sys
from pathlib import Path
scenario, lost, root = sys.argv[1], sys.argv[2], Path(sys.argv[3])
sys.path[:0] = sys.argv[4:]
from support import diskbox, syncorder

real_fsync = os.fsync
def fsync(descriptor):
    is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    if lost != ("folders" if is_folder else "files"):
        real_fsync(descriptor)
os.fsync = fsync
getattr(diskbox, scenario)(root, promise=lambda _fact: syncorder.promise(root))
"""


UPDATE_STEPS = 130
"""More than an update takes; beyond its end nothing is stopped."""


@pytest.fixture
def root():
    with scratch_folder() as scratch:
        yield scratch


@pytest.fixture
def traced(root, tmp_path, repository):
    """Runs scenarios one after the other in the same folder, and traces the last."""

    def run(*scenarios: str, lost: str = "nothing") -> tuple[SyncOrder, list[str]]:
        for name in scenarios:
            paths = (root, repository, repository / "tests")
            without = lost if name == scenarios[-1] else "nothing"
            command = (sys.executable, "-c", RUN, name, without, *paths)
            lines = syncorder.trace(command, tmp_path / "log")
        order = SyncOrder(root)
        return order, list(order.problems(lines))

    return run


needs_strace = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@needs_strace
@pytest.mark.parametrize(
    "scenarios",
    [
        ("prepare",),
        ("prepare", "update_to_two"),
        ("prepare", "try_the_broken"),
        ("prepare", "update_to_two", "try_the_broken"),
    ],
    ids=" ".join,
)
def test_nothing_is_renamed_or_promised_before_it_is_synced(traced, scenarios):
    order, problems = traced(*scenarios)

    assert problems == []
    assert order.promises > 20
    assert order.renames > 10


@needs_strace
def test_what_a_kill_has_left_unsynced_is_synced_by_the_recovery(traced, root, tmp_path):
    prepare(tmp_path / "prepared")
    for step in range(UPDATE_STEPS):
        shutil.copytree(tmp_path / "prepared", root / str(step), symlinks=True)
    order, problems = traced("stop_and_start_everywhere")

    assert problems == []
    assert order.promises == UPDATE_STEPS


@needs_strace
def test_a_missing_sync_of_files_is_found(traced):
    _, problems = traced("prepare", "update_to_two", lost="files")

    assert any("model.tflite" in problem and "renamed" in problem for problem in problems)


@needs_strace
def test_a_missing_sync_of_folders_is_found(traced):
    _, problems = traced("prepare", "update_to_two", lost="folders")

    assert any("current" in problem and "promised" in problem for problem in problems)
