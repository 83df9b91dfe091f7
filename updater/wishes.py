"""What the fleet wishes of this device, model by model, as far as it may be followed. Pure.

Rules:
1. A wish that cannot be followed says why, and touches no other model.
2. Metadata that has expired brings nothing new in. What is there goes on serving.
3. More models than a device can hold are not looked at: `MOST_MODELS`, the first by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from updater.desired import choose
from updater.errors import Untrusted
from updater.install import Wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from updater.desired import Assignment, Device
    from updater.view import View

MOST_MODELS = 1000
"""As many as the journal takes."""


@dataclass(frozen=True, slots=True)
class Wished:
    """What is wished of one model.

    Attributes:
        version: that is assigned.
        wish: None when it cannot be followed; its source is the first of `places`.
        places: where its bundle may be had, one or more.
        reason: why it cannot; else "".
        opens_at: when this device may change next, wall clock seconds.
    """

    version: int
    wish: Wish | None
    reason: str
    opens_at: float
    places: tuple[str, ...]

    def wish_from(self, place: int) -> Wish | None:
        """The wish, with the bundle from one place after the other as the number grows."""
        if self.wish is None:
            return None
        return replace(self.wish, source=self.places[place % len(self.places)])


def read_wishes(
    view: View | None,
    device: Device,
    *,
    now: float,
    places: tuple[str, ...],
    objection: Callable[[str], str],
) -> dict[str, Wished]:
    """The wishes, by model.

    Args:
        view: None before there was any metadata.
        now: the time to judge by, wall clock seconds (`Trust.reference`).
        places: where bundles may be had, one or more: URLs or folders.
        objection: why a model's place on the disk is not for updates; "" when it is.
    """
    if view is None or view.desired is None:
        return {}
    chosen = sorted(choose(view.desired, device, now=now).items())[:MOST_MODELS]
    return {
        model: _read(view, model, assignment, now=now, places=places, objection=objection(model))
        for model, assignment in chosen
    }


def _read(
    view: View,
    model: str,
    assignment: Assignment,
    *,
    now: float,
    places: tuple[str, ...],
    objection: str,
) -> Wished:
    unfollowed = Wished(assignment.version, None, objection, assignment.opens_at, places)
    if objection:
        return unfollowed
    try:
        target = view.find(model, assignment.version)
        if target is None:
            reason = f"version {assignment.version} is assigned, but nobody has signed it"
            return replace(unfollowed, reason=reason)
        view.check_expiry(now, target)
    except Untrusted as exc:
        return replace(unfollowed, reason=str(exc))
    wish = Wish(
        assignment=assignment,
        target=target,
        source=places[0],
        floor=view.floors.get(model, 0),
        blocked=frozenset(view.desired.blocked if view.desired else ()),
        versions=view.versions,
    )
    return replace(unfollowed, wish=wish)
