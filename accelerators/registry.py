"""Which accelerator kinds there are, and which of a model's wishes is met. Opens nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerators import cpu
from accelerators.errors import LoadStage, ModelRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerators.interpreter import Interpreter
    from accelerators.outline import Outline


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of accelerator is asked and opened.

    Attributes:
        check: why it cannot run the file, or "".
        open: path and threads to an interpreter; raises RuntimeFailure.
    """

    check: Callable[[Outline], str]
    open: Callable[[str, int], Interpreter]


@dataclass(frozen=True, slots=True)
class Choice:
    """The wish that is met, and why earlier ones were not ("" when it is the first)."""

    device: str
    kind: Kind
    degraded_reason: str


_KINDS: dict[str, Kind] = {
    "cpu": Kind(cpu.check, cpu.open_interpreter),
}


def choose(wishes: tuple[str, ...], outline: Outline) -> Choice:
    """The first wish that can be met.

    Raises:
        ModelRefused: none can; the reason names each.
    """
    reasons: list[str] = []
    for wish in wishes:
        kind = _KINDS.get(wish)
        reason = kind.check(outline) if kind else f"no driver for '{wish[:40]}' is in this version"
        if kind and not reason:
            return Choice(wish, kind, "; ".join(reasons))
        reasons.append(reason)
    raise ModelRefused(LoadStage.ALLOCATE, "; ".join(reasons)[:500])
