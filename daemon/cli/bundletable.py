"""What `bundle build` prints of the variants it has tried. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.build.choose import Measure, why_not
from daemon.cli.text import table

if TYPE_CHECKING:
    from daemon.build.choose import Figures
    from daemon.cli.bundleassembly import Trial

_TITLES = {
    Measure.ACCURACY: "ACCURACY",
    Measure.AGREEMENT: "AGREEMENT",
    Measure.DIFFERENCE: "DIFFERENCE",
}
_NOTHING = "-"


def describe_trial(trial: Trial, *, max_loss: float) -> str:
    """A line for each variant, the one that was taken marked; then what the figures are of."""
    title = _TITLES[trial.measure] if trial.measure else "QUALITY"
    header = ("VARIANT", "BYTES", title, "LOSS", "LATENCY", "")
    rows = [_row(each, trial, max_loss) for each in trial.figures]
    if trial.original_quality is not None:
        rows.insert(0, ("original", _NOTHING, _share(trial.original_quality), "", _NOTHING, ""))
    told = table(rows, header)
    return f"{told}\n{_explain(trial, max_loss)}" if trial.measure else told


def _row(figures: Figures, trial: Trial, max_loss: float) -> tuple[str, ...]:
    latency = _NOTHING if figures.latency_ms is None else f"{figures.latency_ms:.3g} ms"
    return (
        figures.variant.value,
        str(figures.size_bytes) if figures.size_bytes else _NOTHING,
        _share(figures.quality),
        _share(figures.loss),
        latency,
        "taken" if figures == trial.chosen else why_not(figures, max_loss=max_loss),
    )


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.4f}"


def _explain(trial: Trial, max_loss: float) -> str:
    told = {
        Measure.ACCURACY: "the share of right answers",
        Measure.AGREEMENT: "the share of answers with the original's best class",
        Measure.DIFFERENCE: "the largest difference from the original's answers, "
        "over the range of each output",
    }
    measure = trial.measure
    if measure is None:
        return ""
    items = f"{trial.items} item{'s' * (trial.items != 1)}"
    allowed = f"; a loss of {max_loss:g} is allowed" if _has_loss(trial) else ""
    return (
        f"{_TITLES[measure].capitalize()}: {told[measure]}, of {items}{allowed}. "
        "Latency: the median of a call, on this machine."
    )


def _has_loss(trial: Trial) -> bool:
    return any(each.loss is not None for each in trial.figures)
