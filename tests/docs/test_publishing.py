"""The ceremony and everything after it, followed to the letter."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent

import msgspec
import pytest
from support.inferctl import REPOSITORY

from updater.bundle import build_bundle
from updater.desired import Desired, Group, Window, parse_desired
from updater.manifest import Manifest

TEXT = (REPOSITORY / "docs" / "publishing.md").read_text()
BLOCKS = [
    dedent(indent + block)
    for indent, block in re.findall(r"^( *)```sh\n(.*?)^ *```", TEXT, re.MULTILINE | re.DOTALL)
]
WISH = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL).group(1)


@pytest.fixture
def bundles(tmp_path):
    """What the document speaks of."""
    for version in (2, 3):
        draft = Manifest(name="digits", version=version, release_counter=version)
        files = {"model.tflite": bytes([version])}
        build_bundle(files, tmp_path / f"digits-{version}.bundle", draft)


@pytest.fixture
def follow(tmp_path, shell):
    """Paste some lines."""
    program = f'inferctl() {{ {sys.executable} -m daemon.cli.main "$@"; }}'
    words = "export INFERD_KEY_PASSPHRASE='six random words are long enough'"
    return lambda lines: shell(f"{program}\n{words}\n{lines}", cwd=tmp_path)


@pytest.mark.usefixtures("bundles")
def test_every_command_in_its_order_does_what_it_says(tmp_path, follow):
    printed = [follow(block) for block in BLOCKS]

    assert len(printed) > 12
    assert "not here" not in printed[4]  # the status at the end of the ceremony
    assert not (tmp_path / "keys").exists()
    assert (tmp_path / "usb" / "metadata" / "timestamp.json").is_file()
    status = follow("inferctl repo status repo --keys safe --keys host")
    assert f"root-4: {Path('safe') / 'offline' / 'root-4.pem'}" in status
    assert "digits=3 for all devices" in status


def test_the_wish_that_is_shown_is_one():
    assert parse_desired(WISH.encode()).groups[0].rollout_id == "r7"


@pytest.mark.parametrize("kind", [Desired, Group, Window], ids=lambda kind: kind.__name__)
def test_every_key_of_the_wish_is_shown(kind):
    shown = set(re.findall(r'"(\w+)":', WISH))

    assert {field.encode_name for field in msgspec.structs.fields(kind)} <= shown
