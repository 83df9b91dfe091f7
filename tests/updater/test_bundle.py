"""Bundles: the same bytes from the same files, and nothing but those bytes is opened."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.inferctl import ENVIRONMENT, REPOSITORY
from support.powercut import watched
from support.tarparts import BLOCK, END, FILES, bundle, entry, header, manifest, member, members

from updater.bundle import (
    build_bundle,
    folder_files,
    open_bundle,
    read_manifest,
    verify_bundle,
)
from updater.errors import BundleRejected, CannotBundle
from updater.manifest import MAX_FILES, MAX_MANIFEST_BYTES, Manifest, encode_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = bundle()
"""By the tests' own writer."""
GOOD_SHA256 = "f9a5d2b611b51a2fa8709e74b2225a368a9ee987b9541bfdf3a24d7409c95630"
"""Never changes: what is signed today must open tomorrow."""
LIMIT = 1 << 20
MODEL = FILES["model.tflite"]
DRAFT = Manifest(name="digits", version=2, release_counter=2)
OTHERS = "beside the folder"


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with something that must not be touched, and an empty folder to unpack into."""
    (tmp_path / OTHERS).write_text("untouched")
    (tmp_path / "into").mkdir()
    return tmp_path


def opened(place: Path, raw: bytes, *, limit_bytes: int = LIMIT) -> dict[str, bytes]:
    """The files that come of these bytes."""
    (place / "a.bundle").write_bytes(raw)
    open_bundle(place / "a.bundle", place / "into", limit_bytes=limit_bytes)
    return contents(place / "into")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder; fails for anything that is neither a file nor a folder."""
    found = {}
    for path in folder.rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.is_file()
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def refusal(place: Path, raw: bytes, *, limit_bytes: int = LIMIT) -> str:
    """Why these bytes are refused, by every reader; nothing is left of them."""
    with pytest.raises(BundleRejected) as refused:
        opened(place, raw, limit_bytes=limit_bytes)
    with pytest.raises(BundleRejected) as refused_too:
        verify_bundle(place / "a.bundle", limit_bytes=limit_bytes)
    assert str(refused_too.value) == str(refused.value)
    assert sorted(path.name for path in place.iterdir()) == ["a.bundle", OTHERS, "into"]
    assert list((place / "into").iterdir()) == []
    assert (place / OTHERS).read_text() == "untouched"
    return str(refused.value)


def with_model(model: bytes) -> bytes:
    """A good bundle, but for the part of its model."""
    labels, _, *samples = members()
    return member("manifest.json", manifest()) + labels + model + b"".join(samples) + END


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


class TestGoodOnes:
    def test_what_is_in_it_comes_out_of_it(self, place):
        assert opened(place, GOOD) == {**FILES, "manifest.json": manifest()}

    def test_the_manifest_is_handed_back(self, place):
        (place / "a.bundle").write_bytes(GOOD)
        told = open_bundle(place / "a.bundle", place / "into", limit_bytes=LIMIT)

        assert told == verify_bundle(place / "a.bundle") == read_manifest(place / "a.bundle")
        assert encode_manifest(told) == manifest()

    def test_files_are_plain_whatever_their_source_was(self, place):
        opened(place, GOOD)

        modes = {path.stat().st_mode & 0o7111 for path in (place / "into").rglob("*.*")}
        assert modes == {0}

    def test_the_manifest_may_be_written_otherwise(self, place):
        raw = json.dumps(json.loads(manifest()), indent=4).encode()

        files = opened(place, member("manifest.json", raw) + b"".join(members()) + END)

        assert files == {**FILES, "manifest.json": raw}

    def test_one_of_as_many_files_as_there_may_be(self, place):
        files = {f"{number:04d}": b"" for number in range(MAX_FILES)}

        assert len(opened(place, bundle(files))) == MAX_FILES + 1

    def test_a_file_in_the_way_is_not_replaced(self, place):
        (place / "into" / "model.tflite").write_bytes(b"another")

        with pytest.raises(FileExistsError):
            opened(place, GOOD)

        assert contents(place / "into") == {"model.tflite": b"another"}

    def test_a_link_in_the_way_is_not_followed(self, place):
        (place / "into" / "samples").symlink_to(place)

        with pytest.raises(FileExistsError):
            opened(place, GOOD)

        assert sorted(path.name for path in place.iterdir()) == ["a.bundle", OTHERS, "into"]

    def test_it_may_be_as_large_as_was_signed(self, place):
        assert opened(place, GOOD, limit_bytes=len(GOOD))


