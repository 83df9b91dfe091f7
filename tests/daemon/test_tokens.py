"""Bearer tokens: what the file may say, whose a token is, and what it is for."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import ConfigError
from daemon.tokenfile import TokenFile
from daemon.tokens import (
    MAX_FILE_BYTES,
    PREFIX,
    Scope,
    Token,
    TokenEntry,
    Tokens,
    hash_token,
    make_token,
    parse_tokens,
)


def entry(token: str, name: str = "line-3", scopes=("predict",), models=None) -> TokenEntry:
    return TokenEntry(name=name, sha256=hash_token(token).hex(), scopes=scopes, models=models)


def written(token: str, name: str = "line-3", rest: str = "") -> str:
    digest = hash_token(token).hex()
    return f'[[tokens]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = ["predict"]\n{rest}'


def test_a_token_is_found_by_its_hash_and_nothing_else_is():
    one, other = make_token(), make_token()
    tokens = Tokens((entry(one, "one"), entry(other, "other", ("read", "admin"))))

    assert tokens.find(one).name == "one"
    assert tokens.find(other).scopes == {Scope.READ, Scope.ADMIN}
    for stranger in ("", PREFIX, one[:-1], one + "x", one.upper(), hash_token(one).hex()):
        assert tokens.find(stranger) is None


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_is_presented_is_looked_up_and_not_found(presented):
    assert Tokens((entry(make_token()),)).find(presented) is None


def test_new_tokens_are_long_and_differ():
    made = {make_token() for _ in range(100)}

    assert len(made) == 100
    assert all(token.startswith(PREFIX) and len(token) >= len(PREFIX) + 43 for token in made)


@pytest.mark.parametrize(
    ("models", "model", "may"),
    [
        (None, "digits", True),
        (None, None, True),
        (("digits", "door-*"), "digits", True),
        (("digits", "door-*"), "door-7", True),
        (("digits", "door-*"), "Digits", False),
        (("digits", "door-*"), "gate", False),
        (("digits", "door-*"), None, False),
    ],
)
def test_a_list_of_models_bounds_a_token(models, model, may):
    token = Token("t", frozenset({Scope.PREDICT}), models)

    assert token.may(Scope.PREDICT, model) is may
    assert not token.may(Scope.ADMIN, model)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tokens = 1", "tokens"),
        ("[[tokens]]\n", "tokens[0].name"),
        ('[[tokens]]\nname = "a"\nsha256 = "abc"\nscopes = ["read"]', "64 of 0-9 a-f"),
        (written("a").replace('"predict"', '"predicts"'), "did you mean"),
        (written("a").replace('["predict"]', "[]"), "scopes"),
        (written("a", rest="models = []\n"), "models"),
        (written("a", rest="token = 'x'\n"), "unknown key"),
        (written("a") + written("b"), "each name once"),
        ("[[tokens", "not TOML"),
    ],
)
def test_a_bad_file_is_refused_with_what_was_expected(text, problem):
    with pytest.raises(ConfigError, match=r"tokens\.toml: ") as caught:
        parse_tokens(text, "tokens.toml")

    assert problem in "\n".join(caught.value.problems)


def test_a_token_written_where_its_hash_belongs_is_not_shown_again():
    secret = make_token()
    text = written("x").replace(hash_token("x").hex(), secret)

    with pytest.raises(ConfigError) as caught:
        parse_tokens(text, "tokens.toml")

    assert secret not in "\n".join(caught.value.problems)


def test_a_changed_file_is_read_again(tmp_path, caplog):
    path = tmp_path / "tokens.toml"
    path.write_text(written("one"))
    file = TokenFile(path)
    assert not file.look()

    path.write_text(written("other", "another name"))

    assert file.look()
    assert not file.look()
    assert file.tokens.find("one") is None
    assert file.tokens.find("other").name == "another name"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("[[tokens"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_bytes(b"#" * (MAX_FILE_BYTES + 1)),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_spoilt_file_changes_nothing_and_is_told_once(tmp_path, caplog, spoil):
    path = tmp_path / "tokens.toml"
    path.write_text(written("one"))
    file = TokenFile(path)

    spoil(path)

    assert not file.look()
    assert not file.look()
    assert file.tokens.find("one")
    assert caplog.text.count("tokens not reloaded") == 1


def test_at_the_start_a_bad_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        TokenFile(tmp_path / "nothing")


def test_a_file_that_others_may_write_is_told(tmp_path, caplog):
    path = tmp_path / "tokens.toml"
    path.write_text(written("one"))
    os.chmod(path, 0o666)  # noqa: PTH101, S103 (what the daemon warns of)

    TokenFile(path)

    assert "others may write" in caplog.text
