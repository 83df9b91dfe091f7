"""Files arrive whole, whatever the network does; what has arrived is kept, and nothing is believed.

A real static server, and before it a proxy that does what bad networks do.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.badproxy import (
    answer,
    bad_proxy,
    bad_tunnel,
    cut,
    drip,
    endless,
    reset,
    response,
    silent,
    stall,
    without_ranges,
)
from support.inferctl import ENVIRONMENT, TIMEOUT_S
from support.powercut import watched
from support.webfolder import serving_folder

from updater.errors import FetchFailed, FetchReason, NoSpace, TrustReason, Untrusted
from updater.fetch import Limits, fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAME = "targets/digits/0f.digits-2.bundle"
CONTENT = hashlib.shake_128(b"a bundle").digest(300_000)
LENGTH = len(CONTENT)
PATIENT = Limits(connect_timeout_s=10, least_rate_bytes_s=0, rate_window_s=30, deadline_s=60)
IMPATIENT = Limits(connect_timeout_s=10, least_rate_bytes_s=1e6, rate_window_s=0.3, deadline_s=60)
HURRIED = Limits(connect_timeout_s=10, least_rate_bytes_s=0, rate_window_s=30, deadline_s=0.3)
HTML = b"<html><body>Please accept our terms.</body></html>"


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def site(tmp_path) -> Path:
    """What the server serves."""
    file = tmp_path / "site" / NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    return tmp_path / "site"


@pytest.fixture
def server(site) -> Iterator[str]:
    with serving_folder(site) as url:
        yield url


@pytest.fixture
def part(tmp_path) -> Path:
    return tmp_path / "bundle.part"


def take(
    source: object,
    part: Path,
    *,
    name: str = NAME,
    content: bytes = CONTENT,
    limits: Limits = PATIENT,
    cancelled: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Fetch what should be `content`."""
    fetch(
        str(source),
        name,
        part,
        length=len(content),
        sha256=sha256_of(content),
        limits=limits,
        on_progress=on_progress,
        cancelled=cancelled,
    )


def failure(source: object, part: Path, **how: object) -> FetchFailed:
    """How fetching fails."""
    with pytest.raises(FetchFailed) as failed:
        take(source, part, **how)
    return failed.value


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


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


class TestOtherAnswers:
    @pytest.mark.parametrize("status", [304, 400, 403, 404, 410, 429, 500, 502, 503])
    @pytest.mark.parametrize("there", [0, 1000])
    def test_a_refusal_costs_nothing(self, server, part, status, there):
        part.write_bytes(CONTENT[:there])

        with bad_proxy(server, answer(f"{status} No", body=HTML)) as proxy:
            failed = failure(proxy.url, part)

        assert failed.reason is FetchReason.STATUS
        assert failed.status == status
        assert part.read_bytes() == CONTENT[:there]
        assert len(proxy.connections) == 1

    def test_a_missing_file_is_404(self, server, part):
        assert failure(server, part, name="targets/other").status == 404

    @pytest.mark.parametrize("status", [429, 503])
    def test_how_long_to_wait_is_handed_on(self, server, part, status):
        with bad_proxy(server, answer(f"{status} Later", "Retry-After: 120")) as proxy:
            failed = failure(proxy.url, part)

        assert failed.retry_after_s == 120

    @pytest.mark.parametrize("there", [0, 1000])
    @pytest.mark.parametrize(
        "headers",
        [
            ["Content-Type: text/html; charset=utf-8"],
            ["Content-Type: TEXT/HTML", f"Content-Length: {LENGTH}"],
            [f"Content-Length: {len(HTML)}"],
            [f"Content-Length: {len(HTML)}", "Content-Type: application/octet-stream"],
        ],
        ids=" ".join,
    )
    def test_a_captive_portals_page_costs_nothing(self, server, part, headers, there):
        part.write_bytes(CONTENT[:there])

        with bad_proxy(server, answer("200 OK", *headers, body=HTML)) as proxy:
            failed = failure(proxy.url, part)

        assert failed.reason is FetchReason.STATUS
        assert part.read_bytes() == CONTENT[:there]

    @pytest.mark.parametrize("encoding", ["gzip", "br", "x-unknown"])
    def test_an_encoded_body_is_refused(self, server, part, encoding):
        headers = [f"Content-Encoding: {encoding}", f"Content-Length: {LENGTH}"]

        with bad_proxy(server, answer("200 OK", *headers, body=CONTENT)) as proxy:
            failed = failure(proxy.url, part)

        assert failed.reason is FetchReason.STATUS
        assert not part.exists()

    @pytest.mark.parametrize("size", [LENGTH - 1, LENGTH + 1, 10**30])
    def test_another_length_is_refused_before_a_byte_of_it(self, server, part, size):
        with bad_proxy(server, answer("200 OK", f"Content-Length: {size}")) as proxy:
            failed = failure(proxy.url, part)

        assert failed.reason is FetchReason.STATUS
        assert not part.exists()

    @pytest.mark.parametrize("noise", [b"", b"\0" * 1000, b"SSH-2.0-OpenSSH_9.2p1\r\n"])
    def test_what_is_no_http_is_a_cut_line(self, server, part, noise):
        with bad_proxy(server, lambda connection: connection.client.sendall(noise)) as proxy:
            assert failure(proxy.url, part).reason is FetchReason.CUT

    def test_a_head_without_end_is_a_cut_line(self, server, part):
        def fault(connection):
            connection.client.sendall(b"HTTP/1.1 200 OK\r\n")
            while not connection.ending.is_set():
                connection.client.sendall(b"X-More: and more\r\n" * 1000)

        with bad_proxy(server, fault) as proxy:
            assert failure(proxy.url, part).reason is FetchReason.CUT


