"""`inferctl demo --once`: the whole story, unattended."""

from __future__ import annotations

import pytest
from support.inferctl import inferctl, run_python

from daemon.cli.demo import CHAPTERS


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
