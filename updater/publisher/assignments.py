"""Changes to what the fleet shall serve. Pure; the rules of the document are in desired.py.

Several changes make one new document: its serial rises when it is published (`with_next_serial`).

1. A new assignment stands before the older ones, and is a rollout of its own: it picks its devices
   anew, so that not the same few are always first.
2. The same assignment with another percentage goes on with the same rollout: as the percentage
   grows, the devices that have it keep it. 0 takes it back.
3. An assignment for every device that it matches leaves nothing to older ones for the same devices;
   they are taken out. That is also how an operator goes back to an older version.
4. Floors only rise: devices remember the highest.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from updater.desired import WEEKDAYS, Desired, Group, Window
from updater.publisher.errors import PublisherError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

ALL = 100.0
_WINDOW = re.compile(r"(?P<days>[a-z,-]+) (?P<start>\d\d:\d\d)-(?P<end>\d\d:\d\d)")


def assign(
    desired: Desired, models: Mapping[str, int], *, percent: float, labels: Mapping[str, str]
) -> Desired:
    """Assign versions to the devices that have these labels, or to a share of them.

    Args:
        percent: 0..100 in steps of 0.01.

    Raises:
        PublisherError: 0 percent of something that is not assigned.
    """
    if percent == ALL:
        return _with_new_group(desired, models, percent, labels)
    there = next((group for group in desired.groups if _is(group, models, labels)), None)
    if there is None and percent == 0:
        raise PublisherError(f"{_name(models)} is not assigned to these devices")
    if there is None:
        return _with_new_group(desired, models, percent, labels)
    changed = msgspec.structs.replace(there, percent=percent)
    groups = tuple(changed if group is there else group for group in desired.groups)
    return _with_groups(desired, tuple(group for group in groups if group.percent))


def set_windows(
    desired: Desired, windows: Sequence[Window], *, labels: Mapping[str, str]
) -> Desired:
    """Let devices with these labels change only in these windows; none: at any time."""
    others = tuple(window for window in desired.windows if window.match != labels)
    return msgspec.structs.replace(desired, windows=(*others, *windows))


def block(desired: Desired, digests: Collection[str]) -> Desired:
    """Let no device install these bundles."""
    return msgspec.structs.replace(
        desired, blocked=tuple(dict.fromkeys((*desired.blocked, *digests)))
    )


def unblock(desired: Desired, digests: Collection[str]) -> Desired:
    """Let devices install these bundles again.

    Raises:
        PublisherError: one is not blocked.
    """
    if unknown := [digest for digest in digests if digest not in desired.blocked]:
        raise PublisherError(f"{', '.join(unknown)}: not blocked")
    left = tuple(digest for digest in desired.blocked if digest not in digests)
    return msgspec.structs.replace(desired, blocked=left)


def raise_floors(desired: Desired, floors: Mapping[str, int]) -> Desired:
    """Let no device install a release of these models below a release counter.

    Raises:
        PublisherError: there is a higher floor already.
    """
    return msgspec.structs.replace(desired, floors=higher_floors(desired.floors, floors))


def higher_floors(before: Mapping[str, int], floors: Mapping[str, int]) -> dict[str, int]:
    """Floors with some of them raised (rule 4).

    Raises:
        PublisherError: there is a higher floor already.
    """
    for model, floor in floors.items():
        if floor < before.get(model, 0):
            message = f"the floor of {model} is {before[model]}; devices would not go below it"
            raise PublisherError(message)
    return {**before, **floors}


def with_next_serial(desired: Desired) -> Desired:
    """The document as the next one that devices see."""
    return msgspec.structs.replace(desired, serial=desired.serial + 1)


def parse_window(text: str, labels: Mapping[str, str]) -> Window:
    """A window as people write it, "mon-fri,sun 22:00-04:00"; local time of the device.

    Raises:
        ValueError: it is none; says what was expected.
    """
    expected = f"'{text}': expected days and times, as in 'mon-fri,sun 22:00-04:00'"
    match = _WINDOW.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(expected)
    days = [day for part in match["days"].split(",") for day in _days(part, expected)]
    document = {
        "days": sorted(set(days), key=WEEKDAYS.index),
        "start": match["start"],
        "end": match["end"],
        "match": dict(labels),
    }
    try:
        return msgspec.convert(document, Window)
    except msgspec.ValidationError as exc:
        raise ValueError(expected) from exc


def _days(text: str, expected: str) -> list[str]:
    first, dash, last = text.partition("-")
    if first not in WEEKDAYS or (dash and last not in WEEKDAYS):
        raise ValueError(expected)
    start = WEEKDAYS.index(first)
    count = (WEEKDAYS.index(last) - start) % len(WEEKDAYS) + 1 if dash else 1
    return [WEEKDAYS[(start + step) % len(WEEKDAYS)] for step in range(count)]


def _with_new_group(
    desired: Desired, models: Mapping[str, int], percent: float, labels: Mapping[str, str]
) -> Desired:
    group = Group(
        rollout_id=f"r{desired.serial + 1}",
        models=dict(models),
        match=dict(labels),
        percent=percent,
    )
    return _with_groups(desired, (group, *desired.groups))


def _with_groups(desired: Desired, groups: Sequence[Group]) -> Desired:
    """Rule 3: without what no device can come to."""
    kept: list[Group] = []
    for group in groups:
        left = {
            model: version
            for model, version in group.models.items()
            if not any(_leaves_nothing(earlier, model, group) for earlier in kept)
        }
        if left:
            kept.append(msgspec.structs.replace(group, models=left))
    return msgspec.structs.replace(desired, groups=tuple(kept))


def _leaves_nothing(earlier: Group, model: str, later: Group) -> bool:
    is_for_all = earlier.percent == ALL and model in earlier.models
    return is_for_all and earlier.match.items() <= later.match.items()


def _is(group: Group, models: Mapping[str, int], labels: Mapping[str, str]) -> bool:
    return group.models == models and group.match == labels


def _name(models: Mapping[str, int]) -> str:
    return " ".join(f"{model}={version}" for model, version in models.items())
