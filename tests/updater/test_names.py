"""What may be a folder's name."""

from __future__ import annotations

import pytest

from updater.names import check_digest, check_model


@pytest.mark.parametrize("name", ["digits", "vision-cls", "mobilenet_v2.1", "_x", "7", "a" * 100])
def test_a_plain_name_passes(name):
    assert check_model(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", "-x", "a/b", "a\\b", "a b", "a\n", "a\0", "ä", "a" * 101, "%2e%2e"],
)
def test_any_other_name_is_refused(name):
    with pytest.raises(ValueError, match="expected 1 to 100"):
        check_model(name)


def test_a_sha256_passes():
    assert check_digest("0123456789abcdef" * 4) == "0123456789abcdef" * 4


@pytest.mark.parametrize("digest", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n"])
def test_anything_else_is_no_digest(digest):
    with pytest.raises(ValueError, match="expected 64"):
        check_digest(digest)
