"""A report comes back as it was sent; anything else is refused, whatever it is."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerators.base import (
    LABELS_MAX,
    Coverage,
    DataType,
    Device,
    Isolation,
    LoadSpec,
    ModelMetadata,
    ModelReport,
    Quantization,
    ScoreCalibration,
    ScoreTransformation,
    SignatureSpec,
    TensorMetadata,
    TensorSpec,
)
from accelerators.report import (
    BadReport,
    decode_report,
    decode_spec,
    encode_report,
    encode_spec,
)

CALIBRATION = ScoreCalibration(
    ScoreTransformation.LOG, 0.25, ((1.0, 2.0, 3.0, None), None, (1.0, 2.0, 3.0, 4.0))
)
REPORT = ModelReport(
    digest="ab" * 32,
    runtime="litert 2.3.0",
    device="cpu",
    requested_device="edgetpu",
    degraded_reason="not here",
    signatures=(
        SignatureSpec(
            "serving_default",
            (TensorSpec("x:0", DataType.UINT8, (-1, 28), Quantization(0.5, 128)),),
            (TensorSpec("ünï", DataType.BYTES, ()),),
        ),
    ),
    metadata=ModelMetadata(
        name="m", outputs=(TensorMetadata(labels=("a", ""), calibration=CALIBRATION),)
    ),
    stateful=False,
    max_batch=8,
    memory_bytes=123,
    load_s=0.5,
    warm_s=0.25,
    notes=("one",),
    coverage=Coverage(operators=3, claimed=2, partitions=1),
)


def test_report_comes_back():
    assert decode_report(encode_report(REPORT)) == REPORT


def test_spec_comes_back():
    device = Device("external:dsp", "external", options=(("speed", "high"), ("ünï", "")))
    spec = LoadSpec(Path("/a/b.tflite"), device, isolation=Isolation.THREAD, threads=3)

    assert decode_spec(encode_spec(spec)) == spec


def test_text_that_is_not_unicode_comes_back():
    spec = LoadSpec(Path("/a/\udcff.tflite"))

    assert decode_spec(encode_spec(spec)) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"signatures": ()},
        {"digest": ""},
        {"max_batch": 0},
    ],
    ids=str,
)
def test_report_without_the_needed_is_refused(change):
    with pytest.raises(BadReport):
        decode_report(encode_report(replace(REPORT, **change)))


@pytest.mark.parametrize(
    "change",
    [
        {"stateful": "no"},
        {"max_batch": True},
        {"memory_bytes": 1.5},
        {"signatures": {}},
        {"signatures": [1]},
        {"signatures": [{"name": "x"}]},
        {"metadata": None},
        {"load_s": None},
        {"surprise": 1},
    ],
    ids=str,
)
def test_field_of_another_kind_is_refused(change):
    raw = json.loads(encode_report(REPORT)) | change

    with pytest.raises(BadReport):
        decode_report(json.dumps(raw).encode())


def test_unknown_datatype_is_refused():
    data = encode_report(REPORT).replace(b'"UINT8"', b'"UINT9"')

    with pytest.raises(BadReport, match="DataType"):
        decode_report(data)


def test_label_that_is_no_text_is_refused():
    data = encode_report(REPORT).replace(b'["a", ""]', b'["a", 1]')

    with pytest.raises(BadReport, match="expected str, found int"):
        decode_report(data)


def test_more_labels_than_may_be_are_refused():
    metadata = ModelMetadata(outputs=(TensorMetadata(labels=("",) * (LABELS_MAX + 1)),))

    with pytest.raises(BadReport, match="too long"):
        decode_report(encode_report(replace(REPORT, metadata=metadata)))


def test_deep_nesting_is_refused():
    with pytest.raises(BadReport):
        decode_report(b"[" * 100_000)


def test_too_much_is_refused_before_it_is_read():
    with pytest.raises(BadReport, match="more than"):
        decode_report(b" " * (17 << 20))


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data):
    with pytest.raises(BadReport):
        decode_report(data)


def test_damaged_reports_are_read_or_refused():
    rng = random.Random(1)
    data = encode_report(REPORT)
    read = 0

    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read += isinstance(decode_report(bytes(damaged)), ModelReport)
        except BadReport:
            continue

    assert 0 < read < 2000
