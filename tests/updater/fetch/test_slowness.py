"""What is too slow is left, and what is not wanted any more."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from support.badproxy import bad_proxy, drip, response, silent, stall
from support.fetching import CONTENT, HURRIED, IMPATIENT, LENGTH, failure, take, wait_until

from updater.errors import FetchReason
from updater.fetch import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose backlog is full: the kernel lets further connections wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as open_ones:
        for _ in range(4):
            waiting = open_ones.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
