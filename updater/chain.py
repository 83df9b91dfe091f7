"""The chain of signed metadata in a folder that python-tuf has filled: who signed what, and when.

Only what is part of the present chain is seen: each piece is verified against the one that
delegates to it, and has the version and digest that the snapshot names. What lies in the folder
from earlier, or for keys that were revoked since, is passed over. Expiry is not looked at.

The folder is this device's own. What the root in it is worth was decided when python-tuf put it
there, along the chain from the trust anchor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets

from updater.desired import Counter, ModelName
from updater.errors import TrustReason, Untrusted
from updater.floors import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Authority, SignedRole
from updater.signedtime import read_time
from updater.target import SignedFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tuf.api.metadata import Role, Signed, TargetFile

ISSUED_AT: Final = "issued_at"
"""Our field of signed metadata: when it was signed (signedtime.py)."""
FLOORS: Final = "floors"
"""Our field of a role that signs bundles: least release counter by model."""
KEY_NAME: Final = "x-inferd-name"
"""Our field of a public key: its name, for people."""

_MOST_DELEGATIONS = 1000
"""Looked at, however the roles delegate to each other."""
_Delegator: TypeAlias = Root | Targets


class Chain:
    """What is verified in a folder; read once.

    Attributes:
        roles: each role that is there, by name.
        authorities: who may sign now, for each role that one of them delegates to.
    """

    def __init__(self, folder: Path) -> None:
        """Read the folder.

        Raises:
            OSError: a file is there and cannot be read.
        """
        self._folder = folder
        self._root: Root | None = None
        self._targets: dict[str, Targets] = {}
        self.roles: dict[str, SignedRole] = {}
        self.authorities: dict[str, Authority] = {}
        root = self._add(ROOT, self._bytes(ROOT), None)
        if not isinstance(root, Root):
            return
        self._root = root
        self._note_authorities(root.roles)
        self._add(TIMESTAMP, self._bytes(TIMESTAMP), root)
        snapshot = self._add(SNAPSHOT, self._bytes(SNAPSHOT), root)
        if isinstance(snapshot, Snapshot):
            self._add_targets(snapshot, root)

    @property
    def is_complete(self) -> bool:
        """Whether every top-level role is there."""
        return {ROOT, TIMESTAMP, SNAPSHOT, TARGETS} <= set(self.roles)

    def find(self, path: str) -> SignedFile | None:
        """What is signed of a target by the first role that lists it, as TUF searches them."""
        role = self.role_of(path)
        return self.describe(self._targets[role].targets[path], role) if role else None

    def role_of(self, path: str) -> str:
        """The role that lists a target; "" when none of those that are here does."""
        return next(
            (role for role in self._search(path) if path in self._targets[role].targets), ""
        )

    def describe(self, file: TargetFile, role: str) -> SignedFile:
        """A target as the rest of the updater knows it."""
        location = file.path
        if self._root is not None and self._root.consistent_snapshot:
            folder, separator, name = file.path.rpartition("/")
            digest = file.hashes.get("sha256") or next(iter(file.hashes.values()))
            location = f"{folder}{separator}{digest}.{name}"
        return SignedFile(
            file.path, f"targets/{location}", file.length, dict(file.hashes), file.custom, role
        )

    def offline_floor(self, role: str, model: str) -> int:
        """Least release counter that the signers of a model's bundles allow; 0 when they say none.

        Args:
            role: that signs the model's bundles. It is not asked about models it may not sign.

        Raises:
            Untrusted: MALFORMED, it is signed, but cannot be followed.
        """
        raw = self._targets[role].unrecognized_fields.get(FLOORS, {})
        try:
            return msgspec.convert(raw, dict[ModelName, Counter]).get(model, 0)
        except (msgspec.ValidationError, RecursionError) as exc:
            message = f"{role} is signed with floors this device cannot follow: {exc}"
            raise Untrusted(TrustReason.MALFORMED, message, role=role) from exc

    def _add_targets(self, snapshot: Snapshot, root: Root) -> None:
        waiting: list[tuple[str, _Delegator]] = [(TARGETS, root)]
        for role, delegator in waiting:
            if role in self._targets:
                continue
            targets = self._add(role, self._listed_bytes(role, snapshot), delegator)
            if not isinstance(targets, Targets):
                continue
            self._targets[role] = targets
            children = (targets.delegations and targets.delegations.roles) or {}
            self._note_authorities(children)
            room = _MOST_DELEGATIONS - len(waiting)
            waiting += [(child, targets) for child in list(children)[:room]]

    def _add(self, role: str, raw: bytes | None, delegator: _Delegator | None) -> Signed | None:
        """Verify one piece; None when it is not there or not good."""
        if raw is None:
            return None
        try:
            metadata: Metadata[Any] = Metadata.from_bytes(raw)
            result = (delegator or metadata.signed).get_verification_result(
                role, metadata.signed_bytes, metadata.signatures
            )
        except (RepositoryError, ValueError, AttributeError):
            return None  # no metadata; not delegated to; something that delegates nothing
        if not result:
            return None
        signed: Signed = metadata.signed
        self.roles[role] = SignedRole(
            signed.version,
            signed.expires.timestamp(),
            read_time(signed.unrecognized_fields.get(ISSUED_AT)),
            {
                key_id: str(key.unrecognized_fields.get(KEY_NAME, ""))
                for key_id, key in result.signed.items()
            },
        )
        return signed

    def _note_authorities(self, roles: Mapping[str, Role]) -> None:
        for name, role in roles.items():
            self.authorities.setdefault(name, Authority(frozenset(role.keyids), role.threshold))

    def _bytes(self, role: str) -> bytes | None:
        try:
            return (self._folder / f"{quote(role, '')}.json").read_bytes()
        except FileNotFoundError:
            return None

    def _listed_bytes(self, role: str, snapshot: Snapshot) -> bytes | None:
        """A role's metadata if it is the one that the snapshot lists."""
        raw, listed = self._bytes(role), snapshot.meta.get(f"{role}.json")
        if raw is None or listed is None:
            return None
        try:
            listed.verify_length_and_hashes(raw)
            version: int = Metadata.from_bytes(raw).signed.version
        except RepositoryError:
            return None
        return raw if version == listed.version else None

    def _search(self, path: str) -> Iterator[str]:
        """The roles that may list a target, in TUF's order: preorder, up to a terminating one."""
        waiting, visited = [TARGETS], set[str]()
        while waiting:
            role = waiting.pop()
            if role in visited or role not in self._targets:
                continue
            visited.add(role)
            yield role
            delegations = self._targets[role].delegations
            children = []
            for child, ends_here in delegations.get_roles_for_target(path) if delegations else ():
                children.append(child)
                if ends_here:
                    waiting = []
                    break
            waiting += reversed(children)
