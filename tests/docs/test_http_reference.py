"""docs/http.md knows every endpoint of the native API, and its examples are real."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import requests
from support.documents import commands, forget_what_differs, json_answers
from support.inferctl import REPOSITORY, serving

from daemon.updates import ModelUpdate, Outcome, State, UpdateReport

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "http.md").read_text()


@pytest.fixture(scope="module")
def served(demo_model):
    with serving(demo_model) as running:
        yield running


def test_every_endpoint_that_the_api_describes_is_documented_and_no_other(served):
    paths = requests.get(f"{served.url}/openapi.json", timeout=30).json()["paths"]
    described = {
        (method.upper(), path)
        for path, item in paths.items()
        for method in item
        if method in ("get", "post", "put", "delete")
    }
    rows = re.findall(r"^\| `(?:GET|POST|PUT).*$", DOCUMENT, re.MULTILINE)
    documented = {pair for row in rows for pair in re.findall(r"`(GET|POST|PUT) ([^`]+)`", row)}

    assert documented == described


def test_the_prediction_in_the_document_is_what_the_daemon_answers(served, shell):
    command = next(each for each in commands(DOCUMENT) if "bag.png" in each)

    answer = shell(command.replace("http://127.0.0.1:8080", served.url), cwd=REPOSITORY)

    documented = json_answers(DOCUMENT)[0]
    assert forget_what_differs(json.loads(answer)) == forget_what_differs(documented)


def test_every_member_state_and_outcome_of_updates_is_documented():
    members = msgspec.structs.fields(UpdateReport) + msgspec.structs.fields(ModelUpdate)
    words = [member.encode_name for member in members]

    assert [word for word in words if not re.search(rf"[`\"]{word}[`\"]", DOCUMENT)] == []
    assert [state for state in get_args(State) if state not in DOCUMENT] == []
    assert [outcome for outcome in get_args(Outcome) if f"`{outcome}`" not in DOCUMENT] == []


def test_every_member_of_a_version_is_documented(served):
    version = requests.get(f"{served.url}/api/models", timeout=30).json()["models"][0]["versions"][
        0
    ]

    assert [member for member in version if f"`{member}`" not in DOCUMENT] == []
