"""What tests of the daemon and its command line share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.trained import HAS_TENSORFLOW, NO_TENSORFLOW, write_sources

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of models that TensorFlow has saved, with their data; or a skip."""
    if not HAS_TENSORFLOW:
        pytest.skip(NO_TENSORFLOW)
    folder = tmp_path_factory.mktemp("trained")
    write_sources(folder)
    return folder
