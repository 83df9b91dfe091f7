"""One updater at a time has the state folder, however the one before has ended."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.inferctl import ENVIRONMENT

from updater.folderlock import locked


def test_a_second_one_is_kept_out_while_the_first_is_there(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError, match=str(tmp_path)), locked(tmp_path):
        pass

    with locked(tmp_path):
        pass


def test_the_folder_is_made(tmp_path):
    with locked(tmp_path / "a/b"):
        assert (tmp_path / "a/b/lock").exists()


def test_an_error_inside_is_the_callers_own(tmp_path):
    with pytest.raises(BlockingIOError, match="mine"), locked(tmp_path):
        raise BlockingIOError("mine")


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    code = (
        "import sys, pathlib; from updater.folderlock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
        process.kill()

    with locked(tmp_path):
        pass
