"""One change of a repository: gathered, signed in memory, then written in an order that is safe."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from tuf.api.metadata import MetaFile, Snapshot, TargetFile, Timestamp

from updater import atomic
from updater.chain import FLOORS
from updater.desired import DESIRED_PATH, encode_desired, parse_desired
from updater.floors import FLEET, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TOP_LEVEL
from updater.publisher.assignments import higher_floors
from updater.publisher.bundlefiles import copy_bundle
from updater.publisher.errors import PublisherError
from updater.publisher.metadata import (
    DAY_S,
    LIFE_S,
    TIMESTAMP_LIFE_S,
    AnyMetadata,
    MetadataFolder,
    delegations,
    is_half_over,
    is_signed,
    issued_at,
    kind_of,
    life_s,
    role_keys,
    sign,
)
from updater.signedtime import write_time
from updater.target import bundle_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from securesystemslib.signer import Signer
    from tuf.api.metadata import Root, Targets

    from updater.desired import Desired
    from updater.publisher.keys import Keyring, RoleKeys
    from updater.target import Facts

_CLOCK_SKEW_S = DAY_S
"""Between the clocks of the machines that sign; one that is further behind has not been set."""
_MOST_KEYS = 20
"""Of one role; more people than ever meet."""


@dataclass(frozen=True, slots=True)
class Quorum:
    """So many of so many keys."""

    threshold: int
    count: int

    def check(self, role: str) -> None:
        """Refuse what cannot be.

        Raises:
            PublisherError: says what was expected.
        """
        if not 1 <= self.threshold <= self.count <= _MOST_KEYS:
            raise PublisherError(
                f"{role}: {self.threshold} of {self.count} keys: expected 1 of 1 to "
                f"{_MOST_KEYS} of {_MOST_KEYS}"
            )


@dataclass(frozen=True, slots=True)
class Published:
    """What a change has written.

    Attributes:
        versions: role to its new version.
        waits_for: the online role whose keys are not here, so that devices do not see the change
            yet; "" when they do.
    """

    versions: Mapping[str, int]
    waits_for: str = ""


class Draft:
    """A change that nobody sees yet."""

    def __init__(
        self, folder: Path, metadata: MetadataFolder, keyring: Keyring, *, now: float
    ) -> None:
        """Begin with what is published.

        Args:
            now: wall clock, seconds.

        Raises:
            PublisherError: the clock is behind what was signed.
        """
        self._targets_folder = folder / "targets"
        self._metadata = metadata
        self._keyring = keyring
        self._now = now
        self._edited: dict[str, Any] = {}
        self._bundles: dict[str, Path] = {}
        self._files: dict[str, bytes] = {}
        self._check_clock()

    def put(self, role: str, signed: Root | Targets) -> None:
        """Begin a role."""
        self._edited[role] = signed

    def put_bundle(self, path: Path, facts: Facts) -> None:
        """List a bundle.

        Raises:
            PublisherError: no role may sign it, or other bytes are signed under its name.
            OSError: it cannot be read.
        """
        target = bundle_path(facts.name, facts.version)
        with path.open("rb") as file:
            listed = TargetFile.from_data(target, file, ["sha256"])
        listed.unrecognized_fields["custom"] = msgspec.to_builtins(facts)
        team = self._team_of(facts.name)
        before = self._current(team).targets.get(target)
        if before is not None and before.hashes != listed.hashes:
            message = f"{facts.name} version {facts.version} is signed with other bytes"
            raise PublisherError(f"{message}; give the new ones another version")
        if before != listed:
            self._edit(team).targets[target] = listed
        self._bundles[listed.get_prefixed_paths()[0]] = path

    def put_desired(self, desired: Desired) -> None:
        """List the fleet's wish.

        Raises:
            PublisherError: it names a bundle that nobody has signed.
        """
        for group in desired.groups:
            for model, version in group.models.items():
                if bundle_path(model, version) not in self._current(self._team_of(model)).targets:
                    message = f"nobody has signed {model} version {version}; `repo add` does that"
                    raise PublisherError(message)
        raw = encode_desired(desired)
        parse_desired(raw)
        listed = TargetFile.from_data(DESIRED_PATH, raw, ["sha256"])
        self._edit(FLEET).targets = {DESIRED_PATH: listed}
        self._files[listed.get_prefixed_paths()[0]] = raw

    def raise_floor(self, model: str, floor: int) -> None:
        """Sign a floor with the keys that sign the model's bundles.

        Raises:
            PublisherError: there is a higher one.
        """
        signed = self._edit(self._team_of(model))
        before = signed.unrecognized_fields.get(FLOORS, {})
        signed.unrecognized_fields[FLOORS] = higher_floors(before, {model: floor})

    def renew(self) -> None:
        """Sign anew what is half over, of the roles whose keys are here."""
        for role in (ROOT, TARGETS, *self._delegations()):
            keys = role_keys(self._delegator(role), role)
            if is_half_over(self._current(role), self._now) and self._keyring.has(keys):
                self._edit(role)

    def check_rotation(self, roles: Sequence[str], revoke: Sequence[str] | None) -> None:
        """Refuse before any key is made.

        Raises:
            PublisherError: there is no such role, or no such key of these roles.
            KeysMissing: of who delegates to these roles.
        """
        known = (*TOP_LEVEL, *self._delegations())
        for role in roles:
            if role not in known:
                raise PublisherError(f"'{role}': expected one of {', '.join(known)}")
            delegator = ROOT if role in TOP_LEVEL else TARGETS
            self._keyring.signers(role_keys(self._delegator(delegator), delegator))
        keys = [role_keys(self._delegator(role), role) for role in roles]
        names = {each.name(key_id) for each in keys for key_id in each.keys}
        if unknown := sorted(set(revoke or ()) - names):
            raise PublisherError(
                f"{', '.join(unknown)}: expected one of {', '.join(sorted(names))}"
            )

    def rotate(self, role: str, revoke: Sequence[str] | None, quorum: Quorum | None) -> None:
        """Replace keys of a role (`Repository.rotate`).

        Raises:
            PublisherError: the quorum cannot be.
            OSError: the disk refused.
        """
        delegator = self._edit(ROOT if role in TOP_LEVEL else TARGETS)
        before = role_keys(delegator, role)
        quorum = quorum or Quorum(before.threshold, len(before.keys))
        quorum.check(role)
        gone = [key_id for key_id in before.keys if revoke is None or before.name(key_id) in revoke]
        missing = quorum.count - (len(before.keys) - len(gone))
        if missing < 0:
            message = f"{role}: {quorum.count - missing} keys stay, more than {quorum.count}"
            raise PublisherError(message)
        for name in self._free_names(before, missing):
            delegator.add_key(self._keyring.create(name, kind_of(role)), role)
        for key_id in gone:
            delegator.revoke_key(key_id, role)
        delegator.get_delegated_role(role).threshold = quorum.threshold
        if role not in {ROOT, SNAPSHOT, TIMESTAMP}:
            self._edit(role)  # the same content, signed by its new keys

    def publish(
        self, *, timestamp_life_s: float | None = None, is_online: bool = False
    ) -> Published:
        """Sign, then write.

        Args:
            timestamp_life_s: None: as it was.
            is_online: the online keys must be here.

        Raises:
            KeysMissing: of a role that was changed, or of an online role if they must be here.
            PublisherError: something here is not signed by the keys that count.
            OSError: the disk refused. What was written until then is published, or will be.
        """
        order = (ROOT, TARGETS, *self._delegations())
        signed = {role: self._sign(role, LIFE_S) for role in order if role in self._edited}
        self._check_signatures(order, signed)
        waits_for = "" if is_online else self._missing_online()
        if not waits_for:
            signed |= self._sign_online(signed, timestamp_life_s)
        self._write(signed)
        versions = {role: metadata.signed.version for role, metadata in signed.items()}
        return Published(versions, waits_for)

    def sign_for_stick(self, stick_life_s: float) -> bytes:
        """Sign two timestamps: the next one for a stick alone, the one after it to be published.

        A device that has seen either takes the other as it should: what is on the stick is newer
        than what was published before it was made, and older than what comes after. The published
        one is written first, so that no two timestamps ever have the same version.

        Returns:
            The stick's timestamp.json.

        Raises:
            KeysMissing: of the timestamp.
            OSError: the disk refused.
        """
        life = life_s(self._metadata.newest(TIMESTAMP).signed)
        self._edit(TIMESTAMP)
        stick = self._sign(TIMESTAMP, stick_life_s)
        raw = stick.to_bytes()
        self._edited[TIMESTAMP].version += 1
        self._metadata.write(TIMESTAMP, self._sign(TIMESTAMP, life))
        return raw

    def _check_clock(self) -> None:
        roles = [ROOT, TARGETS, SNAPSHOT, TIMESTAMP] if self._metadata.has(ROOT) else []
        times = [issued_at(self._metadata.newest(role).signed) or 0.0 for role in roles]
        newest = max(times, default=0.0)
        if self._now < newest - _CLOCK_SKEW_S:
            message = f"the clock says {write_time(self._now)}, but {write_time(newest)} is signed"
            raise PublisherError(f"{message}; set the clock")

    def _current(self, role: str) -> Any:  # noqa: ANN401 (the kind that the role has)
        """What the role says: as changed, else as published."""
        return self._edited.get(role) or self._metadata.newest(role).signed

    def _edit(self, role: str) -> Any:  # noqa: ANN401 (the kind that the role has)
        """The role's next version, to be changed and signed."""
        if role not in self._edited:
            signed = copy.deepcopy(self._metadata.newest(role).signed)
            signed.version += 1
            self._edited[role] = signed
        return self._edited[role]

    def _delegations(self) -> tuple[str, ...]:
        return tuple(delegations(self._current(TARGETS)))

    def _delegator(self, role: str) -> Any:  # noqa: ANN401 (Root or Targets)
        return self._current(ROOT if role in TOP_LEVEL else TARGETS)

    def _team_of(self, model: str) -> str:
        """The role that signs a model's bundles: the first that matches, as TUF searches them."""
        offered = self._current(TARGETS).delegations.get_roles_for_target(bundle_path(model, 1))
        team = next((role for role, _ in offered), None)
        if team is None:
            raise PublisherError(f"no role may sign a model called {model}")
        return str(team)

    def _free_names(self, keys: RoleKeys, count: int) -> list[str]:
        """Names that no key of the role has had, as far as one can tell here."""
        endings = [keys.name(key_id).rpartition("-")[2] for key_id in keys.keys]
        highest = max((int(ending) for ending in endings if ending.isdecimal()), default=0)
        names = (f"{keys.role}-{number}" for number in itertools.count(highest + 1))
        free = (name for name in names if self._keyring.find(name) is None)
        return list(itertools.islice(free, count))

    def _sign(self, role: str, life: float) -> AnyMetadata:
        delegator = self._delegator(role)
        signers: dict[str, Signer] = {}
        # A new root is signed by the keys of the one before as well: that is how devices follow.
        before = [self._metadata.newest(ROOT).signed] if self._has_new_root(role) else []
        for each in (delegator, *before):
            for signer in self._keyring.signers(role_keys(each, role)):
                signers[signer.public_key.keyid] = signer
        return sign(self._edited[role], signers.values(), now=self._now, life_s=life)

    def _has_new_root(self, role: str) -> bool:
        return role == ROOT and self._metadata.has(ROOT)

    def _check_signatures(self, roles: Sequence[str], signed: Mapping[str, AnyMetadata]) -> None:
        """What is not signed now was signed before; by keys that still count?"""
        for role in roles:
            metadata = signed.get(role) or self._metadata.newest(role)
            if not is_signed(role, metadata, self._delegator(role)):
                message = f"{role} version {metadata.signed.version} is not signed by its keys"
                raise PublisherError(f"{message}; `repo rotate` and `repo refresh` sign it anew")

    def _missing_online(self) -> str:
        root = self._current(ROOT)
        online = (SNAPSHOT, TIMESTAMP)
        return next((role for role in online if not self._keyring.has(role_keys(root, role))), "")

    def _sign_online(
        self, signed: Mapping[str, AnyMetadata], timestamp_life_s: float | None
    ) -> dict[str, AnyMetadata]:
        online = {}
        meta = {
            f"{role}.json": _describe(signed[role])
            if role in signed
            else self._metadata.describe(role)
            for role in (TARGETS, *self._delegations())
        }
        if self._needs_snapshot(meta):
            self._next(SNAPSHOT, Snapshot).meta = meta
            online[SNAPSHOT] = self._sign(SNAPSHOT, LIFE_S)
        timestamp = self._next(TIMESTAMP, Timestamp)
        timestamp.snapshot_meta = (
            _describe(online[SNAPSHOT]) if online else self._metadata.describe(SNAPSHOT)
        )
        life = timestamp_life_s or life_s(timestamp) or TIMESTAMP_LIFE_S
        online[TIMESTAMP] = self._sign(TIMESTAMP, life)
        return online

    def _needs_snapshot(self, meta: Mapping[str, MetaFile]) -> bool:
        if not self._metadata.has(SNAPSHOT):
            return True
        newest = self._metadata.newest(SNAPSHOT)
        return (
            newest.signed.meta != meta
            or not is_signed(SNAPSHOT, newest, self._current(ROOT))
            or is_half_over(newest.signed, self._now)
        )

    def _next(self, role: str, kind: type[Snapshot | Timestamp]) -> Any:  # noqa: ANN401
        if self._metadata.has(role):
            return self._edit(role)
        self._edited[role] = kind(version=1)
        return self._edited[role]

    def _write(self, signed: Mapping[str, AnyMetadata]) -> None:
        """Power lost at any step: devices see the old state, and the change can be made again."""
        for location, path in self._bundles.items():
            copy_bundle(path, self._targets_folder / location)
        for location, raw in self._files.items():
            destination = self._targets_folder / location
            atomic.make_folder(destination.parent)
            atomic.write_file(destination, raw)
        for role, metadata in signed.items():
            self._metadata.write(role, metadata)


def _describe(metadata: AnyMetadata) -> MetaFile:
    return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])
