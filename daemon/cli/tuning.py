"""What is measured of a model's settings, and which of those measured is the best. Pure.

The rules of the choice (those of the search are in `tuningsearch.py`):
1. Throughput is rows per second, latency is the median. What is above `ENOUGH_RATE` or below
   `ENOUGH_MS` counts as that: nobody could tell the difference.
2. For latency, a setting is out whose 99th percentile is over the present one's by more than
   `TAIL`.
3. Of the settings within `NEAR` of the best, the one that takes least is picked: processors, then
   instances, then rows, then delay.
4. The present setting stays, unless the picked one takes fewer processors or instances, or is
   better by at least `GAIN`. `GAIN` is wider than `NEAR`: noise does not swap back a setting that
   was chosen once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from daemon.cli.text import mebibytes, milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

NEAR = 0.05
"""Share of the best within which settings count as equal: two runs of one setting differ by 1 to
3 % on an idle machine."""
GAIN = 0.10
"""Share by which another setting must be better than the present one to be worth what it takes."""
TAIL = 0.25
"""Share by which the 99th percentile may grow: of a few hundred answers it is a rough figure."""

ENOUGH_RATE = 50_000.0
"""Rows per second: more than the front ends of one daemon bring (docs/performance.md)."""
ENOUGH_MS = 0.1
"""Milliseconds: less than HTTP by itself takes for a request (docs/performance.md)."""

_TOLD_BYTES = 1 << 20
"""Less is not worth a word."""


class Goal(Enum):
    """What the best setting is best at."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is tuned.

    Attributes:
        instances: interpreters side by side, at least 1.
        threads: of each interpreter, at least 1.
        max_size: most rows of one invocation; 1 for no batches.
        max_delay_ms: how long a request may wait for others to share its invocation.
    """

    instances: int
    threads: int
    max_size: int
    max_delay_ms: float = 0.0

    def __str__(self) -> str:
        words = [f"{_count(self.instances, 'instance')} x {_count(self.threads, 'thread')}"]
        words.append(f"batches up to {self.max_size}" if self.max_size > 1 else "no batches")
        if self.max_delay_ms:
            words.append(f"delay {self.max_delay_ms:g} ms")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of a setting.

    Attributes:
        p50_ms, p99_ms: from the hand-over of a request to its answer.
        rows_per_s: answers per second; a request has one row.
        memory_bytes: proportional set size of all its workers.
        answers: how many there were.
        others_percent: of the processors, taken by other programs meanwhile.
    """

    p50_ms: float
    p99_ms: float
    rows_per_s: float
    memory_bytes: int
    answers: int
    others_percent: float = 0.0


class Outcome(Enum):
    """What became of a setting."""

    MEASURED = "measured"
    LEFT_OUT = "left out"  # it cannot win
    MEMORY = "too much memory"  # it is over the model's or the machine's
    UNPROVEN = "batches not proven"  # the load has not shown that rows keep their answers
    FAILED = "failed"  # it loads or answers no more


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        figures: None unless it was measured.
        reason: why it was not.
    """

    setting: Setting
    outcome: Outcome
    figures: Figures | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The outcome.

    Attributes:
        setting: the best one, which may be the present one.
        why: a sentence.
    """

    setting: Setting
    why: str


def choose(rows: Sequence[Row], present: Setting, goal: Goal) -> Choice | None:
    """The best setting; None when nothing was measured.

    Args:
        rows: each setting once.
        present: the setting the model has now; it may be among the rows that failed.
        goal: what the best one is best at.
    """
    now = _find(rows, present)
    picked = pick([row for row in rows if not _has_slow_tail(row, now, goal)], goal)
    if picked is None:
        return None
    if now is None or now.figures is None:
        why = (
            f"Best is {picked.setting}: {_describe(picked, goal)}. The present one gave no figures"
        )
        return Choice(picked.setting, f"{why}: {now.reason}." if now else f"{why}.")
    takes_less = _takes(picked.setting) < _takes(present)
    if picked is not now and (takes_less or _gain(now, picked, goal) >= GAIN):  # rule 4
        return Choice(picked.setting, _why_changed(picked, now, goal))
    return Choice(present, _why_kept(picked, now, goal))


