"""A model.toml in which a few keys change and nothing else does."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest
from support.inferctl import ENVIRONMENT

from daemon.cli.modeltoml import edit, why_not_writable, write_changes, write_tables
from daemon.cli.outcome import CommandError
from daemon.modelfile import parse_model_file

CHANGES = {"placement": {"instances": 2}, "batching": {"max_size": 4, "max_delay_ms": 1.0}}
NOBODY = 65534


@contextmanager
def without_rights():
    """As a user who owns nothing here; where that cannot be had, as oneself."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.toml"
    path.write_text("# mine\n[placement]\nthreads = 1\n")
    return path


def test_everything_else_stays_as_it_was_written():
    before = (
        "# top\n"
        "[model]   # who\n"
        "name = 'x'\n"
        "\n"
        "[placement]\n"
        "instances   = 1 # one is enough\n"
        "threads = 3\n"
        "\n"
        "# about batches\n"
        "[batching]\n"
        "max_size = 8\n"
        "max_delay_ms = 0.5\n"
        "[[health.samples]]\n"
        "input = 'a.png' # sample\n"
    )

    after = edit(before, CHANGES)

    assert after == before.replace("instances   = 1", "instances   = 2").replace(
        "max_size = 8", "max_size = 4"
    ).replace("0.5", "1.0")


def test_a_new_key_stands_before_the_comment_of_the_next_table():
    before = "[placement]\nthreads = 3 # all\n\n# about batches\n[batching]\nmax_size = 8\n"

    assert edit(before, {"placement": {"instances": 2}}) == before.replace(
        "# all\n", "# all\ninstances = 2\n"
    )


@pytest.mark.parametrize(
    "before",
    [
        "",
        "# nothing but a comment",
        "[model]\nname = 'x'",
        "placement = {threads = 2}\n",
        "placement.threads = 2\n[model]\nname = 'x'\n",
        "[placement]\n# empty\n[batching]\n",
        "[placement]\naccelerators = [\n  'cpu', # only\n]\n\n\n# end\n",
        "[[health.samples]]\ninput = 'a'\n",
        "\ufeff[model]\nname = 'x'\n",
        "[model]\r\nname = 'x'\r\n",
    ],
)
def test_the_keys_are_set_whatever_stands_there(before):
    tables = parse_model_file(edit(before, CHANGES))

    untouched = parse_model_file(before)
    assert (tables.placement.instances, tables.batching.max_size) == (2, 4)
    assert tables.batching.max_delay_ms == 1.0
    assert tables.placement.threads == untouched.placement.threads
    assert (tables.model, tables.health) == (untouched.model, untouched.health)


def test_line_ends_of_windows_stay():
    after = edit("[model]\r\nname = 'x'\r\n", CHANGES)

    assert after.count("\n") == after.count("\r\n") > 2


def test_a_byte_order_mark_stays():
    assert edit("\ufeff[model]\n", CHANGES).startswith("\ufeff[model]\n")


@pytest.mark.parametrize("before", ["x =", "placement = 3\n", "[placement]\nbogus = 1\n"])
def test_what_is_no_model_toml_is_not_changed(before):
    with pytest.raises(ValueError):
        edit(before, CHANGES)


def test_a_value_that_no_model_toml_takes_is_not_written():
    with pytest.raises(ValueError, match="from 1 to 64"):
        edit("", {"placement": {"instances": 65}})


def test_the_lines_are_shown_as_they_would_be_written():
    assert write_tables({"placement": {"threads": 2}}) == "[placement]\nthreads = 2"


def test_a_file_that_is_not_there_is_made_so_that_the_daemon_can_read_it(tmp_path):
    write_changes(tmp_path / "model.toml", CHANGES)

    assert parse_model_file((tmp_path / "model.toml").read_text()).placement.instances == 2
    assert stat.S_IMODE((tmp_path / "model.toml").stat().st_mode) == 0o644


def test_mode_and_owner_stay(file):
    file.chmod(0o640)
    before = file.stat()

    write_changes(file, CHANGES)

    after = file.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_of_somebody_else_stays_theirs(file):
    os.chown(file, NOBODY, NOBODY)

    write_changes(file, CHANGES)

    assert (file.stat().st_uid, file.stat().st_gid) == (NOBODY, NOBODY)


def test_nothing_else_is_left_in_the_folder(file):
    write_changes(file, CHANGES)

    assert [path.name for path in file.parent.iterdir()] == ["model.toml"]


def test_a_file_that_cannot_be_changed_is_left_as_it_is(file):
    file.write_text("no TOML")

    with pytest.raises(CommandError, match=r"model\.toml cannot be changed: "):
        write_changes(file, CHANGES)

    assert file.read_text() == "no TOML"


def test_what_is_not_text_is_left_as_it_is(file):
    file.write_bytes(b"\xff\xfe")

    with pytest.raises(CommandError, match=r"cannot be changed"):
        write_changes(file, CHANGES)


@pytest.mark.parametrize("event", ["tempfile.mkstemp", "os.rename"])
def test_a_process_that_dies_on_the_way_leaves_the_old_file(file, event):
    before = file.read_bytes()
    program = (
        "import os, sys; from pathlib import Path; from daemon.cli.modeltoml import write_changes\n"
        "sys.addaudithook(lambda event, _: os._exit(9) if event == sys.argv[2] else None)\n"
        "write_changes(Path(sys.argv[1]), {'placement': {'threads': 2}})\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, file, event], env=ENVIRONMENT, check=False
    )

    assert done.returncode == 9
    assert file.read_bytes() == before
    assert all(path == file or path.name.startswith(".") for path in file.parent.iterdir())


def test_a_folder_one_may_not_write_into_is_told_beforehand(file):
    file.parent.chmod(0o555)
    try:
        with without_rights():
            assert "may not write into" in why_not_writable(file)
            with pytest.raises(CommandError, match="cannot be written: Permission denied"):
                write_changes(file, CHANGES)
    finally:
        file.parent.chmod(0o755)


def test_a_file_one_may_write_is_no_problem(file):
    assert why_not_writable(file) == ""
    assert why_not_writable(file.with_name("other.toml")) == ""
