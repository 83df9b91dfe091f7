"""What a manifest may say, and that nothing else passes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.errors import BundleRejected
from updater.manifest import (
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    Probation,
    encode_manifest,
    parse_manifest,
)

SHA256 = hashlib.sha256(b"").hexdigest()
PLAIN: dict[str, Any] = {
    "schema": 1,
    "name": "digits",
    "version": 2,
    "release_counter": 7,
    "files": [{"path": "model.tflite", "sha256": SHA256, "size_bytes": 0}],
    "runtime": "litert>=2.3,<3",
    "architectures": ["amd64", "arm64"],
    "accelerators": ["edgetpu"],
    "memory_mib": 64,
    "max_latency_ms": 12.5,
    "probation": {
        "min_requests": 10,
        "min_s": 1.5,
        "max_s": 60,
        "max_error_ratio": 0.1,
        "max_latency_ratio": 2,
    },
}
NEEDED = ("schema", "name", "version", "release_counter")


def parse(**changes: Any) -> Manifest:
    """Read the plain manifest with some keys changed; with None they are left out."""
    document = {key: value for key, value in {**PLAIN, **changes}.items() if value is not None}
    return parse_manifest(json.dumps(document).encode())


def with_paths(*paths: str) -> list[dict[str, Any]]:
    return [{"path": path, "sha256": SHA256, "size_bytes": 0} for path in paths]


def refusal(**changes: Any) -> str:
    with pytest.raises(BundleRejected) as refused:
        parse(**changes)
    return str(refused.value)


def test_what_it_says_is_read():
    assert parse() == Manifest(
        name="digits",
        version=2,
        release_counter=7,
        files=(FileEntry("model.tflite", SHA256, 0),),
        runtime="litert>=2.3,<3",
        architectures=("amd64", "arm64"),
        accelerators=("edgetpu",),
        memory_mib=64,
        max_latency_ms=12.5,
        probation=Probation(
            min_requests=10, min_s=1.5, max_s=60.0, max_error_ratio=0.1, max_latency_ratio=2.0
        ),
    )


def test_what_it_does_not_say_has_defaults():
    others = dict.fromkeys(set(PLAIN) - {*NEEDED, "files"})

    assert parse(**others) == Manifest(
        name="digits", version=2, release_counter=7, files=parse().files
    )


@pytest.mark.parametrize("key", [*NEEDED, "files"])
def test_what_it_must_say(key):
    refusal(**{key: None})


class TestBytes:
    def test_they_are_canonical(self):
        manifest = Manifest(
            name="digits", version=2, release_counter=2, files=(FileEntry("a.b", SHA256, 3),)
        )

        assert encode_manifest(manifest) == (
            b'{"accelerators":[],"architectures":[],"files":[{"path":"a.b","sha256":"%s",'
            b'"size_bytes":3}],"max_latency_ms":null,"memory_mib":null,"name":"digits",'
            b'"probation":{"max_error_ratio":0.05,"max_latency_ratio":3.0,"max_s":7200.0,'
            b'"min_requests":100,"min_s":600.0},"release_counter":2,"runtime":"litert>=2.3,<3",'
            b'"schema":1,"version":2}\n' % SHA256.encode()
        )

    def test_they_mean_what_they_were_made_of(self):
        assert parse_manifest(encode_manifest(parse())) == parse()

    def test_what_nobody_could_read_is_not_written(self):
        with pytest.raises(BundleRejected, match="name"):
            encode_manifest(Manifest(name="..", version=1, release_counter=1, files=parse().files))

    def test_the_largest_one_can_be_read(self):
        paths = [f"{number:04d}" + "x" * 96 for number in range(MAX_FILES)]
        files = tuple(FileEntry(path, SHA256, MAX_FILE_BYTES) for path in paths)

        raw = encode_manifest(Manifest(name="a", version=1, release_counter=1, files=files))

        assert len(raw) <= MAX_MANIFEST_BYTES

    def test_a_larger_one_is_refused_unread(self):
        with pytest.raises(BundleRejected, match="more than 262144 bytes"):
            parse_manifest(b" " * (MAX_MANIFEST_BYTES + 1))

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"{}",
            b"[]",
            b"null",
            b"1",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"a":' * 50_000,
            json.dumps(PLAIN).encode() + b"{}",
            json.dumps(PLAIN).encode()[:-1],
            b"\xef\xbb\xbf" + json.dumps(PLAIN).encode(),
            json.dumps(PLAIN).encode("utf-16"),
            json.dumps(PLAIN).encode().replace(b"digits", b"dig\xffits"),
            json.dumps(PLAIN).encode().replace(b"12.5", b"NaN"),
            json.dumps(PLAIN).encode().replace(b"12.5", b"1e999"),
            json.dumps(PLAIN).encode().replace(b": 7", b": " + b"7" * 5000),
        ],
        ids=range(16),
    )
    def test_anything_else_is_refused(self, raw):
        with pytest.raises(BundleRejected):
            parse_manifest(raw)

    @pytest.mark.parametrize(
        ("once", "twice"),
        [
            (b'"version": 2', b'"version": 2, "version": 3'),
            (b'"size_bytes"', b'"path": "b", "size_bytes"'),
        ],
    )
    def test_a_key_that_stands_twice_is_refused(self, once, twice):
        with pytest.raises(BundleRejected, match="a key stands twice"):
            parse_manifest(json.dumps(PLAIN).encode().replace(once, twice))


class TestValues:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("schema", 0),
            ("schema", 2),
            ("schema", "1"),
            ("schema", True),
            ("name", ""),
            ("name", ".."),
            ("name", "a/b"),
            ("name", ".hidden"),
            ("name", "a" * 101),
            ("name", "a\n"),
            ("name", "größe"),
            ("version", 0),
            ("version", -1),
            ("version", 2**53),
            ("version", "2"),
            ("version", 2.5),
            ("version", True),
            ("release_counter", -1),
            ("release_counter", 2**53),
            ("runtime", ""),
            ("runtime", "litert>=x"),
            ("runtime", ">=2"),
            ("runtime", "litert" + ">=2," * 40 + "<3"),
            ("architectures", "amd64"),
            ("architectures", [""]),
            ("architectures", ["AMD64"]),
            ("architectures", ["a"] * 65),
            ("accelerators", [1]),
            ("accelerators", ["a b"]),
            ("memory_mib", 0),
            ("memory_mib", 2**30 + 1),
            ("memory_mib", 1.5),
            ("max_latency_ms", 0),
            ("max_latency_ms", -1),
            ("max_latency_ms", 3_600_001),
            ("max_latency_ms", "12"),
            ("probation", []),
            ("files", []),
            ("files", {}),
            ("more", 1),
        ],
    )
    def test_one_out_of_its_bounds_is_refused(self, key, value):
        refusal(**{key: value})

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("min_requests", -1),
            ("min_requests", 1_000_001),
            ("min_requests", 0.5),
            ("min_s", -1),
            ("min_s", 61),
            ("max_s", 0),
            ("max_s", 2_592_001),
            ("max_error_ratio", -0.1),
            ("max_error_ratio", 1.1),
            ("max_latency_ratio", 0.9),
            ("max_latency_ratio", 1001),
            ("more", 1),
        ],
    )
    def test_one_of_probation_out_of_its_bounds_is_refused(self, key, value):
        refusal(probation={**PLAIN["probation"], key: value})

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("sha256", SHA256.upper()),
            ("sha256", SHA256[1:]),
            ("sha256", ""),
            ("size_bytes", -1),
            ("size_bytes", MAX_FILE_BYTES + 1),
            ("size_bytes", 1.5),
            ("more", 1),
        ],
    )
    def test_one_of_a_file_out_of_its_bounds_is_refused(self, key, value):
        refusal(files=[{**PLAIN["files"][0], key: value}])

    def test_the_message_says_where(self):
        assert refusal(version=0) == "manifest: Expected `int` >= 1 - at `$.version`"


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        ["a", "_", "0", "model.tflite", "samples/a/b.png", "a-b_c+d.e", "x" * 100, "a/" * 7 + "a"],
    )
    def test_a_plain_one_passes(self, path):
        assert parse(files=with_paths(path)).files[0].path == path

    @pytest.mark.parametrize(
        "path",
        [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../b",
            "a/..",
            "./a",
            "a/./b",
            "a//b",
            "a/",
            ".a",
            "a/.b",
            "-a",
            "a\\b",
            "a:b",
            "a b",
            "a\nb",
            "a\n",
            "a\0b",
            "größe",
            "a\u202eb",
            "x" * 101,
            "a/" * 8 + "a",
            "manifest.json",
        ],
    )
    def test_any_other_is_refused(self, path):
        refusal(files=with_paths(path))

    @pytest.mark.parametrize(
        "paths",
        [
            ("b", "a"),
            ("a", "a"),
            ("a", "a/b"),
            ("a", "a.b", "a/b"),
            ("a/b", "a/b/c"),
            ("B", "a", "C"),
        ],
    )
    def test_an_order_or_pair_that_cannot_be_is_refused(self, paths):
        refusal(files=with_paths(*paths))

    def test_the_order_is_that_of_the_bytes(self):
        assert len(parse(files=with_paths("B", "a", "a+", "a-", "a.b", "b/c")).files) == 6

    def test_no_more_files_than_a_bundle_may_have(self):
        refusal(files=with_paths(*(f"{number:05d}" for number in range(MAX_FILES + 1))))


@given(st.binary(max_size=500))
def test_garbage_is_refused(raw):
    with pytest.raises(BundleRejected):
        parse_manifest(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(st.sampled_from([*PLAIN, "more"]), JSON)
def test_any_value_of_a_key_is_understood_or_refused(key, value):
    raw = json.dumps({**PLAIN, key: value}).encode()
    try:
        manifest = parse_manifest(raw)
    except BundleRejected:
        return
    assert parse_manifest(encode_manifest(manifest)) == manifest
