"""The fork server that is forked early serves like the other, and has nothing it should not have.

Each test runs a program: pytest's own process has begun too much to be forked.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

WAIT_S = 30
SHARED_LEAST_BYTES = 4 << 20
"""Of written memory; measured: 14 MB. A program shares none with its parent."""

PROGRAM = """
import asyncio, os, resource, socket, sys, threading
from accelerators.earlyfork import fork_early

def tell(*words):
    print(*words, flush=True)

def asked():
    return sys.stdin.readline().strip()

async def serve(newborn):
    from accelerators.forkserver import ForkServer
    server = ForkServer(newborn)
    await server.start()
    tell(newborn.pid, server.pid)
    asked()
    return server

async def fork(server):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = await server.fork([theirs.fileno(), theirs.fileno()])
    await child.exited
    child.close()
    return child.pid
"""

SERVES = """
early = fork_early()

async def main():
    server = await serve(early)
    await server.stop()

asyncio.run(main())
"""


@contextmanager
def program(text: str, **environment: str):
    """Run it; it is asked to go on by a line on its standard input."""
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM + text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root, **environment},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process) -> list[str]:
    return process.stdout.readline().split()


def go_on(process) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def forkserver_of():
    """Starts a program that serves, and gives the early fork server's process."""
    with program(SERVES, INFERD_MQTT__URL="mqtt://hunter2", NOTIFY_SOCKET="/run/notify") as running:
        newborn, _ = told(running)
        yield psutil.Process(int(newborn))
        go_on(running)
        assert running.wait(WAIT_S) == 0


def test_the_early_one_is_the_one_that_serves():
    with program(SERVES) as running:
        newborn, server = told(running)
        go_on(running)

        assert server == newborn
        assert running.wait(WAIT_S) == 0
        assert not psutil.pid_exists(int(newborn))


def test_it_forks_workers():
    text = """
early = fork_early()

async def main():
    server = await serve(early)
    tell(await fork(server))
    await server.stop()

asyncio.run(main())
"""
    with program(text) as running:
        newborn, _ = told(running)
        go_on(running)
        (child,) = told(running)

        assert running.wait(WAIT_S) == 0
        assert int(child) not in (0, int(newborn))


def test_it_shares_written_memory_with_its_parent(forkserver_of):
    assert sum(each.shared_dirty for each in forkserver_of.memory_maps()) > SHARED_LEAST_BYTES


def test_it_is_one_thread_in_a_session_of_its_own(forkserver_of):
    assert forkserver_of.name() == "inferd-forksrv"
    assert forkserver_of.num_threads() == 1
    assert os.getsid(forkserver_of.pid) == forkserver_of.pid


def test_its_environment_in_memory_is_gone(forkserver_of):
    assert b"hunter2" not in Path(f"/proc/{forkserver_of.pid}/environ").read_bytes()
    assert b"/run/notify" not in Path(f"/proc/{forkserver_of.pid}/environ").read_bytes()


def test_what_is_public_stays_in_its_environment():
    text = """
import ctypes
from accelerators.earlyfork import _forget_environment

_forget_environment()
find = ctypes.CDLL(None).getenv
find.restype = ctypes.c_char_p
tell(find(b"HOME").decode(), find(b"INFERD_X"), os.environ["HOME"], "INFERD_X" in os.environ)
"""
    with program(text, HOME="/home/box", INFERD_X="hunter2") as running:
        assert told(running) == ["/home/box", "None", "/home/box", "False"]


def test_it_has_no_descriptor_but_its_own():
    text = (
        """
kept = open("/dev/null")
os.set_inheritable(kept.fileno(), True)
listening = socket.create_server(("127.0.0.1", 0))
"""
        + SERVES
    )
    with program(text) as running:
        newborn = told(running)[0]
        links = {link.name: str(link.readlink()) for link in Path(f"/proc/{newborn}/fd").iterdir()}
        go_on(running)

        assert sorted(links) == ["0", "1", "2", "3"]
        assert links["0"] == links["1"] == "/dev/null"
        assert links["3"].startswith("socket:")


def test_it_may_have_as_many_descriptors_as_its_parent_asked_for_since():
    text = """
early = fork_early()
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (500, most))

async def main():
    server = await serve(early)
    await server.stop()

asyncio.run(main())
"""
    with program(text) as running:
        newborn = int(told(running)[0])
        soft, _ = resource.prlimit(newborn, resource.RLIMIT_NOFILE)
        go_on(running)

        assert soft == 500


def test_a_process_with_threads_is_not_forked():
    text = """
threading.Thread(target=threading.Event().wait, daemon=True).start()
tell(fork_early())
"""
    with program(text) as running:
        assert told(running) == ["None"]


def test_it_ends_with_its_parent():
    with program(SERVES) as running:
        newborn = psutil.Process(int(told(running)[0]))
        running.kill()
        newborn.wait(WAIT_S)

        assert not newborn.is_running()


def test_after_its_death_a_program_serves():
    text = """
early = fork_early()

async def main():
    server = await serve(early)
    async with asyncio.timeout(30):
        while server.pid in (0, early.pid):
            await asyncio.sleep(0.005)
    tell(server.pid, await fork(server))
    asked()
    await server.stop()

asyncio.run(main())
"""
    with program(text) as running:
        newborn = int(told(running)[0])
        os.kill(newborn, signal.SIGKILL)
        go_on(running)
        server, child = map(int, told(running))
        command = psutil.Process(server).cmdline()
        go_on(running)

        assert len({newborn, server, child}) == 3
        assert "forkserver_main" in " ".join(command)
        assert running.wait(WAIT_S) == 0


def test_one_that_nobody_has_needed_is_ended_too():
    text = """
early = fork_early()

async def main():
    from accelerators.forkserver import ForkServer
    await ForkServer(early).stop()
    tell(early.pid)

asyncio.run(main())
"""
    with program(text) as running:
        (newborn,) = told(running)

        assert not psutil.pid_exists(int(newborn))
