"""The signed metadata of a repository on the publisher's disk: find, make, sign, write.

    metadata/1.root.json 2.root.json  5.snapshot.json  3.targets.json  2.fleet.json  timestamp.json

Every file but `timestamp.json` has its version in its name and never changes again. A reader, be it
a web server or another copy of the folder, finds the old state until the timestamp is replaced.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Targets

from updater import atomic
from updater.chain import ISSUED_AT
from updater.floors import FLEET, SNAPSHOT, TIMESTAMP
from updater.publisher.errors import PublisherError
from updater.publisher.keys import OFFLINE, ONLINE, RoleKeys
from updater.signedtime import read_time, write_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from securesystemslib.signer import Signer
    from tuf.api.metadata import Signed

AnyMetadata: TypeAlias = Metadata[Any]

ONLINE_ROLES = frozenset({TIMESTAMP, SNAPSHOT, FLEET})
TEAM = "models-"
"""What the names of the roles begin with that sign bundles."""
DAY_S = 86_400
LIFE_S = 365 * DAY_S
"""Of everything but the timestamp. It must outlive the sticks that are made meanwhile."""
TIMESTAMP_LIFE_S = 7 * DAY_S
"""How long a device believes that nothing is new; longer than a fleet's host is ever down."""


def kind_of(role: str) -> str:
    """Whether a role's keys are held offline or online."""
    return ONLINE if role in ONLINE_ROLES else OFFLINE


class MetadataFolder:
    """The files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def versions(self, role: str) -> list[int]:
        """All versions of a role that are here, oldest first."""
        name = re.compile(rf"(\d+)\.{re.escape(role)}\.json")
        found = (name.fullmatch(path.name) for path in self._folder.glob("*.json"))
        return sorted(int(match.group(1)) for match in found if match)

    def path(self, role: str, version: int) -> Path:
        """Where a version of a role lies."""
        name = "timestamp.json" if role == TIMESTAMP else f"{version}.{role}.json"
        return self._folder / name

    def has(self, role: str) -> bool:
        """Whether there is any version of a role."""
        return self.path(role, 0).exists() if role == TIMESTAMP else bool(self.versions(role))

    def newest(self, role: str) -> AnyMetadata:
        """The newest version of a role.

        Raises:
            PublisherError: there is none, or it cannot be read.
        """
        versions = [0] if role == TIMESTAMP else self.versions(role)
        if not versions:
            raise PublisherError(f"{self._folder}: there is no metadata of {role} here")
        path = self.path(role, versions[-1])
        try:
            metadata: AnyMetadata = Metadata.from_bytes(path.read_bytes())
        except (OSError, RepositoryError) as exc:
            raise PublisherError(f"{path}: it cannot be read: {exc}") from exc
        return metadata

    def write(self, role: str, metadata: AnyMetadata) -> None:
        """Publish a version; a file that is there is not replaced, but for the timestamp.

        Raises:
            PublisherError: there is a file of that version.
            OSError: the disk refused.
        """
        path = self.path(role, metadata.signed.version)
        if role != TIMESTAMP and path.exists():
            raise PublisherError(f"{path}: it is there already, and published files do not change")
        atomic.write_file(path, metadata.to_bytes())

    def describe(self, role: str) -> MetaFile:
        """A role's newest version as the snapshot or the timestamp lists it.

        Raises:
            PublisherError: there is none.
        """
        versions = self.versions(role)
        if not versions:
            raise PublisherError(f"{self._folder}: there is no metadata of {role} here")
        raw = self.path(role, versions[-1]).read_bytes()
        return MetaFile.from_data(versions[-1], raw, ["sha256"])


def role_keys(delegator: Root | Targets, role: str) -> RoleKeys:
    """Who may sign for a role, as its delegator says."""
    authority = delegator.get_delegated_role(role)
    keys = {key_id: delegator.get_key(key_id) for key_id in authority.keyids}
    return RoleKeys(role, keys, authority.threshold)


def delegations(targets: Targets) -> Mapping[str, Any]:
    """The roles that `targets` delegates to, in their order."""
    return (targets.delegations and targets.delegations.roles) or {}


def sign(signed: Signed, signers: Iterable[Signer], *, now: float, life_s: float) -> AnyMetadata:
    """Sign a new piece of metadata, which is made to say when that was.

    Args:
        signed: with its version; its expiry is set.
        now: wall clock, seconds.
    """
    issued = datetime.fromtimestamp(int(now), UTC)
    signed.expires = issued + timedelta(seconds=life_s)
    signed.unrecognized_fields[ISSUED_AT] = write_time(now)
    metadata: AnyMetadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata


def life_s(signed: Signed) -> float:
    """For how long it was signed, seconds; 0 where it does not say when that was."""
    return signed.expires.timestamp() - (issued_at(signed) or signed.expires.timestamp())


def issued_at(signed: Signed) -> float | None:
    """When it was signed, wall clock seconds; None where it does not say."""
    return read_time(signed.unrecognized_fields.get(ISSUED_AT))


def is_signed(role: str, metadata: AnyMetadata, delegator: Root | Targets) -> bool:
    """Whether enough of the keys that count now have signed it."""
    result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    return bool(result)


def is_half_over(signed: Signed, now: float) -> bool:
    """Whether more than half of its life is over."""
    return signed.expires.timestamp() - now < life_s(signed) / 2
