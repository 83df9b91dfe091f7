"""The rules of the layout (docs/adr/0001-layout.md)."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("accelerators", "daemon", "updater")
MODULES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("folder", ["packaging", "config", "tests"])
def test_folders_that_are_no_packages_have_no_init(folder):
    assert list((REPOSITORY / folder).rglob("__init__.py")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_imported_from_this_tree(package):
    module = importlib.import_module(package)

    assert Path(module.__file__).parent == REPOSITORY / package


def test_packaging_is_the_library_not_our_folder():
    assert (
        REPOSITORY / "packaging" not in Path(importlib.import_module("packaging").__file__).parents
    )


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_module_takes_a_name_of_the_standard_library(path):
    name = path.parent.name if path.stem == "__init__" else path.stem

    assert path.stem == "__main__" or name not in sys.stdlib_module_names


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_is_named_for_what_it_does(path):
    assert path.stem not in NAMELESS


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_says_what_it_promises(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", [m for m in MODULES if m.stem == "__init__"], ids=relative)
def test_inits_hold_a_docstring_and_nothing_else(path):
    assert len(ast.parse(path.read_text()).body) == 1


def test_python_daemon_is_not_installed_beside_us():
    """It would own the import name `daemon`."""
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.distribution("python-daemon")


def test_git_ignores_nothing_of_ours():
    """A folder with the name of an output, as `build`, would be in no commit and in no wheel."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    tests = sorted((REPOSITORY / "tests").rglob("*.py"))
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        input="\n".join(map(relative, [*MODULES, *tests])),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if ignored.returncode not in (0, 1):
        pytest.skip(f"needs a clone: {ignored.stderr}")

    assert ignored.stdout == ""


def test_pytest_passes_over_no_folder_of_tests(pytestconfig):
    folders = {path.name for path in (REPOSITORY / "tests").rglob("*") if path.is_dir()}
    patterns = pytestconfig.getini("norecursedirs")

    assert [name for name in folders for each in patterns if fnmatch(name, each)] == []
