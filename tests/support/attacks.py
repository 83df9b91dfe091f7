"""What an attacker does with a fleet, and what the device says to it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from support.fleet import DAY_S, Device, Fleet
from tuf.ngclient import Updater

from updater.errors import TrustReason, Untrusted

if TYPE_CHECKING:
    from pathlib import Path


HTML = b"<!DOCTYPE html><html><body>Please accept our terms to go online</body></html>"


def refused(device: Device, source: str) -> Untrusted:
    """What is said to the attack; nothing on the disk has changed by it."""
    before = device.disk()
    with pytest.raises(Untrusted) as caught:
        device.trust.refresh(source)
    assert device.disk() == before
    return caught.value


def said(error: Untrusted) -> tuple[TrustReason, str]:
    return error.reason, error.role


def plain_tuf(folder: Path, fleet: Fleet, url: str) -> Updater:
    """What python-tuf alone makes of it, with its own cache in `folder`."""
    updater = Updater(str(folder), f"{url}/metadata/", bootstrap=fleet.anchor)
    # The story happens in 2025, whenever the test runs.
    updater._trusted_set.reference_time = datetime.fromtimestamp(fleet.clock(), UTC)
    updater.refresh()
    return updater


def what_is_wrong(device: Device, source: str, *, version: int = 1) -> Untrusted:
    """What is said to all of the refresh, or to its one bundle."""
    with pytest.raises(Untrusted) as caught:
        device.trust.refresh(source).find("digits", version)
    return caught.value


def floor_of(device: Device, role: str) -> int:
    """What the device remembers of a role."""
    return json.loads((device.folder / "floor.json").read_bytes())["roles"][role]["value"]


def list_snapshot(fleet: Fleet) -> None:
    """Sign a timestamp that lists the newest snapshot."""
    newest = fleet.repository.metadata.describe("snapshot")
    fleet.forge("timestamp", lambda signed: setattr(signed, "snapshot_meta", newest), life_s=DAY_S)


def list_snapshot_as(fleet: Fleet, version: int) -> None:
    """Sign a timestamp of that version."""
    newest = fleet.repository.metadata.describe("snapshot")

    def change(signed: Any) -> None:
        signed.version, signed.snapshot_meta = version, newest

    fleet.forge("timestamp", change, life_s=DAY_S)


def wish_for(model: str, version: int, **more: Any) -> bytes:
    """A wish as a thief writes it."""
    groups = [{"rollout_id": "thief", "models": {model: version}}]
    return json.dumps({"schema": 1, "serial": 99, "groups": groups, **more}).encode()
