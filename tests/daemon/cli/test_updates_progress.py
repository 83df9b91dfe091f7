"""How a download is shown: a bar that moves at a terminal, plain lines in a pipe."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
from contextlib import contextmanager

import pytest
from support import tflite_builder
from support.box import MODEL
from support.inferctl import COMMAND, ENVIRONMENT, TIMEOUT_S
from support.servicebox import QUICK, running_services, wait_until

from daemon.cli.following import PATIENCE_S, Follower, describe_rest
from daemon.cli.screen import Bar, Screen, draw_bar

ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
HALF_BYTES = 1_000_000


@pytest.fixture
def box(tmp_path):
    with running_services(tmp_path) as box:
        yield box


@pytest.fixture
def gate(box):
    """Version 1 is assigned; half of its bundle comes at once, the rest when the gate opens."""
    big = b"".join(index.to_bytes(4, "big") for index in range(HALF_BYTES // 2))
    box.publisher.ship(1, tflite_builder.scale(1.0, batch=1), probation=QUICK, x_npy=big)
    (bundle,) = (box.fleet.path / "targets" / MODEL).glob("*.bundle")
    content = bundle.read_bytes()
    gate = threading.Event()

    def write(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:HALF_BYTES])
        gate.wait(TIMEOUT_S)
        handler.wfile.write(content[HALF_BYTES:])

    box.server.answers[f"/targets/{MODEL}/{bundle.name}"] = write
    yield gate
    gate.set()


class Terminal:
    """What stands on a screen of so many columns."""

    def __init__(self, master: int) -> None:
        self._master = master
        self.text = ""

    def wait_for(self, words: str) -> None:
        while words not in self.text:
            ready, _, _ = select.select([self._master], [], [], TIMEOUT_S)
            assert ready, f"no {words!r} in {self.text!r}"
            self.text += os.read(self._master, 4096).decode()

    def rest(self) -> str:
        while True:
            try:
                self.text += os.read(self._master, 4096).decode()
            except OSError:  # EIO: the other side has ended
                return self.text


@contextmanager
def at_terminal(*words, columns=80, **environment):
    master, its_side = pty.openpty()
    fcntl.ioctl(its_side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)],
        stdin=its_side,
        stdout=its_side,
        stderr=its_side,
        env={**ENVIRONMENT, "TERM": "xterm", **environment},
    )
    os.close(its_side)
    with process:
        try:
            yield process, Terminal(master)
        finally:
            process.kill()
            os.close(master)


@pytest.mark.parametrize("columns", [80, 34])
def test_a_terminal_gets_a_bar_that_fits_it(box, gate, columns):
    with at_terminal("--url", box.url, "update", "--now", columns=columns) as (process, terminal):
        terminal.wait_for("50%")
        gate.set()
        screen = terminal.rest()

        assert process.wait(TIMEOUT_S) == 0
    bars = [line for line in ESCAPES.sub("", screen).splitlines() if "%" in line]
    assert bars
    assert max(map(len, bars)) < columns
    assert f"up to date: {MODEL} version 1" in screen


def test_a_wide_terminal_shows_bar_share_and_size(box, gate):
    with at_terminal("--url", box.url, "update", "--now", columns=100) as (_, terminal):
        terminal.wait_for("50%")
        terminal.wait_for("of 2.0 MB")

        assert re.search(r"\[#+\.+\]  50%", terminal.text)


def test_a_dumb_terminal_gets_plain_lines(box, gate):
    words = ("--url", box.url, "update", "--now")
    with at_terminal(*words, TERM="dumb") as (process, terminal):
        terminal.wait_for("50%")
        gate.set()
        screen = terminal.rest()

        assert process.wait(TIMEOUT_S) == 0
    assert "\x1b" not in screen


def test_a_pipe_gets_plain_lines_while_it_goes_on(box, gate):
    command = [*COMMAND, "--url", box.url, "update", "--now"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "50%" in line:
                gate.set()

        assert process.wait(TIMEOUT_S) == 0
    assert f"{MODEL} version 1: 50%, 1.0 of 2.0 MB\n" in lines
    assert lines[-1] == f"up to date: {MODEL} version 1\n"


def test_ctrl_c_ends_it_and_the_update_goes_on(box, gate):
    with at_terminal("--url", box.url, "update", "--now") as (process, terminal):
        terminal.wait_for("50%")
        process.send_signal(2)

        assert process.wait(TIMEOUT_S) == 130
        assert "Traceback" not in terminal.rest()
    gate.set()
    wait_until(lambda: box.model()["current_version"] == 1)


def test_what_does_not_move_for_a_minute_is_named_and_left(box):
    """The clock is the test's; the updater, the server and the refusal are real."""
    box.publisher.ship(1, tflite_builder.scale(1.0, batch=1), probation=QUICK)
    (bundle,) = (box.fleet.path / "targets" / MODEL).glob("*.bundle")
    box.server.answer(f"/targets/{MODEL}/{bundle.name}", b"no", status=404)
    box.updater.refresh()
    wait_until(lambda: any("404" in m["waiting_for"] for m in box.updater.status()["models"]))
    out, times = io.StringIO(), iter(range(0, 10_000, int(PATIENCE_S)))

    status = Follower(box.updater, Screen(out), after=0, clock=lambda: next(times)).follow()

    (line,) = describe_rest(status["models"])
    assert line.startswith(f"{MODEL} version 1 is kept waiting: ")
    assert "404" in line


