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
    """The options that a verb takes, and its actions if it has any."""
    return options_below(choices_of(build_parser())[verb]) - EVERYWHERE


def options_below(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its sub-parsers."""
    own = {option for action in parser._actions for option in action.option_strings}
    return own.union(*map(options_below, choices_of(parser).values()))


def choices_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Its sub-parsers by name."""
    kind = argparse._SubParsersAction
    found = [action.choices for action in parser._actions if isinstance(action, kind)]
    return found[0] if found else {}


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


@pytest.mark.parametrize("verb", VERBS)
def test_every_action_of_a_verb_is_explained_under_it(verb):
    for action in choices_of(choices_of(build_parser())[verb]):
        assert f"`{verb} {action} " in SECTIONS[verb]


@pytest.mark.parametrize("option", sorted(EVERYWHERE - {"-h"}))
def test_options_of_every_verb_are_explained_at_the_top(option):
    assert f"`{option}`" in REFERENCE.partition("\n## ")[0]


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_explained(code):
    assert f"| {code.value} |" in REFERENCE
