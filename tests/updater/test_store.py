"""The store: releases complete or absent, links that lead to them, nothing in use ever removed."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.powercut import watched
from support.releases import MODEL, digest_of, files_of, unpack

from updater.errors import Damaged
from updater.store import Store

REPLACEMENT_STEPS = 29
ONE, TWO, THREE = (digest_of(version) for version in (1, 2, 3))


class Cut(BaseException):
    """The process ends here."""


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", tmp_path / "models")


@pytest.fixture
def link(tmp_path) -> Path:
    return tmp_path / "models" / MODEL / "current"


def publish(store: Store, version: int, *, model: str = MODEL) -> Path:
    staged = store.incoming(digest_of(version))
    unpack(staged, version, model=model)
    store.publish(staged, model, digest_of(version))
    return store.release(model, digest_of(version))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def writable(path: Path) -> Path:
    path.parent.chmod(0o755)
    path.chmod(0o644)
    return path


def test_a_published_release_is_complete_and_nobody_may_write_it(store):
    release = publish(store, 1)

    store.verify(MODEL, ONE)
    assert {mode(path) for path in release.rglob("*") if path.is_file()} == {0o444}
    assert {mode(release), mode(release / "samples")} == {0o555}


def test_publishing_takes_the_staged_folder_away(store, tmp_path):
    publish(store, 1)

    assert tree(tmp_path / "store" / ".incoming") == []


def test_a_release_is_synced_before_it_has_its_name(store):
    taken: list[tuple[str, str]] = []
    with watched(lambda step, path: taken.append((step, path.name))):
        publish(store, 1)
    renamed = taken.index(("rename", ONE))
    contents = [
        ("fsync", "labels.txt"),
        ("fsync", "manifest.json"),
        ("fsync", "model.tflite"),
        ("fsync", "one.bin"),
        ("fsync-folder", "samples"),
        ("fsync-folder", ONE),
    ]

    assert [step for step in taken[:renamed] if step in contents] == contents
    assert taken[renamed + 1 : renamed + 3] == [
        ("fsync-folder", MODEL),
        ("fsync-folder", ".incoming"),
    ]


def test_publishing_again_is_content_with_what_is_there(store, tmp_path):
    publish(store, 1)
    before = tree(tmp_path)
    publish(store, 1)

    assert tree(tmp_path) == before
    store.verify(MODEL, ONE)


def test_a_published_release_needs_no_staged_folder_any_more(store, tmp_path):
    publish(store, 1)
    store.publish(tmp_path / "gone", MODEL, ONE)

    store.verify(MODEL, ONE)


def test_a_damaged_release_is_replaced(store):
    release = publish(store, 1)
    writable(release / "model.tflite").write_bytes(b"rotten")
    publish(store, 1)

    store.verify(MODEL, ONE)
    assert tree(release.parent) == sorted(
        [ONE, *(f"{ONE}/{name}" for name in [*files_of(1), "manifest.json", "samples"])]
    )


@pytest.mark.parametrize("missing", ["manifest.json", "labels.txt", "samples/one.bin"])
def test_an_incomplete_folder_is_not_published(store, missing):
    staged = store.incoming(ONE)
    unpack(staged, 1)
    (staged / missing).unlink()

    with pytest.raises(Damaged):
        store.publish(staged, MODEL, ONE)
    assert not store.release(MODEL, ONE).exists()


def test_a_place_to_unpack_is_empty_whatever_was_left_there(store):
    (store.incoming(ONE) / "left").write_bytes(b"")

    assert list(store.incoming(ONE).iterdir()) == []


def test_a_release_that_was_never_published_is_damaged(store):
    with pytest.raises(Damaged, match="no folder"):
        store.verify(MODEL, ONE)


DAMAGE = {
    "a changed byte": lambda release: writable(release / "model.tflite").write_bytes(
        b"X" + files_of(1)["model.tflite"][1:]
    ),
    "emptied": lambda release: writable(release / "labels.txt").write_bytes(b""),
    "missing": lambda release: writable(release / "samples" / "one.bin").unlink(),
    "extra": lambda release: writable(release / "labels.txt").with_name("x").write_bytes(b""),
    "a link": lambda release: writable(release / "labels.txt").with_name("x").symlink_to("y"),
    "a pipe": lambda release: os.mkfifo(writable(release / "labels.txt").with_name("x")),
    "no manifest": lambda release: writable(release / "manifest.json").unlink(),
    "an empty manifest": lambda release: writable(release / "manifest.json").write_bytes(b""),
    "a huge manifest": lambda release: writable(release / "manifest.json").write_bytes(
        b" " * (1 << 21)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_verification_finds_damage(store, damage):
    damage(publish(store, 1))

    with pytest.raises(Damaged):
        store.verify(MODEL, ONE)


def test_a_sector_that_cannot_be_read_is_damage(store, monkeypatch):
    publish(store, 1)

    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("hashlib.file_digest", failing)
    with pytest.raises(Damaged, match="cannot be read"):
        store.verify(MODEL, ONE)


def test_another_refusal_of_the_disk_is_no_damage(store, monkeypatch):
    publish(store, 1)

    def failing(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("hashlib.file_digest", failing)
    with pytest.raises(OSError, match="open files"):
        store.verify(MODEL, ONE)


def test_no_link_means_nothing_is_current(store):
    assert store.current(MODEL) is None


def test_an_activated_release_is_current(store, link):
    publish(store, 1)
    store.activate(MODEL, ONE)

    assert store.current(MODEL) == ONE
    assert str(link.readlink()) == f"../../store/{MODEL}/{ONE}"
    assert (link / "labels.txt").read_bytes() == files_of(1)["labels.txt"]


def test_the_link_moves_to_another_release(store):
    publish(store, 1)
    publish(store, 2)
    for digest in (ONE, TWO, TWO):
        store.activate(MODEL, digest)

    assert store.current(MODEL) == TWO


def test_folders_may_be_reached_through_links(tmp_path):
    """/var/lib/inferd may be a link to a data partition, and so may each folder in it."""
    for name in ("disk-a", "disk-b/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "store").symlink_to("disk-a")
    (tmp_path / "models").symlink_to("disk-b/deep")
    store = Store(tmp_path / "store", tmp_path / "models")
    publish(store, 1)
    store.activate(MODEL, ONE)

    assert store.current(MODEL) == ONE
    assert (tmp_path / "models" / MODEL / "current" / "labels.txt").is_file()


@pytest.mark.parametrize("missing", ["labels.txt", "manifest.json"])
def test_an_incomplete_release_is_not_activated(store, missing):
    publish(store, 1)
    store.activate(MODEL, ONE)
    writable(publish(store, 2) / missing).unlink()

    with pytest.raises(Damaged):
        store.activate(MODEL, TWO)
    assert store.current(MODEL) == ONE


def test_a_release_that_is_not_there_is_not_activated(store):
    with pytest.raises(Damaged):
        store.activate(MODEL, ONE)


def test_a_first_installation_can_be_taken_back(store, link):
    publish(store, 1)
    store.activate(MODEL, ONE)
    store.deactivate(MODEL)
    store.deactivate(MODEL)

    assert store.current(MODEL) is None
    assert not link.is_symlink()


OPERATORS = {
    "a folder": lambda link: link.mkdir(),
    "a file": lambda link: link.write_bytes(b""),
    "a link elsewhere": lambda link: link.symlink_to("/srv/models/mine"),
    "a dangling link": lambda link: link.symlink_to("nowhere"),
    "another model's release": lambda link: link.symlink_to(f"../../store/faces/{ONE}"),
    "what is no release": lambda link: link.symlink_to(f"../../store/{MODEL}/mine"),
}


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
def test_an_operators_current_is_neither_used_nor_replaced(store, link, make):
    publish(store, 1)
    link.parent.mkdir(parents=True)
    make(link)

    assert store.current(MODEL) is None
    with pytest.raises(FileExistsError, match="remove it"):
        store.activate(MODEL, ONE)
    with pytest.raises(FileExistsError, match="remove it"):
        store.deactivate(MODEL)
    assert os.path.lexists(link)


def test_collection_keeps_current_previous_and_candidate(store):
    for version in (1, 2, 3, 4):
        publish(store, version)
    store.activate(MODEL, TWO)
    gone = store.collect({ONE, THREE})

    assert gone == (digest_of(4),)
    assert {held.digest for held in store.held()} == {ONE, TWO, THREE}


def test_collection_never_takes_a_current_release_whatever_it_is_told(store):
    publish(store, 1)
    publish(store, 2, model="faces")
    store.activate(MODEL, ONE)
    store.activate("faces", TWO)

    assert store.collect(()) == ()
    store.verify(MODEL, ONE)
    store.verify("faces", TWO)


def test_collection_spares_what_an_operators_link_names(store, tmp_path):
    publish(store, 1)
    alias = tmp_path / "models" / "alias"
    alias.mkdir(parents=True)
    (alias / "current").symlink_to(f"../../store/{MODEL}/{ONE}")

    assert store.collect(()) == ()


def test_collection_leaves_alone_what_is_not_ours(store, tmp_path):
    publish(store, 1)
    (tmp_path / "store" / "README").write_text("mine")
    (tmp_path / "store" / MODEL / "mine").mkdir()
    store.collect(())

    assert tree(tmp_path / "store") == [".incoming", "README", MODEL, f"{MODEL}/mine"]


def test_a_model_without_releases_leaves_no_folder(store, tmp_path):
    publish(store, 1)
    store.collect(())

    assert tree(tmp_path / "store") == [".incoming"]


def test_a_current_release_cannot_be_discarded(store):
    publish(store, 1)
    store.activate(MODEL, ONE)

    with pytest.raises(RuntimeError, match="is current"):
        store.discard(MODEL, ONE)


def test_discarding_what_is_not_there_is_fine(store):
    store.discard(MODEL, ONE)


def test_what_releases_take_is_known(store):
    publish(store, 1)
    publish(store, 2)
    held = {one.digest: one for one in store.held()}

    assert set(held) == {ONE, TWO}
    assert held[ONE].size_bytes >= sum(map(len, files_of(1).values()))
    assert held[ONE].since <= held[TWO].since


def test_an_empty_store_holds_nothing_and_needs_no_folders(store):
    assert store.held() == ()
    assert store.collect(()) == ()
    assert store.sweep() == ()


def test_sweeping_removes_what_was_cut_off_once(store, tmp_path, link):
    publish(store, 1)
    store.activate(MODEL, ONE)
    before = tree(tmp_path)
    unpack(store.incoming(TWO), 2)
    unpack(tmp_path / "store" / MODEL / f".gone-{THREE}", 3)
    link.with_name(".current.new").symlink_to("nowhere")

    assert len(store.sweep()) == 3
    assert store.sweep() == ()
    assert tree(tmp_path) == before
    store.verify(MODEL, ONE)


def test_sweeping_leaves_hidden_files_of_others_alone(store, tmp_path):
    publish(store, 1)
    store.activate(MODEL, ONE)
    others = [tmp_path / "models" / MODEL / ".mine.new", tmp_path / "store" / MODEL / ".mine"]
    for path in others:
        path.write_text("mine")

    assert store.sweep() == ()
    assert all(path.exists() for path in others)


def test_a_removal_that_was_cut_off_leaves_no_half_release(store):
    publish(store, 1)

    def stop(step, path):
        if step == "unlink" and path.name == "model.tflite":
            raise Cut

    with watched(stop), pytest.raises(Cut):
        store.discard(MODEL, ONE)
    assert not store.release(MODEL, ONE).exists()
    assert len(store.sweep()) == 1


@pytest.mark.parametrize("number", range(REPLACEMENT_STEPS))
def test_a_replacement_of_the_current_release_that_is_cut_off_never_leaves_none(store, number):
    release = publish(store, 1)
    store.activate(MODEL, ONE)
    writable(release / "labels.txt").write_bytes(b"rotten")
    steps = iter(range(number))

    def stop(_step, _path):
        if next(steps, None) is None:
            raise Cut

    with watched(stop), pytest.raises(Cut):
        publish(store, 1)
    store.sweep()

    assert (release / "model.tflite").read_bytes() == files_of(1)["model.tflite"]
    publish(store, 1)
    store.verify(MODEL, ONE)


def test_that_is_every_step_of_a_replacement(store):
    release = publish(store, 1)
    writable(release / "labels.txt").write_bytes(b"rotten")
    taken: list[str] = []
    with watched(lambda step, _path: taken.append(step)):
        publish(store, 1)

    assert len(taken) == REPLACEMENT_STEPS


def test_sweeping_finishes_a_release_that_was_cut_off_before_its_mode(store):
    release = publish(store, 1)
    release.chmod(0o755)
    store.sweep()

    assert mode(release) == 0o555


@pytest.mark.parametrize("model", ["..", "a/b", ".incoming", ""])
def test_a_model_name_leads_nowhere_else(store, model):
    with pytest.raises(ValueError, match="no model name"):
        store.release(model, ONE)
    with pytest.raises(ValueError, match="no model name"):
        store.current(model)


def test_a_digest_leads_nowhere_else(store):
    with pytest.raises(ValueError, match="no sha256"):
        store.release(MODEL, "..")


UNPRIVILEGED = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from support.releases import MODEL, digest_of, unpack
from updater.store import Store
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
root = Path(sys.argv[1])
store = Store(root / "store", root / "models")
for version in (1, 2, 1):
    staged = store.incoming(digest_of(version))
    unpack(staged, version)
    store.publish(staged, MODEL, digest_of(version))
    store.activate(MODEL, digest_of(version))
release = store.release(MODEL, digest_of(2))
(release / "labels.txt").chmod(0o644)
(release / "labels.txt").write_bytes(b"rotten")
staged = store.incoming(digest_of(2))
unpack(staged, 2)
store.publish(staged, MODEL, digest_of(2))
store.verify(MODEL, digest_of(2))
print(store.collect(()) == (digest_of(2),), store.current(MODEL) == digest_of(1))
"""


def test_no_privilege_is_needed_for_read_only_releases(repository):
    """Root may write what is read-only; the service is not root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, folder, repository, repository / "tests"],
            capture_output=True,
            text=True,
            check=False,
        )

    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_whether_a_link_may_be_turned_can_be_asked_before(tmp_path):
    store = Store(tmp_path / "store", tmp_path / "models")
    store.check_link("digits")
    (tmp_path / "models/digits/current").mkdir(parents=True)

    with pytest.raises(FileExistsError, match="does not lead into the store"):
        store.check_link("digits")
