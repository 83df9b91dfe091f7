"""Socket activation: what the service manager passes, and a change of daemons nobody notices."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
from support import tflite_builder

from daemon.activation import inherited_sockets

REPOSITORY = Path(__file__).resolve().parents[2]
# LISTEN_PID must be the daemon's, which only the new process knows.
START = 'export LISTEN_PID=$$; exec "$@"'


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "-1", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "one", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "9999999", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_without_sockets_for_this_process_there_are_none(environment):
    assert inherited_sockets(environment, os.getpid()) == ()


def test_what_is_no_listening_socket_is_closed_and_said():
    """In a process of its own: the descriptors from 3 on belong to somebody in this one."""
    script = (
        "import os, socket, sys\n"
        "from daemon.activation import inherited_sockets\n"
        "found = inherited_sockets(os.environ, os.getpid())\n"
        "print([sock.getsockname()[1] for sock in found])\n"
        "print(os.get_inheritable(found[0].fileno()))\n"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as good,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        open(os.devnull) as file,  # noqa: PTH123 (its descriptor is what counts)
    ):
        port = good.getsockname()[1]
        done = _with_descriptors([good, datagrams, file], [sys.executable, "-c", script], count=5)
        out, log = done.communicate(timeout=60)

    assert out.split("\n")[:2] == [str([port]), "False"]
    assert log.count("passed") == 4  # no stream, no socket, and two that are not there


def test_while_one_daemon_follows_another_nobody_is_refused(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/m.tflite").write_bytes(tflite_builder.scale(2.0, batch=1))
    answers: list[int] = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        config = tmp_path / "inferd.toml"
        config.write_text(
            f'[paths]\nroot = "{tmp_path}"\n[models]\nfolders = ["models"]\n'
            f'[http]\nunix_socket = false\nlisten = ["{url.removeprefix("http://")}"]\n'
        )
        command = [sys.executable, "-m", "daemon", "--config", str(config)]
        done = threading.Event()

        def ask():
            while not done.is_set():
                answers.append(requests.get(f"{url}/v1/models/m", timeout=60).status_code)

        client = threading.Thread(target=ask)
        client.start()  # before anybody answers
        try:
            for ending in (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM):
                with _with_descriptors([sock], command) as daemon:
                    seen = len(answers)
                    while len(answers) < seen + 20 and client.is_alive():
                        done.wait(0.01)
                    daemon.send_signal(ending)
                    assert daemon.wait(60) == 0
        finally:
            with _with_descriptors([sock], command) as last:  # lets a waiting request end
                done.set()
                client.join(60)
                last.send_signal(signal.SIGTERM)

    assert not client.is_alive()
    assert set(answers) == {200}


def _with_descriptors(things, command, *, count=None):
    """Start a program with these as its descriptors from 3 on, as systemd does."""

    def place():
        copies = [os.dup(thing.fileno()) for thing in things]
        high = [os.dup2(copy, 200 + place) for place, copy in enumerate(copies)]
        for place_, descriptor in enumerate(high):
            os.dup2(descriptor, 3 + place_)

    environment = {**os.environ, "LISTEN_FDS": str(count or len(things))}
    return subprocess.Popen(
        ["sh", "-c", START, "sh", *command],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        close_fds=False,
        preexec_fn=place,  # noqa: PLW1509 (nothing here holds a lock of the child)
    )