class TestEndlessData:
    @pytest.mark.parametrize(
        ("headers", "chunk"),
        [([], b"x" * 65536), (["Transfer-Encoding: chunked"], b"1000\r\n" + b"x" * 4096 + b"\r\n")],
        ids=["plain", "chunked"],
    )
    def test_no_more_than_the_length_is_taken(self, server, part, headers, chunk):
        told = []
        with (
            bad_proxy(server, endless("200 OK", *headers, chunk=chunk)) as proxy,
            pytest.raises(Untrusted) as refused,
        ):
            take(proxy.url, part, on_progress=lambda there, _: told.append(there))

        assert refused.value.reason is TrustReason.MISMATCH
        assert max(told) == LENGTH
        assert not part.exists()

    def test_what_follows_the_right_bytes_is_not_read(self, server, part):
        def fault(connection):
            connection.client.sendall(response("200 OK", body=CONTENT))
            while not connection.ending.is_set():
                connection.client.sendall(b"and more")

        with bad_proxy(server, fault) as proxy:
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT

    def test_the_body_of_a_redirect_is_not_read(self, server, part):
        head = ["302 Found", f"Location: {server}/{NAME}"]
        with bad_proxy(server, endless(*head, chunk=b"x" * 65536)) as proxy:
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT


class TestSlowServers:
    def test_one_that_never_answers_is_left(self, server, part):
        with bad_proxy(server, silent) as proxy:
            assert failure(proxy.url, part, limits=IMPATIENT).reason is FetchReason.TOO_SLOW

    def test_one_that_stalls_is_left_and_what_came_is_kept(self, server, part):
        part.write_bytes(CONTENT[:1000])

        with bad_proxy(server, stall(1000)) as proxy:
            failed = failure(proxy.url, part, limits=IMPATIENT)

        assert failed.reason is FetchReason.TOO_SLOW
        assert part.read_bytes() in {CONTENT[:1000], CONTENT[:2000]}

    @pytest.mark.parametrize("limits", [IMPATIENT, HURRIED], ids=["rate", "deadline"])
    @pytest.mark.parametrize(
        ("at_once", "slowly"),
        [
            (response("200 OK", f"Content-Length: {LENGTH}"), CONTENT),
            (response("200 OK"), CONTENT),
            (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"y" * 60_000),
        ],
        ids=["body", "body without length", "head"],
    )
    def test_one_that_drips_is_left(self, server, part, at_once, slowly, limits):
        with bad_proxy(server, drip(at_once, slowly, every_s=0.02)) as proxy:
            failed = failure(proxy.url, part, limits=limits)

        assert failed.reason is FetchReason.TOO_SLOW
        assert len(proxy.connections) == 1

    def test_one_that_is_slow_and_not_too_slow_is_waited_for(self, server, part):
        content = b"x" * 100
        limits = Limits(least_rate_bytes_s=0.1, rate_window_s=0.7)

        with bad_proxy(server, drip(response("200 OK"), content, every_s=0.02)) as proxy:
            take(proxy.url, part, content=content, limits=limits)

        assert part.read_bytes() == content

    def test_a_redirect_does_not_begin_a_new_deadline(self, server, part):
        def fault(connection):
            connection.ending.wait(0.1)
            connection.client.sendall(response("302 Found", f"Location: {proxy.url}/next"))

        with bad_proxy(server, *[fault] * 3, silent) as proxy:
            assert failure(proxy.url, part, limits=HURRIED).reason is FetchReason.TOO_SLOW

    def test_one_that_takes_no_connection_in_time_is_unreachable(self, part):
        limits = Limits(connect_timeout_s=0.2, deadline_s=20)
        with deaf_port() as port:
            failed = failure(f"http://127.0.0.1:{port}", part, limits=limits)

        assert failed.reason is FetchReason.UNREACHABLE


