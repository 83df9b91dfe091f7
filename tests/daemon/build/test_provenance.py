"""provenance.json says what went in and what was measured, in the same bytes each time."""

from __future__ import annotations

import json

from daemon.build.choose import Figures, Measure, Variant
from daemon.build.provenance import Provenance, Used, encode

TOLD = Provenance(
    source=Used("keras-h5", "a" * 64),
    versions={"tensorflow": "2.21.0", "inferd": "1.0.0"},
    settings={"optimize": "auto", "max_accuracy_drop": 0.01},
    evaluation=Used("pictures", "b" * 64, 500),
    measure=Measure.ACCURACY,
    original_quality=0.99,
    variants=(
        Figures(Variant.NONE, 400, 0.99, 0.0, 0.5),
        Figures(Variant.DYNAMIC, 100, 0.95, 0.04, 0.25),
        Figures(Variant.INT8, problem="needs --representative PATH"),
    ),
    chosen=Variant.NONE,
)


def encoded(told: Provenance = TOLD, *, with_latency: bool = False) -> dict:
    return json.loads(encode(told, max_loss=0.01, with_latency=with_latency))


def test_every_fact_is_there():
    found = encoded()

    assert found["source"] == {"kind": "keras-h5", "sha256": "a" * 64}
    assert found["evaluation"] == {"kind": "pictures", "sha256": "b" * 64, "items": 500}
    assert found["representative"] is None
    assert (found["measure"], found["original"], found["chosen"]) == ("accuracy", 0.99, "none")
    assert found["variants"][0] == {
        "variant": "none",
        "size_bytes": 400,
        "quality": 0.99,
        "loss": 0.0,
        "refused": "",
    }


def test_it_says_why_a_variant_was_not_taken():
    refused = {each["variant"]: each["refused"] for each in encoded()["variants"]}

    assert refused == {
        "none": "",
        "dynamic": "loses 0.04, allowed is 0.01",
        "int8": "needs --representative PATH",
    }


def test_latencies_are_there_on_wish_alone():
    assert "latency_ms" not in encoded()["variants"][0]
    assert encoded(with_latency=True)["variants"][0]["latency_ms"] == 0.5


def test_the_bytes_do_not_depend_on_the_order_of_versions():
    turned = Provenance(
        **{
            **{name: getattr(TOLD, name) for name in TOLD.__dataclass_fields__},
            "versions": dict(reversed(TOLD.versions.items())),
        }
    )

    first = encode(TOLD, max_loss=0.01, with_latency=False)
    assert encode(turned, max_loss=0.01, with_latency=False) == first
    assert first.endswith(b"}\n")
