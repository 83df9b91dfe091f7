"""The way to a broker: looked up beside the event loop, and the first address that answers."""

import asyncio
import os
import socket
import ssl
import threading

import pytest

from daemon.mqtt.opening import Way, find_way, open_stream
from daemon.mqtt.stream import Stream

NOBODY = (socket.AF_INET, ("127.0.0.1", 1))


def _stream():
    return Stream(lambda: None, lambda: None)


async def test_a_way_has_the_addresses_of_a_name_and_what_the_files_say(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("pass wörd \r\n", encoding="utf-8")

    way = await find_way("127.0.0.1", 1883, tls=False, ca_file=None, password_file=secret)

    assert way == Way(((socket.AF_INET, ("127.0.0.1", 1883)),), None, "pass wörd ")


async def test_a_way_with_tls_checks_certificates():
    way = await find_way("127.0.0.1", 8883, tls=True, ca_file=None, password_file=None)

    assert way.tls.verify_mode is ssl.CERT_REQUIRED
    assert way.tls.check_hostname
    assert way.password is None


async def test_a_name_without_an_address_is_an_error():
    with pytest.raises(socket.gaierror):
        await find_way("no-such.invalid", 1883, tls=False, ca_file=None, password_file=None)


async def test_a_file_that_is_not_text_is_an_error(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xff\xfe")

    with pytest.raises(UnicodeDecodeError):
        await find_way("127.0.0.1", 1883, tls=False, ca_file=None, password_file=secret)


async def test_a_look_up_that_hangs_holds_up_nobody_and_can_be_given_up(tmp_path):
    pipe = tmp_path / "pipe"  # reading it waits for somebody who writes
    os.mkfifo(pipe)
    # An earlier test's look-up may still wait for a name server that is silent.
    before = set(threading.enumerate())
    looking = asyncio.create_task(
        find_way("127.0.0.1", 1883, tls=False, ca_file=None, password_file=pipe)
    )
    await asyncio.sleep(0)  # it begins

    (thread,) = [
        each
        for each in threading.enumerate()
        if each.name == "inferd-mqtt-lookup" and each not in before
    ]
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking

    assert thread.daemon
    assert thread.is_alive()
    pipe.write_bytes(b"")
    await asyncio.to_thread(thread.join, 20)
    assert not thread.is_alive()


async def test_the_first_address_that_answers_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = (socket.AF_INET, listener.getsockname())

        stream = await open_stream(Way((NOBODY, there), None, None), "host", _stream)
        caller, _ = await asyncio.to_thread(listener.accept)
        stream.send(b"hello")
        said = await asyncio.to_thread(caller.recv, 5)
        stream.abort()
        caller.close()

    assert said == b"hello"


async def test_when_no_address_answers_the_last_ones_reason_is_told():
    with pytest.raises(ConnectionRefusedError):
        await open_stream(Way((NOBODY, NOBODY), None, None), "host", _stream)


async def test_who_speaks_no_tls_is_told_from_who_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        way = Way(((socket.AF_INET, listener.getsockname()),), ssl.create_default_context(), None)
        opening = asyncio.create_task(open_stream(way, "host", _stream))
        caller, _ = await asyncio.to_thread(listener.accept)
        await asyncio.to_thread(caller.sendall, b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with pytest.raises(ssl.SSLError):
            await opening
        caller.close()
