"""The control socket: every verb with good and with hostile input.

A real socket, a real service behind it. Whatever is asked, the answer is JSON, and the next one who
asks is answered too.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import stat
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.box import MODEL
from support.daemonpeer import Fault
from support.insidebox import inside_box
from support.servicebox import wait_until

from updater.control import ControlServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT_S = 30
MODEL_KEYS = {
    "model",
    "state",
    "version",
    "current_version",
    "current",
    "previous",
    "bytes",
    "length",
    "waiting_for",
    "reason",
    "rollout_id",
    "serial",
    "since",
}


class Control:
    """A client of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def connect(self) -> socket.socket:
        """A connection; the test closes it."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(WAIT_S)
        connection.connect(str(self.path))
        return connection

    def ask(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        """Status and document."""
        return self.send(method, path, b"" if document is None else json.dumps(document).encode())

    def send(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        """The same with any bytes."""
        with closing(http.client.HTTPConnection("updater")) as connection:
            connection.sock = self.connect()
            connection.request(method, path, body)
            response = connection.getresponse()
            assert response.headers["Content-Type"].startswith("application/json")
            return response.status, json.loads(response.read())


@contextmanager
def served(service, path: Path) -> Iterator[Control]:
    """The socket, in an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(WAIT_S)

    server = ControlServer(service, path)
    try:
        run(server.start())
        yield Control(path)
    finally:
        run(server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT_S)
        loop.close()


@pytest.fixture
def box(tmp_path):
    with inside_box(tmp_path) as box:
        box.start()
        yield box


@pytest.fixture
def control(box):
    with served(box.service, box.root / "run/updater.sock") as control:
        yield control


def refused(answer: tuple[int, Any], status: int) -> str:
    """The message of a refusal."""
    assert answer[0] == status
    assert set(answer[1]) == {"error"}
    return str(answer[1]["error"])


class TestStatus:
    def test_it_tells_all_there_is(self, box, control):
        box.install(1)

        status, document = control.ask("GET", "/status")

        assert status == 200
        (model,) = document.pop("models")
        assert set(model) == MODEL_KEYS
        assert (model["model"], model["state"], model["current_version"]) == (MODEL, "idle", 1)
        assert (document["device"], document["source"]) == ("box-1", box.server.url)
        assert document["versions"]["root"] == 1
        assert document["expires"]["timestamp"] > box.clock.now
        assert (document["problem"], document["clock_good"]) == ("", True)
        assert document["checked_at"] == box.clock.now

    def test_it_answers_while_a_probe_is_under_way(self, box, control):
        box.daemon.hold.clear()
        box.ship(1)
        box.service.hint("operator")
        wait_until(lambda: box.daemon.probes)

        assert control.ask("GET", "/status")[1]["models"][0]["state"] == "verified"


class TestRefresh:
    def test_the_operator_is_obeyed_at_once(self, box, control):
        box.look()
        looks = box.looks

        assert control.ask("POST", "/refresh", {"origin": "operator"}) == (202, {"in_s": 0.0})

        wait_until(lambda: box.looks > looks)

    @pytest.mark.parametrize("origin", ["mqtt", "http"])
    def test_a_hint_waits_for_its_turn(self, box, control, origin):
        box.look()

        status, document = control.ask("POST", "/refresh", {"origin": origin})

        assert status == 202
        assert 0 < document["in_s"] <= 10

    def test_without_a_body_it_is_a_hint(self, box, control):
        box.look()

        assert 0 < control.ask("POST", "/refresh")[1]["in_s"] <= 10

    @pytest.mark.parametrize("origin", ["root", "", 7, None, ["operator"], {"a": 1}])
    def test_another_origin_is_refused(self, control, origin):
        answer = control.ask("POST", "/refresh", {"origin": origin})

        assert "mqtt, http, operator" in refused(answer, 400)


class TestRollback:
    def test_it_says_which_version_is_gone_back_to(self, box, control):
        box.install(1)
        box.install(2)

        assert control.ask("POST", "/rollback", {"model": MODEL}) == (
            202,
            {"model": MODEL, "version": 1},
        )

        box.settle(1)

    def test_there_must_be_something_to_go_back_to(self, box, control):
        box.install(1)

        assert "no release" in refused(control.ask("POST", "/rollback", {"model": MODEL}), 409)

    @pytest.mark.parametrize(
        "model", ["unheard-of", "../../etc/passwd", "x" * 10_000, "\0", "\ud800"]
    )
    def test_an_unknown_model_is_refused(self, control, model):
        refused(control.ask("POST", "/rollback", {"model": model}), 409)

    @pytest.mark.parametrize("document", [{}, {"model": ""}, {"model": 7}, {"model": None}])
    def test_the_model_must_be_named(self, control, document):
        assert "'model'" in refused(control.ask("POST", "/rollback", document), 400)


