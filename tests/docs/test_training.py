"""The way from training to a device, followed to the letter."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys

import numpy as np
import pytest
from PIL import Image
from support.inferctl import REPOSITORY

from daemon.cli.arguments import build_parser
from updater.bundle import read_manifest

TEXT = (REPOSITORY / "docs" / "training.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PUBLISHERS = re.findall(
    r"^```sh\n(.*?)^```", TEXT.partition("## On the device")[0], re.MULTILINE | re.DOTALL
)
PROGRAM = re.search(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1]
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("inferctl ")
]
TIMEOUT_S = 280
EXTRA = ("tensorflow", "model_signing")
DIGITS = ("one", "seven", "three", "two")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    arguments = build_parser().parse_args(shlex.split(command)[1:])

    assert arguments.runner


def test_every_step_is_there():
    verbs = [" ".join(command.split()[1:3]) for command in COMMANDS]

    for verb in ("bundle build", "bundle test", "bundle sign", "repo add", "update --now"):
        assert verb in verbs


def draw(folder, count: int, seed: int) -> None:
    """Grey pictures of noise with a bright bar, whose place is their class."""
    rng = np.random.default_rng(seed)
    for place, name in enumerate(DIGITS):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 90, (28, 28), dtype=np.uint8)
            pixels[6 * place : 6 * place + 6] += 150
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in EXTRA),
    reason="needs the extra 'build' (tensorflow, model-signing)",
)
def test_the_publishers_part_in_its_order_does_what_it_says(tmp_path, shell):
    draw(tmp_path / "pictures" / "train", 40, seed=1)
    draw(tmp_path / "pictures" / "test", 10, seed=2)
    (tmp_path / "train.py").write_text(PROGRAM)
    program = f'inferctl() {{ {sys.executable} -m daemon.cli.main "$@"; }}'
    words = "export INFERD_KEY_PASSPHRASE='six random words are long enough'"

    shell(f"{sys.executable} train.py", cwd=tmp_path)
    printed = [shell(f"{program}\n{words}\n{block}", cwd=tmp_path) for block in PUBLISHERS]

    assert "taken" in printed[0]
    assert "it would serve well here" in printed[1]
    assert "4 health samples" in printed[1]
    assert "its model signature is made with the key of model-key.pub.pem" in printed[2]
    status = shell(f"{program}\ninferctl repo status repo", cwd=tmp_path)
    assert "digits=1 for all devices" in status
    manifest = read_manifest(tmp_path / "digits-1.bundle")
    paths = [entry.path for entry in manifest.files]
    assert {"model.tflite", "model.sig", "provenance.json", "samples/seven.png"} <= set(paths)
