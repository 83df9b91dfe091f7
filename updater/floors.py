"""What this device has seen signed, and below what it never goes again. Pure.

python-tuf keeps this in its cache of metadata alone: whoever makes the device lose that cache can
serve it any old state. These floors live in a file of their own and are checked after each refresh.

The rules:

1. A role's floor is the highest version of it that was verified here.
2. A floor stands as long as the keys that signed it would still reach the role's threshold. That is
   when metadata of that version would still be believed; and it is how a fleet recovers from a
   thief who signed version 2147483647: it revokes the stolen key.
3. The timestamp's and the snapshot's floors stand and fall together, and the snapshot's carries
   those of the roles it lists. Source: TUF specification, section 5.3.11.
4. The root's floor, and the time, stand as long as the trust anchor is the same, or one that the
   device has followed. Another one is an operator's word that the old root is not to be believed.
5. A model's floor for release counters is the highest that the fleet role has signed; rule 2 holds
   for it with that role's keys.
6. Time is never before what `root` and `targets` say of when they were signed. The online roles
   have no say: a thief of their keys could move the time of every device to the year 9999.
7. A time of signing that would make the metadata expired that came with it is somebody's wrong
   clock; it is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from updater.errors import TrustReason, Untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT, TIMESTAMP, SNAPSHOT, TARGETS, FLEET = "root", "timestamp", "snapshot", "targets", "fleet"
TOP_LEVEL = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
MAX_FLOORS_BYTES = 1 << 22
"""Of the file: as many floors as are kept fit several times."""
_MOST_COUNTERS = 2000
"""Twice the models that `desired.json` may have floors for."""
_ONLINE = (TIMESTAMP, SNAPSHOT)
_SAY_WHEN = (ROOT, TARGETS)
_Count = Annotated[int, Meta(ge=0)]


class Floor(msgspec.Struct, frozen=True):
    """A number that must not be undercut.

    Attributes:
        signers: ids of the keys that signed it.
    """

    value: _Count
    signers: tuple[str, ...] = ()


class Floors(msgspec.Struct, frozen=True):
    """All that this device remembers of what was signed.

    Attributes:
        anchor: sha256 of the trust anchor that the root's floor belongs to.
        roles: by role.
        counters: release counters, by model.
        signed_time: wall clock, seconds; 0 before anything was seen.
    """

    anchor: str = ""
    roles: dict[str, Floor] = {}
    counters: dict[str, Floor] = {}
    signed_time: float = 0.0


@dataclass(frozen=True, slots=True)
class SignedRole:
    """One verified piece of metadata.

    Attributes:
        expires, issued_at: wall clock, seconds; `issued_at` is None where the signer does not say.
        signers: key id to the key's name ("" where it has none), of each good signature.
    """

    version: int
    expires: float
    issued_at: float | None
    signers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Authority:
    """Who may sign for a role now."""

    key_ids: frozenset[str]
    threshold: int


def held(floors: Floors, authorities: Mapping[str, Authority]) -> Floors:
    """The floors that still stand (rules 2, 3 and 5).

    Args:
        authorities: by role; the floor of a role that is not among them stands.
    """
    fallen = {role for role, floor in floors.roles.items() if not _stands(floor, role, authorities)}
    if fallen.intersection(_ONLINE):
        if SNAPSHOT in fallen:
            fallen.update(set(floors.roles) - {ROOT})
        fallen.update(_ONLINE)
    return msgspec.structs.replace(
        floors,
        roles={role: floor for role, floor in floors.roles.items() if role not in fallen},
        counters={
            model: floor
            for model, floor in floors.counters.items()
            if _stands(floor, FLEET, authorities)
        },
    )


def check_versions(floors: Floors, roles: Mapping[str, SignedRole]) -> None:
    """Refuse metadata older than what was seen (rule 1).

    Raises:
        Untrusted: ROLLBACK, of the first such role.
    """
    for role, signed in roles.items():
        floor = floors.roles.get(role)
        if floor is not None and signed.version < floor.value:
            message = (
                f"{role} version {signed.version} is signed, but {floor.value} was seen before"
            )
            raise Untrusted(TrustReason.ROLLBACK, message, role=role)


def raised(
    floors: Floors, roles: Mapping[str, SignedRole], counters: Mapping[str, int] | None = None
) -> Floors:
    """The floors after this metadata was verified (rules 1, 5, 6 and 7).

    Args:
        counters: floors that the fleet role signs, by model.

    Raises:
        Untrusted: TOO_LARGE, they would be floors of more models than are kept. A thief of the
            fleet's key must not make this device forget one by naming others.
    """
    counters = counters or {}
    if len(floors.counters.keys() | counters.keys()) > _MOST_COUNTERS:
        message = f"there would be floors of more than {_MOST_COUNTERS} models"
        raise Untrusted(TrustReason.TOO_LARGE, message, role=FLEET)
    fleet = tuple(sorted(roles[FLEET].signers)) if FLEET in roles else ()
    return msgspec.structs.replace(
        floors,
        roles={
            **floors.roles,
            **{
                role: _higher(floors.roles.get(role), signed.version, tuple(sorted(signed.signers)))
                for role, signed in roles.items()
            },
        },
        counters={
            **floors.counters,
            **{
                model: _higher(floors.counters.get(model), value, fleet)
                for model, value in counters.items()
            },
        },
        signed_time=max(floors.signed_time, _signed_time(roles)),
    )


def for_anchor(floors: Floors, anchor: str, *, is_followed: bool) -> Floors:
    """The floors under this trust anchor (rule 4).

    Args:
        anchor: its sha256.
        is_followed: it is one of the roots that the device knows from the chain it followed.
    """
    if floors.anchor == anchor:
        return floors
    if is_followed:
        return msgspec.structs.replace(floors, anchor=anchor)
    # The others fall by rule 2 when they are of another fleet's keys.
    roles = {role: floor for role, floor in floors.roles.items() if role != ROOT}
    return msgspec.structs.replace(floors, anchor=anchor, roles=roles, signed_time=0.0)


def _stands(floor: Floor, role: str, authorities: Mapping[str, Authority]) -> bool:
    # The root's keys are checked along the chain from the anchor; rule 4 is about it.
    if role == ROOT or role not in authorities:
        return True
    authority = authorities[role]
    return len(authority.key_ids.intersection(floor.signers)) >= authority.threshold


def _higher(floor: Floor | None, value: int, signers: tuple[str, ...]) -> Floor:
    """The higher one; of equals the one signed now, whose keys are those that count from now on."""
    if floor is not None and floor.value > value:
        return floor
    return Floor(value, signers)


def _signed_time(roles: Mapping[str, SignedRole]) -> float:
    first_expiry = min((signed.expires for signed in roles.values()), default=0.0)
    times = [roles[role].issued_at or 0.0 for role in _SAY_WHEN if role in roles]
    return max((time for time in times if time <= first_expiry), default=0.0)
