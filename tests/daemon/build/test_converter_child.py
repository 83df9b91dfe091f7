"""TensorFlow's process as a process: what happens when it dies; none of it needs TensorFlow."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from daemon.build.convert_main import Refused, _load_keras
from daemon.build.converter import Converter, Limits
from daemon.build.errors import ConversionFailed
from daemon.build.sources import SourceKind

LIMITS = Limits(seconds=300, memory_mib=4096)

pytestmark = pytest.mark.timeout(400)  # where TensorFlow is there it is started


def kill(converter: Converter) -> None:
    """End the child, and leave it to its parent to find out."""
    process = converter._process
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_what_a_dead_child_never_read_is_no_error(tmp_path):
    with closing(Converter(tmp_path, LIMITS)) as converter:
        kill(converter)
        converter._process.stdin.write(b"{}\n")

    assert converter._process.returncode == -signal.SIGKILL


def test_a_request_to_a_dead_child_starts_another(tmp_path):
    with closing(Converter(tmp_path, LIMITS)) as converter:
        for _ in range(2):
            kill(converter)
            with pytest.raises(ConversionFailed) as failure:
                converter.open(SourceKind.KERAS, tmp_path / "none.keras")
            assert failure.value.details == ""  # it lives, and says what is wrong
            assert "cannot read" in str(failure.value)


@pytest.mark.parametrize("name", ["TMPDIR", "KERAS_HOME"])
def test_temporary_files_of_the_child_are_in_its_own_folder(tmp_path, name):
    with closing(Converter(tmp_path, LIMITS)) as converter:
        with pytest.raises(ConversionFailed):  # so its program has been started
            converter.open(SourceKind.KERAS, tmp_path / "none.keras")
        environment = psutil.Process(converter._process.pid).environ()

    assert Path(environment[name]).is_relative_to(tmp_path)


@pytest.mark.parametrize("version", ["3.11.3", "3.14.0", "3.15.0", "3.15", "3.15rc1"])
def test_a_keras_that_reads_what_a_file_names_is_refused(version):
    with pytest.raises(Refused, match=r"install 3\.15\.1 or newer"):
        _load_keras(SimpleNamespace(__version__=version), "keras", "model.keras")
