"""The daemon's mark: which ends of a life are deaths, as the updater reads them."""

from __future__ import annotations

import json
import os
import signal

import pytest
from support import tflite_builder
from support.daemon import KeptDaemon, daemon_process, free_port, running_daemon

from daemon.lives import begin_life

WAIT_S = 60
MARK = "run/inferd/daemon.json"


def read(path):
    return json.loads(path.read_bytes())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "daemon.json"


def test_the_first_life_has_no_deaths_before_it(path):
    begin_life(path)

    mark = read(path)
    assert mark == {
        "instance": mark["instance"],
        "pid": os.getpid(),
        "deaths": 0,
        "clean": False,
    }
    assert len(bytes.fromhex(mark["instance"])) == 16


def test_a_life_that_did_not_end_is_a_death(path):
    begin_life(path)
    begin_life(path)
    begin_life(path)

    assert read(path)["deaths"] == 2


def test_a_life_that_ended_is_no_death_and_forgets_none(path):
    begin_life(path)
    begin_life(path).end()
    ended = read(path)

    begin_life(path)

    assert (ended["deaths"], ended["clean"]) == (1, True)
    assert (read(path)["deaths"], read(path)["clean"]) == (1, False)


def test_every_life_has_a_name_of_its_own(path):
    begin_life(path)
    first = read(path)["instance"]

    begin_life(path)

    assert read(path)["instance"] != first


def test_the_end_of_a_life_does_not_hide_the_one_that_has_begun_since(path):
    before = begin_life(path)
    begin_life(path)

    before.end()

    assert read(path)["clean"] is False


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\x00" * 64,
        b"{",
        b"[]",
        b'{"instance": "x", "pid": 1, "deaths": -4, "clean": false}',
        b'{"instance": "x", "pid": 1, "deaths": "many", "clean": false}',
        b'{"instance": "x", "pid": 1, "deaths": 1e999, "clean": false}',
        b'{"instance": "\xff\xfe", "pid": 1, "deaths": 1, "clean": false}',
        b'{"pid": 1}' + b" " * 5000,
    ],
)
def test_a_damaged_mark_counts_as_none(path, damaged):
    path.parent.mkdir()
    path.write_bytes(damaged)

    begin_life(path)

    assert read(path)["deaths"] == 0


def test_the_updater_which_is_another_user_may_read_it(path):
    mask = os.umask(0o077)
    try:
        begin_life(path)
    finally:
        os.umask(mask)

    assert path.stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_written_is_warned_of(path, caplog):
    path.parent.write_bytes(b"a file where the folder should be")

    begin_life(path).end()

    assert "the daemon's mark cannot be written" in caplog.text


# Real daemons from here on.


@pytest.fixture
def kept(tmp_path, demo_model):
    with KeptDaemon(tmp_path, port=free_port(), served=[demo_model]) as daemon:
        yield daemon


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_a_signal_to_stop_ends_a_life_well_and_another_kills_it(kept, tmp_path, number):
    is_asked = number in {signal.SIGTERM, signal.SIGINT}

    kept.process.send_signal(number)
    kept.wait_ended()
    ended = read(tmp_path / MARK)
    kept.start()

    begun = read(tmp_path / MARK)
    assert ended["clean"] is is_asked
    assert begun == {
        "instance": begun["instance"],
        "pid": kept.process.pid,
        "deaths": 0 if is_asked else 1,
        "clean": False,
    }


def test_deaths_add_up_over_good_ends(kept, tmp_path):
    for end in (kept.kill, kept.stop, kept.kill, kept.stop):
        end()
        kept.start()

    assert read(tmp_path / MARK)["deaths"] == 2


def test_a_model_that_kills_the_daemon_while_it_loads_is_a_death_each_time(tmp_path):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(tflite_builder.falls_without_end())

    first = live_and_die(bad, root=tmp_path)
    second = live_and_die(bad, root=tmp_path)

    assert (first["deaths"], first["clean"]) == (0, False)
    assert (second["deaths"], second["clean"]) == (1, False)


def live_and_die(model, *, root):
    """The mark of a daemon that a model in one of its threads has killed."""
    options = {"port": free_port(), "defaults": {"isolation": "thread"}}
    with daemon_process([model], root=root, **options) as daemon:
        assert daemon.process.wait(WAIT_S) == -signal.SIGSEGV
    return read(root / MARK)


def test_a_start_that_gets_no_address_leaves_the_mark_of_who_has_it(kept, tmp_path):
    before = read(tmp_path / MARK)

    with daemon_process([], root=tmp_path, port=free_port()) as second:
        assert second.process.wait(WAIT_S) == 1

    assert kept.is_alive
    assert read(tmp_path / MARK) == before


async def test_an_exception_that_ends_the_daemon_is_no_good_end(tmp_path, demo_model):
    with pytest.raises(RuntimeError, match="from the caller"):
        async with running_daemon([demo_model], root=tmp_path, wait_ready=False) as daemon:
            daemon.registry.stop = _fail
    ended = read(tmp_path / MARK)

    assert ended["clean"] is False


async def _fail(_grace_s):
    raise RuntimeError("from the caller")


async def test_without_a_unix_socket_the_mark_is_written_all_the_same(tmp_path, demo_model):
    async with running_daemon([demo_model], root=tmp_path, http={"unix_socket": False}):
        begun = read(tmp_path / MARK)

    assert begun["clean"] is False
    assert read(tmp_path / MARK)["clean"] is True


async def test_a_run_folder_that_cannot_be_written_stops_nobody(tmp_path, demo_model, caplog):
    (tmp_path / "run").write_bytes(b"a file where the folder should be")

    async with running_daemon([demo_model], root=tmp_path, http={"unix_socket": False}) as daemon:
        assert daemon.service.readiness().ready

    assert "the daemon's mark cannot be written" in caplog.text
