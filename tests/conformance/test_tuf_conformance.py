"""The public tuf-conformance suite, run against our trust.

It is not part of this repository. `TUF_CONFORMANCE` names a checkout of
https://github.com/theupdateframework/tuf-conformance; the suite also wants `faketime` installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.fleet import Fleet

CLIENT = Path(__file__).with_name("tuf-client")
CHECKOUT = os.environ.get("TUF_CONFORMANCE", "")
AT_LEAST = 113
"""Cases of the suite in August 2026."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not CHECKOUT, reason="needs TUF_CONFORMANCE, a checkout of tuf-conformance")
@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs faketime")
def test_every_case_passes():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "tuf_conformance", "-q", "-p", "no:cacheprovider"),
            *("-W", "ignore", "--entrypoint", f"{sys.executable} {CLIENT}"),
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= AT_LEAST
    assert "failed" not in done.stdout


def client(*arguments: str | Path) -> int:
    return subprocess.run(
        [sys.executable, str(CLIENT), *map(str, arguments)], capture_output=True, check=False
    ).returncode


def test_the_client_speaks_the_suites_protocol(tmp_path):
    """Always run: a repository of our publisher."""
    fleet = Fleet(tmp_path / "fleet", now=time.time())
    fleet.add("digits", 1)
    metadata, targets, anchor = tmp_path / "metadata", tmp_path / "targets", tmp_path / "root.json"
    metadata.mkdir()
    targets.mkdir()
    anchor.write_bytes(fleet.anchor)
    urls = ("--metadata-dir", metadata, "--metadata-url", fleet.path / "metadata")
    where = ("--target-dir", targets, "--target-base-url", fleet.path / "targets")

    codes = [
        client("--metadata-dir", metadata, "init", anchor),
        client(*urls, "refresh"),
        client(*urls, *where, "--target-name", "digits/digits-1.bundle", "download"),
        client(*urls, *where, "--target-name", "digits/digits-2.bundle", "download"),
    ]

    assert codes == [0, 0, 0, 1]
    assert {path.name for path in metadata.glob("*.json")} == {
        "root.json",
        "timestamp.json",
        "snapshot.json",
        "targets.json",
        "models-main.json",
    }
    assert [path.read_bytes() for path in targets.iterdir()] == [b"digits 1" * 100]