def test_without_the_daemon_a_pipe_is_told_what_is_waited_for(box):
    """The clock is the test's."""
    box.daemon.stop()
    box.publisher.ship(1, tflite_builder.scale(1.0, batch=1), probation=QUICK)
    box.updater.refresh()
    wait_until(lambda: [m["state"] for m in box.updater.status()["models"]] == ["verified"])
    wait_until(lambda: box.model()["waiting_for"])
    out, times = io.StringIO(), iter(range(0, 10_000, 10))

    Follower(box.updater, Screen(out), after=0, clock=lambda: next(times)).follow()

    assert f"{MODEL} version 1 waits: the daemon does not answer" in out.getvalue()


@pytest.mark.parametrize("columns", [20, 40, 79, 200])
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_a_bar_is_shorter_than_its_line(columns, share):
    bar = Bar("a-model-with-a-rather-long-name version 12", share, "12.0 of 40.0 MB  3.1 MB/s")

    assert len(draw_bar(bar, columns)) < columns


def test_a_bar_is_as_full_as_its_share():
    empty, half, full = (draw_bar(Bar("m", share), 80) for share in (0.0, 0.5, 1.0))

    assert (empty.count("#"), full.count(".")) == (0, 0)
    assert half.count("#") == half.count(".")


def test_text_from_outside_moves_no_cursor():
    assert "\x1b" not in draw_bar(Bar("m", 0.5, "\x1b[2Jgone"), 80)


class ATerminal(io.StringIO):
    """Remembers what is written to it."""

    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    """Ten lines of eighty columns."""
    for name, value in {"TERM": "xterm", "LINES": "10", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    return ATerminal()


def test_bars_that_do_not_fit_the_screen_are_counted(screen):
    Screen(screen).draw([Bar(f"model-{number}", 0.5) for number in range(30)])

    lines = screen.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[-1] == "and 23 more"


def test_bars_are_drawn_over_those_before(screen):
    drawn = Screen(screen)
    drawn.draw([Bar("a", 0.1), Bar("b", 0.2)])
    drawn.draw([Bar("a", 0.3)])

    assert "\x1b[2A\x1b[J" in screen.getvalue()


def test_a_line_that_stays_takes_the_place_of_the_bars(screen):
    drawn = Screen(screen)
    drawn.draw([Bar("a", 0.1)])
    drawn.say("a is done")

    assert screen.getvalue().endswith("\x1b[1A\x1b[Ja is done\n")
