"""docs/media.md shows model.toml tables that the code takes, and names every key of theirs."""

from __future__ import annotations

import re
import tomllib

import pytest
from conftest import REPOSITORY
from support.tables import read_tables

from daemon.modelfile import InputTable, ModelTables, OutputTable
from daemon.tables import keys_of

DOCUMENT = (REPOSITORY / "docs" / "media.md").read_text("utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_valid_model_toml(example):
    tables = read_tables(ModelTables, tomllib.loads(example))

    assert tables != ModelTables()


@pytest.mark.parametrize("key", [*keys_of(InputTable), *keys_of(OutputTable)])
def test_every_key_of_input_and_output_is_explained(key):
    assert re.search(rf"\b{key}\b", DOCUMENT)
