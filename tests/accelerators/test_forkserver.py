"""The fork server forks, tells of every end, and takes everything with it."""

from __future__ import annotations

import os
import signal
import socket

import psutil
import pytest

from accelerators.forkserver import ForkFailed, ForkServer


async def forked(server: ForkServer):
    """A child that waits for an order that never comes, and ends when its channel is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = await server.fork([theirs.fileno(), theirs.fileno()])
        return child, ours.detach()


async def test_child_is_a_process_of_its_own_with_a_descriptor_to_kill_it(forkserver):
    child, channel = await forked(forkserver)

    child.kill()
    ended = await child.exited

    assert child.pid not in (0, os.getpid(), forkserver.pid)
    assert os.WIFEXITED(ended.status) or os.WTERMSIG(ended.status) == signal.SIGKILL
    child.close()
    os.close(channel)


async def test_killing_a_child_twice_does_no_harm(forkserver):
    child, channel = await forked(forkserver)

    child.kill()
    await child.exited
    child.kill()

    child.close()
    os.close(channel)


async def test_server_has_one_thread_and_no_zombies(forkserver):
    for _ in range(5):
        child, channel = await forked(forkserver)
        child.kill()
        await child.exited
        child.close()
        os.close(channel)

    server = psutil.Process(forkserver.pid)

    assert server.num_threads() == 1
    assert server.children() == []


async def test_server_outlives_the_signals_of_a_service_manager(forkserver, wait_until):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(forkserver.pid, number)

    child, channel = await forked(forkserver)

    child.kill()
    await child.exited
    child.close()
    os.close(channel)


async def test_dead_server_is_replaced(forkserver, wait_until):
    old = forkserver.pid

    os.kill(old, signal.SIGKILL)
    await wait_until(lambda: forkserver.pid not in (0, old))

    child, channel = await forked(forkserver)
    child.kill()
    await child.exited
    child.close()
    os.close(channel)


async def test_stop_takes_its_children_with_it():
    server = ForkServer()
    await server.start()
    child, channel = await forked(server)

    await server.stop()

    ended = await child.exited
    assert ended.status is None
    child.close()
    os.close(channel)


async def test_server_does_not_see_our_secrets(monkeypatch):
    monkeypatch.setenv("INFERD_MQTT__PASSWORD", "hunter2")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    server = ForkServer()
    await server.start()

    environment = psutil.Process(server.pid).environ()
    await server.stop()

    assert "PATH" in environment
    assert not {"INFERD_MQTT__PASSWORD", "NOTIFY_SOCKET"} & environment.keys()


async def test_stop_without_start_does_nothing():
    await ForkServer().stop()


async def test_the_first_fork_starts_a_server_that_was_not_started():
    server = ForkServer()

    child, channel = await forked(server)

    assert server.pid != 0
    await server.stop()
    child.close()
    os.close(channel)


async def test_a_server_that_was_stopped_does_not_fork():
    server = ForkServer()
    await server.stop()

    with pytest.raises(ForkFailed, match="stopped"):
        await server.fork([])


async def test_server_that_cannot_start_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python"))

    with pytest.raises(ForkFailed, match="cannot be started"):
        await ForkServer().start()
