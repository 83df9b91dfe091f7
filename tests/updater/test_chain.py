"""What is verified in a folder of metadata, whatever else lies there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.fleet import Device, Fleet

from updater.chain import Chain
from updater.floors import Authority
from updater.publisher.draft import Quorum
from updater.publisher.metadata import sign
from updater.publisher.repository import Plan

if TYPE_CHECKING:
    from pathlib import Path

ALL = {"root", "timestamp", "snapshot", "targets", "fleet", "models-main"}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    fleet = Fleet(tmp_path / "fleet")
    fleet.ship("digits", 1)
    return fleet


@pytest.fixture
def folder(tmp_path: Path, fleet: Fleet) -> Path:
    """What a refresh has left."""
    device = Device(tmp_path / "device", fleet)
    device.trust.refresh(str(fleet.path))
    return device.folder / "tuf" / "current"


def test_all_of_a_good_chain_is_seen(fleet, folder):
    chain = Chain(folder)

    assert set(chain.roles) == ALL
    assert chain.is_complete
    assert chain.role_of("digits/digits-1.bundle") == "models-main"
    keys = fleet.repository.roles()["root"]
    assert chain.authorities["root"] == Authority(frozenset(keys.keys), 2)


def test_an_empty_folder_is_an_empty_chain(tmp_path):
    chain = Chain(tmp_path)

    assert (chain.roles, chain.is_complete, chain.find("x")) == ({}, False, None)


@pytest.mark.parametrize(
    ("role", "left"),
    [
        ("root", set()),
        ("timestamp", ALL - {"timestamp"}),
        ("snapshot", {"root", "timestamp"}),
        ("targets", {"root", "timestamp", "snapshot"}),
        ("fleet", ALL - {"fleet"}),
    ],
)
@pytest.mark.parametrize("how", ["gone", "empty", "unsigned", "of another kind"])
def test_without_a_link_what_hangs_on_it_is_not_seen(role, left, how, folder):
    path = folder / f"{role}.json"
    document = json.loads(path.read_bytes())
    document["signatures"] = []
    other = folder / ("timestamp.json" if role != "timestamp" else "snapshot.json")
    content = {"empty": b"", "unsigned": json.dumps(document).encode()}
    raw = content.get(how, other.read_bytes())
    path.unlink()
    if how != "gone":
        path.write_bytes(raw)

    assert set(Chain(folder).roles) == left


def test_an_older_version_than_the_snapshot_lists_is_not_seen(fleet, folder):
    """As power cuts and backups may leave it."""
    metadata = fleet.repository.metadata
    older = metadata.path("models-main", 1).read_bytes()
    (folder / "models-main.json").write_bytes(older)

    assert set(Chain(folder).roles) == ALL - {"models-main"}


def test_other_bytes_of_the_same_version_are_not_seen(fleet, folder):
    """Signed by the right key, but not what the snapshot lists."""
    signed = fleet.repository.metadata.newest("models-main").signed
    other = sign(signed, fleet.signers("models-main"), now=fleet.clock() + 60, life_s=3600)
    (folder / "models-main.json").write_bytes(other.to_bytes())

    assert set(Chain(folder).roles) == ALL - {"models-main"}


def test_the_version_counts_also_where_a_snapshot_lists_no_digest(fleet, folder):
    listed = fleet.repository.metadata.describe("models-main")
    older = fleet.repository.metadata.path("models-main", 1).read_bytes()

    def list_without_digest(snapshot) -> None:
        listed.hashes = listed.length = None
        snapshot.meta["models-main.json"] = listed

    forged = fleet.forge("snapshot", list_without_digest)
    (folder / "snapshot.json").write_bytes(forged.to_bytes())

    assert "models-main" in Chain(folder).roles
    (folder / "models-main.json").write_bytes(older)
    assert "models-main" not in Chain(folder).roles


def test_what_a_revoked_key_has_signed_is_not_seen(fleet, folder):
    fleet.repository.rotate(["timestamp"])
    newer = fleet.repository.metadata.path("root", 2).read_bytes()
    (folder / "root.json").unlink()
    (folder / "root.json").write_bytes(newer)

    assert "timestamp" not in Chain(folder).roles


def test_every_good_signature_is_named(tmp_path):
    fleet = Fleet(tmp_path / "fleet", Plan(quorums={"models-main": Quorum(2, 3)}))
    fleet.ship("digits", 1)
    device = Device(tmp_path / "device", fleet)

    view = device.trust.refresh(str(fleet.path))

    assert set(view.roles["models-main"].signers.values()) == {
        "models-main-1",
        "models-main-2",
        "models-main-3",
    }