class TestHeaders:
    """One field of the model's header is another."""

    @pytest.mark.parametrize("kind", [bytes([code]) for code in range(256) if code != ord("0")])
    def test_no_other_kind_than_regular_files(self, place, kind):
        assert "the header of model.tflite" in refusal(
            place, with_model(member("model.tflite", MODEL, type=kind))
        )

    @pytest.mark.parametrize("kind", [b"1", b"2"], ids=["hard", "symbolic"])
    @pytest.mark.parametrize("target", [b"labels.txt", b"/etc/passwd", b"../" + OTHERS.encode()])
    def test_no_links(self, place, kind, target):
        fields = {"type": kind, "link": target}

        refusal(place, with_model(member("model.tflite", MODEL, **fields)))
        refusal(place, with_model(header("model.tflite", 0, **fields)))

    @pytest.mark.parametrize(
        "name", [b"../model.tflite", b"/model.tflite", b"./model.tflite", b"model.tflite\0/../x"]
    )
    def test_no_other_name_than_the_manifests(self, place, name):
        refusal(place, with_model(member("model.tflite", MODEL, name=name)))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("mode", b"0000755"),
            ("mode", b"0004755"),
            ("mode", b"000644 "),
            ("uid", b"0001750"),
            ("gid", b"0001750"),
            ("mtime", b"00000000001"),
            ("user", b"root"),
            ("group", b"root"),
            ("link", b"x"),
            ("prefix", b".."),
            ("prefix", b"/etc"),
            ("rest", b"x"),
            ("major", b""),
            ("minor", b"0000001"),
            ("magic", b"ustar "),
            ("magic", b""),
            ("version", b" \0"),
            ("checksum", b"0000000"),
            ("checksum", b""),
        ],
    )
    def test_nothing_that_says_more_or_otherwise(self, place, field, value):
        refusal(place, with_model(member("model.tflite", MODEL, **{field: value})))

    @pytest.mark.parametrize(
        "size",
        [
            b"00000000000",
            b"77777777777",
            b"-0000000001",
            b"00000002734 ",
            b"2734",
            b" 2734",
            b"\x80" + bytes(9) + b"\x05\xdc",
            b"\xff" * 12,
            b"",
            b"garbage",
        ],
    )
    @pytest.mark.parametrize("file", ["model.tflite", "manifest.json"])
    def test_no_other_way_to_tell_a_size(self, place, size, file):
        raw = {"model.tflite": MODEL, "manifest.json": manifest()}[file]
        parts = {
            "model.tflite": with_model(member(file, raw, size=size)),
            "manifest.json": member(file, raw, size=size) + b"".join(members()) + END,
        }

        refusal(place, parts[file])

    @pytest.mark.parametrize("kind", list("xgLKSVMNAEI"))
    @pytest.mark.parametrize("before", ["manifest.json", "model.tflite"])
    def test_no_extended_headers(self, place, kind, before):
        extra = member("x", b"30 path=../../etc/cron.d/evil\n", type=kind.encode())
        plain = with_model(member("model.tflite", MODEL))
        spot = plain.index(before.encode())

        refusal(place, plain[:spot] + extra + plain[spot:])

    @pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_no_other_format(self, place, form):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name, data in {"manifest.json": manifest(), **FILES}.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

        refusal(place, out.getvalue())


class TestManifests:
    @pytest.mark.parametrize(
        "path", ["../x", "/etc/x", "a/../../x", ".x", "x/", "a//b", "x" * 101, "a b", "ü"]
    )
    def test_a_path_that_leads_elsewhere_is_refused_before_a_file_is_made(self, place, path):
        files = [entry(path, b"evil")]
        name = path.encode()[:100].decode(errors="replace")
        raw = member("manifest.json", manifest(files=files)) + member(name, b"evil") + END

        assert refusal(place, raw).startswith("manifest: ")

    def test_it_comes_first(self, place):
        first, *others = members()

        refusal(place, first + member("manifest.json", manifest()) + b"".join(others) + END)

    @pytest.mark.parametrize("where", [1, 3, 5])
    def test_there_is_one(self, place, where):
        parts = [member("manifest.json", manifest()), *members()]
        parts.insert(where, parts[0])

        refusal(place, b"".join(parts) + END)

    def test_there_is_at_least_one(self, place):
        refusal(place, b"".join(members()) + END)

    @pytest.mark.parametrize("raw", [b"", b"{}", b"not JSON", b"\0" * 512, b"[" * 1000])
    def test_it_is_a_manifest(self, place, raw):
        refusal(place, member("manifest.json", raw) + b"".join(members()) + END)

    def test_it_is_not_large(self, place):
        raw = manifest() + b" " * MAX_MANIFEST_BYTES

        refusal(place, member("manifest.json", raw) + b"".join(members()) + END)

    @pytest.mark.parametrize("name", ["Manifest.json", "./manifest.json", "manifest.json/"])
    def test_it_has_its_name(self, place, name):
        refusal(place, member(name, manifest()) + b"".join(members()) + END)


