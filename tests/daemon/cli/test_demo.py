"""`inferctl demo --once`: the whole story, unattended."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import pytest
from support.eventually import eventually
from support.inferctl import COMMAND, ENVIRONMENT, TIMEOUT_S, inferctl, run_python

from daemon.cli.demo import CHAPTERS
from daemon.cli.scratch import scratch_folder

if TYPE_CHECKING:
    from pathlib import Path


def refuses(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) != 0


def processes_below(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    lines = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(folder) in line:
            lines.append(line)
    return lines


@pytest.fixture(scope="module")
def told(mosquitto):
    """What a demo has said, from its beginning to its end."""
    done = inferctl("demo", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.broker
class TestStory:
    def test_it_is_told_to_its_end_and_exits_zero(self, told, demo_model):
        pictures = len(list((demo_model / "samples").iterdir()))

        assert told.endswith(f"All {len(CHAPTERS)} chapters went as they should.\n")
        assert told.count(".png ") >= 2 * pictures

    def test_no_request_is_lost_in_any_chapter_of_updates(self, told):
        counts = re.findall(r"by  (HTTP|MQTT)  (\d+) requests +(\d+) lost", told)

        assert [(name, lost) for name, _, lost in counts] == [("HTTP", "0"), ("MQTT", "0")] * 3
        assert all(int(sent) >= 20 for _, sent, _ in counts)

    def test_version_2_takes_over_from_version_1_under_load(self, told):
        chapter = told.partition("\n3. ")[2].partition("\n4. ")[0]

        assert re.search(r"version 1: [1-9]\d*  version 2: [1-9]", chapter)
        assert "wrong" not in chapter

    def test_version_3_serves_fails_and_is_turned_back_from(self, told):
        chapter = told.partition("\n4. ")[2].partition("\n5. ")[0]

        steps = ("probe passed", "serves, on probation", "turned back from: ", "finished")
        places = [chapter.index(step) for step in steps]
        assert places == sorted(places)
        assert "NaN" in chapter
        assert "version 3 is in quarantine, version 2 serves" in chapter

    def test_version_4_never_answers_anybody(self, told):
        chapter = told.partition("\n5. ")[2].partition("\n6. ")[0]

        assert "health sample samples/sneaker.png" in chapter
        assert re.findall(r"version (\d): \d", chapter) == ["2", "2"]
        assert "version 4 is in quarantine, version 2 serves" in chapter

    def test_the_history_at_the_end_is_verified(self, told):
        assert "unbroken: events 1 to " in told.partition("\n6. ")[2]


def test_the_story_is_told_with_the_embedded_broker_too(tmp_path):
    """And in a folder whose path is too long for sockets."""
    program = (
        "import sys; from pathlib import Path; from daemon.cli import broker, demo\n"
        "folder = Path(sys.argv[1])\n"
        "with broker.run_iotcore(folder) as embedded:\n"
        "    demo.play(embedded, folder, once=True)\n"
    )
    folder = tmp_path / ("long" * 20)
    folder.mkdir()

    done = run_python(program, folder)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "broker   iotcore" in done.stdout
    assert done.stdout.endswith(f"All {len(CHAPTERS)} chapters went as they should.\n")


@pytest.mark.broker
async def test_a_demo_that_is_killed_takes_its_processes_along(mosquitto, tmp_path):
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    demo = await asyncio.create_subprocess_exec(
        *COMMAND, "demo", "--once", stdout=subprocess.PIPE, env=environment
    )
    said = (await asyncio.wait_for(demo.stdout.readline(), TIMEOUT_S)).decode()
    port = urlsplit(said.split()[-1]).port

    assert said.startswith("broker   mosquitto at mqtt://")
    assert not refuses(port)
    assert len(processes_below(tmp_path)) >= 3  # broker, web server, updater
    demo.kill()
    await demo.communicate()

    await eventually(lambda: refuses(port))
    await eventually(lambda: not processes_below(tmp_path))
    with scratch_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.broker
@pytest.mark.parametrize("words", ["1. Pictures", "2. The same", "serves, on probation", "5. "])
async def test_ctrl_c_ends_the_story_soon_and_leaves_nothing(words, mosquitto, tmp_path):
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    demo = await asyncio.create_subprocess_exec(
        *COMMAND,
        "demo",
        "--once",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    while words not in (await asyncio.wait_for(demo.stdout.readline(), TIMEOUT_S)).decode():
        pass

    demo.send_signal(signal.SIGINT)
    _, errors = await asyncio.wait_for(demo.communicate(), 20)

    assert demo.returncode == 1
    (line,) = errors.decode().splitlines()
    assert line.startswith("inferctl demo: ")
    assert "in the middle of the story" in line
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