class TestCancelling:
    def test_in_the_middle_of_a_stall(self, server, part):
        with bad_proxy(server, stall(1000)) as proxy:
            failed = failure(
                proxy.url,
                part,
                cancelled=lambda: part.exists() and part.stat().st_size == 1000,
            )

        assert failed.reason is FetchReason.CANCELLED
        assert part.read_bytes() == CONTENT[:1000]

    def test_before_an_answer(self, server, part):
        with bad_proxy(server, silent) as proxy:
            failed = failure(
                proxy.url, part, cancelled=lambda: any(each.request for each in proxy.connections)
            )

        assert failed.reason is FetchReason.CANCELLED

    def test_while_a_file_is_copied(self, site, part):
        wanted = True

        def stop(there: int, _length: int) -> None:
            nonlocal wanted
            wanted = False
            wait_until(lambda: not looks_on())

        looked = []

        def is_cancelled() -> bool:
            looked.append(wanted)
            return not wanted

        def looks_on() -> bool:
            return False not in looked

        failed = failure(site, part, cancelled=is_cancelled, on_progress=stop)

        assert failed.reason is FetchReason.CANCELLED


class TestRedirects:
    @pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 T", "308 P"])
    def test_a_few_are_followed(self, server, part, status):
        with bad_proxy(server, answer(status, f"Location: {server}/{NAME}")) as proxy:
            take(proxy.url, part)

        assert part.read_bytes() == CONTENT

    def test_a_relative_one_and_its_range(self, server, part):
        part.write_bytes(CONTENT[:1000])

        with bad_proxy(server, answer("302 Found", f"Location: /{NAME}")) as proxy:
            take(proxy.url, part)

        assert [each.range_start for each in proxy.connections] == [1000, 1000]
        assert part.read_bytes() == CONTENT

    def test_a_circle_is_left(self, server, part):
        with bad_proxy(server, *[answer("302 Found", f"Location: /{NAME}")] * 10) as proxy:
            failed = failure(proxy.url, part)

        assert failed.reason is FetchReason.STATUS
        assert len(proxy.connections) == 4

    @pytest.mark.parametrize(
        "place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher:x", "http://[::1", "data:,x"]
    )
    def test_only_http_is_followed(self, server, part, place):
        with bad_proxy(server, answer("302 Found", f"Location: {place}")) as proxy:
            failed = failure(proxy.url, part)

        assert failed.reason is FetchReason.STATUS
        assert not part.exists()

    def test_one_to_nowhere_is_refused(self, server, part):
        with bad_proxy(server, answer("302 Found")) as proxy:
            assert failure(proxy.url, part).status == 302


class TestUnreachable:
    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1:{port}", "http://[::1", "http://a..b", "http://" + "x" * 300]
    )
    def test_no_server(self, part, url):
        failed = failure(url.format(port=closed_port()), part)

        assert failed.reason is FetchReason.UNREACHABLE
        assert not part.exists()


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


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a small disk of its own needs root")


class TestFolders:
    def test_a_missing_file_is_404(self, site, part):
        assert failure(site, part, name="targets/other").status == 404

    def test_a_missing_folder_is_unreachable(self, site, part):
        assert failure(site / "other", part).reason is FetchReason.UNREACHABLE

    @pytest.mark.parametrize("name", ["../secret", "targets/../../secret", "%2e%2e/secret"])
    def test_no_name_leads_out_of_it(self, site, part, name):
        (site.parent / "secret").write_bytes(CONTENT)

        assert failure(site, part, name=name).status == 404

    @pytest.mark.parametrize("name", ["/etc/passwd", "%2fetc%2fpasswd", "a%00b"])
    def test_no_name_is_absolute_or_cut_short(self, site, part, name):
        assert failure(site, part, name=name).status == 404

    def test_a_pipe_is_no_file(self, site, part):
        os.mkfifo(site / "pipe")

        assert failure(site, part, name="pipe").status == 404

    def test_a_link_is_no_file(self, site, part):
        (site / "link").symlink_to(NAME)

        assert failure(site, part, name="link").status == 404

    def test_a_folder_is_no_file(self, site, part):
        assert failure(site, part, name="targets").status == 404

    @needs_root
    def test_a_stick_that_is_pulled_out_is_a_cut_line(self, tmp_path, part):
        image = tmp_path / "image"
        image.write_bytes(bytes(1 << 20))
        subprocess.run(["/sbin/mkfs.ext2", "-q", "-F", image], check=True)

        with mounted(tmp_path, "-o", "loop", image) as stick:
            with (stick / "a.bundle").open("wb") as file:
                file.write(CONTENT)
                file.flush()
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.truncate(image, 0)
            failed = failure(stick, part, name="a.bundle")

        assert failed.reason is FetchReason.CUT
        assert "Input/output error" in str(failed)

    @pytest.mark.parametrize("size", [LENGTH - 1, LENGTH + 1, 0])
    def test_a_file_of_another_length_is_refused_and_the_part_kept(self, site, part, size):
        part.write_bytes(CONTENT[:1000])
        os.truncate(site / NAME, size)

        failed = failure(site, part)

        assert failed.reason is FetchReason.STATUS
        assert part.read_bytes() == CONTENT[:1000]


