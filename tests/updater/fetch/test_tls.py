"""Servers with certificates."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.badproxy import bad_proxy, bad_tunnel
from support.fetching import CONTENT, IMPATIENT, failure, take
from support.webfolder import serving_folder

from updater.errors import FetchReason

if TYPE_CHECKING:
    from pathlib import Path


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
