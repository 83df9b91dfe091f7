"""What time it is, for metadata that expires, on a box whose clock may be anything. Pure.

The rules:

1. It is never before the newest time that offline keys have signed (floors.py), nor before this
   program was made. A clock that says so has not been set: a box without a battery wakes in 1970.
2. A clock that is further ahead of that time than any metadata lives is not believed either.
   Otherwise a box that woke in 2036 would refuse every update until somebody came by.
3. A clock that is not believed raises nothing: what is remembered is what was signed.

What rule 2 costs: a box that was kept from every signature for longer than that takes expired
metadata for good. It can still not go below what it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

LONGEST_LIFE_S = 400 * 86_400
"""Root and targets are signed at least once a year, so a good clock is never further ahead."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The time to judge metadata by.

    Attributes:
        now: wall clock, seconds.
        is_clock_good: False when the clock is not believed and `now` is the newest known time.
    """

    now: float
    is_clock_good: bool


def reference_time(clock: float, *, signed: float) -> Reference:
    """Apply the rules.

    Args:
        clock: what the system says, wall clock seconds.
        signed: the newest known time, wall clock seconds; 0 where none is known.
    """
    if clock < signed:
        return Reference(signed, is_clock_good=False)
    if signed and clock > signed + LONGEST_LIFE_S:
        return Reference(signed, is_clock_good=False)
    return Reference(clock, is_clock_good=True)


def write_time(seconds: float) -> str:
    """A time as it is signed, "2025-01-31T12:00:00Z"; seconds of the wall clock, parts cut off."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_time(text: object) -> float | None:
    """The wall clock seconds that were signed; None where it is no such time."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
