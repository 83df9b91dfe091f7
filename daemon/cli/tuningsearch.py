"""Which settings of a model are worth measuring, and in which order. Pure.

1. The present setting comes first. Then placements (instances and threads) at its batch size, then
   batch sizes at the placement that is picked of those, then delays at the batch size picked.
2. More threads in all than processors, and more instances or rows than requests under way, are not
   tried, unless the operator lists them.
3. A step up that gained less than `NEAR` ends its direction: what goes further cannot win and is
   left out, unless something further was measured and did gain, or the operator lists values. A
   step that took too much memory, or whose batches are not proven, ends it in any case.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING

from daemon.cli.text import mebibytes
from daemon.cli.tuning import NEAR, Goal, Outcome, Row, Setting, cost, speed

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_BATCHED = 16
"""Rows of the largest batch tried unasked; no model measured gained anything beyond 8."""

DELAYS_MS = (1.0, 4.0)
"""Delays tried unasked: around the time of an invocation that batches are good for."""


@dataclass(frozen=True, slots=True)
class Space:
    """Where to look.

    Attributes:
        processors: that may be used, at least 1.
        clients: requests kept under way.
        batches: whether rows of several requests may share an invocation at all.
        stateful: the model has one instance, whatever is asked for.
        instances, threads, max_sizes: the only values to try; () leaves them to the rules.
    """

    processors: int
    clients: int
    batches: bool = True
    stateful: bool = False
    instances: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    max_sizes: tuple[int, ...] = ()


def usual_clients(goal: Goal, *, workers: int, calls: int, rows: int, queue: int) -> int:
    """Requests to keep under way when the operator does not say.

    Latency is that of a request which is alone. For throughput, every worker of the largest setting
    should always have another call, with a whole batch; as far as the model's queue goes.

    Args:
        goal: what the best setting is best at.
        workers: of the largest setting.
        calls: that a worker can have at a time.
        rows: of the largest batch.
        queue: requests that may wait or run, at least 1.
    """
    if goal is Goal.LATENCY:
        return 1
    return min(queue, workers * calls * rows)


def placements(space: Space, present: Setting) -> list[Setting]:
    """Instances and threads to try, those that take least first (rules 1 and 2)."""
    sizes = space.max_sizes
    rows = present.max_size if present.max_size in sizes or not sizes else min(sizes)
    instances = space.instances or doublings(min(space.processors, space.clients))
    threads = space.threads or doublings(space.processors)
    listed = bool(space.instances and space.threads)
    found = [
        replace(present, instances=count, threads=each, max_size=rows)
        for count in ((1,) if space.stateful else instances)
        for each in threads
        if listed or 1 in (count, each) or count * each <= space.processors
    ]
    return sorted(set(found), key=cost)


def batch_sizes(space: Space, base: Setting) -> list[Setting]:
    """Batch sizes to try at a placement, smallest first (rules 1 and 2)."""
    if space.stateful or not space.batches or (space.clients == 1 and not space.max_sizes):
        return []
    sizes = space.max_sizes or doublings(min(MOST_BATCHED, space.clients))
    return [replace(base, max_size=size) for size in sorted(set(sizes))]


def delays(base: Setting, goal: Goal) -> list[Setting]:
    """Delays to try at a batch size, shortest first; a wait never helps latency (rule 1)."""
    longer = DELAYS_MS if goal is Goal.THROUGHPUT and base.max_size > 1 else ()
    return [replace(base, max_delay_ms=delay) for delay in (0.0, *longer)]


def doublings(most: int) -> tuple[int, ...]:
    """1, 2, 4 and so on up to `most`, and that itself."""
    found = [1]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return (*found, most) if found[-1] < most else tuple(found)


def why_left_out(setting: Setting, rows: Sequence[Row], goal: Goal, space: Space) -> str:
    """Why a setting is not worth measuring, by the rows so far (rule 3); "" when it may win."""
    for row in rows:
        if _is_refused_with(row, setting):
            return f"{row.outcome.value} at {row.setting}"
    if space.instances or space.threads or space.max_sizes:
        return ""
    measured = [row for row in rows if row.figures is not None]
    for axis, words in _AXES.items():
        for lower, upper in permutations(measured, 2):
            step = _is_step(lower.setting, upper.setting, axis)
            if not (step and _is_beyond(setting, upper.setting, axis)):
                continue
            further = [row for row in measured if _is_beyond(row.setting, upper.setting, axis)]
            most = max(speed(row, goal) for row in [upper, *further])
            if most < (1 + NEAR) * speed(lower, goal):
                return words.format(getattr(upper.setting, axis), getattr(lower.setting, axis))
    return ""


def most_settings(space: Space, present: Setting, goal: Goal) -> list[Setting]:
    """As many settings as are measured when none can be left out, and such as take most."""
    settings = [present, *placements(space, present)]
    settings += batch_sizes(space, settings[-1])
    settings += delays(settings[-1], goal)
    return list(dict.fromkeys(settings))


def memory_problem(
    setting: Setting, *, worker_bytes: int, available_bytes: int, reserve_bytes: int
) -> str:
    """Why so many instances do not fit the machine; "" when they do.

    Args:
        setting: what is asked for.
        worker_bytes: proportional set size of one worker.
        available_bytes: of the machine, before any of them.
        reserve_bytes: that must be left.
    """
    needed = setting.instances * worker_bytes
    if needed + reserve_bytes <= available_bytes:
        return ""
    return (
        f"{setting.instances} of its workers would take {mebibytes(needed)} of the "
        f"{mebibytes(available_bytes)} available, and {mebibytes(reserve_bytes)} are kept free"
    )


_AXES = {
    "instances": "{} instances were no better than {}",
    "threads": "{} threads were no better than {}",
    "max_size": "batches up to {} were no better than up to {}",
    "max_delay_ms": "a delay of {:g} ms was no better than {:g}",
}
"""What can be stepped up, and what is said of a step that gained nothing."""

_PLACEMENT = ("instances", "threads")


def _is_refused_with(row: Row, setting: Setting) -> bool:
    """Whether what refused a row refuses the setting too."""
    if row.outcome is Outcome.UNPROVEN:
        return setting.max_size >= row.setting.max_size
    further = all(getattr(setting, axis) >= getattr(row.setting, axis) for axis in _AXES)
    return row.outcome is Outcome.MEMORY and further


def _is_step(lower: Setting, upper: Setting, axis: str) -> bool:
    """Whether they differ on this axis alone, `upper` being further."""
    value = getattr(upper, axis)
    return bool(value > getattr(lower, axis)) and replace(lower, **{axis: value}) == upper


def _is_beyond(setting: Setting, upper: Setting, axis: str) -> bool:
    """Whether a setting goes further than where a step has led, all else being equal."""
    axes = _PLACEMENT if axis in _PLACEMENT else (axis,)
    values = {each: getattr(setting, each) for each in axes}
    further = all(value >= getattr(upper, each) for each, value in values.items())
    return further and setting != upper and replace(upper, **values) == setting
