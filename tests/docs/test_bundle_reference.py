"""docs/bundles.md has every key with its default, and headers as they are."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from support.inferctl import REPOSITORY
from support.tarparts import BLOCK, bundle

from updater.manifest import FileEntry, Manifest, Probation

REFERENCE = (REPOSITORY / "docs" / "bundles.md").read_text()
ROWS = [
    tuple(cell.strip() for cell in row.strip("|").split("|"))
    for row in re.findall(r"^\|.*\|$", REFERENCE, re.MULTILINE)
]
ABSENT = {row[0].strip("`"): row[2].strip("`") for row in ROWS if row[0].startswith("`")}
FIELDS = [(int(row[0]), int(row[1]), row[3]) for row in ROWS if row[0].isdigit()]
MANIFEST, PROBATION = (
    {field.name: field.default for field in msgspec.structs.fields(kind)}
    for kind in (Manifest, Probation)
)


def test_every_key_is_there_and_no_other():
    assert set(ABSENT) == {"schema", *MANIFEST, *PROBATION}


@pytest.mark.parametrize("key", ["schema", "name", "version", "release_counter", "files"])
def test_what_must_be_said_is_refused_when_it_is_not(key):
    assert ABSENT[key] == "refused"


@pytest.mark.parametrize(
    ("key", "default"),
    [
        *(each for each in PROBATION.items()),
        *((key, MANIFEST[key]) for key in ("memory_mib", "max_latency_ms")),
        *((key, list(MANIFEST[key])) for key in ("architectures", "accelerators")),
    ],
)
def test_the_default_is_the_codes(key, default):
    assert json.loads(ABSENT[key]) == default


def test_the_default_runtime_is_the_codes():
    assert ABSENT["runtime"] == MANIFEST["runtime"]


@pytest.mark.parametrize("key", FileEntry.__struct_fields__)
def test_every_key_of_a_file_is_there(key):
    files = next(row[1] for row in ROWS if row[0] == "`files`")

    assert f"`{key}`" in files


def test_the_fields_of_a_header_are_its_bytes_without_a_gap():
    starts = [start for start, _, _ in FIELDS]
    ends = [start + length for start, length, _ in FIELDS]

    assert starts == [0, *ends[:-1]]
    assert ends[-1] == BLOCK


@pytest.mark.parametrize(("start", "length", "text"), FIELDS)
def test_a_field_holds_what_is_said(start, length, text):
    field = bundle()[start : start + length]
    digits = re.findall(r"`([^`]*)`", text)

    assert field.startswith(digits[0].encode() if digits else b"")
    assert text != "zeros" or not field.strip(b"\0")
