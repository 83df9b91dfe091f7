"""A node that may not be used is told by its name and its group."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.rights import as_nobody

from accelerators.access import denied


@pytest.fixture
def node():
    with TemporaryDirectory() as folder:  # pytest's own is closed to others
        Path(folder).chmod(0o755)
        path = Path(folder) / "dsp0"
        path.touch()
        yield path


def test_node_that_may_be_used(node):
    assert denied(node, "/dev/dsp0") == ("", "")


def test_node_that_may_be_read_only(node):
    node.chmod(0o444)

    with as_nobody():
        problem, next_step = denied(node, "/dev/dsp0")

    assert problem.startswith("no permission to use /dev/dsp0, which belongs to the group ")
    assert next_step.startswith("give inferd's user that group: SupplementaryGroups=")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_group_that_is_hidden_is_not_named(node):
    node.chmod(0)
    os.chown(node, 0, 65534)

    with as_nobody():
        problem, next_step = denied(node, "/dev/dsp0")

    assert problem == "no permission to use /dev/dsp0"
    assert next_step.startswith("give inferd's user the group of /dev/dsp0: ")
