"""The life of the process: ready, reloaded, stopped; told to systemd and by exit code."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import requests
from support.daemon import daemon_process, free_port, wait_settled

from daemon.configfiles import DEFAULT_CONFIG

WAIT_S = 30


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """The socket at which systemd would listen."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(WAIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def wait_told(manager, wanted):
    """Read what the daemon tells until a datagram begins with `wanted`."""
    told = []
    while not told or not told[-1].startswith(wanted):
        told.append(manager.recv(4096).decode())
    return told


def names(url):
    listed = requests.get(f"{url}/api/models", timeout=WAIT_S).json()["models"]
    return {model["name"] for model in listed}


def wait_names(url, wanted):
    deadline = time.monotonic() + WAIT_S
    while names(url) != wanted:
        assert time.monotonic() < deadline, f"{names(url)} is not {wanted}"
        time.sleep(0.02)  # another process: nothing tells


def test_ready_is_told_when_models_answer_and_stopping_when_it_stops(tmp_path, demo_model, manager):
    with daemon_process([demo_model], root=tmp_path, port=free_port()) as daemon:
        wait_told(manager, "READY=1")
        ready = requests.get(f"{daemon.url}/readyz", timeout=WAIT_S)
        daemon.process.send_signal(signal.SIGTERM)
        wait_told(manager, "STOPPING=1")

        assert ready.status_code == 200
        assert daemon.process.wait(WAIT_S) == 0


def test_the_watchdog_is_fed_by_the_event_loop(tmp_path, demo_model, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    with daemon_process([demo_model], root=tmp_path, port=free_port()):
        wait_told(manager, "READY=1")

        wait_told(manager, "WATCHDOG=1")
        wait_told(manager, "WATCHDOG=1")


def test_a_hangup_serves_what_the_changed_configuration_wants(tmp_path, demo_model, manager):
    with daemon_process([demo_model], root=tmp_path, port=free_port()) as daemon:
        wait_told(manager, "READY=1")
        file = tmp_path / "inferd.toml"
        changed = file.read_text().replace("[[models.serve]]", '[[models.serve]]\nname = "b"')
        file.write_text(changed)

        daemon.process.send_signal(signal.SIGHUP)

        wait_told(manager, "RELOADING=1")
        wait_told(manager, "READY=1")
        wait_names(daemon.url, {"b"})


def test_a_hangup_with_a_bad_configuration_changes_nothing(tmp_path, demo_model, manager):
    with daemon_process([demo_model], root=tmp_path, port=free_port()) as daemon:
        wait_told(manager, "READY=1")
        (tmp_path / "inferd.toml").write_text("[nonsense]\n")

        daemon.process.send_signal(signal.SIGHUP)
        wait_told(manager, "READY=1")

        assert names(daemon.url) == {"fashion"}
        assert requests.get(f"{daemon.url}/readyz", timeout=WAIT_S).json()["ready"]


def test_a_stop_while_models_are_loaded_is_a_stop_in_good_order(tmp_path, demo_model):
    with daemon_process([demo_model], root=tmp_path, port=free_port()) as daemon:
        wait_listening(daemon.url)

        daemon.process.send_signal(signal.SIGTERM)

        assert daemon.process.wait(WAIT_S) == 0
        assert not (tmp_path / "run" / "inferd" / "inferd.sock").exists()


def wait_listening(url):
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            requests.get(f"{url}/healthz", timeout=WAIT_S)
        except requests.ConnectionError:
            time.sleep(0.005)  # another process: nothing tells
            continue
        return
    raise AssertionError("nobody listens")


def test_an_address_that_is_taken_ends_the_start_with_1_and_says_which(tmp_path, demo_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with daemon_process([demo_model], root=tmp_path, port=port) as daemon:
            assert daemon.process.wait(WAIT_S) == 1
            assert f"127.0.0.1:{port}" in daemon.log


def test_a_bad_configuration_ends_the_start_with_78_and_every_problem(tmp_path):
    file = tmp_path / "inferd.toml"
    file.write_text('[http]\nmax_body_mib = 0\n[logs]\nlevel = "loud"\n')

    ended = run_daemon("--config", str(file))

    assert ended.returncode == 78
    assert "http.max_body_mib" in ended.stderr
    assert "logs.level" in ended.stderr


def test_a_configuration_is_checked_without_a_start(tmp_path):
    file = tmp_path / "inferd.toml"
    file.write_text("")

    ended = run_daemon("--check-config", "--config", str(file))

    assert (ended.returncode, ended.stdout) == (0, "the configuration is good\n")


def test_help_names_the_default_configuration():
    ended = run_daemon("--help")

    assert ended.returncode == 0
    assert str(DEFAULT_CONFIG) in ended.stdout


def run_daemon(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )


def test_a_daemon_whose_models_answer_is_ready_and_alive(tmp_path, demo_model):
    with daemon_process([demo_model], root=tmp_path, port=free_port()) as daemon:
        wait_settled(daemon.url)

        assert requests.get(f"{daemon.url}/healthz", timeout=WAIT_S).status_code == 200
        assert requests.get(f"{daemon.url}/readyz", timeout=WAIT_S).json() == {
            "ready": True,
            "reasons": {},
        }
