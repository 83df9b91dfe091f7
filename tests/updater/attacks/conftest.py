"""The repository is real and made by our publisher; the web server is a static one.

The attacker has the network, or some of the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.fleet import Device, Fleet, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Digits version 1 is assigned to everybody."""
    fleet = Fleet(tmp_path / "fleet")
    fleet.ship("digits", 1)
    return fleet


@pytest.fixture
def server(fleet: Fleet) -> Iterator[Server]:
    with Server(fleet.path).running() as server:
        yield server


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet, server: Server) -> Device:
    """A device that has refreshed once."""
    device = Device(tmp_path / "device", fleet)
    device.trust.refresh(server.url)
    return device
