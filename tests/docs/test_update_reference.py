"""docs/update.md says what there is: states, refusals, commands, keys and files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.documents import commands
from support.inferctl import REPOSITORY
from tuf.ngclient._internal import trusted_metadata_set

from daemon.cli.arguments import parse
from daemon.config import parse_config
from updater.state import MAX_TRIES, State

TEXT = (REPOSITORY / "docs" / "update.md").read_text()
OURS = [REPOSITORY / folder for folder in ("updater", "daemon/cli", "daemon")]
TUF = Path(trusted_metadata_set.__file__).parents[2] / "api"
SOURCES = "\n".join(
    path.read_text()
    for path in (
        *(path for folder in (*OURS, TUF) for path in sorted(folder.glob("*.py"))),
        Path(trusted_metadata_set.__file__),
    )
)
COMMANDS = [line for line in commands(TEXT) if line.startswith("inferctl ")]
LEAST_CHARS = 5
"""Of a sentence's piece between what differs each time."""


def section(title: str) -> str:
    return TEXT.split(f"# {title}\n", 1)[1].split("\n## ", 1)[0]


def first_column(title: str) -> list[str]:
    rows = re.findall(r"^\| (.*?) \|", section(title), re.MULTILINE)
    return [cell for cell in rows[1:] if not cell.startswith("---")]


def refusals() -> list[str]:
    """Every sentence of the table, without what differs each time."""
    sentences = re.findall(r"`([^`]+)`", " ".join(first_column("When it is refused")))
    return [piece.strip() for each in sentences for piece in each.split("…")]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_can_be_followed(line):
    assert parse(shlex.split(line)[1:]).verb in line


def test_no_verb_of_updates_is_left_out():
    verbs = {line.split()[1] for line in COMMANDS}

    assert verbs >= {"update", "history", "rollback", "quarantine", "import"}


def test_exactly_the_states_that_exist_are_explained_in_their_order():
    listed = re.findall(r"`(\w+)`", " ".join(first_column("What happens in an update")))

    assert listed == [state.value for state in State]


@pytest.mark.parametrize("piece", [each for each in refusals() if len(each) >= LEAST_CHARS])
def test_every_refusal_is_one_that_is_made(piece):
    assert piece in SOURCES


def test_the_number_of_tries_is_the_one_that_is_kept():
    words = {2: "Two tries", 3: "Three tries"}

    assert f"### {words[MAX_TRIES]}" in TEXT


def test_the_configuration_that_is_shown_can_be_used():
    block = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)[1]
    plain = "\n".join(line.strip() for line in block.splitlines())

    config = parse_config([("update.md", plain)], {})

    assert config.updates.source
    assert dict(config.device.labels) == {"ring": "canary", "site": "north"}


def test_the_files_are_where_the_configuration_puts_them():
    config = parse_config([], {})
    paths = " ".join(first_column("What is on disk"))

    assert f"{config.below_root(config.paths.updater_state)}/" in paths
    assert f"{config.state_dir / 'store'}/" in paths
    assert str(config.socket_path) in paths
