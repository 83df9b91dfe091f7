"""Names that become folder names: what a model may be called, and what a digest looks like.

A name that passes is one plain entry of a folder: no separator, no "..", nothing hidden.
"""

from __future__ import annotations

import re

_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
# 100: with the endings that files on disk get, far below the 255 bytes a name may have

SHA256 = "[0-9a-f]{64}"
"""Pattern of a sha256 in lower-case hex, without anchors."""

_SHA256 = re.compile(SHA256)


def check_model(name: str) -> str:
    """The name, when a model may have it.

    Raises:
        ValueError: it may not; says what was expected.
    """
    if not _MODEL.fullmatch(name):
        raise ValueError(
            f"{name[:100]!r} is no model name: expected 1 to 100 of A-Z a-z 0-9 . _ -, "
            "beginning with a letter, a digit or _"
        )
    return name


def check_digest(digest: str) -> str:
    """The digest, when it is a sha256 in lower-case hex.

    Raises:
        ValueError: it is not.
    """
    if not _SHA256.fullmatch(digest):
        raise ValueError(f"{digest[:100]!r} is no sha256: expected 64 of 0-9 a-f")
    return digest
