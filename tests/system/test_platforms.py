"""Other Debians: arm64 under qemu's user emulation, and Debian 13 in a machine of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import tflite_builder
from support.machine import Machine, make_tree
from support.packages import KEPT, build_package

ARM_CPU = """processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid asimdrdm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
"""
"""A Cortex-A72. The runtime reads it, and would find the host's processor in /proc otherwise."""

# In a mount namespace of its own: what describes the host's processor is hidden in it.
RUN = """
mount --make-rprivate / && mount --bind "$3" /proc/cpuinfo && mount -t tmpfs none /sys || exit 1
qemu-aarch64-static -cpu cortex-a72 -L "$1" "$1/usr/bin/python3.11" -IS "$1/usr/bin/inferd" \\
  --config "$2" & daemon=$!
for _ in $(seq 120); do
  curl -sf -m 5 --unix-socket "$4" http://x/readyz >&2 && break
  sleep 0.5
done
curl -s -m 60 --unix-socket "$4" --data-binary "@$5" http://x/api/models/fashion/predict
kill $daemon; wait $daemon
"""


@pytest.fixture(scope="module")
def arm_tree() -> Path:
    """What an arm64 Debian 12 has of Python, with the arm64 package unpacked over it."""
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("needs qemu-aarch64-static")
    try:
        plain = make_tree(
            "bookworm",
            KEPT / "bookworm-arm64",
            sources=sources(),
            options=("--variant=extract", "--architectures=arm64"),
            packages="python3,libstdc++6",
        )
    except AssertionError as exc:
        pytest.skip(f"arm64's Debian cannot be had here: {exc}")
    tree = KEPT / "arm64"
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(("cp", "-a", "--reflink=auto", plain, tree), check=True)
    subprocess.run(("dpkg-deb", "-x", build_package("--arch", "arm64"), tree), check=True)
    return tree


def test_the_arm64_package_predicts_under_emulation(arm_tree, tmp_path, demo_model):
    """Its daemon, whole but for worker processes: those are made by exec, which is not emulated."""
    cpu, config = tmp_path / "cpuinfo", tmp_path / "inferd.toml"
    cpu.write_text(ARM_CPU)
    config.write_text(
        f'[paths]\nroot = "{tmp_path}"\n[http]\nlisten = []\n[defaults]\nisolation = "thread"\n'
        f'[models]\nfolders = []\n[[models.serve]]\npath = "{demo_model}"\n'
    )
    socket = tmp_path / "run/inferd/inferd.sock"
    picture = demo_model / "samples/sneaker.png"

    command = ("unshare", "-m", "sh", "-c", RUN, "sh", arm_tree, config, cpu, socket, picture)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    assert done.stdout, done.stderr
    assert json.loads(done.stdout)["classification"][0]["label"] == "sneaker"


def test_arm64_libraries_fit_every_page_size_and_debian_12(arm_tree):
    libraries = [*(arm_tree / "usr/lib/inferd").rglob("*.so"), *arm_tree.rglob("*.libs/*.so*")]
    assert len(libraries) > 20
    for library in libraries:
        facts = subprocess.run(
            ("readelf", "-hlVW", library), capture_output=True, text=True, check=True
        ).stdout
        aligned = re.findall(r"^\s+LOAD\s.*0x([0-9a-f]+)$", facts, re.MULTILINE)
        glibc = [tuple(map(int, found)) for found in re.findall(r"GLIBC_(\d+)\.(\d+)", facts)]

        assert "AArch64" in facts, library
        assert all(int(size, 16) >= 0x10000 for size in aligned), library
        assert max(glibc, default=(2, 0)) <= (2, 36), library


def test_on_debian_13_it_installs_and_predicts():
    found = Path(sources())
    address = re.search(r"URIs:\s*(\S+)", found.read_text()) if found.exists() else None
    if address is None:
        pytest.skip("needs the mirror's address in apt's sources")
    try:
        tree = make_tree("trixie", KEPT / "trixie", sources=address[1])
    except AssertionError as exc:
        pytest.skip(f"Debian 13 cannot be had here: {exc}")
    package = build_package("--suite", "trixie", "--tree", str(tree))
    with Machine(tree, binds={"/drop": KEPT}).running() as box:
        box.sh(f"apt-get -q install -y --no-install-recommends /drop/{package.name}")
        box.put_model("double", tflite_builder.scale(2.0, batch=1))
        box.wait_until_ready("double")

        assert box.predict("double", 1, 2, 3, 4) == [2, 4, 6, 8]
        assert box.ask("systemctl", "is-active", "inferd-updater") == "active"
        assert "Python 3.13" in box.ask("inferctl", "doctor")


def sources() -> str:
    """Where apt finds Debian on this machine."""
    return "/etc/apt/sources.list.d/debian.sources"
