"""Temporary folders and what is left of them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from support.inferctl import ENVIRONMENT

from daemon.cli.scratch import PREFIX, scratch_folder


def test_a_folder_is_there_while_it_is_used_and_then_gone(tmp_path):
    with scratch_folder(tmp_path) as folder:
        (folder / "file").write_text("x")

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from daemon.cli.scratch import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'file').write_text('x'); os.abort()\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], env=ENVIRONMENT, check=False)
    (left,) = tmp_path.iterdir()

    with scratch_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]

    assert folder != left


def test_a_folder_in_use_is_left_alone(tmp_path):
    with scratch_folder(tmp_path) as first, scratch_folder(tmp_path) as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])


def test_a_link_of_the_same_form_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    parent = tmp_path / "tmp"
    parent.mkdir()
    (parent / f"{PREFIX}link").symlink_to(precious)

    with scratch_folder(parent):
        pass

    assert precious.is_dir()


def test_read_only_folders_are_removed_too():
    """As the user nobody where the test runs as root, whom no mode stops."""
    program = (
        "import os, sys; from pathlib import Path; from daemon.cli.scratch import scratch_folder\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "with scratch_folder(Path(sys.argv[1])) as folder:\n"
        "    release = folder / 'store' / 'release'\n"
        "    release.mkdir(parents=True); (release / 'file').touch(); release.chmod(0o555)\n"
    )
    with tempfile.TemporaryDirectory() as name:  # which nobody can reach, as pytest's own is not
        shared = Path(name)
        shared.chmod(0o777)

        subprocess.run([sys.executable, "-c", program, shared], env=ENVIRONMENT, check=True)

        assert list(shared.iterdir()) == []
