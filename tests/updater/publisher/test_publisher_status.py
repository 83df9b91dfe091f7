"""What expires when, and which keys are where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.fleet import DAY_S, START, Fleet, OnePassphrase

from updater.publisher.keys import Keyring
from updater.publisher.status import RoleStatus, look_at

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "fleet")


def statuses(
    fleet: Fleet, keyring: Keyring | None = None, days: float = 0
) -> dict[str, RoleStatus]:
    found = look_at(fleet.repository, keyring or fleet.keyring, now=START + days * DAY_S)
    return {status.role: status for status in found}


def test_every_role_says_when_it_expires_and_where_its_keys_belong(fleet):
    found = statuses(fleet)

    assert {role: (each.kind, each.expires, each.threshold) for role, each in found.items()} == {
        "root": ("offline", START + 365 * DAY_S, 2),
        "targets": ("offline", START + 365 * DAY_S, 1),
        "snapshot": ("online", START + 365 * DAY_S, 1),
        "timestamp": ("online", START + 7 * DAY_S, 1),
        "fleet": ("online", START + 365 * DAY_S, 1),
        "models-main": ("offline", START + 365 * DAY_S, 1),
    }


def test_keys_that_are_here_are_told_from_those_that_are_not(fleet):
    gone = fleet.folder / "keys" / "offline" / "root-2.pem"
    gone.unlink()

    keys = {key.name: key.path for key in statuses(fleet)["root"].keys}

    assert keys == {
        "root-1": gone.with_name("root-1.pem"),
        "root-2": None,
        "root-3": gone.with_name("root-3.pem"),
    }


def test_it_needs_no_key_and_no_passphrase(fleet):
    found = statuses(fleet, Keyring([], OnePassphrase()))

    assert all(key.path is None for status in found.values() for key in status.keys)


@pytest.mark.parametrize(
    ("days", "role", "warning"),
    [
        (0, "timestamp", ""),
        (6, "timestamp", "expires soon"),
        (7, "timestamp", "has expired"),
        (300, "root", ""),
        (340, "root", "expires soon"),
        (365, "models-main", "has expired"),
    ],
)
def test_what_should_be_done_is_said_in_time(days, role, warning, fleet):
    said = statuses(fleet, days=days)[role].warning

    assert said.startswith(warning)
    assert bool(said) == bool(warning)
