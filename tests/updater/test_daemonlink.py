"""What the updater asks of the daemon, and what it makes of every answer, from a real daemon."""

from __future__ import annotations

import shutil
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support import tflite_builder
from support.daemon_thread import daemon_in_thread
from support.eventually import eventually_true
from support.mosquitto import running_broker
from support.mqtt_client import TestClient

from updater.daemonlink import DaemonLink, DaemonRefused
from updater.errors import DaemonUnavailable
from updater.history import Line

if TYPE_CHECKING:
    from pathlib import Path

FIRST, SECOND, THIRD = "a1" * 32, "b2" * 32, "c3" * 32
DOUBLE = "double"


class Disk:
    """The store and the links of one daemon, as the updater writes them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def release(self, digest: str, model: bytes, version: int) -> Path:
        folder = self.root / "var/lib/inferd/store" / DOUBLE / digest
        folder.mkdir(parents=True)
        (folder / "model.tflite").write_bytes(model)
        (folder / "model.toml").write_text(f"[model]\nversion = {version}\n")
        return folder

    def point(self, digest: str) -> None:
        link = self.root / "var/lib/inferd/models" / DOUBLE / "current"
        link.parent.mkdir(parents=True, exist_ok=True)
        beside = link.with_name(".current")
        beside.symlink_to(f"../../store/{DOUBLE}/{digest}")
        beside.rename(link)


@contextmanager
def a_daemon(**tables):
    """A daemon that serves what its links say, the link to it, and its disk."""
    models = {"folders": ["var/lib/inferd/models"], "poll_interval_s": 0.05}
    with daemon_in_thread([], models=models, **tables) as daemon:
        yield DaemonLink(daemon.root / "run/inferd/inferd.sock"), Disk(daemon.root)


@pytest.fixture
def there():
    with a_daemon() as both:
        yield both


def test_a_model_that_nobody_knew_is_served_and_its_record_begins(there):
    link, disk = there
    assert link.traffic(DOUBLE) is None
    disk.release(FIRST, tflite_builder.scale(2.0), 1)
    disk.point(FIRST)

    serving = link.activate(DOUBLE)

    assert (serving.release, serving.answered, serving.faults) == (FIRST, 0, 0)
    assert link.traffic(DOUBLE) == serving


def test_to_activate_what_serves_already_changes_nothing(there):
    link, disk = there
    disk.release(FIRST, tflite_builder.scale(2.0), 1)
    disk.point(FIRST)

    assert [link.activate(DOUBLE).release for _ in range(5)] == [FIRST] * 5


def test_a_release_that_does_not_load_leaves_the_one_before_and_is_told_by_its_digest(there):
    link, disk = there
    disk.release(FIRST, tflite_builder.scale(2.0), 1)
    disk.release(SECOND, b"TFL3 this is no model", 2)
    disk.point(FIRST)
    link.activate(DOUBLE)

    disk.point(SECOND)

    assert link.activate(DOUBLE).release == FIRST


def test_a_first_release_that_does_not_load_is_refused(there):
    link, disk = there
    disk.release(FIRST, b"TFL3 this is no model", 1)
    disk.point(FIRST)

    with pytest.raises(DaemonRefused) as refused:
        link.activate(DOUBLE)

    assert (refused.value.status, refused.value.passes) == (503, False)
    assert link.traffic(DOUBLE) is None


def test_what_is_not_there_is_refused(there):
    link, _ = there

    with pytest.raises(DaemonRefused, match="is not here"):
        link.activate("nobody")


def test_a_link_to_nothing_is_no_fault_of_a_release(there):
    link, disk = there
    folder = disk.release(FIRST, tflite_builder.scale(2.0), 1)
    disk.point(FIRST)
    link.activate(DOUBLE)
    shutil.rmtree(folder)

    with pytest.raises(DaemonUnavailable):
        link.activate(DOUBLE)

    assert link.traffic(DOUBLE).release == FIRST


def lines(first, last):
    event = {"event": "committed", "model": DOUBLE}
    return [
        Line(sequence=n, time=1.76e9, previous="0" * 64, event=event)
        for n in range(first, last + 1)
    ]


@pytest.mark.broker
def test_a_kind_of_device_counts_while_one_of_it_can_be_used(standin, tmp_path):
    node = tmp_path / "dsp"
    device = {"name": "dsp", "path": str(standin.library), "node": str(node)}

    with a_daemon(accelerators={"external": [device]}) as (link, _):
        assert "cpu" in link.kinds()
        assert "external" not in link.kinds()

        node.touch()
        eventually_true(lambda: "external" in link.kinds())

        node.unlink()
        eventually_true(lambda: "external" not in link.kinds())


def test_history_is_handed_over_and_heard(tmp_path):
    with running_broker(tmp_path) as broker, a_daemon(mqtt={"url": broker.url}) as (link, _):
        client = TestClient(broker.port)
        client.subscribe("inferd/box-1/updates")

        taken = link.publish(lines(5, 104))
        heard = [client.next().json["sequence"] for _ in range(100)]
        client.close()

    assert taken == 104
    assert heard == list(range(5, 105))


@pytest.mark.broker
def test_long_lines_are_handed_over_some_at_a_time(tmp_path):
    long = [
        Line(sequence=n, time=1.76e9, previous="0" * 64, event={"reason": "x" * 60_000})
        for n in range(1, 31)
    ]
    tables = {"mqtt": {"url": ""}, "http": {"max_body_mib": 1}}
    with running_broker(tmp_path) as broker:
        tables["mqtt"]["url"] = broker.url
        with a_daemon(**tables) as (link, _):
            taken = 0
            while taken < 30:
                before, taken = taken, link.publish(long[taken:])
                assert taken > before


def test_history_stays_with_the_updater_while_mqtt_is_off(there):
    link, _ = there

    with pytest.raises(DaemonUnavailable, match=r"mqtt\.url"):
        link.publish(lines(1, 1))


def test_a_daemon_that_is_not_there_is_unavailable(tmp_path):
    link = DaemonLink(tmp_path / "nobody.sock")

    for ask in (lambda: link.traffic(DOUBLE), lambda: link.activate(DOUBLE)):
        with pytest.raises(DaemonUnavailable):
            ask()


@contextmanager
def saying(path, raw):
    """Somebody at the daemon's socket who reads a request and says this."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def talk():
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(raw)

        thread = threading.Thread(target=talk)
        thread.start()
        yield DaemonLink(path)
        thread.join()


def http(body, status="200 OK"):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff" * 500,
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        http(b""),
        http(b"[]"),
        http(b"null"),
        http(b"{}"),
        http(b'{"taken": "many"}'),
        http(b'{"taken": true}'),
        http(b'{"taken": 1000}'),
        http(b"[" * 100_000),
        http(b'{"error": "busy"}', "503 Unavailable\r\nRetry-After: 1"),
    ],
)
def test_nonsense_takes_no_events(tmp_path, raw):
    with saying(tmp_path / "inferd.sock", raw) as link, pytest.raises(DaemonUnavailable):
        link.publish(lines(1, 3))
