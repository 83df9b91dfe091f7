"""What every test may ask for: the shared real models, the demo model, and markers that hold."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.standin import Standin, build_standin

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_MODELS = REPOSITORY.parent / "shared" / "models"
# sbin is not on every user's PATH, and that is where Debian puts the broker.
BROKER_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))

NO_SHARED = f"needs the shared set of real models in {Path('..') / 'shared' / 'models'}"
NO_BROKER = "needs mosquitto"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with its reason, what this machine cannot run."""
    without_shared = not (SHARED_MODELS / "expected.json").is_file()
    without_broker = shutil.which("mosquitto", path=BROKER_PATH) is None
    for item in items:
        if without_shared and item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=NO_SHARED))
        if without_broker and item.get_closest_marker("broker"):
            item.add_marker(pytest.mark.skip(reason=NO_BROKER))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of real models, inputs and known answers (`expected.json`), or a skip."""
    if not (SHARED_MODELS / "expected.json").is_file():
        pytest.skip(NO_SHARED)
    return SHARED_MODELS


@pytest.fixture(scope="session")
def mosquitto() -> str:
    """The path of a real mosquitto, or a skip."""
    path = shutil.which("mosquitto", path=BROKER_PATH)
    if path is None:
        pytest.skip(NO_BROKER)
    return path


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of the demo model that is in this repository."""
    return REPOSITORY / "examples" / "demo" / "fashion"


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Standin:
    """An accelerator that is not there, with every way to fail; or a skip."""
    return Standin(build_standin(tmp_path_factory.mktemp("standin") / "libstandin.so"))
