"""What verified metadata says, for those who act on it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from updater.errors import TrustReason, Untrusted
from updater.floors import FLEET, TOP_LEVEL
from updater.signedtime import write_time
from updater.target import bundle_path, read_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from updater.desired import Desired
    from updater.floors import SignedRole
    from updater.signedtime import Reference
    from updater.target import SignedFile, Target


@dataclass(frozen=True, slots=True)
class View:
    """What the verified metadata says, at one moment.

    Attributes:
        roles: every verified role that is here, by name.
        reference: the time it was judged by.
        desired: the fleet's wish; None where there is none.
        floors: least release counter by model, whoever signed it.
        found: what is signed of each bundle that `desired` names, by TUF target path (`find`).
    """

    roles: Mapping[str, SignedRole]
    reference: Reference
    desired: Desired | None
    floors: Mapping[str, int]
    found: Mapping[str, SignedFile | Untrusted | None] = field(repr=False)

    @property
    def versions(self) -> dict[str, int]:
        """By role."""
        return {role: signed.version for role, signed in self.roles.items()}

    @property
    def expires(self) -> dict[str, float]:
        """By role, wall clock seconds."""
        return {role: signed.expires for role, signed in self.roles.items()}

    @property
    def signed_at(self) -> dict[str, float]:
        """By role that says so, wall clock seconds."""
        times = {role: signed.issued_at for role, signed in self.roles.items()}
        return {role: time for role, time in times.items() if time is not None}

    def check_expiry(self, now: float, target: Target | None = None) -> None:
        """Refuse metadata that has expired: nothing new may be installed by it.

        Args:
            now: wall clock, seconds (`Trust.reference`).
            target: what is to be installed; who else signs bundles does not matter then.

        Raises:
            Untrusted: EXPIRED, of the role that expired first.
        """
        needed = {*TOP_LEVEL, FLEET, *([target.role] if target else [])}
        check_expiry({role: each for role, each in self.roles.items() if role in needed}, now)

    def find(self, model: str, version: int) -> Target | None:
        """A bundle that `desired` names for any device; None where nobody has signed it.

        Raises:
            Untrusted: what is signed of it cannot be believed. Other bundles are not touched.
        """
        found = self.found.get(bundle_path(model, version))
        if isinstance(found, Untrusted):
            raise found
        return None if found is None else read_target(found)


def check_expiry(roles: Mapping[str, SignedRole], now: float) -> None:
    """Refuse metadata of which something has expired.

    Raises:
        Untrusted: EXPIRED, of the role that expired first.
    """
    role, signed = min(roles.items(), key=lambda item: item[1].expires)
    if signed.expires <= now:
        message = f"{role} version {signed.version} expired on {write_time(signed.expires)}"
        raise Untrusted(TrustReason.EXPIRED, message, role=role)
