"""config/inferd.toml and docs/config.md say what the code does."""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING

import pytest
from msgspec import NODEFAULT

from daemon.config import Config, ExternalDelegate, ServedModel, parse_config
from daemon.modelfile import HealthSample, ModelTables
from daemon.tables import Table, describe, describe_key, has_key, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msgspec.structs import FieldInfo


def tables_of(kind: type[Table]) -> Iterator[tuple[str, type[Table]]]:
    """Each table's heading in the document, and its class."""
    for name, key in keys_of(kind).items():
        yield f"`[{name}]`", key.type


DOCUMENTED = [
    *(("`inferd.toml`", *table) for table in tables_of(Config)),
    ("`inferd.toml`", "`[[models.serve]]`", ServedModel),
    ("`inferd.toml`", "`[[accelerators.external]]`", ExternalDelegate),
    *(("`model.toml`", *table) for table in tables_of(ModelTables)),
    ("`model.toml`", "`[[health.samples]]`", HealthSample),
]


@pytest.fixture
def sample(repository) -> str:
    return (repository / "config" / "inferd.toml").read_text()


@pytest.fixture
def document(repository) -> str:
    return (repository / "docs" / "config.md").read_text()


def uncommented_example(sample: str) -> str:
    """The example entries at the end of the sample, as an operator would uncomment them."""
    example = sample[sample.index("# [[models.serve]]") :]
    example = re.sub(r"^#\n# .+\n#$", "", example, flags=re.MULTILINE)  # between two of them
    return re.sub(r"^# ?", "", example, flags=re.MULTILINE)


def comment_above(sample: str, heading: str, key: str) -> str:
    """What is said above a key; keys that follow each other share it."""
    part = re.sub(r"^# (?=# |\[\[|\w+ = )", "", sample, flags=re.MULTILINE)
    lines = part[part.index(f"\n{heading}\n") + len(heading) + 2 :].splitlines()
    place = next(number for number, line in enumerate(lines) if re.match(f"(# )?{key} = ", line))
    said: list[str] = []
    for line in reversed(lines[:place]):
        if line.startswith("# "):
            said.insert(0, line.removeprefix("# "))
        elif said:
            break
    return " ".join(said)


def rows_below(document: str, file: str, heading: str) -> dict[str, tuple[str, str]]:
    """Key to (takes, default) of the table under a heading."""
    chapter = document[document.index(f"\n## {file}\n") :]
    section = chapter[chapter.index(f"\n### {heading}\n") + 5 :].partition("\n#")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| .+ \|$", section, re.MULTILINE)
    return {key: (takes, default) for key, takes, default in rows}


def write_default(key: FieldInfo) -> str:
    if key.required:
        return "required"
    default = key.default if key.default_factory is NODEFAULT else key.default_factory()
    return "none" if default is None else f"`{json.dumps(default, default=str)}`"


def test_the_sample_equals_the_defaults(sample):
    assert parse_config([("inferd.toml", sample)], {}) == Config()


@pytest.mark.parametrize(
    ("section", "key"),
    [(name, key) for name, section in keys_of(Config).items() for key in keys_of(section.type)],
)
def test_the_sample_shows_every_key(sample, section, key):
    """Keys without a default value are there as comments: TOML has no null."""
    part = sample[sample.index(f"\n[{section}]\n") :].partition("\n[")[2].partition("\n[")[0]

    assert re.search(rf"^(# )?{key} = ", part, re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "key", "takes"),
    [
        (heading.strip("`"), name, describe(key.type))
        for file, heading, kind in DOCUMENTED
        if file == "`inferd.toml`"
        for name, key in keys_of(kind).items()
    ],
)
def test_the_samples_comment_names_the_bounds_and_choices_of_its_key(sample, heading, key, takes):
    bounds = re.findall(r'"[^"]+"|\d[\d.]*', takes.partition(", e.g.")[0])
    facts = [fact for fact in bounds if fact not in ("0", "1")]  # those go without saying

    comment = comment_above(sample, heading, key)

    assert [fact for fact in facts if fact.removesuffix(".0") not in comment] == []


def test_the_samples_commented_entries_are_valid_when_uncommented(sample):
    parse_config([("example.toml", uncommented_example(sample))], {})


@pytest.mark.parametrize(
    ("heading", "key"),
    [
        *(("[[models.serve]]", key) for key in keys_of(ServedModel)),
        *(("[[accelerators.external]]", key) for key in keys_of(ExternalDelegate)),
    ],
)
def test_the_samples_commented_entries_show_every_key(sample, heading, key):
    entry = uncommented_example(sample).partition(f"{heading}\n")[2].partition("\n[[")[0]

    assert re.search(rf"^(# )?{key} = ", entry, re.MULTILINE)


def test_the_sample_has_no_key_that_is_commented_and_unknown(sample):
    head = sample.partition("# [[models.serve]]")[0]
    live = re.sub(r"^# (\w+ = )", r"\1", head, flags=re.MULTILINE)

    tables = tomllib.loads(live)

    assert all(has_key(Config, (section, key)) for section in tables for key in tables[section])


@pytest.mark.parametrize(("file", "heading", "kind"), DOCUMENTED)
def test_every_key_is_documented_with_what_it_takes_and_its_default(document, file, heading, kind):
    expected = {
        name: (describe(key.type), write_default(key)) for name, key in keys_of(kind).items()
    }

    assert rows_below(document, file, heading) == expected


def test_an_unknown_key_has_no_description():
    with pytest.raises(KeyError):
        describe_key(Config, ("http", "nothing"))


def test_a_key_is_described_by_its_range():
    assert describe_key(Config, ("http", "max_body_mib")) == "a whole number from 1 to 1024"
