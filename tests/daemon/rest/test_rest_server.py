"""Where the HTTP front end listens, and what it leaves behind."""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
from contextlib import ExitStack, suppress

import pytest
from support.rest import Client, get, make_context, running_server

from daemon.errors import ConfigError
from daemon.rest.server import HttpServer


async def ask_unix(path) -> int:
    client = Client(*await asyncio.open_unix_connection(path))
    answer = await client.ask(get("/healthz"))
    await client.close()
    return answer.status


async def test_port_0_is_a_free_port_and_is_told() -> None:
    async with running_server() as server:
        assert server.addresses == (f"http://127.0.0.1:{server.port}",)
        assert server.port > 0
        assert (await server.ask(get("/healthz"))).status == 200


async def test_several_addresses_are_served(tmp_path) -> None:
    listen = ["127.0.0.1:0", "127.0.0.1:0"]
    async with running_server(tmp_path / "s", listen=listen) as server:
        assert len(set(server.addresses)) == 3
        assert server.addresses[-1] == f"unix:{tmp_path / 's'}"


async def test_the_unix_socket_is_for_its_group_and_goes_at_the_end(tmp_path) -> None:
    path = tmp_path / "run" / "inferd.sock"
    async with running_server(path):
        status = await ask_unix(path)
        mode = stat.S_IMODE(path.stat().st_mode)

    assert (status, mode) == (200, 0o660)
    assert not path.exists()


async def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path) -> None:
    path = tmp_path / "inferd.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async with running_server(path):
        assert await ask_unix(path) == 200


async def test_a_socket_that_another_daemon_listens_on_is_left_alone(tmp_path) -> None:
    path = tmp_path / "inferd.sock"
    async with running_server(path):
        second = HttpServer(make_context())

        with pytest.raises(OSError, match="another daemon"):
            await second.start(path)

        assert await ask_unix(path) == 200


async def test_a_socket_whose_queue_is_full_is_left_alone(tmp_path) -> None:
    path = tmp_path / "inferd.sock"
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as waiting:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(2):
            client = waiting.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(str(path))

        with pytest.raises(OSError, match="another daemon"):
            await HttpServer(make_context()).start(path)

        assert path.exists()


async def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path) -> None:
    path = tmp_path / "inferd.sock"
    path.write_text("precious")

    with pytest.raises(OSError, match="no socket"):
        await HttpServer(make_context()).start(path)

    assert path.read_text() == "precious"


async def test_a_port_in_use_is_named() -> None:
    async with running_server() as server:
        listen = f"127.0.0.1:{server.port}"

        with pytest.raises(OSError, match=rf"http\.listen = '{listen}'.*in use"):
            await HttpServer(make_context(listen=[listen])).start(None)


async def test_nothing_stays_open_when_one_address_fails() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = f"127.0.0.1:{probe.getsockname()[1]}"

    with pytest.raises(OSError, match=r"http\.listen"):
        await HttpServer(make_context(listen=[free, "256.0.0.1:0"])).start(None)

    async with running_server(listen=[free]) as server:
        assert server.addresses == (f"http://{free}",)


async def test_the_network_is_not_served_unless_allowed() -> None:
    server = HttpServer(make_context(listen=["0.0.0.0:0"]))

    with pytest.raises(ConfigError, match="allow_anonymous"):
        await server.start(None)


async def test_serving_the_network_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with running_server(listen=["0.0.0.0:0"], allow_anonymous=True) as server:
        answer = await server.ask(get("/healthz", host="box.example"))

    assert answer.status == 200
    assert "anonymously" in caplog.text


async def test_an_inherited_socket_is_used_when_the_configuration_names_it(tmp_path) -> None:
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    unix.listen()
    server = HttpServer(make_context(listen=[f"127.0.0.1:{port}"]))

    addresses = await server.start(tmp_path / "s", inherited=[tcp, unix])
    early = await Client.open(addresses[0])
    await early.send(get("/healthz"))
    await server.serve_inherited()
    answer = await early.receive()
    await early.close()
    await server.stop(1)

    assert answer.status == 200  # it has waited
    assert addresses == (f"http://127.0.0.1:{port}", f"unix:{tmp_path / 's'}")
    assert (tmp_path / "s").is_socket()  # whoever made it removes it


async def test_an_inherited_socket_that_the_configuration_does_not_name_is_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(make_context())

    (address,) = await server.start(None, inherited=[other])
    await server.stop(1)

    assert other.fileno() == -1
    assert address.startswith("http://127.0.0.1:")
    assert "does not name this inherited socket" in caplog.text


async def test_stopping_a_server_that_never_started_is_fine() -> None:
    await HttpServer(make_context()).stop(1)


async def test_after_stop_nobody_listens() -> None:
    async with running_server() as server:
        await server.server.stop(1)

        with pytest.raises(ConnectionRefusedError):
            await server.connect()


async def test_ipv6_is_served_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        async with running_server(listen=["[::1]:0"]) as server:
            assert server.addresses[0].startswith("http://[::1]:")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")


async def test_answers_do_not_name_the_library() -> None:
    async with running_server() as server:
        good = await server.ask(get("/healthz"))
        bad = await server.ask(b"nonsense\r\n\r\n")

    assert (good.headers["server"], bad.headers["server"]) == ("inferd", "inferd")