class TestContents:
    @pytest.mark.parametrize("missing", range(4))
    def test_no_file_is_missing(self, place, missing):
        parts = members()
        del parts[missing]

        refusal(place, member("manifest.json", manifest()) + b"".join(parts) + END)

    @pytest.mark.parametrize("where", range(5))
    @pytest.mark.parametrize("name", ["extra", "model.tflite", "../extra"])
    def test_no_file_is_extra(self, place, where, name):
        parts = members()
        parts.insert(where, member(name, b""))

        refusal(place, member("manifest.json", manifest()) + b"".join(parts) + END)

    def test_no_folder_is_extra(self, place):
        parts = members()
        parts.insert(2, header("samples/", 0, type=b"5", mode=b"0000755"))

        refusal(place, member("manifest.json", manifest()) + b"".join(parts) + END)

    def test_the_order_is_the_manifests(self, place):
        refusal(place, member("manifest.json", manifest()) + b"".join(reversed(members())) + END)

    @pytest.mark.parametrize("path", ["labels.txt", "model.tflite", "samples/one.png"])
    def test_bytes_that_differ_are_refused(self, place, path):
        changed = {**FILES, path: bytes([FILES[path][0] ^ 1]) + FILES[path][1:]}

        told = refusal(
            place, member("manifest.json", manifest()) + b"".join(members(changed)) + END
        )

        assert told.startswith(f"{path}: its sha256 is ")

    @pytest.mark.parametrize("more", [-1, 1, 512, 10**6])
    def test_a_size_that_differs_is_refused(self, place, more):
        files = [entry(path, data) for path, data in sorted(FILES.items())]
        files[1]["size_bytes"] += more

        refusal(place, member("manifest.json", manifest(files=files)) + b"".join(members()) + END)

    @pytest.mark.parametrize("after", [b"manifest.json", b"labels.txt", b"model.tflite"])
    def test_padding_is_zeros(self, place, after):
        # The last byte before the next header belongs to the padding of what is before it.
        starts = [at for at in range(0, len(GOOD), BLOCK) if GOOD[at:].startswith(after)]
        following = [at for at in range(starts[0] + BLOCK, len(GOOD), BLOCK) if is_header(at)]
        last = following[0] - 1

        refusal(place, GOOD[:last] + b"x" + GOOD[last + 1 :])


def is_header(at: int) -> bool:
    return GOOD[at + 257 : at + 262] == b"ustar"


class TestBombs:
    def test_a_huge_size_is_refused_before_a_file_is_made(self, place):
        files = [{**entry("model.tflite", b""), "size_bytes": 8**11 - 1}]
        raw = member("manifest.json", manifest(files=files)) + header("model.tflite", 8**11 - 1)

        assert "its manifest makes 8589937152" in refusal(place, raw + bytes(100_000))

    def test_many_huge_files_are_refused_before_one_is_made(self, place):
        files = [
            {**entry(f"{number:04d}", b""), "size_bytes": 8**11 - 1} for number in range(MAX_FILES)
        ]

        refusal(place, member("manifest.json", manifest(files=files)) + END)

    def test_more_files_than_there_may_be_are_refused(self, place):
        refusal(place, bundle({f"{number:04d}": b"" for number in range(MAX_FILES + 1)}))

    def test_more_bytes_than_were_signed_are_refused_unread(self, place):
        told = refusal(place, GOOD, limit_bytes=len(GOOD) - 1)

        assert told == f"{len(GOOD)} bytes, at most {len(GOOD) - 1} were expected"

    def test_a_huge_manifest_is_refused_unread(self, place):
        with (place / "a.bundle").open("wb") as file:
            file.write(header("manifest.json", 8**11 - 1))
            file.truncate(8**11 + 2 * BLOCK)

        with pytest.raises(BundleRejected, match="does not begin"):
            verify_bundle(place / "a.bundle")

    def test_a_sparse_file_of_any_size_is_refused_unread(self, place):
        with (place / "a.bundle").open("wb") as file:
            file.truncate(1 << 42)

        with pytest.raises(BundleRejected, match="at most"):
            open_bundle(place / "a.bundle", place / "into", limit_bytes=LIMIT)
        with pytest.raises(BundleRejected, match="does not begin"):
            verify_bundle(place / "a.bundle")


