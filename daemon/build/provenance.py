"""`provenance.json`: where a converted model comes from, and what was measured on the way. Pure.

It is for people and their tools; no device reads it. The same source, data, settings and versions
give the same bytes: it holds no time, no path and no name of a machine, and a measured latency only
where that was asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.build.choose import why_not

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from daemon.build.choose import Figures, Measure, Variant

PROVENANCE_FILE = "provenance.json"
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Used:
    """A source or data that was used.

    Attributes:
        kind: as `SourceKind` or `DataKind` call it.
        sha256: as `sources.digest_of` says.
        items: of data; None for a source.
    """

    kind: str
    sha256: str
    items: int | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is told.

    Attributes:
        versions: by program or library.
        settings: what was asked for and changes the bundle, by option.
        measure: by what the figures were told; None where nothing was compared.
        original_quality: share of right answers of the original; None where it has no such figure.
        variants: that were made or tried; () for a source that needs no conversion.
        chosen: None for a source that needs no conversion.
    """

    source: Used
    versions: Mapping[str, str]
    settings: Mapping[str, object]
    representative: Used | None = None
    evaluation: Used | None = None
    measure: Measure | None = None
    original_quality: float | None = None
    variants: Sequence[Figures] = ()
    chosen: Variant | None = None


def encode(provenance: Provenance, *, max_loss: float, with_latency: bool) -> bytes:
    """The file's bytes: keys sorted, two blanks of indent, one line break at the end.

    Args:
        max_loss: by which variants were refused, 0..1.
        with_latency: write down what was measured on this machine.
    """
    told = {
        "schema": _SCHEMA,
        "source": _used(provenance.source),
        "versions": dict(provenance.versions),
        "settings": dict(provenance.settings),
        "representative": _used(provenance.representative),
        "evaluation": _used(provenance.evaluation),
        "measure": provenance.measure.value if provenance.measure else None,
        "original": provenance.original_quality,
        "variants": [
            _figures(each, max_loss, with_latency=with_latency) for each in provenance.variants
        ],
        "chosen": provenance.chosen.value if provenance.chosen else None,
    }
    return json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _used(used: Used | None) -> dict[str, object] | None:
    if used is None:
        return None
    items = {} if used.items is None else {"items": used.items}
    return {"kind": used.kind, "sha256": used.sha256, **items}


def _figures(figures: Figures, max_loss: float, *, with_latency: bool) -> dict[str, object]:
    told: dict[str, object] = {
        "variant": figures.variant.value,
        "size_bytes": figures.size_bytes,
        "quality": figures.quality,
        "loss": figures.loss,
        "refused": why_not(figures, max_loss=max_loss),
    }
    if with_latency:
        told["latency_ms"] = figures.latency_ms
    return told
