"""Tar files by hand, header field by header field: good bundles, and whatever else a tar may be.

Written apart from updater/bundle.py, after the text of docs/bundles.md and POSIX's ustar, so that
two readings of the format meet in the tests.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK = 512
END = bytes(2 * BLOCK)
FILES = {
    "labels.txt": b"zero\none\n",
    "model.tflite": hashlib.shake_128(b"model").digest(1500),
    "samples/empty": b"",
    "samples/one.png": hashlib.shake_128(b"one").digest(512),
}
"""A model's files; one is empty, and one fills its block."""
_WIDTHS = {
    "name": 100,
    "mode": 8,
    "uid": 8,
    "gid": 8,
    "size": 12,
    "mtime": 12,
    "checksum": 8,
    "type": 1,
    "link": 100,
    "magic": 6,
    "version": 2,
    "user": 32,
    "group": 32,
    "major": 8,
    "minor": 8,
    "prefix": 155,
    "rest": 12,
}


def header(name: str, size: int, /, **fields: bytes) -> bytes:
    """A file's header as a bundle has it, but for some fields; its checksum is right."""
    plain = {
        "name": name.encode(),
        "mode": b"0000644",
        "uid": b"0000000",
        "gid": b"0000000",
        "size": b"%011o" % size,
        "mtime": b"00000000000",
        "checksum": b" " * 8,
        "type": b"0",
        "magic": b"ustar",
        "version": b"00",
        "major": b"0000000",
        "minor": b"0000000",
    }
    values = {**plain, **fields}
    block = b"".join(values.get(field, b"").ljust(width, b"\0") for field, width in _WIDTHS.items())
    assert len(block) == BLOCK
    if "checksum" in fields:
        return block
    return block.replace(b" " * 8, b"%06o\0 " % sum(block), 1)


def member(name: str, data: bytes, /, **fields: bytes) -> bytes:
    """A file with its header and its padding."""
    return header(name, len(data), **fields) + data + bytes(-len(data) % BLOCK)


def entry(path: str, data: bytes) -> dict[str, Any]:
    """How a manifest lists a file."""
    return {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}


def manifest(files: Mapping[str, bytes] = FILES, /, **changes: Any) -> bytes:
    """A manifest of these files, or with other facts."""
    document = {
        "schema": 1,
        "name": "digits",
        "version": 2,
        "release_counter": 2,
        "runtime": "litert>=2.3,<3",
        "architectures": [],
        "accelerators": [],
        "memory_mib": None,
        "max_latency_ms": None,
        "probation": {
            "min_requests": 100,
            "min_s": 600.0,
            "max_s": 7200.0,
            "max_error_ratio": 0.05,
            "max_latency_ratio": 3.0,
        },
        "files": [entry(path, files[path]) for path in sorted(files)],
        **changes,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def members(files: Mapping[str, bytes] = FILES) -> list[bytes]:
    """The files of a bundle, without its manifest."""
    return [member(path, files[path]) for path in sorted(files)]


def bundle(files: Mapping[str, bytes] = FILES, /, **changes: Any) -> bytes:
    """A whole bundle."""
    raw = manifest(files, **changes)
    return member("manifest.json", raw) + b"".join(members(files)) + END
