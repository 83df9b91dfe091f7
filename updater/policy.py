"""May this signed bundle be installed on this device? Pure.

The rules, in this order; the first that is broken is the reason:

1. Its digest is not on the fleet's signed list of blocked ones.
2. Its release counter is not below the floor. Floors are signed; installing something raises none,
   so an operator can go back to an older version as long as no floor forbids it.
3. It has not failed on this device before.
4. Architecture, runtime, accelerators and memory fit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest
from operator import eq, ge, gt, le, lt, ne
from typing import TYPE_CHECKING

from updater.errors import NotAllowed, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from updater.target import Facts, Target

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    ">=": ge,
    "<=": le,
    "==": eq,
    "!=": ne,
    ">": gt,
    "<": lt,
}
_RANGE = re.compile(r"(?P<name>[a-z][a-z0-9-]*)\s*(?P<bounds>.*)", re.DOTALL)
_BOUND = re.compile(r"\s*(?P<compare>>=|<=|==|!=|>|<)\s*(?P<version>\d{1,9}(\.\d{1,9}){0,7})\s*")
_RELEASE = re.compile(r"\d{1,9}(\.\d{1,9}){0,7}")


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the rules must know of the device.

    Attributes:
        architecture: Debian's name, "amd64".
        runtime, runtime_version: "litert", "2.3.1".
        accelerators: kinds that are there.
        memory_mib: what models may take altogether; None: not known.
    """

    architecture: str
    runtime: str
    runtime_version: str
    accelerators: frozenset[str] = frozenset({"cpu"})
    memory_mib: int | None = None


def check(
    target: Target,
    device: DeviceFacts,
    *,
    floor: int,
    blocked: Container[str],
    quarantined: Container[str],
) -> None:
    """Let the bundle pass, or say why not.

    Args:
        floor: least release counter of this model.
        blocked, quarantined: sha256 of bundles.

    Raises:
        NotAllowed: with the reason.
    """
    facts = target.facts
    what = f"{facts.name} version {facts.version}"
    if target.sha256 in blocked:
        raise NotAllowed(Refusal.BLOCKED, f"{what} is blocked by the fleet")
    if facts.release_counter < floor:
        message = f"{what} has release counter {facts.release_counter}, the signed floor is {floor}"
        raise NotAllowed(Refusal.BELOW_FLOOR, message)
    if target.sha256 in quarantined:
        raise NotAllowed(Refusal.QUARANTINED, f"{what} has failed here before")
    if misfit := _misfit(facts, device):
        raise NotAllowed(Refusal.WRONG_DEVICE, f"{what} {misfit}")


def runtime_fits(wanted: str, runtime: str, version: str) -> bool:
    """Whether a runtime is in a range.

    Args:
        wanted: "litert>=2.3,<3", or a name alone for every version; a version without an entry
            counts as having a 0 there.
        version: "2.3.1"; what follows its numbers does not count.

    Raises:
        ValueError: `wanted` is no range, or `version` does not begin with a number.
    """
    parsed = _RANGE.fullmatch(wanted)
    if parsed is None:
        raise ValueError(f"'{wanted}': expected a runtime's name and bounds, as litert>=2.3,<3")
    bounds = parsed["bounds"].split(",") if parsed["bounds"] else []
    tests = [_read_bound(bound, wanted) for bound in bounds]
    release = _RELEASE.match(version)
    if release is None:
        raise ValueError(f"'{version}': expected a version, as 2.3.1")
    fits = [compare(_order(release.group(), bound), 0) for compare, bound in tests]
    return parsed["name"] == runtime and all(fits)


def _misfit(facts: Facts, device: DeviceFacts) -> str:
    """In what it does not fit the device; "" when it does."""
    if facts.architectures and device.architecture not in facts.architectures:
        return f"is for {', '.join(facts.architectures)}, this is {device.architecture}"
    try:
        if not runtime_fits(facts.runtime, device.runtime, device.runtime_version):
            return f"needs {facts.runtime}, here is {device.runtime} {device.runtime_version}"
    except ValueError as exc:
        return f"needs a runtime that cannot be compared: {exc}"
    if missing := sorted(set(facts.accelerators) - device.accelerators):
        return f"needs {', '.join(missing)}, which is not here"
    needed_mib = facts.memory_mib or 0
    if device.memory_mib is not None and needed_mib > device.memory_mib:
        return f"needs {needed_mib} MiB, models may take {device.memory_mib} MiB here"
    return ""


def _read_bound(text: str, wanted: str) -> tuple[Callable[[int, int], bool], str]:
    bound = _BOUND.fullmatch(text)
    if bound is None:
        raise ValueError(f"'{wanted}': '{text}' is no bound such as >=2.3")
    return _COMPARE[bound["compare"]], bound["version"]


def _order(left: str, right: str) -> int:
    """-1, 0 or 1 as `left` is before, the same as or after `right`."""
    pairs = zip_longest(map(int, left.split(".")), map(int, right.split(".")), fillvalue=0)
    return next(((a > b) - (a < b) for a, b in pairs if a != b), 0)
