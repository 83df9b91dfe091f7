"""Says of a repository what expires when, which keys are where, what is signed. Opens no key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from updater.chain import FLOORS
from updater.floors import TIMESTAMP
from updater.publisher.metadata import DAY_S, TEAM, kind_of

if TYPE_CHECKING:
    from pathlib import Path

    from updater.publisher.keys import Keyring
    from updater.publisher.repository import Repository

_SOON_S = 30 * DAY_S
"""Time to get people with their keys to one table."""
_SOON_TIMESTAMP_S = 2 * DAY_S
"""Time to notice that nobody runs `repo refresh` any more."""


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """One key of a role.

    Attributes:
        path: of its private half; None when that is not here.
    """

    name: str
    key_id: str
    path: Path | None


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """One role.

    Attributes:
        kind: where its keys belong, "offline" or "online".
        expires: wall clock, seconds.
        warning: what should be done about it; "" when nothing.
    """

    role: str
    kind: str
    version: int
    expires: float
    threshold: int
    keys: tuple[KeyStatus, ...]
    warning: str


@dataclass(frozen=True, slots=True)
class BundleStatus:
    """One signed bundle.

    Attributes:
        role: that signs it.
        floor: least release counter that the role allows for the model; 0 when it says none.
    """

    model: str
    version: int
    release_counter: int
    sha256: str
    length: int
    role: str
    floor: int


def list_bundles(repository: Repository) -> tuple[BundleStatus, ...]:
    """Every bundle that is signed.

    Raises:
        PublisherError: the metadata cannot be read.
    """
    return tuple(
        BundleStatus(
            file.custom["name"],
            file.custom["version"],
            file.custom["release_counter"],
            file.hashes["sha256"],
            file.length,
            team,
            signed.unrecognized_fields.get(FLOORS, {}).get(file.custom["name"], 0),
        )
        for team in repository.roles()
        if team.startswith(TEAM)
        for signed in [repository.metadata.newest(team).signed]
        for file in signed.targets.values()
    )


def look_at(repository: Repository, keyring: Keyring, *, now: float) -> tuple[RoleStatus, ...]:
    """Every role of a repository.

    Raises:
        PublisherError: it cannot be read.
    """
    statuses = []
    for role, its_keys in repository.roles().items():
        signed = repository.metadata.newest(role).signed
        expires = signed.expires.timestamp()
        names = {key_id: its_keys.name(key_id) for key_id in its_keys.keys}
        keys = tuple(KeyStatus(name, key, keyring.find(name)) for key, name in names.items())
        warning = _warning(role, expires - now)
        statuses.append(
            RoleStatus(
                role, kind_of(role), signed.version, expires, its_keys.threshold, keys, warning
            )
        )
    return tuple(statuses)


def _warning(role: str, left_s: float) -> str:
    if left_s <= 0:
        return "has expired: devices install nothing"
    if left_s < (_SOON_TIMESTAMP_S if role == TIMESTAMP else _SOON_S):
        return "expires soon: run `inferctl repo refresh` where its keys are"
    return ""