class TestCuts:
    @pytest.mark.parametrize("length", range(0, len(GOOD), BLOCK))
    def test_a_bundle_that_ends_early_is_refused(self, place, length):
        refusal(place, GOOD[:length])

    @pytest.mark.parametrize("length", [1, 511, 513, len(GOOD) - 1])
    def test_one_that_ends_within_a_block_is_refused(self, place, length):
        refusal(place, GOOD[:length])

    @pytest.mark.parametrize(
        "more", [b"\0", b"x", bytes(BLOCK), bytes(20 * BLOCK), GOOD, member("extra", b"")]
    )
    def test_anything_after_its_end_is_refused(self, place, more):
        refusal(place, GOOD + more)

    def test_anything_before_its_end_is_refused(self, place):
        refusal(place, GOOD[: -len(END)] + member("extra", b"x") + END)

    def test_an_end_that_is_not_zeros_is_refused(self, place):
        refusal(place, GOOD[:-1] + b"x")


class TestWhatIsNoFile:
    def test_a_folder(self, place):
        with pytest.raises(BundleRejected, match="no regular file"):
            open_bundle(place, place / "into", limit_bytes=LIMIT)

    def test_a_pipe(self, place):
        os.mkfifo(place / "pipe")

        with pytest.raises(BundleRejected, match="no regular file"):
            verify_bundle(place / "pipe")

    def test_a_device(self):
        with pytest.raises(BundleRejected, match="no regular file"):
            verify_bundle(Path("/dev/zero"))

    def test_nothing(self, place):
        with pytest.raises(FileNotFoundError):
            read_manifest(place / "a.bundle")


@st.composite
def mutations(draw) -> bytes:
    """A good bundle, edited."""
    raw = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        end = draw(st.one_of(st.just(at), st.integers(at, min(at + 2 * BLOCK, len(raw)))))
        start = draw(st.integers(0, len(GOOD)))
        raw[at:end] = draw(
            st.one_of(
                st.binary(max_size=20),
                st.binary(min_size=end - at, max_size=end - at),
                st.just(GOOD[start : start + BLOCK]),
                st.sampled_from(members()),
            )
        )
    return bytes(raw)


@given(mutations())
def test_an_edited_bundle_is_opened_as_its_manifest_says_or_refused(raw):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "into").mkdir()
        (place / "a.bundle").write_bytes(raw)
        try:
            told = open_bundle(place / "a.bundle", place / "into", limit_bytes=LIMIT)
        except BundleRejected:
            told = None

        found = contents(place / "into")
        found.pop("manifest.json", None)

        assert sorted(path.name for path in place.iterdir()) == ["a.bundle", "into"]
        assert found == ({} if told is None else FILES)
        assert told is None or [file.path for file in told.files] == sorted(FILES)


@given(st.integers(BLOCK + len(manifest()), len(GOOD) - 1), st.integers(1, 255))
def test_no_byte_after_the_manifest_can_be_another(at, change):
    raw = bytearray(GOOD)
    raw[at] ^= change
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.bundle").write_bytes(raw)

        with pytest.raises(BundleRejected):
            verify_bundle(Path(folder) / "a.bundle")


