"""systemd's notify protocol, against a real datagram socket."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from daemon.notify import Notifier, watchdog_interval_s

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A socket that listens as systemd does, and the environment that names it."""
    name = f"@inferd-test-{tmp_path}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(name.replace("@", "\0", 1))
        server.settimeout(5)
        yield server, {"NOTIFY_SOCKET": name}


def test_each_message_says_its_own_word(systemd):
    server, environment = systemd
    notifier = Notifier(environment)

    notifier.ready()
    notifier.ready("3 models")
    notifier.status("draining")
    notifier.watchdog()
    notifier.stopping()

    assert [server.recv(4096) for _ in range(5)] == [
        b"READY=1",
        b"READY=1\nSTATUS=3 models",
        b"STATUS=draining",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_reloading_carries_the_monotonic_clock(systemd):
    server, environment = systemd
    before_us = time.monotonic_ns() // 1000

    Notifier(environment).reloading()

    reloading, clock = server.recv(4096).decode().split("\n")
    assert reloading == "RELOADING=1"
    assert before_us <= int(clock.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_status_cannot_add_a_line(systemd):
    server, environment = systemd

    Notifier(environment).status("a\nSTOPPING=1 " + "x" * 500)

    message = server.recv(4096).decode()
    assert message.startswith("STATUS=a STOPPING=1 x")
    assert "\n" not in message
    assert len(message) <= 210


def test_an_empty_status_sends_nothing(systemd):
    server, environment = systemd
    notifier = Notifier(environment)

    notifier.status(" \n")
    notifier.watchdog()

    assert server.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:1:2"}])
def test_without_a_unix_socket_nothing_is_sent_or_said(environment, caplog):
    Notifier(environment).ready()

    assert caplog.text == ""


def test_a_systemd_that_is_gone_is_reported_once(tmp_path, caplog):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})

    notifier.ready()
    notifier.watchdog()

    (record,) = caplog.records
    assert "systemd was not told message=READY=1" in record.getMessage()


def test_a_full_socket_is_not_waited_for(systemd, caplog):
    _, environment = systemd
    notifier = Notifier(environment)

    for _ in range(2000):
        notifier.watchdog()

    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
    ],
)
def test_the_watchdog_is_for_the_process_it_names(environment, interval_s):
    assert watchdog_interval_s(environment, pid=7) == interval_s
