"""Bearer tokens: who may ask what of which models. Pure.

The file, TOML, made by `inferctl token create`:

    [[tokens]]
    name = "line-3"                    # for the log; nothing else is known of who has it
    sha256 = "9f86d0..."               # of the token: whoever reads the file cannot use it
    scopes = ["predict"]               # predict, read, admin
    models = ["digits", "door-*"]      # left out: all

Rules:
1. A token is 256 random bits, so its hash needs neither salt nor stretching.
2. Scopes do not contain each other: a token that may do everything lists all three.
3. A token with a list of models may only ask about those; what is about no model in particular
   (lists, status, metrics) it may not ask.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from msgspec import Meta

from daemon.errors import ConfigError
from daemon.tables import SECRET, Name, Table, check_tables, parse_toml

PREFIX = "inferd_"
"""What every token begins with: so that programs which look for leaked secrets find it."""

_RANDOM_BYTES = 32
_LONGEST = 512
"""Characters of a presented token that are looked at."""
MAX_FILE_BYTES = 1 << 20


class Scope(Enum):
    """What a token may be for."""

    PREDICT = "predict"
    READ = "read"  # models, status, metrics
    ADMIN = "admin"  # load, unload, roll back, look for updates


class TokenEntry(Table, frozen=True):
    """`[[tokens]]`."""

    name: Name
    sha256: Annotated[str, SECRET, Meta(pattern=r"\A[0-9a-f]{64}\Z", description="64 of 0-9 a-f")]
    scopes: Annotated[tuple[Literal["predict", "read", "admin"], ...], Meta(min_length=1)]
    models: Annotated[tuple[Name, ...], Meta(min_length=1)] | None = None
    """Names; "*" stands for any characters, "?" for one."""


class TokensFile(Table, frozen=True):
    """The whole file."""

    tokens: Annotated[tuple[TokenEntry, ...], Meta(max_length=1000)] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """One token's rights.

    Attributes:
        models: patterns of model names; None for all.
    """

    name: str
    scopes: frozenset[Scope]
    models: tuple[str, ...] | None = None

    def may(self, scope: Scope, model: str | None) -> bool:
        """Whether it is for this.

        Args:
            model: that is asked about; None when it is about none in particular (rule 3).
        """
        if scope not in self.scopes:
            return False
        if self.models is None:
            return True
        return model is not None and any(fnmatchcase(model, pattern) for pattern in self.models)


class Tokens:
    """All tokens of a daemon."""

    def __init__(self, entries: tuple[TokenEntry, ...] = ()) -> None:
        self._known = tuple(
            (
                bytes.fromhex(entry.sha256),
                Token(entry.name, frozenset(map(Scope, entry.scopes)), entry.models),
            )
            for entry in entries
        )

    def __len__(self) -> int:
        return len(self._known)

    def find(self, presented: str) -> Token | None:
        """Whose token this is. Takes as long for a good one as for a bad one."""
        digest = hash_token(presented)
        found = None
        for known, token in self._known:
            if hmac.compare_digest(known, digest):
                found = token
        return found


def parse_tokens(text: str, source: str) -> tuple[TokenEntry, ...]:
    """Read a file of tokens.

    Raises:
        ConfigError: with every problem, one line each; no value of a key is in it.
    """
    try:
        tables = parse_toml(text)
    except ValueError as exc:
        raise ConfigError((f"{source}: not TOML: {exc}",)) from exc
    read, problems = check_tables(TokensFile, tables)
    names = [entry.name for entry in read.tokens]
    lines = [f"{source}: {problem}" for problem in problems]
    lines += [
        f"{source}: tokens[{place}].name: expected each name once"
        for place, name in enumerate(names)
        if name in names[:place]
    ]
    if lines:
        raise ConfigError(tuple(lines))
    return read.tokens


def make_token() -> str:
    """A new token; it is shown once and never stored."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_token(token: str) -> bytes:
    """What is kept of a token: its sha256."""
    return hashlib.sha256(token[:_LONGEST].encode("utf-8", "surrogateescape")).digest()
