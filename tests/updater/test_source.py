"""Documents of a repository, from a web server or a folder, within bounds."""

from __future__ import annotations

import ssl
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.fleet import Server

from updater.errors import FetchFailed, FetchReason, TrustReason, Untrusted
from updater.source import Limits, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "metadata/timestamp.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with one document."""
    (tmp_path / "repo" / "metadata").mkdir(parents=True)
    (tmp_path / "repo" / NAME).write_bytes(b"0123456789")
    return tmp_path / "repo"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(folder).running() as server:
        yield server


@pytest.fixture(params=["web", "folder"])
def source(request, folder, server) -> str:
    return server.url if request.param == "web" else str(folder)


def failure(source: str, name: str = NAME) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        read(source, name, limit_bytes=100)
    return caught.value


class TestBoth:
    def test_a_document_is_read(self, source):
        assert read(source, NAME, limit_bytes=100) == b"0123456789"

    def test_a_document_of_just_the_limit_is_read(self, source):
        assert read(source, NAME, limit_bytes=10) == b"0123456789"

    def test_one_byte_more_is_too_many(self, source):
        with pytest.raises(Untrusted) as caught:
            read(source, NAME, limit_bytes=9)

        assert caught.value.reason is TrustReason.TOO_LARGE

    def test_a_slash_at_the_end_of_the_source_is_none_too_many(self, source):
        assert read(f"{source}/", NAME, limit_bytes=100) == b"0123456789"

    def test_a_document_that_is_not_there_is_told_from_a_source_that_is_not(self, source):
        error = failure(source, "metadata/other.json")

        assert (error.reason, error.status) == (FetchReason.STATUS, 404)


class TestFolder:
    @pytest.mark.parametrize(
        "name",
        [
            "../secret",
            "metadata/../../secret",
            "/etc/passwd",
            "metadata//x",
            "..%2Fsecret",
            "a%00b",
        ],
    )
    def test_nothing_outside_is_read(self, name, folder):
        (folder.parent / "secret").write_bytes(b"secret")

        assert failure(str(folder), name).status == 404

    def test_a_folder_is_no_document(self, folder):
        assert failure(str(folder), "metadata").status == 404

    def test_a_link_is_no_document(self, folder, tmp_path):
        (tmp_path / "secret").write_bytes(b"secret")
        (folder / "metadata" / "link.json").symlink_to(tmp_path / "secret")

        assert failure(str(folder), "metadata/link.json").status == 404

    def test_names_are_decoded_as_a_web_server_does(self, folder):
        (folder / "metadata" / "a b.json").write_bytes(b"x")

        assert read(str(folder), "metadata/a%20b.json", limit_bytes=9) == b"x"

    def test_a_folder_that_is_not_there_is_said_so(self, tmp_path):
        assert failure(str(tmp_path / "gone")).reason is FetchReason.UNREACHABLE


class TestWeb:
    def test_what_is_answered_is_taken_as_it_is(self, server):
        """Nothing is unpacked: a few bytes could become many."""
        server.answer(f"/{NAME}", b"\x1f\x8b", Content_Encoding="gzip")

        assert read(server.url, NAME, limit_bytes=100) == b"\x1f\x8b"

    def test_the_deadline_grows_with_what_may_come(self):
        limits = Limits(patience_s=30, least_rate_bytes_s=1000)

        assert limits.deadline_s(60_000) == 90

    @pytest.mark.parametrize("url", ["http://", "http://[", "http://a b/", "http://127.0.0.1:x"])
    def test_a_url_that_is_none_is_said_so(self, url):
        assert failure(url).reason is FetchReason.UNREACHABLE

    def test_a_name_that_does_not_resolve_is_said_so(self):
        assert failure("http://host.invalid").reason is FetchReason.UNREACHABLE

    def test_no_thread_outlives_a_document(self, server):
        before = set(threading.enumerate())

        read(server.url, NAME, limit_bytes=100)

        left = {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)}
        for timer in left - before:
            timer.join(5)
            assert not timer.is_alive()

    def test_the_proxy_of_the_environment_is_asked(self, server, monkeypatch):
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.delenv("no_proxy", raising=False)
        server.answer("", b"from the proxy")

        assert read("http://fleet.invalid/repo", NAME, limit_bytes=100) == b"from the proxy"
        assert server.requests == [f"http://fleet.invalid/repo/{NAME}"]

    def test_a_host_that_needs_no_proxy_is_asked_itself(self, server, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")

        assert read(server.url, NAME, limit_bytes=100) == b"0123456789"


@pytest.fixture
def https(folder: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server with a certificate of its own: its URL, and the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "cert.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = tmp_path / "key.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}", pem
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class TestHttps:
    def test_a_certificate_that_nobody_vouches_for_is_refused(self, https):
        url, _ = https

        assert failure(url).reason is FetchReason.UNREACHABLE

    def test_one_that_the_system_trusts_is_accepted(self, https, monkeypatch):
        url, certificate = https
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

        assert read(url, NAME, limit_bytes=100) == b"0123456789"


def test_a_reading_that_is_not_wanted_any_more_ends(server):
    asked, go_on = threading.Event(), threading.Event()

    def hold(handler: SimpleHTTPRequestHandler) -> None:
        asked.set()
        go_on.wait()
        handler.close_connection = True

    server.answers[""] = hold
    with pytest.raises(FetchFailed) as caught:
        read(server.url, NAME, limit_bytes=10, cancelled=asked.is_set)
    go_on.set()

    assert caught.value.reason is FetchReason.CANCELLED
