"""What can be typed after inferctl."""

from __future__ import annotations

import importlib

import pytest

from daemon.cli.arguments import VERBS, parse


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
