#!/usr/bin/env python3
"""Builds inferd_<version>_<arch>.deb: the same bytes from the same commit, wherever it is built.

1. The wheels of packaging/requirements.lock, each checked against its sha256, are unpacked for the
   target; nothing of the target is run, so arm64 needs no emulation.
2. What a device never runs is left out; bytecode is compiled, valid for good on a read-only root.
3. debhelper makes the package of that tree.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = "usr/lib/inferd/site-packages"
PACKAGES = ("accelerators", "daemon", "updater")
PROGRAMS = {
    "inferd": "daemon.__main__:main",
    "inferctl": "daemon.cli.main:main",
    "inferd-updater": "daemon.cli.updaterd:main",
}
PLATFORMS = {"amd64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}


@dataclass(frozen=True)
class Suite:
    """A Debian release.

    Attributes:
        python: its Python's minor version.
        suffix: of the package's version, so that an upgrade of the release brings its own build.
    """

    python: str
    suffix: str


SUITES = {"bookworm": Suite("3.11", ""), "trixie": Suite("3.13", "~deb13")}

# Parts of wheels that only a developer's machine uses, and plug-ins for NPUs without the part that
# runs models on them.
UNUSED_FOLDERS = (
    "ai_edge_litert/aot",
    "ai_edge_litert/tools",
    "ai_edge_litert/vendors/google_tensor",
    "ai_edge_litert/vendors/mediatek",
    "ai_edge_litert/vendors/qualcomm",
    "ai_edge_litert/vendors/samsung",
)
UNUSED_FILES = (
    "ai_edge_litert/_pywrap_litert_converter*.so",
    "ai_edge_litert/_pywrap_tfl_calibration*.so",
    "ai_edge_litert/_pywrap_tensorflow_lite_calibration_wrapper*.so",
    "ai_edge_litert/_pywrap_modify_model_interface*.so",
    "ai_edge_litert/format_converter_wrapper_pybind11*.so",
    "ai_edge_litert/pywrap_genai_ops*.so",
    "numpy/_core/*_tests.*.so",
    "multidict/_testcapi.*.so",
)
UNUSED_SUFFIXES = {".pyi", ".pxd", ".pyx", ".h", ".a", ".c", ".cpp", ".sh"}
TEST_FOLDERS = {"tests", "test", "__pycache__"}
INSTALLER_NOTES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")

LAUNCHER = """#!/usr/bin/python3 -IS
import sys

sys.path.insert(0, "/{site}")
from {module} import {function}

