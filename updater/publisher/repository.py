"""A TUF repository in a folder that any static web server can serve: make it, add, assign, renew.

The rules:

1. All that a change needs is signed in memory first. When a key is missing or a passphrase wrong,
   nothing has been written.
2. Then it is written so that devices follow it at every moment: bundles, root, targets and
   delegations, snapshot, and the timestamp last.
3. Where the online keys are not here, the rest is written, and the fleet's host publishes it at its
   next `refresh`. That host never needs an offline key.
4. What is signed is renewed when half of its life is over.
5. Bytes that were signed under a name and version never change.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tuf.api.metadata import DelegatedRole, Delegations, Root, Targets

from updater import atomic
from updater.desired import DESIRED_PATH, Desired, parse_desired
from updater.floors import FLEET, ROOT, TARGETS, TOP_LEVEL
from updater.publisher.assignments import with_next_serial
from updater.publisher.draft import Draft, Quorum
from updater.publisher.errors import PublisherError
from updater.publisher.keys import RoleKeys
from updater.publisher.metadata import (
    TEAM,
    MetadataFolder,
    delegations,
    kind_of,
    role_keys,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from updater.publisher.draft import Published
    from updater.publisher.keys import Keyring
    from updater.target import Facts

DEFAULT_TEAM = f"{TEAM}main"
_TEAM = re.compile(rf"{TEAM}[a-z0-9-]{{1,50}}")
_PATTERN = re.compile(r"[A-Za-z0-9._*?-]{1,100}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a new repository is to look like.

    Attributes:
        quorums: by role; a role without one has a single key.
        teams: role to the patterns of the model names it may sign, "vision-*". Of two that match a
            name the first counts.
    """

    quorums: Mapping[str, Quorum] = field(default_factory=lambda: {ROOT: Quorum(2, 3)})
    teams: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {DEFAULT_TEAM: ("*",)})


