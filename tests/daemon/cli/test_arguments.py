"""What can be typed after inferctl."""

from __future__ import annotations

import importlib
from typing import get_args

import pytest

from daemon.cli.arguments import VERBS, parse
from daemon.config import DefaultsTable
from daemon.tables import keys_of


def test_a_near_miss_gets_the_nearest_verb_suggested(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(["modles"])

    assert exit_info.value.code == 2
    assert "no verb 'modles'; did you mean 'models'?" in capsys.readouterr().err


def test_a_word_like_no_verb_gets_all_of_them_listed(capsys):
    with pytest.raises(SystemExit):
        parse(["xyzzy"])

    assert f"verbs are: {', '.join(VERBS)}" in capsys.readouterr().err


def test_no_verb_is_a_usage_error():
    with pytest.raises(SystemExit) as exit_info:
        parse([])

    assert exit_info.value.code == 2


def test_an_unknown_option_is_a_usage_error():
    with pytest.raises(SystemExit) as exit_info:
        parse(["status", "--jsn"])

    assert exit_info.value.code == 2


@pytest.mark.parametrize("option", ["--jsn", "--js", "--jason=1"])
def test_an_unknown_option_is_told_with_the_usage_of_its_verb_and_the_nearest(option, capsys):
    with pytest.raises(SystemExit):
        parse(["models", option])

    told = capsys.readouterr().err
    assert told.startswith("usage: inferctl models [-h] [--url URL] [--json]\n")
    assert f"unrecognized arguments: {option} (did you mean '--json'?)" in told


@pytest.mark.parametrize(
    "option",
    [
        "--top-k=0",
        "--top-k=abc",
        "--top-k=10001",
        "--top-k=-1",
        "--model-version=0",
        "--model-version=v2",
        "--threshold=nan",
        "--threshold=high",
    ],
)
def test_a_value_that_no_daemon_would_take_is_a_usage_error(option, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(["predict", "m", "f", option])

    assert exit_info.value.code == 2
    name, _, value = option.partition("=")
    assert f"error: argument {name}: '{value}': expected a" in capsys.readouterr().err


def test_as_many_may_be_listed_as_the_daemon_takes():
    (bounds,) = get_args(keys_of(DefaultsTable)["top_k"].type)[1:]
    most = bounds.le

    assert parse(["predict", "m", "f", "--top-k", str(most)]).top_k == most
    with pytest.raises(SystemExit):
        parse(["predict", "m", "f", "--top-k", str(most + 1)])


@pytest.mark.parametrize(
    "argv", [["--url", "http://a:1", "status"], ["status", "--url", "http://a:1"]]
)
def test_the_address_may_stand_before_or_after_the_verb(argv):
    assert parse(argv).url == "http://a:1"


@pytest.mark.parametrize("name", ["status", "models", "devices", "predict m f", "doctor"])
def test_every_reading_verb_has_json(name):
    assert parse([*name.split(), "--json"]).json is True


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_verb_names_code_that_exists(verb):
    module, _, function = verb.runner.partition(":")

    assert callable(getattr(importlib.import_module(module), function))
