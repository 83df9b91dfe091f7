"""What is built: the same bytes every time, and nothing that Debian's own checker objects to."""

from __future__ import annotations

import hashlib
import shutil
import subprocess

import pytest
from support.packages import build_package


def test_the_same_tree_gives_the_same_bytes(built, tmp_path):
    other = build_package("--out", str(tmp_path))

    assert sha256(other) == sha256(built[0])


def test_lintian_has_nothing_to_say(built):
    if shutil.which("lintian") is None:
        pytest.skip("needs lintian")
    done = subprocess.run(
        ("lintian", "--fail-on", "warning", "--allow-root", built[0]),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_manuals_and_completion_are_in_it(built):
    listed = subprocess.run(
        ("dpkg-deb", "-c", built[0]), capture_output=True, text=True, check=True
    ).stdout

    for name in ("man8/inferd.8", "man8/inferd-updater.8", "man1/inferctl.1"):
        assert f"/usr/share/man/{name}.gz" in listed
    for program in ("inferd", "inferd-updater", "inferctl"):
        assert f"/usr/share/bash-completion/completions/{program}\n" in listed


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
