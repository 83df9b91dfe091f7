"""`inferctl demo --once`: the whole story, unattended."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from urllib.parse import urlsplit

import pytest
from support.eventually import eventually
from support.inferctl import COMMAND, ENVIRONMENT, TIMEOUT_S, inferctl, run_python

from daemon.cli.demo import CHAPTERS
from daemon.cli.scratch import scratch_folder


def refuses(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.broker
def test_the_story_is_told_to_its_end_and_exits_zero(mosquitto, demo_model):
    pictures = len(list((demo_model / "samples").iterdir()))

    done = inferctl("demo", "--once")

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"All {len(CHAPTERS)} chapters went as they should.\n")
    assert done.stdout.count(".png ") >= 2 * pictures


def test_the_story_is_told_with_the_embedded_broker_too(tmp_path):
    program = (
        "import sys; from pathlib import Path; from daemon.cli import broker, demo\n"
        "folder = Path(sys.argv[1])\n"
        "with broker.run_iotcore(folder) as embedded:\n"
        "    demo.play(embedded, folder / 'root', once=True)\n"
    )

    done = run_python(program, tmp_path)

    assert done.returncode == 0, done.stderr
    assert "broker   iotcore" in done.stdout
    assert done.stdout.endswith(f"All {len(CHAPTERS)} chapters went as they should.\n")


@pytest.mark.broker
async def test_a_demo_that_is_killed_takes_its_broker_along(mosquitto, tmp_path):
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    demo = await asyncio.create_subprocess_exec(
        *COMMAND, "demo", "--once", stdout=subprocess.PIPE, env=environment
    )
    said = (await asyncio.wait_for(demo.stdout.readline(), TIMEOUT_S)).decode()
    port = urlsplit(said.split()[-1]).port

    assert said.startswith("broker   mosquitto at mqtt://")
    assert not refuses(port)
    demo.kill()
    await demo.communicate()

    await eventually(lambda: refuses(port))
    with scratch_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
