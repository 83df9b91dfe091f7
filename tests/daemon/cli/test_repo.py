"""`inferctl repo`, as a publisher types it."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING

import pytest
from support.inferctl import inferctl, run_python
from support.terminal import inferctl_at_terminal

from updater.bundle import build_bundle
from updater.manifest import Manifest
from updater.trust import Trust

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from updater.view import View

PASSPHRASE = "correct horse battery staple"  # noqa: S105 (of keys that live for a test)


class Publisher:
    """A person with a repository and keys in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repo = folder / "repo"
        self.keys = folder / "keys"

    def run(self, action: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        keys = () if action == "status" else ("--keys", self.keys)
        return inferctl(
            "repo", action, self.repo, *arguments, *keys, INFERD_KEY_PASSPHRASE=PASSPHRASE
        )

    def done(self, action: str, *arguments: str | Path) -> str:
        done = self.run(action, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def bundle(self, version: int = 1) -> Path:
        path = self.folder / f"digits-{version}.bundle"
        draft = Manifest(name="digits", version=version, release_counter=version)
        build_bundle({"model.tflite": f"model {version}".encode()}, path, draft)
        return path

    def seen(self, source: Path | None = None) -> View:
        """By a device that is new."""
        anchor = (self.repo / "metadata" / "1.root.json").read_bytes()
        state = self.folder / f"device-{time.monotonic_ns()}"
        state.mkdir()
        return Trust(state, anchor, clock=time.time).refresh(str(source or self.repo))


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    publisher = Publisher(tmp_path)
    publisher.done("init")
    return publisher


class TestStory:
    def test_from_nothing_to_a_device_that_shall_serve_it(self, tmp_path):
        publisher = Publisher(tmp_path)

        made = publisher.done("init")
        added = publisher.done("add", publisher.bundle())
        assigned = publisher.done("assign", "digits=1", "--labels", "ring=canary")

        assert f"Devices trust it with {publisher.repo / 'metadata' / '1.root.json'}" in made
        assert added == "signed: models-main 2, snapshot 2, timestamp 2\n"
        assert "digits=1 for devices with ring=canary (r2)" in assigned
        view = publisher.seen()
        assert view.find("digits", 1).facts.release_counter == 1
        assert view.desired.groups[0].match == {"ring": "canary"}

    def test_options_may_stand_anywhere(self, publisher):
        publisher.done("add", publisher.bundle())

        done = inferctl(
            "repo", "assign", "--keys", publisher.keys, publisher.repo, "--percent", "12.5",
            "digits=1", INFERD_KEY_PASSPHRASE=PASSPHRASE,
        )  # fmt: skip

        assert done.returncode == 0, done.stderr
        assert publisher.seen().desired.groups[0].percent == 12.5

    def test_windows_floors_and_blocked_digests(self, publisher):
        publisher.done(
            "assign", "--window", "mon-fri 22:00-04:00", "--floor", "digits=2", "--block", "a" * 64
        )

        desired = publisher.seen().desired
        assert (desired.windows[0].start, desired.floors, desired.blocked) == (
            "22:00",
            {"digits": 2},
            ("a" * 64,),
        )
        publisher.done("assign", "--window", "always", "--unblock", "a" * 64)
        assert publisher.seen().desired.windows == publisher.seen().desired.blocked == ()

    def test_a_floor_that_no_online_key_can_lower(self, publisher):
        publisher.done("add", publisher.bundle(2), "--floor", "digits=2")
        publisher.done("assign", "digits=2")

        assert publisher.seen().floors == {"digits": 2}

    def test_the_hosts_daily_refresh(self, publisher):
        assert publisher.done("refresh", "--life", "36h") == "signed: timestamp 2\n"

        left_s = publisher.seen().expires["timestamp"] - time.time()
        assert 35 * 3600 < left_s <= 36 * 3600

    def test_a_stick(self, publisher, tmp_path):
        publisher.done("add", publisher.bundle())
        publisher.done("assign", "digits=1")

        said = publisher.done("export", "--out", tmp_path / "usb", "--life", "90d")

        assert "digits/digits-1.bundle" in said
        assert "Devices believe it until" in said
        left_d = (publisher.seen(tmp_path / "usb").expires["timestamp"] - time.time()) / 86400
        assert 89 < left_d <= 90

    def test_a_stolen_host(self, publisher):
        publisher.done("rotate", "timestamp", "snapshot", "fleet")

        view = publisher.seen()
        assert set(view.roles["timestamp"].signers.values()) == {"timestamp-2"}

    def test_a_lost_root_key_and_more_of_another(self, publisher):
        publisher.done("rotate", "root", "--revoke", "root-2")
        publisher.done("rotate", "targets", "--keep", "--quorum", "2/3")

        view = publisher.seen()
        assert set(view.roles["root"].signers.values()) == {"root-1", "root-3", "root-4"}
        assert len(view.roles["targets"].signers) == 3

    def test_teams_and_quorums(self, tmp_path):
        publisher = Publisher(tmp_path)
        publisher.done(
            "init", "--team", "vision=vision-*,digits", "--team", "main=*", "--quorum", "root=1/1"
        )

        publisher.done("add", publisher.bundle())
        publisher.done("assign", "digits=1")

        view = publisher.seen()
        assert view.find("digits", 1).role == "models-vision"
        assert set(view.roles["root"].signers.values()) == {"root-1"}


class TestMachines:
    def test_what_is_signed_without_online_keys_waits(self, publisher):
        (publisher.keys / "online").rename(publisher.folder / "online")

        said = publisher.done("add", publisher.bundle())

        assert "devices do not see it yet" in said
        host = inferctl(
            "repo", "refresh", publisher.repo, "--keys", publisher.folder / "online",
            INFERD_KEY_PASSPHRASE=PASSPHRASE,
        )  # fmt: skip
        assert host.stdout == "signed: snapshot 2, timestamp 2\n"


class TestStatus:
    def test_it_says_what_expires_when_and_who_holds_what(self, publisher):
        (publisher.keys / "offline" / "root-2.pem").unlink()

        said = publisher.done("status", "--keys", publisher.keys)

        root = next(line for line in said.splitlines() if line.startswith("root"))
        assert "in 365 d" in root
        assert "2 of 3, offline" in root
        assert "root-2: not here" in root
        assert f"root-1: {publisher.keys / 'offline' / 'root-1.pem'}" in root

    def test_it_lists_what_is_signed(self, publisher):
        bundle = publisher.bundle(2)
        publisher.done("add", bundle, "--floor", "digits=1")

        said = publisher.done("status")

        line = next(line for line in said.splitlines() if line.startswith("digits=2"))
        assert "2, floor 1" in line
        assert line.endswith(hashlib.sha256(bundle.read_bytes()).hexdigest())

    def test_for_programs(self, publisher):
        publisher.done("add", publisher.bundle())

        document = json.loads(publisher.done("status", "--json"))

        assert [bundle["role"] for bundle in document["bundles"]] == ["models-main"]
        assert document["desired"]["serial"] == 1
        assert {role["role"]: role["threshold"] for role in document["roles"]} == {
            "root": 2, "targets": 1, "snapshot": 1, "timestamp": 1, "fleet": 1, "models-main": 1,
        }  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["init"], "there is a repository already"),
            (["assign", "digits=9"], "nobody has signed digits version 9"),
            (["assign", "digits=1", "--percent", "0"], "is not assigned to these devices"),
            (["assign", "--unblock", "a" * 64], "not blocked"),
            (["rotate", "rot"], "'rot': expected one of root"),
            (["export", "--out", "/dev/null/x"], "/dev/null"),
            (["add", "/nowhere/digits-1.bundle"], "/nowhere/digits-1.bundle"),
        ],
    )
    def test_what_is_refused_is_said_in_a_line(self, arguments, said, publisher):
        done = publisher.run(*arguments)

        assert done.returncode == 1
        assert done.stderr.startswith("inferctl repo: ")
        assert said in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ["add"],
            ["assign"],
            ["assign", "digits"],
            ["assign", "digits=0"],
            ["assign", "digits=1", "digits=2"],
            ["assign", "digits=1", "--percent", "101"],
            ["assign", "digits=1", "--percent", "0.001"],
            ["assign", "digits=1", "--labels", "ring"],
            ["assign", "--block", "abc"],
            ["assign", "--window", "tomorrow"],
            ["rotate"],
            ["rotate", "root", "--revoke", "root-1", "--keep"],
            ["rotate", "root", "--quorum", "two"],
            ["export"],
            ["refresh", "--life", "soon"],
            ["publish"],
        ],
    )
    def test_what_nobody_can_follow_is_a_usage_error(self, arguments, publisher):
        done = publisher.run(*arguments)

        assert done.returncode == 2
        assert done.stderr.startswith("usage: inferctl repo")

    def test_something_that_is_no_bundle_is_not_signed(self, publisher, tmp_path):
        (tmp_path / "broken.bundle").write_bytes(publisher.bundle().read_bytes()[:-600])

        assert publisher.run("add", tmp_path / "broken.bundle").returncode == 1

    def test_a_repository_that_is_not_there_is_not_made(self, publisher):
        publisher.repo = publisher.folder / "typo"

        done = publisher.run("refresh")

        assert (done.returncode, publisher.repo.exists()) == (1, False)
        assert "no repository is here" in done.stderr