class TestHistory:
    def test_it_gives_the_last_events_and_the_chain(self, box, control):
        box.install(1)

        status, document = control.ask("GET", "/history?limit=2")

        assert status == 200
        first, second = document["events"]
        assert second["sequence"] == first["sequence"] + 1 == document["chain"]["last"]
        assert set(second) == {"sequence", "time", "event"}
        assert document["chain"]["broken"] is None
        assert len(document["chain"]["digest"]) == 64

    def test_it_may_be_of_one_model(self, box, control):
        box.install(1)

        assert control.ask("GET", "/history?model=unheard-of")[1]["events"] == []
        assert len(control.ask("GET", f"/history?model={MODEL}&limit=3")[1]["events"]) == 3

    def test_a_history_that_was_tampered_with_says_where(self, box, control):
        box.install(1)
        path = box.state_folder / "history.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":7', 1))

        document = control.ask("GET", "/history")[1]

        assert document["chain"]["broken"]["file"] == "history.jsonl"

    @pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "", "1e3", "٣", "9" * 500])
    def test_a_limit_out_of_range_is_refused(self, control, limit):
        assert "1 to 1000" in refused(control.ask("GET", f"/history?limit={quoted(limit)}"), 400)


class TestQuarantine:
    @pytest.fixture
    def bad(self, box):
        box.install(1)
        box.add(2)
        box.daemon.faults[box.digest(2)] = Fault.REFUSED
        box.fleet.assign(MODEL, 2)
        box.service.hint("operator")
        wait_until(box.quarantine.entries)
        box.settle(1)
        return box.digest(2)

    def test_it_lists_what_has_failed(self, control, bad):
        (found,) = control.ask("GET", "/quarantine")[1]["bundles"]

        assert set(found) == {
            "digest",
            "model",
            "version",
            "runtime",
            "reason",
            "since",
            "failures",
        }
        assert (found["digest"], found["model"], found["version"]) == (bad, MODEL, 2)

    @pytest.mark.parametrize("length", [8, 64])
    def test_one_may_be_cleared_by_a_beginning(self, box, control, bad, length):
        box.daemon.faults.clear()

        answer = control.ask("POST", "/quarantine/clear", {"digest": bad[:length]})

        assert answer == (200, {"cleared": [bad]})
        box.settle(2)

    def test_all_may_be_cleared(self, control, bad):
        answer = control.ask("POST", "/quarantine/clear", {"digest": None})

        assert answer == (200, {"cleared": [bad]})

    @pytest.mark.usefixtures("bad")
    def test_one_that_is_not_there_is_not_found(self, control):
        answer = control.ask("POST", "/quarantine/clear", {"digest": "0" * 64})

        assert "no bundle" in refused(answer, 404)
        assert control.ask("GET", "/quarantine")[1]["bundles"]

    @pytest.mark.parametrize(
        "document",
        [
            {},
            {"digest": ""},
            {"digest": "0" * 7},
            {"digest": "0" * 65},
            {"digest": "ABCDEF01"},
            {"digest": "../../.."},
            {"digest": 12345678},
            {"digest": ["0" * 64]},
        ],
    )
    @pytest.mark.usefixtures("bad")
    def test_what_is_no_digest_clears_nothing(self, control, document):
        refused(control.ask("POST", "/quarantine/clear", document), 400)

        assert control.ask("GET", "/quarantine")[1]["bundles"]

    @pytest.mark.usefixtures("bad")
    def test_while_a_probe_is_under_way_it_is_put_off(self, box, control):
        box.daemon.hold.clear()
        probes = box.daemon.probes
        box.ship(3)
        box.service.hint("operator")
        wait_until(lambda: box.daemon.probes > probes)

        refused(control.ask("POST", "/quarantine/clear", {"digest": None}), 503)

        assert control.ask("GET", "/quarantine")[1]["bundles"]


class TestImport:
    def test_it_says_what_is_wished(self, box, control):
        box.ship(1)

        answer = control.ask("POST", "/import", {"path": str(box.fleet.path)})

        assert answer == (200, {"models": {MODEL: 1}})
        box.settle(1)

    @pytest.mark.parametrize("path", ["media/stick", ".", "~/stick", "http://fleet/", "\0", "/\0"])
    def test_a_path_that_is_not_absolute_is_refused(self, control, path):
        assert "absolute" in refused(control.ask("POST", "/import", {"path": path}), 422)

    @pytest.mark.parametrize(
        "path", ["/nowhere/at/all", "/dev/null", "/etc/passwd", "/" + "x" * 5000]
    )
    def test_what_is_no_folder_is_refused(self, control, path):
        assert "no such folder" in refused(control.ask("POST", "/import", {"path": path}), 422)

    def test_a_folder_that_is_no_repository_is_refused(self, control, tmp_path):
        answer = control.ask("POST", "/import", {"path": str(tmp_path)})

        assert "no such file" in refused(answer, 422)

    @pytest.mark.parametrize("document", [{}, {"path": 7}, {"path": None}, {"path": ""}])
    def test_the_path_must_be_named(self, control, document):
        assert "'path'" in refused(control.ask("POST", "/import", document), 400)