@needs_root
class TestFullDisks:
    @pytest.mark.parametrize("kind", ["server", "site"])
    def test_room_is_taken_before_the_first_byte(self, request, tmp_path, kind):
        with mounted(tmp_path, "-t", "tmpfs", "-o", "size=128k", "none") as disk:
            with pytest.raises(NoSpace) as refused:
                take(request.getfixturevalue(kind), disk / "part")
            size = (disk / "part").stat().st_size

        assert size == 0
        assert refused.value.needed_bytes == LENGTH

    def test_it_is_no_failure_of_the_network_where_room_cannot_be_taken(self, tmp_path, server):
        image = tmp_path / "image"
        image.write_bytes(bytes(256 * 1024))
        subprocess.run(["/sbin/mkfs.ext2", "-q", "-F", image], check=True)

        with mounted(tmp_path, "-o", "loop", image) as disk:
            with pytest.raises(NoSpace):
                take(server, disk / "part")
            kept = (disk / "part").read_bytes()

        assert kept
        assert CONTENT.startswith(kept)

    def test_it_goes_on_when_there_is_room_again(self, tmp_path, server):
        with mounted(tmp_path, "-t", "tmpfs", "-o", "size=400k", "none") as disk:
            with bad_proxy(server, cut(1000)) as proxy:
                failure(proxy.url, disk / "part")
                (disk / "other").write_bytes(b"x" * 100_000)
                os.truncate(disk / "part", 1000)  # gives the reserved room back
                (disk / "more").write_bytes(b"x" * 50_000)
                with pytest.raises(NoSpace):
                    take(proxy.url, disk / "part")
                (disk / "other").unlink()
                take(proxy.url, disk / "part")

            assert (disk / "part").read_bytes() == CONTENT
            assert [each.range_start for each in proxy.connections] == [None, 1000, 1000]


class TestTls:
    def test_a_server_with_a_known_certificate_is_fetched_from(
        self, tmp_path, monkeypatch, site, part
    ):
        context, certificate = tls(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

        with serving_folder(site, tls=context) as url:
            take(url, part)

        assert part.read_bytes() == CONTENT

    def test_a_server_with_an_unknown_certificate_is_not(self, tmp_path, site, part):
        context, _ = tls(tmp_path)

        with serving_folder(site, tls=context) as url:
            assert failure(url, part).reason is FetchReason.UNREACHABLE

    def test_bytes_that_the_network_has_changed_are_a_cut_line(
        self, tmp_path, monkeypatch, site, part
    ):
        context, certificate = tls(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

        with serving_folder(site, tls=context) as url, bad_tunnel(url, 100_000) as tunnel:
            failed = failure(tunnel, part)

        assert failed.reason is FetchReason.CUT
        assert CONTENT.startswith(part.read_bytes())

    def test_a_handshake_that_never_ends_is_left(self, server, part):
        with bad_proxy(server) as proxy:  # it waits for a request that is not encrypted
            url = proxy.url.replace("http:", "https:")
            failed = failure(url, part, limits=IMPATIENT)

        assert failed.reason is FetchReason.TOO_SLOW


def test_the_proxy_of_the_environment_is_asked(server, part, monkeypatch):
    with bad_proxy(server, answer("200 OK", body=CONTENT)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")

        take("http://fleet.example.org/repo", part)

    assert part.read_bytes() == CONTENT
    assert proxy.connections[0].request.startswith(b"GET http://fleet.example.org/repo/targets/")


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


def wait_until(holds: Callable[[], bool]) -> None:
    """Look again and again, for a bounded time, at what no event tells of."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose backlog is full: the kernel lets further connections wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as open_ones:
        for _ in range(4):
            waiting = open_ones.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextmanager
def mounted(tmp_path: Path, *how: object) -> Iterator[Path]:
    """A small disk of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", *map(str, how), disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for 127.0.0.1, and its self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "certificate.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = tmp_path / "key.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, private)
    return context, pem
