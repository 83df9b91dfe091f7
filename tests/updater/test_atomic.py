"""Durable steps: what they leave, in which order they act, and what a failure leaves.

That they survive a loss of power is shown in test_powercut_disk.py and test_sync_order.py.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from contextlib import contextmanager

import pytest
from support.powercut import watched

from updater import atomic


@contextmanager
def steps():
    """The names and file names of the steps that are taken."""
    taken: list[tuple[str, str]] = []
    with watched(lambda step, path: taken.append((step, path.name))):
        yield taken


@contextmanager
def files_end_at(size_bytes: int):
    """A disk that takes no more than so much of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def failing_fsync(_descriptor: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def mode(path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(tmp_path):
    with steps() as taken:
        atomic.write_file(tmp_path / "x", b"new")

    assert taken == [
        ("write", ".x.new"),
        ("fsync", ".x.new"),
        ("rename", "x"),
        ("fsync-folder", tmp_path.name),
    ]


def test_a_file_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "x").write_bytes(b"old and longer")
    atomic.write_file(tmp_path / "x", b"new")

    assert (tmp_path / "x").read_bytes() == b"new"
    assert names(tmp_path) == ["x"]


def test_the_mode_of_a_file_is_exact(tmp_path):
    mask = os.umask(0o077)
    try:
        atomic.write_file(tmp_path / "x", b"", mode=0o644)
    finally:
        os.umask(mask)

    assert mode(tmp_path / "x") == 0o644


def test_what_a_cut_off_write_has_left_does_not_matter_to_the_next(tmp_path):
    atomic.new_name(tmp_path / "x").write_bytes(b"half of someth")
    atomic.write_file(tmp_path / "x", b"new")

    assert (tmp_path / "x").read_bytes() == b"new"
    assert names(tmp_path) == ["x"]


def test_on_a_full_disk_the_old_content_stays_and_nothing_else(tmp_path):
    (tmp_path / "x").write_bytes(b"old")

    with files_end_at(1000), pytest.raises(OSError):
        atomic.write_file(tmp_path / "x", bytes(2000))
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_sync_that_fails_is_not_tried_again_and_the_old_content_stays(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", failing_fsync)

    with steps() as taken, pytest.raises(OSError):
        atomic.write_file(tmp_path / "x", b"new")
    assert [step for step, _ in taken] == ["write", "fsync"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_line_is_added_in_one_write_and_synced_with_its_folder(tmp_path):
    with steps() as taken:
        atomic.append_line(tmp_path / "log", b"one")
        atomic.append_line(tmp_path / "log", b"two")

    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert taken == 2 * [("append", "log"), ("fsync", "log"), ("fsync-folder", tmp_path.name)]


def test_a_line_holds_no_line_break(tmp_path):
    with pytest.raises(ValueError, match="line break"):
        atomic.append_line(tmp_path / "log", b"one\ntwo")


def test_of_a_line_that_does_not_fit_nothing_stays(tmp_path):
    atomic.append_line(tmp_path / "log", b"one")

    with files_end_at(10), pytest.raises(OSError):
        atomic.append_line(tmp_path / "log", b"two and more")
    assert (tmp_path / "log").read_bytes() == b"one\n"


def test_of_a_line_that_cannot_be_synced_nothing_stays(tmp_path, monkeypatch):
    atomic.append_line(tmp_path / "log", b"one")
    monkeypatch.setattr(os, "fsync", failing_fsync)

    with pytest.raises(OSError):
        atomic.append_line(tmp_path / "log", b"two")
    assert (tmp_path / "log").read_bytes() == b"one\n"


def test_folders_are_made_from_the_top_each_synced_into_the_one_above(tmp_path):
    with steps() as taken:
        atomic.make_folder(tmp_path / "a" / "b")

    assert taken == [
        ("fsync-folder", tmp_path.parent.name),
        ("mkdir", "a"),
        ("chmod", "a"),
        ("fsync", "a"),
        ("fsync-folder", tmp_path.name),
        ("mkdir", "b"),
        ("chmod", "b"),
        ("fsync", "b"),
        ("fsync-folder", "a"),
    ]


def test_a_folder_that_is_there_is_synced_all_the_same(tmp_path):
    """Who made it may have been killed before the sync."""
    with steps() as taken:
        atomic.make_folder(tmp_path)

    assert taken == [("fsync-folder", tmp_path.parent.name)]


def test_a_folder_that_is_there_keeps_its_mode(tmp_path):
    (tmp_path / "a").mkdir(mode=0o700)
    atomic.make_folder(tmp_path / "a")

    assert mode(tmp_path / "a") == 0o700


def test_a_new_folder_has_its_mode_whatever_the_umask(tmp_path):
    mask = os.umask(0o077)
    try:
        atomic.make_folder(tmp_path / "a" / "b")
    finally:
        os.umask(mask)

    assert [mode(tmp_path / "a"), mode(tmp_path / "a" / "b")] == [0o755, 0o755]


def test_a_file_in_the_folders_place_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(b"")

    with pytest.raises(FileExistsError):
        atomic.make_folder(tmp_path / "a")


def test_a_rename_syncs_both_folders(tmp_path):
    (tmp_path / "from" / "tree").mkdir(parents=True)
    (tmp_path / "to").mkdir()

    with steps() as taken:
        atomic.rename(tmp_path / "from" / "tree", tmp_path / "to" / "final")
    assert taken == [("rename", "final"), ("fsync-folder", "to"), ("fsync-folder", "from")]
    assert (tmp_path / "to" / "final").is_dir()


def test_a_rename_replaces_no_folder(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    with pytest.raises(OSError):
        atomic.rename(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "old"


def test_a_link_is_replaced_through_another_name(tmp_path):
    atomic.replace_link(tmp_path / "current", "old")

    with steps() as taken:
        atomic.replace_link(tmp_path / "current", "new")
    assert (tmp_path / "current").readlink().name == "new"
    assert taken == [
        ("link", ".current.new"),
        ("rename", "current"),
        ("fsync-folder", tmp_path.name),
    ]


def test_what_a_cut_off_link_has_left_does_not_matter_to_the_next(tmp_path):
    atomic.new_name(tmp_path / "current").symlink_to("nowhere")
    atomic.replace_link(tmp_path / "current", "new")

    assert names(tmp_path) == ["current"]
    assert (tmp_path / "current").readlink().name == "new"


def test_a_link_does_not_replace_a_folder(tmp_path):
    (tmp_path / "current").mkdir()

    with pytest.raises(OSError):
        atomic.replace_link(tmp_path / "current", "new")
    assert (tmp_path / "current").is_dir()


def test_a_tree_is_synced_from_below(tmp_path):
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "file").write_bytes(b"1")
    (tree / "b").write_bytes(b"2")
    (tree / "link").symlink_to("a")
    os.mkfifo(tree / "pipe")  # to open one would wait for ever

    with steps() as taken:
        atomic.sync_tree(tree)
    assert taken == [
        ("fsync", "file"),
        ("fsync-folder", "a"),
        ("fsync", "b"),
        ("fsync-folder", "tree"),
    ]


def test_a_mode_is_set_and_synced(tmp_path):
    with steps() as taken:
        atomic.set_mode(tmp_path, 0o500)

    assert mode(tmp_path) == 0o500
    assert [step for step, _ in taken] == ["chmod", "fsync"]


def test_a_read_only_tree_is_removed(tmp_path):
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "file").write_bytes(b"1")
    (tree / "a" / "file").chmod(0o444)
    (tree / "a").chmod(0o555)
    tree.chmod(0o555)
    atomic.remove(tree)

    assert names(tmp_path) == []


def test_a_link_is_removed_and_not_what_it_names(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    atomic.remove(tmp_path / "tree")
    atomic.remove(tmp_path / "link")

    assert names(tmp_path) == ["kept"]


def test_what_is_gone_is_synced_all_the_same(tmp_path):
    with steps() as taken:
        atomic.remove(tmp_path / "gone")

    assert taken == [("fsync-folder", tmp_path.name)]


def test_nothing_is_removed_from_a_folder_that_is_not_there(tmp_path):
    with steps() as taken:
        atomic.remove(tmp_path / "no folder" / "gone")

    assert taken == []


def test_leftovers_are_what_cut_off_writes_have_left(tmp_path):
    atomic.new_name(tmp_path / "x").write_bytes(b"")
    for name in ("x", ".hidden", "x.new"):
        (tmp_path / name).write_bytes(b"")

    assert [path.name for path in atomic.leftovers(tmp_path)] == [".x.new"]
    assert atomic.leftovers(tmp_path / "no folder") == ()