class TestPassphrases:
    def test_from_a_file(self, tmp_path):
        file = tmp_path / "passphrase"
        file.write_text(f"{PASSPHRASE}\nnot this line\n")

        made = inferctl(
            "repo", "init", tmp_path / "repo", "--keys", tmp_path / "keys", "--passphrase-file",
            file,
        )  # fmt: skip

        assert made.returncode == 0, made.stderr
        publisher = Publisher(tmp_path)
        assert publisher.done("refresh") == "signed: timestamp 2\n"

    def test_from_the_person_at_the_keyboard_one_for_each_kind_of_key(self, tmp_path):
        publisher = Publisher(tmp_path)
        offline, online = "offline battery staple", "online battery staple"

        code, screen = inferctl_at_terminal(
            "repo", "init", publisher.repo, "--keys", publisher.keys,
            answers=[offline, offline, online, online],
        )  # fmt: skip

        assert code == 0, screen
        assert "new passphrase for the offline keys: " in screen
        assert "staple" not in screen
        code, screen = inferctl_at_terminal(
            "repo", "refresh", publisher.repo, "--keys", publisher.keys,
            answers=["a typing mistake", online],
        )  # fmt: skip
        assert (code, "signed: timestamp 2" in screen) == (0, True), screen

    def test_two_that_differ_are_a_typing_mistake(self, tmp_path):
        code, screen = inferctl_at_terminal(
            "repo", "init", tmp_path / "repo", "--keys", tmp_path / "keys",
            answers=["correct horse battery", "correct horse batterie"],
        )  # fmt: skip

        assert (code, "the two passphrases differ" in screen) == (1, True)
        assert not list(tmp_path.rglob("*.pem"))

    @pytest.mark.parametrize("given", ["", "too short"])
    def test_none_or_a_short_one_makes_nothing(self, given, tmp_path):
        done = inferctl(
            "repo", "init", tmp_path / "repo", "--keys", tmp_path / "keys",
            INFERD_KEY_PASSPHRASE=given,
        )  # fmt: skip

        assert done.returncode == 1
        assert "passphrase" in done.stderr
        assert not list(tmp_path.rglob("*.pem"))

    def test_a_wrong_one_is_said_and_not_shown(self, publisher):
        done = inferctl(
            "repo", "refresh", publisher.repo, "--keys", publisher.keys,
            INFERD_KEY_PASSPHRASE="a wrong passphrase",  # noqa: S106
        )  # fmt: skip

        assert done.returncode == 1
        assert "no passphrase that fits" in done.stderr
        assert "a wrong passphrase" not in done.stdout + done.stderr

    @pytest.mark.parametrize("content", [None, b"", b"\n"])
    def test_a_file_without_one_is_said_so(self, content, publisher, tmp_path):
        file = tmp_path / "passphrase"
        if content is not None:
            file.write_bytes(content)

        done = publisher.run("refresh", "--passphrase-file", file)

        assert done.returncode == 1
        assert str(file) in done.stderr


def test_no_other_verb_waits_for_the_publishers_libraries():
    program = (
        "import sys; from daemon.cli.main import main; from daemon.cli.arguments import parse; "
        "parse(['repo', 'status', 'x']); "
        "assert not {'tuf', 'securesystemslib', 'cryptography', 'msgspec'} & set(sys.modules)"
    )

    done = run_python(program)

    assert done.returncode == 0, done.stderr
