"""docs/cli.md knows every verb and option, and invents none."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from daemon.cli.arguments import VERBS, build_parser
from daemon.cli.outcome import ExitCode

REFERENCE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()
SECTIONS = dict(
    re.findall(r"^## (\w+)[^\n]*\n(.*?)(?=^## |\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
)
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
EVERYWHERE = {"-h", "--help", "--url", "--version"}


def options_of(verb: str) -> set[str]:
    """The options that a verb takes."""
    actions = build_parser()._subparsers._group_actions
    chosen = next(each for each in actions if isinstance(each, argparse._SubParsersAction))
    parser = chosen.choices[verb]
    return {option for action in parser._actions for option in action.option_strings} - EVERYWHERE


def test_every_verb_has_a_section_and_no_section_lacks_a_verb():
    assert set(SECTIONS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained_under_its_verb(verb):
    documented = {
        option
        for item in re.findall(r"^- (.*?): ", SECTIONS[verb], re.MULTILINE)
        for option in OPTION.findall(item)
    }

    assert documented == options_of(verb)


@pytest.mark.parametrize("option", sorted(EVERYWHERE - {"-h"}))
def test_options_of_every_verb_are_explained_at_the_top(option):
    assert f"`{option}`" in REFERENCE.partition("\n## ")[0]


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_explained(code):
    assert f"| {code.value} |" in REFERENCE