def judge(
    row: Row, rows: Sequence[Row], present: Setting, chosen: Setting | None, goal: Goal
) -> str:
    """What the table says of a row."""
    now = _find(rows, present)
    titles = (("best", row.setting == chosen), ("present", row.setting == present))
    words = [title for title, holds in titles if holds]
    if row.figures is None:
        words.append(f"{row.outcome.value}: {row.reason}")
    elif now is not None and now.figures is not None and row.setting != present:
        words.append(_compare(now, row, goal))
        if _has_slow_tail(row, now, goal):
            words.append(f"its p99 is more than {TAIL:.0%} longer than the present one's")
    return ", ".join(words)


def pick(rows: Sequence[Row], goal: Goal) -> Row | None:
    """The one that takes least of those near the best (rule 3); None when nothing was measured."""
    measured = [row for row in rows if row.figures is not None]
    best = max((_score(row, goal) for row in measured), default=0.0)
    near = [row for row in measured if _score(row, goal) >= (1 - NEAR) * best]
    return min(near, key=lambda row: cost(row.setting), default=None)


def speed(row: Row, goal: Goal) -> float:
    """What the goal asks for, of a row that was measured: the more the better."""
    if row.figures is None:
        raise RuntimeError("only what was measured has a speed")
    return row.figures.rows_per_s if goal is Goal.THROUGHPUT else 1 / row.figures.p50_ms


def cost(setting: Setting) -> tuple[float, ...]:
    """What a setting takes, most important first; no two settings take the same."""
    return (*_takes(setting), setting.max_size, setting.max_delay_ms)


_ENOUGH = {Goal.LATENCY: 1 / ENOUGH_MS, Goal.THROUGHPUT: ENOUGH_RATE}
_WHY_ENOUGH = {
    Goal.LATENCY: "HTTP takes longer than the model",
    Goal.THROUGHPUT: "the model does more than HTTP and MQTT can bring",
}


def _find(rows: Sequence[Row], setting: Setting) -> Row | None:
    return next((row for row in rows if row.setting == setting), None)


def _score(row: Row, goal: Goal) -> float:
    """The part of its speed that counts (rule 1)."""
    return min(speed(row, goal), _ENOUGH[goal])


def _gain(before: Row, after: Row, goal: Goal) -> float:
    """Share by which the score of `after` is better; negative when it is worse."""
    return _score(after, goal) / _score(before, goal) - 1


def _has_slow_tail(row: Row, now: Row | None, goal: Goal) -> bool:
    if goal is not Goal.LATENCY or now is None or now.figures is None or row.figures is None:
        return False
    return row.figures.p99_ms > (1 + TAIL) * now.figures.p99_ms


def _takes(setting: Setting) -> tuple[int, int]:
    """What the machine gives for it: processors at work, and interpreters in memory."""
    return setting.instances * setting.threads, setting.instances


def _why_changed(picked: Row, now: Row, goal: Goal) -> str:
    against = f"{_compare(now, picked, goal)} against the present {now.setting}"
    more = _memory_bytes(picked) - _memory_bytes(now)
    if abs(more) >= _TOLD_BYTES:
        against += f", with {mebibytes(abs(more))} {'more' if more > 0 else 'less'} memory"
    told = f"Best is {picked.setting}: {_describe(picked, goal)}, {against}"
    if _gain(now, picked, goal) >= GAIN:
        return f"{told}."
    return f"{told}; it takes less, and nothing measured is better by more than {NEAR:.0%}."


def _why_kept(picked: Row, now: Row, goal: Goal) -> str:
    stays = f"The present setting stays, {now.setting}: {_describe(now, goal)}"
    if _score(now, goal) == _ENOUGH[goal]:
        return f"{stays}; {_WHY_ENOUGH[goal]}."
    if picked.setting == now.setting:
        return f"{stays}; nothing measured is better by more than {NEAR:.0%}."
    other = f"{picked.setting} has {_compare(now, picked, goal)}"
    return f"{stays}; {other}, and to take more a setting must be {GAIN:.0%} better."


def _memory_bytes(row: Row) -> int:
    return row.figures.memory_bytes if row.figures else 0


def _compare(before: Row, after: Row, goal: Goal) -> str:
    """By how much what the goal speaks of differs."""
    ratio = speed(after, goal) / speed(before, goal)
    return f"{ratio - 1:+.0%} rows/s" if goal is Goal.THROUGHPUT else f"{1 / ratio - 1:+.0%} p50"


def _describe(row: Row, goal: Goal) -> str:
    value = speed(row, goal)
    return f"{value:,.0f} rows/s" if goal is Goal.THROUGHPUT else f"p50 {milliseconds(1 / value)}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
