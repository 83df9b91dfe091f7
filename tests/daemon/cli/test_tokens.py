"""`inferctl token`, and a daemon that asks for what it made."""

from __future__ import annotations

import json
import stat

import pytest
import requests
from support import tflite_builder
from support.daemon import daemon_process, free_port
from support.eventually import eventually_true
from support.inferctl import inferctl

from daemon.tokens import parse_tokens


@pytest.fixture
def tokens(tmp_path):
    return tmp_path / "tokens.toml"


def create(tokens, name, *options) -> str:
    done = inferctl("token", "create", name, "--file", tokens, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_token_is_made_listed_and_revoked(tokens):
    token = create(tokens, "line-3", "--scopes", "predict,read", "--models", "digits,door-*")
    listed = inferctl("token", "list", "--json", "--file", tokens)
    shown = inferctl("token", "list", "--file", tokens)
    revoked = inferctl("token", "revoke", "line-3", "--file", tokens)

    assert token.startswith("inferd_")
    assert json.loads(listed.stdout) == {
        "tokens": [
            {"name": "line-3", "scopes": ["predict", "read"], "models": ["digits", "door-*"]}
        ]
    }
    assert token not in listed.stdout + shown.stdout
    assert "line-3" in shown.stdout
    assert revoked.returncode == 0
    assert parse_tokens(tokens.read_text(), "t") == ()


def test_the_file_is_not_for_everybody_and_holds_no_token(tokens):
    token = create(tokens, "line-3")

    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert token not in tokens.read_text()


def test_comments_and_permissions_stay(tokens):
    create(tokens, "one")
    tokens.chmod(0o644)
    tokens.write_text("# whose is whose\n" + tokens.read_text())

    create(tokens, "two")

    assert tokens.read_text().startswith("# whose is whose\n")
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o644


@pytest.mark.parametrize("before", ["", "tokens = []\n", "# nobody yet\n"])
def test_the_last_token_can_go_and_another_come(tokens, before):
    tokens.write_text(before)
    create(tokens, "one")
    assert inferctl("token", "revoke", "one", "--file", tokens).returncode == 0

    create(tokens, "two")

    assert [entry.name for entry in parse_tokens(tokens.read_text(), "t")] == ["two"]


def test_tokens_in_one_line_are_kept(tokens):
    create(tokens, "one")
    (entry,) = parse_tokens(tokens.read_text(), "t")
    tokens.write_text(
        f'tokens = [{{name = "one", sha256 = "{entry.sha256}", scopes = ["read"]}}]\n'
    )

    create(tokens, "two")

    found = parse_tokens(tokens.read_text(), "t")
    assert [(each.name, each.scopes) for each in found] == [
        ("one", ("read",)),
        ("two", ("predict",)),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("create", "one"), 1, "revoke it first"),
        (("create", "x", "--scopes", "everything"), 2, "expected some of predict, read, admin"),
        (("create", ""), 2, "1 to 128 characters"),
        (("create", "x", "--models", "a,,b"), 2, "1 to 128 characters"),
        (("revoke", "two"), 1, "there are: one"),
        (("make", "x"), 2, "invalid choice"),
        ((), 2, "ACTION"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(tokens, arguments, code, said):
    create(tokens, "one")
    before = tokens.read_bytes()
    place = ("--file", tokens) if arguments else ()

    done = inferctl("token", *arguments, *place)

    assert (done.returncode, tokens.read_bytes()) == (code, before)
    assert said in done.stderr


@pytest.mark.parametrize("content", ["[[tokens", "[[tokens]]\n", "colour = 1\n"])
def test_a_file_that_is_none_is_left_as_it_is(tokens, content):
    tokens.write_text(content)

    done = inferctl("token", "create", "x", "--file", tokens)

    assert done.returncode == 1
    assert str(tokens) in done.stderr
    assert tokens.read_text() == content


def test_a_daemon_asks_for_tokens_and_forgets_revoked_ones(tmp_path, tokens):
    """Also for requests that have taken the express lane."""
    model = tmp_path / "double.tflite"
    model.write_bytes(tflite_builder.scale(2.0, batch=1))
    token = create(tokens, "client")
    http = {"tokens_file": str(tokens)}
    body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":'
    body += b'{"binary_data_size":16}}]}'
    headers = {
        "Authorization": f"Bearer {token}",
        "Inference-Header-Content-Length": str(len(body)),
        "Content-Type": "application/octet-stream",
    }
    with (
        daemon_process([model], root=tmp_path, port=free_port(), http=http) as daemon,
        requests.Session() as session,
    ):
        url = f"{daemon.url}/v2/models/double/infer"

        def ask(**changed):
            sent = {**headers, **changed}
            return session.post(url, body + bytes(16), headers=sent, timeout=30).status_code

        eventually_true(lambda: ask() == 200)
        assert [ask() for _ in range(5)] == [200] * 5
        assert ask(Authorization="Bearer nobody's") == 401

        assert inferctl("token", "revoke", "client", "--file", tokens).returncode == 0
        eventually_true(lambda: ask() == 401)

        status = inferctl("status", "--url", daemon.url, INFERD_TOKEN=token)
        assert status.returncode == 1
        assert "not known" in status.stderr
        reader = create(tokens, "reader", "--scopes", "read")
        eventually_true(
            lambda: inferctl("status", "--url", daemon.url, INFERD_TOKEN=reader).returncode == 0
        )