class Repository:
    """One repository, and the keys that are here."""

    def __init__(self, folder: Path, keyring: Keyring, *, clock: Callable[[], float]) -> None:
        """Nothing is read yet.

        Args:
            folder: with `metadata/` and `targets/`.
            clock: wall clock, seconds.
        """
        self.folder = folder
        self.metadata = MetadataFolder(folder / "metadata")
        self._keyring = keyring
        self._clock = clock

    def init(self, plan: Plan, *, timestamp_life_s: float | None = None) -> Published:
        """Make the repository and its keys.

        Raises:
            PublisherError: there is one, or the plan cannot be followed. Keys may have been made.
            OSError: the disk refused.
        """
        if self.metadata.has(ROOT):
            raise PublisherError(f"{self.folder}: there is a repository already")
        roles = (*TOP_LEVEL, *plan.teams, FLEET)
        _check_plan(plan, roles)
        keys = {role: self._new_keys(role, plan.quorums.get(role, Quorum(1, 1))) for role in roles}
        atomic.make_folder(self.folder / "metadata")
        with self._changing() as draft:
            draft.put(ROOT, _new_root(keys))
            draft.put(TARGETS, _new_targets(keys, plan.teams))
            for team in plan.teams:
                draft.put(team, Targets())
            draft.put(FLEET, Targets())
            draft.put_desired(Desired(schema=1, serial=1))
            return draft.publish(timestamp_life_s=timestamp_life_s, is_online=True)

    def add(
        self, bundles: Sequence[tuple[Path, Facts]], *, floors: Mapping[str, int] | None = None
    ) -> Published:
        """Sign bundles, so that they can be assigned; raise floors that no online key can lower.

        Raises:
            PublisherError: a bundle of that name and version is signed with other bytes, or no role
                may sign it, or a floor would sink.
            KeysMissing: of the role that signs the models.
            OSError: the disk refused.
        """
        with self._changing() as draft:
            for path, facts in bundles:
                draft.put_bundle(path, facts)
            for model, floor in (floors or {}).items():
                draft.raise_floor(model, floor)
            return draft.publish()

    def assign(self, change: Callable[[Desired], Desired]) -> Published:
        """Change what the fleet shall serve (assignments.py).

        Raises:
            PublisherError: the change refuses, or names a bundle that nobody has signed.
            KeysMissing: of the fleet role.
            OSError: the disk refused.
        """
        with self._changing() as draft:
            draft.put_desired(with_next_serial(change(self.desired())))
            return draft.publish()

    def refresh(self, *, timestamp_life_s: float | None = None) -> Published:
        """Sign the timestamp anew; publish what was added elsewhere; renew what is half over.

        Args:
            timestamp_life_s: from now on; None: as it was.

        Raises:
            KeysMissing: of an online role.
            PublisherError: something is not signed by the keys that count.
            OSError: the disk refused.
        """
        with self._changing() as draft:
            draft.renew()
            return draft.publish(timestamp_life_s=timestamp_life_s, is_online=True)

    def rotate(
        self,
        roles: Sequence[str],
        *,
        revoke: Sequence[str] | None = None,
        quorum: Quorum | None = None,
    ) -> Published:
        """Replace keys, and sign what they sign anew.

        Args:
            revoke: names of the keys to replace; None: all of these roles.
            quorum: of these roles from now on; None: as it was.

        Raises:
            PublisherError: there is no such role or key, or the quorum cannot be.
            KeysMissing: of the roles that delegate to these, before any key is made.
            OSError: the disk refused.
        """
        with self._changing() as draft:
            draft.check_rotation(roles, revoke)
            for role in roles:
                draft.rotate(role, revoke, quorum)
            return draft.publish()

    def sign_for_stick(self, stick_life_s: float) -> bytes:
        """Sign a timestamp for a stick, and a newer one for everybody else (export.py).

        Returns:
            The stick's timestamp.json.

        Raises:
            KeysMissing: of the timestamp.
            OSError: the disk refused.
        """
        with self._changing() as draft:
            return draft.sign_for_stick(stick_life_s)

    def desired(self) -> Desired:
        """What the fleet shall serve at present.

        Raises:
            PublisherError: it is not here, or not what was signed.
        """
        listed = self.metadata.newest(FLEET).signed.targets.get(DESIRED_PATH)
        if listed is None:
            raise PublisherError(f"{self.folder}: {FLEET} lists no {DESIRED_PATH}")
        path = self.folder / "targets" / listed.get_prefixed_paths()[0]
        try:
            raw = path.read_bytes()
        except OSError as exc:
            raise PublisherError(f"{path}: {exc.strerror}") from exc
        if hashlib.sha256(raw).hexdigest() != listed.hashes.get("sha256"):
            raise PublisherError(f"{path}: it is not what was signed")
        return parse_desired(raw)

    def roles(self) -> dict[str, RoleKeys]:
        """Who may sign for what, as the newest metadata here says.

        Raises:
            PublisherError: it cannot be read.
        """
        root, targets = self.metadata.newest(ROOT).signed, self.metadata.newest(TARGETS).signed
        return {
            **{role: role_keys(root, role) for role in TOP_LEVEL},
            **{role: role_keys(targets, role) for role in delegations(targets)},
        }

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Draft]:
        """One change at a time, whoever else has the folder open."""
        if not (self.folder / "metadata").is_dir():
            raise PublisherError(f"{self.folder}: no repository is here; `repo init` makes one")
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise PublisherError(f"{self.folder}: another program is changing it") from exc
            yield Draft(self.folder, self.metadata, self._keyring, now=self._clock())
        finally:
            os.close(descriptor)

    def _new_keys(self, role: str, quorum: Quorum) -> RoleKeys:
        keys = [
            self._keyring.create(f"{role}-{number}", kind_of(role))
            for number in range(1, quorum.count + 1)
        ]
        return RoleKeys(role, {key.keyid: key for key in keys}, quorum.threshold)


def _check_plan(plan: Plan, roles: Sequence[str]) -> None:
    for role, quorum in plan.quorums.items():
        if role not in roles:
            raise PublisherError(f"'{role}': expected one of {', '.join(roles)}")
        quorum.check(role)
    for team, patterns in plan.teams.items():
        if not _TEAM.fullmatch(team):
            raise PublisherError(f"'{team}': expected a name as models-vision")
        if bad := [pattern for pattern in patterns if not _PATTERN.fullmatch(pattern)]:
            raise PublisherError(f"'{bad[0]}': expected a pattern of model names, as vision-*")


def _new_root(keys: Mapping[str, RoleKeys]) -> Root:
    root = Root(version=1, consistent_snapshot=True)
    for role in TOP_LEVEL:
        root.roles[role].threshold = keys[role].threshold
        for key in keys[role].keys.values():
            root.add_key(key, role)
    return root


def _new_targets(keys: Mapping[str, RoleKeys], teams: Mapping[str, Sequence[str]]) -> Targets:
    paths = {FLEET: [DESIRED_PATH]}
    paths |= {team: [f"{name}/*.bundle" for name in patterns] for team, patterns in teams.items()}
    roles = {
        # Terminating: what the first role that matches does not list, no later one can.
        role: DelegatedRole(role, list(keys[role].keys), keys[role].threshold, True, its_paths)
        for role, its_paths in paths.items()
    }
    public = {key_id: key for role in roles for key_id, key in keys[role].keys.items()}
    return Targets(version=1, delegations=Delegations(public, roles))