class TestBuilding:
    def test_both_writers_agree(self, tmp_path):
        folder = written(tmp_path / "model", FILES)

        build_bundle(folder_files(folder), tmp_path / "a.bundle", DRAFT)

        assert (tmp_path / "a.bundle").read_bytes() == GOOD

    def test_its_bytes_are_those_of_ever(self, tmp_path):
        build_bundle(FILES, tmp_path / "a.bundle", DRAFT)

        digest = hashlib.sha256((tmp_path / "a.bundle").read_bytes()).hexdigest()
        assert digest == GOOD_SHA256

    def test_what_was_built_opens(self, place):
        told = build_bundle(FILES, place / "a.bundle", DRAFT)

        assert open_bundle(place / "a.bundle", place / "into", limit_bytes=LIMIT) == told
        assert contents(place / "into") == {**FILES, "manifest.json": encode_manifest(told)}

    def test_gnu_tar_makes_the_same_bytes(self, place):
        """With the options of the command line in docs/bundles.md."""
        opened(place, GOOD)
        reference = (REPOSITORY / "docs" / "bundles.md").read_text()
        options = re.search(r"^(tar .* -b1) -cf ", reference, re.MULTILINE)
        names = ["manifest.json", *sorted(FILES)]

        subprocess.run(
            [*options[1].split(), "-cf", "../b.bundle", *names], cwd=place / "into", check=True
        )

        assert (place / "b.bundle").read_bytes() == GOOD

    def test_tar_lists_and_unpacks_it(self, place):
        (place / "a.bundle").write_bytes(GOOD)

        subprocess.run(["tar", "xf", place / "a.bundle", "-C", place / "into"], check=True)

        assert contents(place / "into") == {**FILES, "manifest.json": manifest()}

    @pytest.mark.parametrize("seed", range(3))
    def test_the_order_of_its_files_makes_no_difference(self, tmp_path, seed):
        names = sorted(FILES)
        random.Random(seed).shuffle(names)

        build_bundle({name: FILES[name] for name in names}, tmp_path / "a.bundle", DRAFT)

        assert (tmp_path / "a.bundle").read_bytes() == GOOD

    def test_times_owners_and_modes_make_no_difference(self, tmp_path):
        folder = written(tmp_path / "model", FILES)
        for path in folder.rglob("*"):
            os.utime(path, (12345, 67890))
            path.chmod(0o700)

        build_bundle(folder_files(folder), tmp_path / "a.bundle", DRAFT)

        assert (tmp_path / "a.bundle").read_bytes() == GOOD

    @pytest.mark.parametrize(
        "environment",
        [
            {"LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "1"},
            {"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "2"},
            {"LC_ALL": "tr_TR.UTF-8", "TZ": "America/Caracas", "SOURCE_DATE_EPOCH": "1"},
        ],
        ids=lambda environment: environment["LC_ALL"],
    )
    @pytest.mark.parametrize("umask", ["000", "077"])
    def test_neither_do_locale_time_zone_and_umask(self, tmp_path, environment, umask):
        folder = written(tmp_path / "model", FILES)
        program = (
            "import os, sys; os.umask(int(sys.argv[1], 8)); from pathlib import Path;"
            "from updater.bundle import *; from updater.manifest import Manifest;"
            "build_bundle(folder_files(Path(sys.argv[2])), Path(sys.argv[3]),"
            " Manifest(name='digits', version=2, release_counter=2))"
        )
        command = [sys.executable, "-c", program, umask, folder, tmp_path / "a.bundle"]

        subprocess.run(command, check=True, env={**ENVIRONMENT, **environment})

        assert (tmp_path / "a.bundle").read_bytes() == GOOD

    def test_it_has_its_name_once_it_is_on_the_disk(self, tmp_path):
        steps = []

        with watched(lambda step, path: steps.append((step, path.name))):
            build_bundle(FILES, tmp_path / "a.bundle", DRAFT)

        assert steps == [
            ("fsync", ".a.bundle.new"),
            ("rename", "a.bundle"),
            ("fsync-folder", tmp_path.name),
        ]

    def test_a_bundle_takes_the_place_of_an_older_one(self, tmp_path):
        (tmp_path / "a.bundle").write_bytes(b"older")

        build_bundle(FILES, tmp_path / "a.bundle", DRAFT)

        assert (tmp_path / "a.bundle").read_bytes() == GOOD
        assert [path.name for path in tmp_path.iterdir()] == ["a.bundle"]


class TestWhatMakesNoBundle:
    """The older bundle stays."""

    @pytest.fixture
    def out(self, tmp_path) -> Iterator[Path]:
        out = tmp_path / "out" / "a.bundle"
        out.parent.mkdir()
        out.write_bytes(b"older")
        yield out
        assert out.read_bytes() == b"older"
        assert [path.name for path in out.parent.iterdir()] == ["a.bundle"]

    @pytest.mark.parametrize("name", ["ü.png", "a b", "-x", "a\nb", "x" * 101, "manifest.json"])
    def test_a_name_that_no_bundle_has(self, tmp_path, out, name):
        folder = written(tmp_path / "model", {**FILES, name: b"x"})

        with pytest.raises(CannotBundle, match=r"path .*: expected|this place"):
            build_bundle(folder_files(folder), out, DRAFT)

    def test_folders_that_are_too_deep(self, tmp_path, out):
        folder = written(tmp_path / "model", {"a/b/c/d/e/f/g/h/i": b"x"})

        with pytest.raises(CannotBundle, match="at most 8 names"):
            build_bundle(folder_files(folder), out, DRAFT)

    def test_a_link(self, tmp_path, out):
        folder = written(tmp_path / "model", FILES)
        (folder / "link").symlink_to("model.tflite")

        with pytest.raises(CannotBundle, match="link: expected a file or a folder"):
            build_bundle(folder_files(folder), out, DRAFT)

    def test_a_link_to_a_folder(self, tmp_path, out):
        folder = written(tmp_path / "model", FILES)
        (folder / "link").symlink_to("samples")

        with pytest.raises(CannotBundle, match="link: expected a file or a folder"):
            build_bundle(folder_files(folder), out, DRAFT)

    def test_a_pipe(self, tmp_path, out):
        folder = written(tmp_path / "model", FILES)
        os.mkfifo(folder / "pipe")

        with pytest.raises(CannotBundle, match="pipe: expected a file or a folder"):
            build_bundle(folder_files(folder), out, DRAFT)

    def test_a_folder_without_files(self, tmp_path, out):
        (tmp_path / "model" / "empty").mkdir(parents=True)

        with pytest.raises(CannotBundle, match="no files in it"):
            build_bundle(folder_files(tmp_path / "model"), out, DRAFT)

    def test_a_folder_of_more_files_than_a_bundle_may_have(self, tmp_path, out):
        folder = written(tmp_path / "model", {f"{n:05d}": b"" for n in range(MAX_FILES + 1)})

        with pytest.raises(CannotBundle, match="more than 1000 files"):
            build_bundle(folder_files(folder), out, DRAFT)

    def test_a_file_that_changes_meanwhile(self, out):
        files = {"model.tflite": Path("/proc/sys/kernel/random/uuid")}  # another one each time

        with pytest.raises(CannotBundle, match=r"model\.tflite: it changed while it was read"):
            build_bundle(files, out, DRAFT)

    def test_a_file_that_is_larger_than_a_header_can_say(self, tmp_path, out):
        big = tmp_path / "big"
        big.touch()
        os.truncate(big, 8**11)

        with pytest.raises(CannotBundle, match="at most 8589934591 fit"):
            build_bundle({"model.tflite": big}, out, DRAFT)

    def test_a_draft_that_breaks_a_rule(self, out):
        with pytest.raises(CannotBundle, match="version"):
            build_bundle(FILES, out, Manifest(name="digits", version=0, release_counter=2))

    def test_a_file_that_cannot_be_read(self, tmp_path, out):
        with pytest.raises(FileNotFoundError):
            build_bundle({"model.tflite": tmp_path / "missing"}, out, DRAFT)


def test_hidden_files_are_left_out(tmp_path):
    folder = written(tmp_path, {**FILES, ".git/config": b"x", "samples/.DS_Store": b"x"})

    assert sorted(folder_files(folder)) == sorted(FILES)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk of its own needs root")
class TestFullDisks:
    FILES = {"model.tflite": bytes(200_000)}  # noqa: RUF012

    def test_nothing_is_left_of_a_bundle_that_does_not_fit_unpacked(self, tmp_path):
        build_bundle(self.FILES, tmp_path / "a.bundle", DRAFT)

        with small_disk(tmp_path) as disk:
            with pytest.raises(OSError, match="No space left"):
                open_bundle(tmp_path / "a.bundle", disk, limit_bytes=LIMIT)

            assert list(disk.iterdir()) == []

    def test_the_older_bundle_stays_when_the_new_one_does_not_fit(self, tmp_path):
        with small_disk(tmp_path) as disk:
            (disk / "a.bundle").write_bytes(b"older")
            with pytest.raises(OSError, match="No space left"):
                build_bundle(self.FILES, disk / "a.bundle", DRAFT)

            assert contents(disk) == {"a.bundle": b"older"}


@contextmanager
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
        shutil.rmtree(disk)
