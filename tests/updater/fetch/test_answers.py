"""Servers that answer something else, or somewhere else, or do not end."""

from __future__ import annotations

import pytest
from support.badproxy import answer, bad_proxy, endless, response
from support.fetching import CONTENT, HTML, LENGTH, NAME, closed_port, failure, take

from updater.errors import FetchReason, TrustReason, Untrusted


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


def test_the_proxy_of_the_environment_is_asked(server, part, monkeypatch):
    with bad_proxy(server, answer("200 OK", body=CONTENT)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")

        take("http://fleet.example.org/repo", part)

    assert part.read_bytes() == CONTENT
    assert proxy.connections[0].request.startswith(b"GET http://fleet.example.org/repo/targets/")
