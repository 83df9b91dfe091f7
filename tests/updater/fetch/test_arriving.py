"""Files arrive whole, however often they are cut; what has arrived is kept, and checked."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys

import pytest
from support.badproxy import answer, bad_proxy, cut, reset, stall, without_ranges
from support.fetching import (
    CONTENT,
    LENGTH,
    NAME,
    closed_port,
    failure,
    sha256_of,
    take,
    wait_until,
)
from support.inferctl import ENVIRONMENT
from support.powercut import watched
from support.webfolder import serving_folder

from updater.errors import FetchFailed, FetchReason, TrustReason, Untrusted
from updater.fetch import fetch


class TestAll:
    @pytest.mark.parametrize("kind", ["server", "site"])
    def test_a_file_arrives(self, request, part, kind):
        take(request.getfixturevalue(kind), part)

        assert part.read_bytes() == CONTENT

    @pytest.mark.parametrize("kind", ["server", "site"])
    def test_an_empty_file_arrives(self, request, site, part, kind):
        (site / NAME).write_bytes(b"")

        take(request.getfixturevalue(kind), part, content=b"")

        assert part.read_bytes() == b""

    @pytest.mark.parametrize("kind", ["server", "site"])
    def test_a_name_is_percent_encoded(self, request, site, part, kind):
        (site / "größe 1.bundle").write_bytes(CONTENT)

        take(request.getfixturevalue(kind), part, name="gr%C3%B6%C3%9Fe%201.bundle")

        assert part.read_bytes() == CONTENT

    def test_a_slash_at_the_end_of_the_url_is_the_same_url(self, server, part):
        take(f"{server}/", part)

        assert part.read_bytes() == CONTENT

    def test_what_is_there_already_needs_no_network(self, part):
        part.write_bytes(CONTENT)

        take(f"http://127.0.0.1:{closed_port()}", part)

        assert part.read_bytes() == CONTENT

    @pytest.mark.parametrize("kind", ["server", "site"])
    def test_progress_is_told_from_where_it_goes_on_to_the_end(self, request, part, kind):
        part.write_bytes(CONTENT[:1000])
        told = []

        take(request.getfixturevalue(kind), part, on_progress=lambda *each: told.append(each))

        assert told[0] == (1000, LENGTH)
        assert told == sorted(set(told))
        assert told[-1] == (LENGTH, LENGTH)

    @pytest.mark.parametrize("kind", ["server", "site"])
    def test_file_and_folder_are_synced_once_all_of_it_is_written(self, request, part, kind):
        steps = []

        with watched(lambda step, path: steps.append((step, path, part.stat().st_size))):
            take(request.getfixturevalue(kind), part)

        assert steps == [("fsync", part, LENGTH), ("fsync-folder", part.parent, LENGTH)]

    def test_bytes_are_wanted_as_they_are(self, server, part):
        with bad_proxy(server) as proxy:
            take(proxy.url, part)

        head = proxy.connections[0].request.lower()
        assert head.startswith(f"get /{NAME} http/1.1\r\n".encode())
        assert b"\r\naccept-encoding: identity\r\n" in head
        assert b"\r\nrange:" not in head

    @pytest.mark.parametrize("sha256", ["", "0" * 63, "G" * 64, "md5"])
    def test_nothing_is_fetched_without_a_sha256(self, site, part, sha256):
        with pytest.raises(ValueError, match="is no sha256"):
            fetch(str(site), NAME, part, length=LENGTH, sha256=sha256)


class TestCutLines:
    @pytest.mark.parametrize("fault", [cut, reset])
    def test_what_has_arrived_is_kept(self, server, part, fault):
        with bad_proxy(server, fault(100_000)) as proxy:
            failed = failure(proxy.url, part)

        assert failed.reason is FetchReason.CUT
        assert CONTENT.startswith(part.read_bytes())

    @pytest.mark.parametrize("after_bytes", [1, 511, 131_072, LENGTH - 1])
    def test_the_next_call_goes_on_from_there(self, server, part, after_bytes):
        with bad_proxy(server, cut(after_bytes)) as proxy:
            failure(proxy.url, part)
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT
        assert [each.range_start for each in proxy.connections] == [None, after_bytes]
        assert sum(each.body_bytes for each in proxy.connections) == LENGTH

    def test_it_gets_there_however_often_it_is_cut(self, server, part):
        with bad_proxy(server, *[cut(50_000)] * 5) as proxy:
            for _ in range(5):
                failure(proxy.url, part)
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT
        assert sum(each.body_bytes for each in proxy.connections) == LENGTH

    def test_a_stick_goes_on_where_the_network_stopped(self, server, site, part):
        with bad_proxy(server, cut(1000)) as proxy:
            failure(proxy.url, part)

        take(site, part)

        assert part.read_bytes() == CONTENT

    def test_a_cut_before_anything_came_changes_nothing(self, server, part):
        part.write_bytes(CONTENT[:10])
        with bad_proxy(server, answer("")) as proxy:
            failed = failure(proxy.url, part)

        assert failed.reason is FetchReason.CUT
        assert part.read_bytes() == CONTENT[:10]

    def test_a_body_without_a_length_that_ends_early_is_cut(self, server, part):
        with bad_proxy(server, answer("200 OK", body=CONTENT[:1000])) as proxy:
            failed = failure(proxy.url, part)

        assert failed.reason is FetchReason.CUT
        assert part.read_bytes() == CONTENT[:1000]

    def test_a_killed_process_goes_on_where_it_was(self, server, part):
        program = (
            "import sys; from pathlib import Path; from updater.fetch import fetch; "
            "fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]),"
            " length=int(sys.argv[4]), sha256=sys.argv[5])"
        )
        with bad_proxy(server, stall(200_000)) as proxy:
            words = [proxy.url, NAME, part, LENGTH, sha256_of(CONTENT)]
            child = subprocess.Popen(
                [sys.executable, "-c", program, *map(str, words)], env=ENVIRONMENT
            )
            with child:
                wait_until(lambda: part.exists() and part.stat().st_size == 200_000)
                child.send_signal(signal.SIGKILL)
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT
        assert [each.range_start for each in proxy.connections] == [None, 200_000]


class TestServersThatCannotResume:
    def test_the_whole_file_will_do(self, server, part):
        part.write_bytes(CONTENT[:1000])

        with bad_proxy(server, without_ranges) as proxy:
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT
        assert len(proxy.connections) == 1

    @pytest.mark.parametrize(
        "head",
        [
            ["416 Range Not Satisfiable"],
            ["416 Range Not Satisfiable", f"Content-Range: bytes */{LENGTH}"],
            ["206 Partial Content"],
            ["206 Partial Content", f"Content-Range: bytes 0-{LENGTH - 1}/{LENGTH}"],
            ["206 Partial Content", f"Content-Range: bytes 999-{LENGTH - 1}/{LENGTH}"],
            ["206 Partial Content", f"Content-Range: bytes 1001-{LENGTH - 1}/{LENGTH}"],
            ["206 Partial Content", f"Content-Range: bytes 1000-{LENGTH}/{LENGTH + 1}"],
            ["206 Partial Content", f"Content-Range: bytes 1000-{LENGTH - 1}/{LENGTH + 1}"],
            ["206 Partial Content", f"Content-Range: bytes 1000-{LENGTH}/{LENGTH}"],
            ["206 Partial Content", f"Content-Range: bytes 1000-999/{LENGTH}"],
            ["206 Partial Content", f"Content-Range: lines 1000-{LENGTH - 1}/{LENGTH}"],
            ["206 Partial Content", "Content-Range: bytes 1000-"],
            ["206 Partial Content", "Content-Type: multipart/byteranges; boundary=x"],
            [
                "206 Partial Content",
                f"Content-Range: bytes 1000-{LENGTH - 1}/{LENGTH}",
                "Content-Encoding: gzip",
            ],
        ],
        ids=" ".join,
    )
    def test_a_range_that_was_not_asked_for_is_not_appended(self, server, part, head):
        part.write_bytes(CONTENT[:1000])

        with bad_proxy(server, answer(*head, body=b"wrong" * 1000)) as proxy:
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT
        assert [each.range_start for each in proxy.connections] == [1000, None]

    def test_a_range_of_a_file_of_unknown_length_will_do(self, server, part):
        part.write_bytes(CONTENT[:1000])
        head = ["206 Partial Content", f"Content-Range: bytes 1000-{LENGTH - 1}/*"]

        with bad_proxy(server, answer(*head, body=CONTENT[1000:])) as proxy:
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT

    def test_a_range_nobody_asked_for_is_refused(self, server, part):
        head = ["206 Partial Content", f"Content-Range: bytes 0-{LENGTH - 1}/{LENGTH}"]

        with bad_proxy(server, answer(*head, body=CONTENT)) as proxy:
            failed = failure(proxy.url, part)

        assert failed.reason is FetchReason.STATUS
        assert failed.status == 206

    def test_the_part_is_kept_until_the_whole_file_begins_to_come(self, server, part):
        part.write_bytes(CONTENT[:1000])
        faults = [answer("416 Range Not Satisfiable"), answer("500 Internal Server Error")]

        with bad_proxy(server, *faults) as proxy:
            failed = failure(proxy.url, part)

        assert failed.status == 500
        assert part.read_bytes() == CONTENT[:1000]


class TestBadParts:
    def test_one_that_cannot_be_written_is_no_failure_of_the_network(self, server, tmp_path):
        with pytest.raises(FileNotFoundError):
            take(server, tmp_path / "missing" / "part")

    def test_one_that_was_changed_meanwhile_is_fetched_anew(self, server, part):
        with bad_proxy(server, cut(1000)) as proxy:
            failure(proxy.url, part)
            part.write_bytes(b"rotten" + part.read_bytes()[6:])
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT
        assert [each.range_start for each in proxy.connections] == [None, 1000, None]

    def test_one_that_is_complete_and_rotten_is_fetched_anew(self, server, part):
        part.write_bytes(bytes(LENGTH))

        take(server, part)

        assert part.read_bytes() == CONTENT

    def test_one_that_is_too_long_is_fetched_anew(self, server, part):
        part.write_bytes(CONTENT + b"more")

        with bad_proxy(server) as proxy:
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT
        assert [each.range_start for each in proxy.connections] == [None]

    @pytest.mark.parametrize("kind", ["server", "site"])
    @pytest.mark.parametrize("there", [0, 1000])
    def test_a_source_that_has_other_bytes_is_not_believed(self, request, site, part, kind, there):
        (site / NAME).write_bytes(CONTENT[:-1] + b"!")
        part.write_bytes(CONTENT[:there])

        with pytest.raises(Untrusted) as refused:
            take(request.getfixturevalue(kind), part)

        assert refused.value.reason is TrustReason.MISMATCH
        assert not part.exists()


@pytest.mark.slow
def test_400_mb_resume_from_where_they_stopped(tmp_path, part):
    length = 400_000_000
    file = tmp_path / "site" / "big.bundle"
    file.parent.mkdir()
    with file.open("wb") as big:
        big.write(b"begin")
        big.seek(length - 3)
        big.write(b"end")
    with file.open("rb") as big:
        sha256 = hashlib.file_digest(big, "sha256").hexdigest()
    stops = [150_000_000, 1, 120_000_000]

    with (
        serving_folder(file.parent) as server,
        bad_proxy(server, *map(cut, stops)) as proxy,
    ):
        for _ in stops:
            with pytest.raises(FetchFailed):
                fetch(proxy.url, file.name, part, length=length, sha256=sha256)
        fetch(proxy.url, file.name, part, length=length, sha256=sha256)

    assert part.stat().st_size == length
    assert [each.range_start for each in proxy.connections] == [
        None,
        150_000_000,
        150_000_001,
        270_000_001,
    ]
    assert sum(each.body_bytes for each in proxy.connections) == length
