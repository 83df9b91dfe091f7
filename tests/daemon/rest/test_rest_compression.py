"""An answer is compressed as the client's Accept-Encoding asks, and never against it."""

from __future__ import annotations

import gzip
import zlib

import pytest

from daemon.rest.compression import choose_coding, compress


@pytest.mark.parametrize(
    ("accept_encoding", "coding"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZIP", "gzip"),
        ("deflate, gzip", "gzip"),
        ("br, gzip;q=0.5", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0.000, br", None),
        ("identity", None),
        ("br, zstd", None),
        ("*", None),
        (",;,=;q", None),
    ],
)
def test_the_client_chooses_and_quality_0_forbids(accept_encoding, coding):
    assert choose_coding(accept_encoding) == coding


@pytest.mark.parametrize("size", [0, 1000, 300_000], ids=["empty", "inline", "thread"])
@pytest.mark.parametrize(
    ("coding", "restore"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
async def test_what_was_compressed_can_be_restored(coding, restore, size):
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)

    assert restore(await compress(body, coding)) == body
