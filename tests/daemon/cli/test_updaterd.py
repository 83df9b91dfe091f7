"""`inferd-updater` as a process: how it starts, how it ends, and what a kill leaves of it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
from support import tflite_builder
from support.box import MODEL
from support.inferctl import ENVIRONMENT, TIMEOUT_S
from support.servicebox import ENDLESS, QUICK, running_services, wait_until

from daemon.cli.outcome import Refused
from updater.manifest import Probation

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_RSS_MIB = 80
"""Of a process that has installed something; 57 on x86-64, November 2026."""


@pytest.fixture
def box(tmp_path):
    with running_services(tmp_path) as box:
        yield box


def updater(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [sys.executable, "-m", "daemon.cli.updaterd", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**ENVIRONMENT, **environment},
    )


def ship(box, version, value=2.0, *, probation=QUICK):
    box.publisher.ship(version, tflite_builder.scale(value, batch=1), probation=probation)


def ask(box, times=1):
    """What the model makes of ones, from real clients."""
    document = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 4}]}
    url = f"{box.daemon.url}/v2/models/{MODEL}/infer"
    answers = [requests.post(url, json=document, timeout=30) for _ in range(times)]
    return answers[-1].json()["outputs"][0]["data"][0]


def stands_at(box, state, version=None):
    """Whether the model does."""
    found = [each for each in box.updater.status()["models"] if each["model"] == MODEL]
    return (
        bool(found)
        and found[0]["state"] == state
        and version in {None, found[0]["current_version"]}
    )


def install(box, version, value=2.0):
    ship(box, version, value)
    box.updater.refresh()
    wait_until(lambda: stands_at(box, "idle", version))


def go_on(box):
    """What was under way comes to its end, with clients that ask."""
    if any(model["state"] == "probation" for model in box.updater.status()["models"]):
        assert ask(box, 40) == 2.0
        wait_until(lambda: stands_at(box, "idle", 1))


def leftovers(box) -> list[str]:
    """What nobody wants to find after a stop."""
    state = box.root / "var/lib/inferd-updater"
    places = [*state.rglob(".*.new"), *state.rglob("work"), *box.run.glob("updater*")]
    return [str(path) for path in places]


@contextmanager
def held_up(box, path="") -> Iterator[threading.Event]:
    """The server takes requests for this path (or all) and answers none until the block ends."""
    asked, go_on = threading.Event(), threading.Event()

    def hold(handler):
        asked.set()
        go_on.wait()
        handler.close_connection = True

    box.server.answers[path] = hold
    try:
        yield asked
    finally:
        del box.server.answers[path]
        go_on.set()


@contextmanager
def idle(box):
    install(box, 1)
    yield


@contextmanager
def looking(box):
    with held_up(box) as asked:
        box.updater.refresh()
        assert asked.wait(30)
        yield


@contextmanager
def downloading(box):
    ship(box, 1)
    (bundle,) = (box.fleet.path / "targets" / MODEL).iterdir()
    with held_up(box, f"/targets/{MODEL}/{bundle.name}") as asked:
        box.updater.refresh()
        assert asked.wait(30)
        yield


@contextmanager
def on_probation(box):
    ship(box, 1, probation=Probation(min_requests=20, min_s=0.0, max_s=3600.0))
    box.updater.refresh()
    wait_until(lambda: stands_at(box, "probation"))
    yield


PHASES = {"idle": idle, "look": looking, "download": downloading, "probation": on_probation}


class TestEnd:
    @pytest.mark.parametrize("phase", PHASES)
    def test_sigterm_ends_it_in_good_order_and_the_next_life_goes_on(self, box, phase):
        with PHASES[phase](box):
            box.process.send_signal(signal.SIGTERM)
            assert box.process.wait(TIMEOUT_S) == 0

        assert leftovers(box) == []
        assert "Traceback" not in box.log
        box.start()
        go_on(box)
        install(box, 2, 5.0)
        assert ask(box) == 5.0

    @pytest.mark.parametrize("phase", PHASES)
    def test_after_sigkill_the_next_life_goes_on(self, box, phase):
        with PHASES[phase](box):
            box.kill()

        assert (box.run / "updater.sock").exists()
        box.start()
        go_on(box)
        install(box, 2, 5.0)
        assert ask(box) == 5.0
        assert box.updater.history(limit=1)["chain"]["broken"] is None

    def test_sigterm_right_after_the_start_ends_it_too(self, box):
        box.stop()
        box.spawn()
        wait_until(lambda: catches(box.process.pid, signal.SIGTERM))

        box.process.terminate()

        assert box.process.wait(TIMEOUT_S) == 0
        assert leftovers(box) == []

    def test_ctrl_c_ends_it_as_well(self, box):
        box.process.send_signal(signal.SIGINT)

        assert box.process.wait(TIMEOUT_S) == 0


class TestStart:
    def test_a_second_one_says_who_is_there_and_ends(self, box):
        second = updater("--config", box.config)

        assert second.returncode == 1
        assert "another inferd-updater is at work in" in second.stderr
        assert box.updater.status()["device"] == "box-1"

    def test_systemd_is_told_when_it_is_ready_and_when_it_stops(self, box):
        box.stop()
        path = box.root / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(path))
            systemd.settimeout(TIMEOUT_S)
            box.spawn(NOTIFY_SOCKET=str(path))

            assert systemd.recv(4096) == b"READY=1"
            assert box.updater.status()["models"] == []
            box.stop()
            assert systemd.recv(4096) == b"STOPPING=1"

    def test_it_is_not_ready_when_the_disk_cannot_be_put_in_order(self, box):
        box.stop()
        journal = box.root / "var/lib/inferd-updater/journal"
        journal.rmdir()
        journal.write_text("no folder")

        done = updater("--config", box.config)

        assert done.returncode == 1
        assert "cannot start" in done.stderr
        assert leftovers(box) == []

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("[updates]\nsouce = 'x'\n", "did you mean 'source'?"),
            ("[updates]\nsource = 'ftp://fleet/'\n", "updates.source: expected http://HOST"),
            ("[updates]\npoll_interval_s = 0\n", "updates.poll_interval_s = 0: expected"),
            ("[device]\nlabels = {ring = 7}\n", "device.labels.ring = 7: expected text"),
        ],
    )
    def test_a_bad_configuration_is_told_and_nothing_is_done(self, box, text, problem):
        box.stop()
        box.config.write_text(f'[paths]\nroot = "{box.root}"\n{text}')

        done = updater("--config", box.config)

        assert done.returncode == 78
        assert problem in done.stderr

    def test_a_repository_without_a_trust_anchor_is_a_bad_configuration(self, box):
        box.stop()
        (box.root / "etc/inferd/root.json").unlink()

        done = updater("--config", box.config)

        assert done.returncode == 78
        assert "etc/inferd/root.json or " in done.stderr

    def test_the_anchor_of_the_package_will_do(self, box):
        box.stop()
        shipped = box.root / "usr/share/inferd/root.json"
        shipped.parent.mkdir(parents=True)
        (box.root / "etc/inferd/root.json").rename(shipped)

        box.start()

        install(box, 1)

    def test_without_a_repository_it_waits_for_sticks(self, box):
        box.stop()
        box.configure("")
        ship(box, 1)
        box.start()

        with pytest.raises(Refused):
            box.updater.refresh()
        box.updater.import_stick(box.fleet.path)

        wait_until(lambda: stands_at(box, "idle", 1))

    def test_the_daemon_may_come_later(self, box):
        box.daemon.kill()
        ship(box, 1)
        box.updater.refresh()
        wait_until(lambda: stands_at(box, "verified"))

        box.daemon.start()

        wait_until(lambda: stands_at(box, "idle", 1))
        assert ask(box) == 2.0


class TestWork:
    def test_the_operator_goes_back_and_the_older_release_answers(self, box):
        install(box, 1, 2.0)
        install(box, 2, 5.0)
        assert ask(box) == 5.0

        box.updater.roll_back(MODEL)

        wait_until(lambda: stands_at(box, "idle", 1))
        assert ask(box) == 2.0

    def test_it_needs_neither_a_runtime_nor_much_memory(self, box):
        install(box, 1)

        maps = Path(f"/proc/{box.process.pid}/maps").read_text()
        status = Path(f"/proc/{box.process.pid}/status").read_text()

        assert not [name for name in ("numpy", "litert", "PIL") if f"/{name}" in maps]
        rss_mib = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        assert rss_mib < _MOST_RSS_MIB

    def test_it_logs_as_the_daemon_does(self, box):
        box.stop()
        (box.root / "updater.log").unlink()
        box.start(INFERD_LOGS__FORMAT="json")
        install(box, 1)
        box.stop()

        lines = [json.loads(line) for line in box.log.splitlines()]

        assert {"time", "level", "logger", "message"} <= set(lines[0])
        assert [line for line in lines if line["message"].startswith("ready")]

    def test_the_environment_overrides_a_key(self, box):
        box.stop()
        box.start(INFERD_DEVICE__ID="press-7")

        assert box.updater.status()["device"] == "press-7"


class TestOnce:
    @pytest.fixture
    def stopped(self, box):
        box.stop()
        return box

    def test_it_says_what_it_did(self, stopped):
        ship(stopped, 1)

        done = updater("--config", stopped.config, "--once")

        assert (done.returncode, done.stdout) == (0, f"{MODEL}: version 1\n")
        assert ask(stopped) == 2.0
        assert leftovers(stopped) == []

    def test_with_nothing_to_do_it_says_so(self, stopped):
        done = updater("--config", stopped.config, "--once")

        assert (done.returncode, done.stdout) == (0, "no model is updated here\n")

    def test_what_takes_time_is_left_to_the_next_run(self, stopped):
        ship(stopped, 1, probation=ENDLESS)

        done = updater("--config", stopped.config, "--once")

        assert done.returncode == 0
        assert "version 1 is probation" in done.stdout

    def test_a_repository_that_does_not_answer_is_a_failure(self, stopped):
        stopped.server.answer("", b"", status=500)

        done = updater("--config", stopped.config, "--once")

        assert done.returncode == 1
        assert "status 500" in done.stderr

    def test_a_bad_release_is_a_failure_and_the_one_before_serves(self, stopped):
        ship(stopped, 1)
        updater("--config", stopped.config, "--once")
        stopped.publisher.ship(2, b"\x1c\x00\x00\x00TFL3 and nothing else")

        done = updater("--config", stopped.config, "--once")

        assert done.returncode == 1
        assert done.stdout.startswith(f"{MODEL}: version 1")
        assert ask(stopped) == 2.0

    def test_beside_the_service_it_does_nothing(self, box):
        done = updater("--config", box.config, "--once")

        assert done.returncode == 1
        assert "another inferd-updater" in done.stderr

    def test_sigterm_ends_a_look_that_hangs(self, stopped):
        command = [sys.executable, "-m", "daemon.cli.updaterd", "--config", stopped.config]
        with (
            held_up(stopped) as asked,
            subprocess.Popen([*command, "--once"], env=ENVIRONMENT) as process,
        ):
            assert asked.wait(30)

            process.terminate()

            assert process.wait(TIMEOUT_S) == 1
        assert leftovers(stopped) == []


def test_nothing_of_the_daemons_weight_is_imported():
    heavy = {"numpy", "orjson", "PIL", "paho", "ai_edge_litert", "accelerators", "uvloop"}
    code = f"import sys, daemon.cli.updaterd; print(sorted({heavy!r} & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )

    assert done.stdout == "[]\n"


def test_help_and_version_need_no_configuration(tmp_path):
    assert updater("--version", "--config", tmp_path / "none").stdout.startswith("inferd-updater ")
    assert "--once" in updater("--help").stdout
    assert updater("--no-such").returncode == 2


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for this signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)
