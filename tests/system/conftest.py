"""The package in machines that boot. `make system` runs these; elsewhere they are skipped by name.

What takes long is made once and kept in build/system: Debian trees, packages. A machine starts in
about a second and forgets everything when it stops.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import machine, tflite_builder
from support.machine import Machine, make_tree
from support.packages import KEPT, SIGNER, Packages, build_package

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = """Types: deb
URIs: http://127.0.0.1:8000/apt
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/inferd-archive-keyring.gpg
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only where they are asked for, and only where a machine can boot."""
    asked_for = os.environ.get("INFERD_SYSTEM")
    reason = machine.why_not() if asked_for else "make system runs it"
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.timeout(900))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def bookworm() -> Path:
    """Debian 12, from the mirror that this machine uses."""
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    where = sources if sources.exists() else Path("/etc/apt/sources.list")
    try:
        tree = make_tree("bookworm", KEPT / "bookworm", sources=str(where))
        with Machine(tree).running():
            pass
    except (AssertionError, OSError) as exc:  # of the plain Debian: nothing of ours is on it yet
        pytest.skip(f"Debian cannot be had or does not boot in a container here: {exc}")
    return tree


@pytest.fixture(scope="session")
def built() -> tuple[Path, Path]:
    """The package of this tree, and the next version of the same."""
    return build_package(), build_package(revision="+next")


@pytest.fixture
def packages(built, tmp_path) -> Packages:
    gnupg = tmp_path / "gnupg"
    gnupg.mkdir(mode=0o700)
    key = ("--quick-generate-key", SIGNER, "ed25519", "sign", "2d")
    subprocess.run(
        ("gpg", "--homedir", gnupg, "--batch", "--quiet", "--passphrase", "", *key), check=True
    )
    drop = tmp_path / "drop"
    drop.mkdir()
    packages = Packages(drop, *built, gnupg)
    packages.publish(packages.first)
    return packages


@pytest.fixture
def bare(bookworm, packages) -> Iterator[Machine]:
    """A machine with a web server of /drop, and the repository set up as the docs say."""
    with Machine(bookworm, binds={"/drop": packages.folder}).running() as box:
        serve = ("--unit=files", "python3", "-m", "http.server", "8000", "--bind", "127.0.0.1")
        box.run("systemd-run", "--quiet", *serve, "--directory", "/drop")
        box.sh("rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*")
        box.run("dpkg", "-r", "python3-systemd")  # it is recommended, not needed
        box.sh("cp /drop/apt/inferd-archive-keyring.gpg /usr/share/keyrings/")
        box.write("/etc/apt/sources.list.d/inferd.sources", SOURCE)
        box.wait_for("curl -sf http://127.0.0.1:8000/ >/dev/null")
        yield box


@pytest.fixture(scope="session")
def installed(bookworm, built) -> Path:
    """Debian with the package on it, in a tree of its own."""
    tree = KEPT / "installed"
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(("cp", "-a", "--reflink=auto", bookworm, tree), check=True)
    with Machine(tree, binds={"/drop": KEPT}, options=()).running() as box:
        box.sh(f"apt-get -q install -y --no-install-recommends /drop/{built[0].name}")
    (tree / "etc/machine-id").write_text("")
    return tree


@pytest.fixture
def appliance(installed) -> Iterator[Machine]:
    """A machine with inferd on it, and one model: the numbers it gets, doubled."""
    with Machine(installed).running() as box:
        box.put_model("double", tflite_builder.scale(2.0, batch=1))
        box.wait_until_ready("double")
        yield box


@pytest.fixture
def bought(bare) -> Machine:
    """The same, installed from the signed repository."""
    bare.sh("apt-get -q update && apt-get -q install -y --no-install-recommends inferd")
    bare.put_model("double", tflite_builder.scale(2.0, batch=1))
    bare.wait_until_ready("double")
    return bare
