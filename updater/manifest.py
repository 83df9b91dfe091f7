"""`manifest.json`: what a bundle holds, what it needs, and how it is watched once it serves. Pure.

The rules, for whoever reads one (docs/bundles.md has every key):

1. A JSON object in UTF-8 of at most `MAX_MANIFEST_BYTES`, with the known keys only and each once:
   a key that this reader does not know may be a condition that it does not keep.
2. `schema` is 1.
3. Every value has its type and is within its bounds; the runtime range can be compared.
4. There are 1 to `MAX_FILES` files, in the order of their paths, no two with one path.
5. A path is 1 to `MAX_STEPS` names joined by "/", `MAX_PATH_BYTES` at most. A name consists of
   A-Z a-z 0-9 . _ + - and begins with a letter, a digit or _; so none is hidden, none is "..",
   none is absolute, and every file system can hold them.
6. No path is a folder of another, and none is `manifest.json`.

What is not checked: whether the files are a model that runs; a probe finds out.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from updater.desired import Counter, Digest, ModelName, Version  # noqa: TC001 - msgspec's
from updater.errors import BundleRejected
from updater.policy import runtime_fits

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 18
"""`MAX_FILES` entries with paths of `MAX_PATH_BYTES` fit."""
MAX_FILES = 1000
"""A model, its labels and a few files for each of the 64 samples that a probe runs fit often."""
MAX_STEPS = 8
MAX_PATH_BYTES = 100
"""The name field of a tar header."""
MAX_FILE_BYTES = 8**11 - 1
"""The size field of a tar header: eleven octal digits, 8 GiB."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_MOST_DAYS_S = 30 * 86_400.0

_Word = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9_-]{0,63}\Z")]
_Words = Annotated[tuple[_Word, ...], Meta(max_length=64)]


class FileEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a bundle.

    Attributes:
        path: below the bundle's folder, with "/".
        sha256: of its bytes, lower-case hex.
    """

    path: Annotated[str, Meta(min_length=1, max_length=MAX_PATH_BYTES)]
    sha256: Digest
    size_bytes: Annotated[int, Meta(ge=0, le=MAX_FILE_BYTES)]


class Probation(Struct, frozen=True, forbid_unknown_fields=True):
    """How long a new version is watched under real traffic, and what it must keep to.

    Attributes:
        min_requests: it must have answered before it is kept; after `max_s` fewer will do.
        min_s: it is watched at least.
        max_s: it is watched at most.
        max_error_ratio: failed of all requests, 0..1.
        max_latency_ratio: its 95th percentile over that of the version before.
    """

    min_requests: Annotated[int, Meta(ge=0, le=1_000_000)] = 100
    min_s: Annotated[float, Meta(ge=0, le=_MOST_DAYS_S)] = 600.0
    max_s: Annotated[float, Meta(gt=0, le=_MOST_DAYS_S)] = 7200.0
    max_error_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.05
    max_latency_ratio: Annotated[float, Meta(ge=1, le=1000)] = 3.0


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, tag_field="schema", tag=1):
    """What a bundle says of itself.

    Attributes:
        release_counter: grows with each release of the model that must not be undone.
        files: by path; () only while it is being drawn up.
        runtime: which runtimes can run it, "litert>=2.3,<3".
        architectures: Debian's names, "amd64"; (): any.
        accelerators: kinds it cannot do without.
        memory_mib: what it takes to run it; None: not said.
        max_latency_ms: of one call, as its probe measures it; None: not said.
    """

    name: ModelName
    version: Version
    release_counter: Counter
    files: Annotated[tuple[FileEntry, ...], Meta(min_length=1, max_length=MAX_FILES)] = ()
    runtime: Annotated[str, Meta(min_length=1, max_length=128)] = "litert>=2.3,<3"
    architectures: _Words = ()
    accelerators: _Words = ()
    memory_mib: Annotated[int, Meta(ge=1, le=1 << 30)] | None = None
    max_latency_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None
    probation: Probation = Probation()


def parse_manifest(raw: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        BundleRejected: it breaks a rule; says which and what was expected.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleRejected(f"manifest: more than {MAX_MANIFEST_BYTES} bytes")
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
        # msgspec takes the last of two keys alike, and a missing schema for the right one.
        if "schema" not in json.loads(raw, object_pairs_hook=_check_keys):
            raise ValueError("Object missing required field `schema`")  # noqa: TRY301
        _check(manifest)
    except ValueError as exc:  # as msgspec's errors are
        raise BundleRejected(f"manifest: {str(exc)[:500]}") from exc
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    r"""Write a manifest: keys sorted, no blanks, one "\n" at the end. The same one, the same bytes.

    Raises:
        BundleRejected: nobody could read it.
    """
    raw = msgspec.json.encode(manifest, order="sorted") + b"\n"
    parse_manifest(raw)
    return raw


def check_path(path: str) -> None:
    """Let a path pass that a file of a bundle may have (rules 5 and 6).

    Raises:
        ValueError: it may not; says what was expected.
    """
    names = path.split("/")
    if not all(map(_NAME.fullmatch, names)):
        raise ValueError(
            f"path {path[:MAX_PATH_BYTES]!r}: expected names of A-Z a-z 0-9 . _ + - that begin "
            'with a letter, a digit or _, joined by "/"'
        )
    if len(names) > MAX_STEPS or len(path) > MAX_PATH_BYTES:
        raise ValueError(
            f"path {path[:MAX_PATH_BYTES]!r}: expected at most {MAX_STEPS} names and "
            f"{MAX_PATH_BYTES} bytes"
        )
    if path == MANIFEST_NAME:
        raise ValueError(f"path {path!r}: this place is the manifest's own")


def _check(manifest: Manifest) -> None:
    """Rules 3 to 6, as far as types and bounds do not say them."""
    runtime_fits(manifest.runtime, "", "0")
    if manifest.probation.min_s > manifest.probation.max_s:
        raise ValueError("probation.min_s: expected at most probation.max_s")
    if not manifest.files:  # the default of a draft
        raise ValueError("Object missing required field `files`")
    paths = [entry.path for entry in manifest.files]
    for path in paths:
        check_path(path)
    for before, path in pairwise(paths):
        if before >= path:
            raise ValueError(f"files: {path!r} after {before!r}: expected each once and in order")
    folders = {path[:end] for path in paths for end in _separators(path)}
    if both := folders.intersection(paths):
        raise ValueError(f"files: {min(both)!r} is a file and a folder")


def _separators(path: str) -> list[int]:
    return [place for place, character in enumerate(path) if character == "/"]


def _check_keys(pairs: list[tuple[str, object]]) -> frozenset[str]:
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise ValueError("a key stands twice in one object")
    return frozenset(keys)
