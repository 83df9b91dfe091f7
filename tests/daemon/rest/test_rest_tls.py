"""https at the front door: whose certificate is shown, and whose is asked for."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl

import pytest
from support.certificates import Authority
from support.rest import get, make_context

from daemon.errors import ConfigError
from daemon.rest.server import HttpServer
from daemon.selfcheck import answers

WAIT_S = 30


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
async def serve():
    """Start servers with these keys of [http]; they are stopped at the end."""
    servers = []

    async def start(**http):
        context = make_context(**http)
        server = HttpServer(context)
        servers.append(server)
        (address,) = await server.start(None)
        assert address.startswith("https://127.0.0.1:")
        return address, context.certificate

    yield start
    for server in servers:
        await server.stop(1)


async def ask(address, authority, *, client=None, path="/api/models"):
    context = ssl.create_default_context(cafile=authority.file)
    if client is not None:
        context.load_cert_chain(*client)
    host, _, port = address.removeprefix("https://").rpartition(":")
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            writer.write(get(path))
            status = await reader.readline()
            subject = dict(pair[0] for pair in writer.get_extra_info("peercert")["subject"])
        finally:
            writer.close()
    if not status:
        raise ConnectionResetError("the server hung up")
    return int(status.split()[1]), subject["commonName"]


async def test_clients_are_spoken_to_by_tls_with_our_certificate(serve, authority):
    certificate, key = authority.issue("box")
    address, _ = await serve(tls_certificate=certificate, tls_key=key)

    assert await ask(address, authority) == (200, "box")
    assert await answers([address], timeout_s=WAIT_S)


async def test_a_plain_request_and_old_tls_are_turned_away(serve, authority):
    certificate, key = authority.issue("box")
    address, _ = await serve(tls_certificate=certificate, tls_key=key)
    port = int(address.rpartition(":")[2])

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(get("/healthz"))
    assert not (await reader.read(100)).startswith(b"HTTP")
    writer.close()

    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(authority.file)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", port, ssl=old)


async def test_a_client_must_bring_a_certificate_that_its_authority_signed(
    serve, authority, tmp_path
):
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "stranger").issue("nobody")
    friend = authority.issue("friend")
    certificate, key = authority.issue("box")
    address, _ = await serve(tls_certificate=certificate, tls_key=key, tls_client_ca=authority.file)

    assert (await ask(address, authority, client=friend))[0] == 200
    for client in (None, stranger):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(address, authority, client=client)
    assert await answers([address], timeout_s=WAIT_S)


async def test_a_renewed_certificate_is_shown_without_a_restart(serve, authority, tmp_path):
    certificate, key = authority.issue("box")
    address, shown = await serve(tls_certificate=certificate, tls_key=key)
    new_certificate, new_key = authority.issue("new")

    shutil.copy(new_certificate, certificate)
    shown.look()  # half of it is there
    assert await ask(address, authority) == (200, "box")

    shutil.copy(new_key, key)
    shown.look()
    assert await ask(address, authority) == (200, "new")


@pytest.mark.parametrize("spoilt", ["tls_certificate", "tls_key", "tls_client_ca"])
async def test_files_that_are_none_are_refused_at_the_start(authority, tmp_path, spoilt):
    certificate, key = authority.issue("box")
    files = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": authority.file}
    for content in (None, b"", b"-----BEGIN CERTIFICATE-----\nx\n"):
        bad = tmp_path / "bad.pem"
        bad.unlink(missing_ok=True)
        if content is not None:
            bad.write_bytes(content)
        with pytest.raises(ConfigError, match="PEM"):
            make_context(**files | {spoilt: bad})


async def test_who_never_shakes_hands_is_let_go(serve, authority):
    certificate, key = authority.issue("box")
    address, _ = await serve(tls_certificate=certificate, tls_key=key, header_timeout_s=0.2)

    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
        client.settimeout(WAIT_S)
        assert await asyncio.to_thread(client.recv, 1) == b""
