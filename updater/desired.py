"""The fleet's signed wish, `fleet/desired.json`, and what it means for one device. Pure.

The rules, for each model by itself:

1. The first group decides that names the model, matches the device's labels and has the device in
   its share. Later groups are for whoever the earlier ones leave.
2. A device is in a group's share when `sha256(rollout id + device id) mod 10000` is below
   `percent * 100`. Nobody keeps a list: every device finds out by itself, and as the percentage
   grows no device that was in falls out.
3. Windows say when a device may change what it serves. They are in the device's local time. A
   device that no window matches may change at any time.
4. A model that no group assigns to the device is left as it is.

What is not checked here: whether such a version exists, fits, or is allowed (trust.py, policy.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from updater.errors import TrustReason, Untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

DESIRED_PATH = "fleet/desired.json"
"""Its TUF target path."""
MAX_DESIRED_BYTES = 1 << 20
"""A thousand groups fit several times."""
BUCKETS = 10_000
"""A hundredth of a percent of the fleet each."""
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_DAY_S = 86_400
_MAX_COUNT = 2**53 - 1
"""Whole numbers that every JSON reader keeps exactly."""

ModelName = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\Z",
        description="a model's name, as updater/names.py has it",
    ),
]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Counter = Annotated[int, Meta(ge=0, le=_MAX_COUNT)]
Version = Annotated[int, Meta(ge=1, le=_MAX_COUNT)]
ClockTime = Annotated[str, Meta(pattern=r"\A([01][0-9]|2[0-3]):[0-5][0-9]\Z")]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_Word = Annotated[str, Meta(min_length=1, max_length=128)]
Labels = Annotated[dict[_Word, _Word], Meta(max_length=64)]


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which versions some devices shall serve.

    Attributes:
        rollout_id: picks the devices of the share; the same id picks the same ones.
        match: a device belongs when it has all these labels with these values.
        percent: share of the devices that belong, 0..100 in steps of 0.01.
        models: model name to version.
    """

    rollout_id: _Word
    models: Annotated[dict[ModelName, Version], Meta(min_length=1, max_length=1000)]
    match: Labels = {}
    percent: Annotated[float, Meta(ge=0, le=100)] = 100.0


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When some devices may change what they serve, in their local time.

    Attributes:
        days: weekdays on which it begins.
        start, end: "HH:MM"; it ends on the next day when `end` is not after `start`.
        match: as in a group.
    """

    days: Annotated[tuple[Weekday, ...], Meta(min_length=1, max_length=7)]
    start: ClockTime
    end: ClockTime
    match: Labels = {}


class Desired(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the fleet shall serve.

    Attributes:
        serial: grows with every change of the document.
        blocked: sha256 of bundles that must not be installed.
        floors: model to the least release counter that may be installed. A device remembers the
            highest it has seen.
    """

    schema: Literal[1]
    serial: Version
    groups: Annotated[tuple[Group, ...], Meta(max_length=10_000)] = ()
    windows: Annotated[tuple[Window, ...], Meta(max_length=1000)] = ()
    blocked: Annotated[tuple[Digest, ...], Meta(max_length=10_000)] = ()
    floors: Annotated[dict[ModelName, Counter], Meta(max_length=1000)] = {}


@dataclass(frozen=True, slots=True)
class Device:
    """What the rules must know of a device.

    Attributes:
        utc_offset_s: seconds that its local time is ahead of UTC.
    """

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    utc_offset_s: int = 0


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the fleet wishes of one model on one device.

    Attributes:
        rollout_id, serial: of the group and the document that say so.
        opens_at: when the device may change next, seconds of the wall clock; not after now while
            the window is open.
    """

    version: int
    rollout_id: str
    serial: int
    window_open: bool
    opens_at: float


def parse_desired(raw: bytes) -> Desired:
    """Read the document.

    Raises:
        Untrusted: MALFORMED or TOO_LARGE. It is signed all the same, so whoever signed it made a
            mistake, or has a newer publisher than this device understands.
    """
    if len(raw) > MAX_DESIRED_BYTES:
        message = f"{DESIRED_PATH} has {len(raw)} bytes, at most {MAX_DESIRED_BYTES} are read"
        raise Untrusted(TrustReason.TOO_LARGE, message, role="fleet")
    try:
        return msgspec.json.decode(raw, type=Desired)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        message = f"{DESIRED_PATH} is signed, but this device cannot follow it: {exc}"
        raise Untrusted(TrustReason.MALFORMED, message, role="fleet") from exc


def encode_desired(desired: Desired) -> bytes:
    """The document's bytes; equal documents have equal bytes."""
    return msgspec.json.format(msgspec.json.encode(desired, order="sorted"), indent=1) + b"\n"


def bucket(rollout_id: str, device_id: str) -> int:
    """Where a device falls in a rollout, 0..9999 (rule 2)."""
    digest = hashlib.sha256((rollout_id + device_id).encode()).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def choose(desired: Desired, device: Device, *, now: float) -> dict[str, Assignment]:
    """What the fleet wishes of this device, by model.

    Args:
        now: wall clock, seconds.
    """
    opens_at = _next_opening(desired.windows, device, now)
    chosen: dict[str, Assignment] = {}
    for group in desired.groups:
        if not (_matches(group.match, device) and _has(group, device)):
            continue
        for model, version in group.models.items():
            # Rule 1: what an earlier group said stands.
            chosen.setdefault(
                model,
                Assignment(version, group.rollout_id, desired.serial, opens_at <= now, opens_at),
            )
    return chosen


def _matches(match: Mapping[str, str], device: Device) -> bool:
    return all(device.labels.get(label) == value for label, value in match.items())


def _has(group: Group, device: Device) -> bool:
    return bucket(group.rollout_id, device.id) < round(group.percent * BUCKETS / 100)


def _next_opening(windows: tuple[Window, ...], device: Device, now: float) -> float:
    """Rule 3. The start of an open window, else of the next one, else `now`."""
    starts = [
        _opening(window, now + device.utc_offset_s) - device.utc_offset_s
        for window in windows
        if _matches(window.match, device)
    ]
    return min(starts, default=now)


def _opening(window: Window, local: float) -> float:
    """When it began, if it is open at `local`, else when it begins next. Local seconds."""
    start_s, end_s = _seconds(window.start), _seconds(window.end)
    length_s = (end_s - start_s) % _DAY_S or _DAY_S
    today = int(local // _DAY_S)
    # Yesterday's may still be open. In eight days every weekday comes at least once from now on.
    starts = (
        day * _DAY_S + start_s
        for day in range(today - 1, today + 9)
        if _weekday(day) in window.days
    )
    return next(start for start in starts if local < start + length_s)


def _weekday(day: int) -> str:
    """Of a day counted from 1 January 1970, which was a Thursday."""
    return WEEKDAYS[(day + WEEKDAYS.index("thu")) % len(WEEKDAYS)]


def _seconds(clock_time: str) -> int:
    hours, _, minutes = clock_time.partition(":")
    return int(hours) * 3600 + int(minutes) * 60