sys.exit({function}())
"""


def main() -> None:
    """Build one package; its path is the last line."""
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("--arch", choices=PLATFORMS, default=_own_architecture())
    parser.add_argument("--suite", choices=SUITES, default="bookworm")
    parser.add_argument("--revision", default="", help="added to the version: the same source anew")
    parser.add_argument("--xz-level", type=int, default=6, metavar="0..9")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--uv", default="uv", help="the uv program")
    parser.add_argument(
        "--tree",
        type=Path,
        help="a Debian of the suite in a folder, whose Python compiles, where this machine has "
        "none of that version; needs root",
    )
    options = parser.parse_args()
    suite = SUITES[options.suite]
    python = f"python{suite.python}"
    _need(*(() if options.tree else (python,)), options.uv, "dpkg-buildpackage", "dh")
    source = ROOT / "build" / f"deb-{options.suite}-{options.arch}" / "inferd"
    _copy_source(source, options.suite, options.revision + suite.suffix)
    stage(source / "build/tree", options.arch, suite, options.uv)
    _compile(source / "build/tree", python, options.tree)
    _write_manuals(source)
    package = build(source, options.arch, suite, options.xz_level)
    options.out.mkdir(parents=True, exist_ok=True)
    print(shutil.copy2(package, options.out))


def stage(tree: Path, arch: str, suite: Suite, uv: str) -> None:
    """Put all that the package installs below usr/ into `tree`."""
    site = tree / SITE
    site.mkdir(parents=True)
    os.environ["UV_SYSTEM_CERTS"] = "1"  # as pip does, so that a company's own mirror is believed
    _run(
        *(uv, "--quiet", "pip", "install", "--python", sys.executable, "--no-python-downloads"),
        *("--python-platform", PLATFORMS[arch], "--python-version", suite.python),
        *("--only-binary", ":all:", "--no-deps", "--require-hashes", "--link-mode", "copy"),
        *("--requirements", str(ROOT / "packaging/requirements.lock"), "--target", str(site)),
    )
    _leave_out(site)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    for program, entry in PROGRAMS.items():
        module, _, function = entry.partition(":")
        launcher = tree / "usr/bin" / program
        launcher.parent.mkdir(parents=True, exist_ok=True)
        launcher.write_text(LAUNCHER.format(site=SITE, module=module, function=function))
        launcher.chmod(0o755)
    # Where Debian's python3-systemd is installed, and nowhere else, the journal gets fields.
    (site / "systemd").symlink_to("/usr/lib/python3/dist-packages/systemd")


def _compile(tree: Path, python: str, debian: Path | None) -> None:
    """Make the bytecode, by an interpreter of the suite's version; for all architectures alike."""
    # Unchecked: the files never change, and no file's time decides whether bytecode is used.
    compiling = (python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")
    if debian is None:
        _run(*compiling, "-s", str(tree), "-p", "/", str(tree / SITE))
        return
    with tempfile.TemporaryDirectory(dir=debian / "tmp") as folder:
        inside = Path("/") / Path(folder).relative_to(debian)
        shutil.copytree(tree / SITE, Path(folder) / SITE, symlinks=True)
        _run("chroot", str(debian), *compiling, "-s", str(inside), "-p", "/", str(inside / SITE))
        shutil.rmtree(tree / SITE)
        shutil.copytree(Path(folder) / SITE, tree / SITE, symlinks=True)


def build(source: Path, arch: str, suite: Suite, xz_level: int) -> Path:
    """Let debhelper make the package."""
    major, minor = suite.python.split(".")
    # The arm64 wheel of the runtime needs more than the platform's name says.
    depends = (
        f"python3 (>= {suite.python}), python3 (<< {major}.{int(minor) + 1}~), "
        "libc6 (>= 2.34), libstdc++6 (>= 12)"
    )
    environment = {
        **os.environ,
        "INFERD_DEPENDS": depends,
        "XZ_LEVEL": str(xz_level),
        "DEB_BUILD_OPTIONS": "nocheck",
    }
    command = ("dpkg-buildpackage", "--build=binary", "--no-sign", "-d", f"-a{arch}")
    with (source.parent / "build.log").open("w") as log:
        done = subprocess.run(
            command, cwd=source, env=environment, stdout=log, stderr=log, check=False
        )
    if done.returncode:
        sys.exit(f"build_deb: dpkg-buildpackage failed; see {log.name}")
    (package,) = source.parent.glob(f"inferd_*_{arch}.deb")
    return package


def _copy_source(source: Path, suite_name: str, suffix: str) -> None:
    shutil.rmtree(source.parent, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copytree(ROOT / "packaging/debian", source / "debian")
    shutil.copytree(ROOT / "config", source / "config")
    shutil.copytree(ROOT / "examples/demo", source / "examples/demo")
    changelog = source / "debian/changelog"
    text = changelog.read_text()
    version = re.search(r'VERSION = "(.+)"', (ROOT / "daemon/version.py").read_text())
    first = f"inferd ({version[1]}) bookworm;" if version else ""
    if not first or not text.startswith(first):
        sys.exit("build_deb: the first entry of packaging/debian/changelog is of another version")
    own = first.replace(")", f"{suffix})").replace("bookworm", suite_name)
    changelog.write_text(text.replace(first, own, 1))


def _write_manuals(source: Path) -> None:
    """In the form of the programs here, with the changelog's date in them."""
    epoch = _output("dpkg-parsechangelog", "-l", str(source / "debian/changelog"), "-STimestamp")
    os.environ["SOURCE_DATE_EPOCH"] = epoch
    _run(sys.executable, str(ROOT / "packaging/manuals.py"), str(source / "build/manuals"))


def _leave_out(site: Path) -> None:
    shutil.rmtree(site / "bin", ignore_errors=True)
    for name in UNUSED_FOLDERS:
        shutil.rmtree(site / name, ignore_errors=True)
    for pattern in UNUSED_FILES:
        for path in site.glob(pattern):
            path.unlink()
    for module in site.rglob("*.py"):
        text = module.read_bytes()
        if text.startswith(b"#!"):  # a module is no program
            module.write_bytes(text.partition(b"\n")[2])
    for path in sorted(site.rglob("*"), reverse=True):
        if path.is_dir() and path.name in TEST_FOLDERS:
            shutil.rmtree(path)
        elif path.suffix in UNUSED_SUFFIXES or path.name == ".gitignore":
            path.unlink(missing_ok=True)
        elif path.parent.suffix == ".dist-info" and path.name in INSTALLER_NOTES:
            path.unlink()


def _own_architecture() -> str:
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, "amd64")


def _need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        sys.exit(
            f"build_deb: not installed: {', '.join(missing)}. As root: apt-get install debhelper; "
            "uv comes from PyPI: pip install uv"
        )


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"build_deb: failed: {' '.join(command)}")


if __name__ == "__main__":
    main()