POSTS = ["/refresh", "/rollback", "/quarantine/clear", "/import"]


class TestHostileClients:
    """Whoever they are, whoever asks next is answered."""

    @pytest.fixture(autouse=True)
    def still_answers(self, control):
        yield
        assert control.ask("GET", "/status")[0] == 200

    @pytest.mark.parametrize("path", POSTS)
    @pytest.mark.parametrize(
        "body",
        [b"{", b"\xff\xfe", b"[]", b'"text"', b"7", b"null", b"[" * 60_000, b"\0" * 100],
        ids=["cut", "binary", "array", "text", "number", "null", "deep", "zeros"],
    )
    def test_what_is_no_json_object_is_refused(self, control, path, body):
        refused(control.send("POST", path, body), 400)

    @pytest.mark.parametrize("path", POSTS)
    def test_a_huge_body_is_refused_and_not_kept(self, control, path):
        refused(control.send("POST", path, b" " * 200_000), 413)

    def test_a_body_that_is_only_announced_is_refused(self, control):
        head = b"POST /import HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        with control.connect() as connection:
            connection.sendall(head)
            assert b" 413 " in connection.recv(4096)

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/", 404),
            ("GET", "/../../etc/passwd", 404),
            ("GET", "/rollback", 405),
            ("DELETE", "/status", 405),
            ("POST", "/history", 405),
        ],
    )
    def test_what_is_not_there_is_not_found(self, control, method, path, status):
        refused(control.ask(method, path), status)

    @pytest.mark.parametrize(
        "request_",
        [
            b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
            b"GET /status\r\n\r\n",
            b"A" * 100_000 + b"\r\n\r\n",
        ],
        ids=["empty", "tls", "old", "long"],
    )
    def test_what_is_no_request_ends_in_itself(self, control, request_):
        with control.connect() as connection:
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass

    def test_whoever_leaves_in_the_middle_is_forgotten(self, control):
        for _ in range(20):
            with control.connect() as connection:
                connection.sendall(b"POST /import HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")

    def test_connections_beyond_the_bound_are_closed_at_once(self, control):
        idle = [control.connect() for _ in range(64)]
        try:
            wait_until(lambda: is_closed_at_once(control))
        finally:
            for connection in idle:
                connection.close()
        wait_until(lambda: not is_closed_at_once(control))

    def test_a_flood_of_questions_is_answered_or_refused(self, control):
        answers: list[int] = []

        def ask() -> None:
            answers.extend(control.ask("GET", "/status")[0] for _ in range(5))

        clients = [threading.Thread(target=ask) for _ in range(40)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(WAIT_S)

        assert len(answers) == 200
        assert set(answers) <= {200, 503}
        assert 200 in answers


class TestSocket:
    def test_only_its_owner_and_group_may_connect(self, control):
        assert stat.S_IMODE(control.path.stat().st_mode) == 0o660

    def test_it_is_gone_after_a_stop(self, box):
        path = box.root / "run/other.sock"
        with served(box.service, path):
            assert path.exists()

        assert not path.exists()

    def test_one_that_a_kill_has_left_is_replaced(self, box):
        path = box.root / "run/other.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        assert path.exists()

        with served(box.service, path) as control:
            assert control.ask("GET", "/status")[0] == 200

    def test_one_that_another_updater_answers_at_is_left_to_it(self, box, control):
        with pytest.raises(OSError, match="another updater"), served(box.service, control.path):
            pass

        assert control.ask("GET", "/status")[0] == 200

    def test_a_file_in_its_place_is_left_alone(self, box):
        path = box.root / "run/other.sock"
        path.write_text("mine")

        with pytest.raises(OSError, match="no socket"), served(box.service, path):
            pass

        assert path.read_text() == "mine"

    def test_another_one_in_its_place_is_not_taken_away(self, box):
        path = box.root / "run/other.sock"
        with served(box.service, path):
            path.unlink()
            path.write_text("mine")

        assert path.read_text() == "mine"

    def test_a_folder_that_cannot_be_written_is_said_with_the_path(self, box):
        path = box.root / "run/inferd.sock/updater.sock"

        with pytest.raises(OSError, match=os.fspath(path)), served(box.service, path):
            pass


def quoted(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


def is_closed_at_once(control: Control) -> bool:
    with control.connect() as connection:
        connection.settimeout(0.2)
        try:
            return connection.recv(1) == b""
        except TimeoutError:
            return False
