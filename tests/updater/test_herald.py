"""Reports and events: told when there is news, told again, and nobody depends on it."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from pathlib import Path

import pytest
from support.insidebox import Ear, threads
from support.servicebox import wait_until

from updater.daemonlink import DaemonLink
from updater.errors import DaemonUnavailable
from updater.herald import DaemonReporter, Herald
from updater.history import History
from updater.outbox import Outbox

WAIT_S = 30


class PickyEar(Ear):
    """Cannot read some events, as a daemon of another version.

    Attributes:
        unreadable: their numbers.
    """

    unreadable: frozenset[int] = frozenset()
    status = 400

    def answer(self, method, path, document):
        if path == "/api/updates/events":
            numbers = {event["sequence"] for event in document["events"]}
            if numbers & self.unreadable:
                return self.status, {"error": "not an event"}
        return super().answer(method, path, document)


@pytest.fixture
def folder():
    # A unix socket's path may have 107 characters, which a test's own folder exceeds.
    folder = Path(tempfile.mkdtemp(prefix="inferd-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def ear(folder):
    with PickyEar(folder, folder / "models") as ear:
        yield ear


@pytest.fixture
def history(folder):
    return History(folder / "history.jsonl")


@pytest.fixture
def link(folder):
    return DaemonLink(folder / "inferd.sock")


@pytest.fixture
def herald(folder, history, link):
    (folder / "outbox").mkdir()
    outbox = Outbox(folder / "outbox", history, DaemonReporter(link))
    counter = iter(range(10**9))
    herald = Herald(link, lambda: {"number": next(counter)}, [outbox])
    yield herald
    herald.stop()


def note(history, count=1):
    for _ in range(count):
        history.append({"event": "done"}, now=1.0)


def test_news_are_told(herald, ear, history):
    note(history, 3)
    herald.start()

    herald.news()

    wait_until(lambda: ear.events == [1, 2, 3])
    assert ear.reports


def test_a_report_that_nobody_heard_is_told_again(herald, ear):
    ear.kill()
    herald.tell()

    ear.start()
    herald.tell()

    assert [report["number"] for report in ear.reports] == [1]


def test_an_event_that_the_daemon_cannot_read_keeps_no_other(herald, ear, history):
    ear.unreadable = frozenset({2})
    note(history, 4)

    herald.tell()

    assert ear.events == [1, 3, 4]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_daemon_that_takes_no_events_gets_them_later(link, ear, history, status):
    ear.unreadable, ear.status = frozenset({1}), status
    note(history)

    with pytest.raises(DaemonUnavailable):
        DaemonReporter(link).deliver(history.read(limit=10))


def test_a_stop_waits_for_no_daemon(folder, herald):
    """It takes the report, and never answers."""
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(folder / "inferd.sock"))
        deaf.listen()
        herald.start()
        herald.news()
        connection, _ = deaf.accept()
        with connection:
            assert connection.recv(10)

            stopping = threading.Thread(target=herald.stop)
            stopping.start()
            stopping.join(WAIT_S)

            assert not stopping.is_alive()
    wait_until(lambda: "herald" not in threads())


def test_what_cannot_be_reported_ends_nothing(folder, link, ear):
    def fail() -> dict[str, object]:
        raise ZeroDivisionError

    herald = Herald(link, fail, [])
    herald.start()
    herald.news()
    herald.news()

    assert "herald" in threads()
    herald.stop()


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{"],
    ids=["nothing", "half an answer"],
)
def test_a_link_that_is_cut_leaves_nobody_waiting(folder, said):
    link = DaemonLink(folder / "inferd.sock")
    told: list[str] = []

    def ask() -> None:
        try:
            link.activate("digits")
        except DaemonUnavailable as exc:
            told.append(str(exc))

    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(folder / "inferd.sock"))
        deaf.listen()
        asking = threading.Thread(target=ask)
        asking.start()
        connection, _ = deaf.accept()
        with connection:
            assert connection.recv(10)
            connection.sendall(said)

            link.cut()

            asking.join(WAIT_S)
        assert len(told) == 1
        with pytest.raises(DaemonUnavailable):
            link.traffic("digits")
