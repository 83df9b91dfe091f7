"""What can be typed of updates, and what is refused before anything is sent."""

from __future__ import annotations

import socket
import tempfile
import threading

import pytest
from support.inferctl import inferctl

from daemon.cli.arguments import parse
from daemon.cli.outcome import UsageError
from daemon.cli.updaterclient import socket_of

DIGEST = "8d969eef6ecad3c2"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("history --limit 0", "argument --limit: '0': expected a whole number from 1 to 1000"),
        ("history --limit many", "argument --limit: 'many': expected"),
        ("history --model ../etc", "argument --model: '../etc': expected a model's name"),
        ("rollback", "the following arguments are required: MODEL"),
        ("rollback a/b", "argument MODEL: 'a/b': expected a model's name"),
        ("rollback a b", "unrecognized arguments: b"),
        ("quarantine", "the following arguments are required: ACTION"),
        ("quarantine lst", "invalid choice: 'lst'"),
        ("quarantine clear", "one of the arguments DIGEST --all is required"),
        ("quarantine clear 8d96", "argument DIGEST: '8d96': expected 8 to 64 of 0-9 a-f"),
        ("quarantine clear nothexadecimal", "expected 8 to 64 of 0-9 a-f"),
        (f"quarantine clear {DIGEST} --all", "not allowed with argument"),
        ("import", "the following arguments are required: PATH"),
        ("update --nwo", "did you mean '--now'?"),
        ("updaet", "no verb 'updaet'; did you mean 'update'?"),
        ("quarantin list", "did you mean 'quarantine'?"),
    ],
)
def test_what_cannot_be_followed_is_a_usage_error(words, told, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(words.split())

    assert exit_info.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", ["update", "history", "quarantine list"])
def test_every_reading_verb_has_json(words):
    assert parse([*words.split(), "--json"]).json is True


def test_a_digest_may_be_typed_in_capitals():
    assert parse(["quarantine", "clear", DIGEST.upper()]).digest == DIGEST


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("unix:/srv/run/inferd.sock", "/srv/run/updater.sock"),
        ("unix:///srv/run/inferd.sock", "/srv/run/updater.sock"),
        ("http://127.0.0.1:8080", "/run/inferd/updater.sock"),
        ("http://localhost", "/run/inferd/updater.sock"),
    ],
)
def test_the_updaters_socket_lies_beside_the_daemons(url, path):
    assert str(socket_of(url, None)) == path


def test_another_machine_is_a_usage_error():
    with pytest.raises(UsageError, match="on the box itself"):
        socket_of("http://box7:8080", None)


def test_another_machine_does_not_matter_when_the_socket_is_named(tmp_path):
    assert socket_of("http://box7:8080", tmp_path) == tmp_path


def test_a_socket_that_speaks_something_else_is_unreachable():
    # A unix socket's path may have 107 characters, which a test's own folder exceeds.
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = f"{folder}/updater.sock"
        listener.bind(path)
        listener.listen()
        greeter = threading.Thread(target=greet, args=(listener,), daemon=True)
        greeter.start()

        done = inferctl("update", "--updater", path)

    assert done.returncode == 69
    assert f"no answer from unix:{path}" in done.stderr


def greet(listener):
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def test_a_file_that_is_no_socket_is_unreachable(tmp_path):
    (tmp_path / "f").write_text("")

    done = inferctl("history", "--updater", tmp_path / "f")

    assert done.returncode == 69
    assert "systemctl status inferd-updater" in done.stderr
