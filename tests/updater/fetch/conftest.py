"""A real static server, and before it a proxy that does what bad networks do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.fetching import CONTENT, NAME
from support.webfolder import serving_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def site(tmp_path) -> Path:
    """What the server serves."""
    file = tmp_path / "site" / NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    return tmp_path / "site"


@pytest.fixture
def server(site) -> Iterator[str]:
    with serving_folder(site) as url:
        yield url


@pytest.fixture
def part(tmp_path) -> Path:
    return tmp_path / "bundle.part"
