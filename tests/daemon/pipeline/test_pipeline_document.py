"""docs/media.md shows model.toml tables that the code takes, and names every key of theirs."""

from __future__ import annotations

import re
import tomllib

import pytest
from conftest import REPOSITORY

from daemon.modelfile import InputTable, ModelTables, OutputTable

DOCUMENT = (REPOSITORY / "docs" / "media.md").read_text("utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_valid_model_toml(example):
    tables = ModelTables.model_validate(tomllib.loads(example))

    assert tables != ModelTables()


@pytest.mark.parametrize("key", [*InputTable.model_fields, *OutputTable.model_fields])
def test_every_key_of_input_and_output_is_explained(key):
    assert re.search(rf"\b{key}\b", DOCUMENT)
