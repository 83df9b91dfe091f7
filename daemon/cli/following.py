"""Follows what the updater does until nothing moves any more, and says so as it goes.

What counts as its end: the look that was asked for is over, and no model is on its way. A model
that waits for its maintenance window, or is on probation, may do so for hours: it is named and not
waited for. One that is kept from moving for `PATIENCE_S` is named with the reason; the updater goes
on trying by itself.

Steps are told as the updater has written them into its history, so none is missed between two looks
at its status; the status says how far a download is, and what is waited for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daemon.cli.screen import Bar
from daemon.cli.text import describe_duration
from daemon.cli.updatetext import AT_REST, DOWNLOADING, describe_size, describe_step, why

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from daemon.cli.screen import Screen
    from daemon.cli.updaterclient import Updater

PATIENCE_S = 60.0
"""Longer than a server's usual pause; far shorter than a person's patience with a silent screen."""
_LOOK_EVERY_S = 0.2
_MOST_EVENTS = 1000
_WAITS = {
    "wait_window": "waits for a maintenance window",
    "probation": "serves, and is watched",
}
_MOVES = {
    "assigned": "is wished for",
    "downloading": "is downloaded",
    "verified": "is tried by the daemon",
    "probed": "has passed its probe",
    "trying": "takes over",
    "committed": "is kept",
    "rolling_back": "is turned back from",
}
_RATE_OVER_S = 5.0
"""A download's speed is that of its last seconds."""
_LINE_EVERY = 0.1
"""Share of a download for which there is a line where there is no terminal."""


def is_moving(model: Mapping[str, Any]) -> bool:
    """Whether this model's update goes on by itself soon."""
    return model["state"] != AT_REST and model["state"] not in _WAITS


def is_stuck_at(model: Mapping[str, Any]) -> bool:
    """Whether a model that nobody follows any more has not come to what is wished of it."""
    return is_moving(model) or (model["state"] == AT_REST and bool(model["waiting_for"]))


def is_looking(status: Mapping[str, Any]) -> bool:
    """Whether what a look or a wish comes to is not seen yet."""
    return bool(status["is_busy"])


@dataclass(slots=True)
class _Model:
    """What was last seen of a model's update.

    Attributes:
        step: state, version and time of its last move.
        changed_at: when anything of it last changed, seconds of the follower's clock.
        samples: when how many bytes were there, of the last seconds.
    """

    step: tuple[str, int, float] = ("", 0, 0.0)
    bytes: int = 0
    changed_at: float = 0.0
    said_share: float = 0.0
    said_reason: str = ""
    samples: list[tuple[float, int]] = field(default_factory=list)

    def rate(self, now: float, there: int) -> float:
        """Bytes per second in the last seconds."""
        self.samples = [each for each in self.samples if now - each[0] <= _RATE_OVER_S]
        self.samples.append((now, there))
        began, before = self.samples[0]
        return (there - before) / (now - began) if now > began else 0.0


class Follower:
    """One pair of eyes on one updater."""

    def __init__(
        self,
        updater: Updater,
        screen: Screen,
        *,
        after: int,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Store only.

        Args:
            after: number of the last event that is no news.
            clock: seconds of a clock that only goes forward.
        """
        self._updater = updater
        self._screen = screen
        self._last = after
        self._clock = clock
        self._pause = pause
        self._seen: dict[str, _Model] = {}
        self.events: list[Mapping[str, Any]] = []
        """What has happened while it was followed."""

    def follow(self) -> Any:  # noqa: ANN401 (JSON)
        """Tell what happens until nothing moves any more; gives the updater's last status.

        Raises:
            Unreachable: the updater went away.
        """
        while True:
            status, now = self._updater.status(), self._clock()
            if self._take_in(status["models"], now) or not self._is_going_on(status, now):
                self._tell_events()
            self._draw(status, now)
            if not self._is_going_on(status, now):
                self._screen.draw(())
                return status
            self._pause(_LOOK_EVERY_S)

    def _take_in(self, models: Sequence[Mapping[str, Any]], now: float) -> bool:
        """Whether any model has moved since the last time."""
        has_moved = False
        for model in models:
            seen = self._seen.setdefault(model["model"], _Model(changed_at=now))
            step = (model["state"], model["version"], model["since"])
            if step != seen.step:
                has_moved = True
                seen.changed_at, seen.samples = now, []
                seen.said_share, seen.said_reason = 0.0, ""
            if model["bytes"] != seen.bytes:
                seen.changed_at = now
            seen.step, seen.bytes = step, model["bytes"]
        return has_moved

    def _tell_events(self) -> None:
        for line in self._updater.history(limit=_MOST_EVENTS)["events"]:
            if line["sequence"] > self._last:
                self._last = line["sequence"]
                self.events.append(line["event"])
                self._screen.say(describe_step(line["event"]))

    def _draw(self, status: Mapping[str, Any], now: float) -> None:
        moving = [model for model in status["models"] if is_moving(model)]
        if not self._screen.is_terminal:
            for model in moving:
                self._tell_progress(model, self._seen[model["model"]], now)
            return
        bars = [self._bar(model, self._seen[model["model"]], now) for model in moving]
        self._screen.draw(bars or ([Bar("looking", None)] if is_looking(status) else []))

    def _tell_progress(self, model: Mapping[str, Any], seen: _Model, now: float) -> None:
        """What a terminal's bar would show."""
        reason = why(model)
        if now - seen.changed_at > _RATE_OVER_S and reason not in {"", seen.said_reason}:
            seen.said_reason = reason
            self._screen.say(f"{_name(model)} waits: {reason}")
        share = _share(model) if model["state"] == DOWNLOADING else 0.0
        if seen.said_share + _LINE_EVERY <= share < 1:
            seen.said_share = share
            size = describe_size(model["bytes"], model["length"])
            self._screen.say(f"{_name(model)}: {share:.0%}, {size}")

    def _bar(self, model: Mapping[str, Any], seen: _Model, now: float) -> Bar:
        if model["state"] != DOWNLOADING:
            reason = why(model)
            words = _MOVES[model["state"]]
            return Bar(_name(model), None, f"{words}: {reason}" if reason else words)
        there, length = model["bytes"], model["length"]
        rate = seen.rate(now, there)
        detail = describe_size(there, length)
        if rate > 0:
            left = describe_duration((length - there) / rate + 1)
            detail += f"  {rate / 1e6:.1f} MB/s  {left} left"
        elif now - seen.changed_at > _RATE_OVER_S:
            detail += f"  {why(model)}"
        return Bar(_name(model), _share(model), detail)

    def _is_going_on(self, status: Mapping[str, Any], now: float) -> bool:
        """Whether there is more to come that may be waited for."""
        return is_looking(status) or any(
            now - self._seen[model["model"]].changed_at < PATIENCE_S or not model["waiting_for"]
            for model in status["models"]
            if is_moving(model)
        )


def describe_rest(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each model whose update waits, or was refused."""
    lines = []
    for model in models:
        if model["state"] in _WAITS:
            lines.append(f"{_name(model)} {_WAITS[model['state']]}: {why(model)}".rstrip(": "))
        elif is_moving(model):
            lines.append(f"{_name(model)} is kept waiting: {why(model)}; it goes on by itself")
        elif model["waiting_for"]:
            lines.append(f"{model['model']}: not taken: {why(model)}")
    return lines


def _name(model: Mapping[str, Any]) -> str:
    return f"{model['model']} version {model['version']}"


def _share(model: Mapping[str, Any]) -> float:
    return model["bytes"] / model["length"] if model["length"] else 0.0
