"""A signed update swaps a model on an installed box, and a bad one does not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from support import tflite_builder
from support.inferctl import inferctl
from support.machine import Machine

PASSPHRASE = "correct horse battery staple"  # noqa: S105 (of keys that live for a test)
SOURCE = '[updates]\nsource = "http://127.0.0.1:8000/fleet"\npoll_interval_s = 1\n'
SAMPLE = '\n[[health.samples]]\ninput = "samples/x.npy"\noutputs = { y = "samples/y.npy" }\n'


class Fleet:
    """A repository in /drop/fleet."""

    def __init__(self, folder):
        self.folder = folder
        self.repository = folder / "drop/fleet"
        self.repository.parent.mkdir()
        self.run("repo", "init", self.repository)

    def run(self, *arguments):
        keys = ("--keys", self.folder / "keys") if arguments[0] == "repo" else ()
        done = inferctl(*arguments, *keys, INFERD_KEY_PASSPHRASE=PASSPHRASE)
        assert done.returncode == 0, done.stderr

    def ship(self, version: int, factor: float, *, sample_factor: float | None = None) -> None:
        """Publish a version that multiplies by `factor`, and says it does by the other one."""
        model = self.folder / f"double-{version}"
        (model / "samples").mkdir(parents=True)
        (model / "model.tflite").write_bytes(tflite_builder.scale(factor, batch=1))
        identity = f'[model]\nname = "double"\nversion = {version}\n'
        (model / "model.toml").write_text(identity + SAMPLE)
        (model / "samples/x.npy").write_bytes(npy(1.0))
        (model / "samples/y.npy").write_bytes(npy(sample_factor or factor))
        bundle = self.folder / f"double-{version}.bundle"
        short = ("--min-requests", "1", "--min-seconds", "1", "--max-seconds", "2")
        self.run("bundle", "build", model, "-o", bundle, *short)
        self.run("repo", "add", self.repository, bundle)
        self.run("repo", "assign", self.repository, f"double={version}")


def npy(value: float) -> bytes:
    file = io.BytesIO()
    np.save(file, np.full((1, 4), value, np.float32))
    return file.getvalue()


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


@pytest.fixture
def box(installed, fleet):
    """An installed box that belongs to the fleet."""
    with Machine(installed, binds={"/drop": fleet.folder / "drop"}).running() as box:
        serve = ("--unit=files", "python3", "-m", "http.server", "8000", "--bind", "127.0.0.1")
        box.run("systemd-run", "--quiet", *serve, "--directory", "/drop")
        box.wait_for("curl -sf http://127.0.0.1:8000/ >/dev/null")
        box.sh("cp /drop/fleet/metadata/1.root.json /etc/inferd/root.json")
        box.write("/etc/inferd/conf.d/updates.toml", SOURCE)
        box.run("systemctl", "restart", "inferd-updater")
        yield box


def test_a_signed_version_arrives_takes_over_and_a_bad_one_is_kept_out(box, fleet):
    fleet.ship(1, 2.0)
    box.wait_for("inferctl history --model double | grep -q ' kept '", timeout_s=120)
    assert box.predict("double", 1, 2, 3, 4) == [2, 4, 6, 8]

    fleet.ship(2, 5.0)
    box.wait_for("test $(inferctl history --model double | grep -c ' kept ') -ge 2", timeout_s=120)
    assert box.predict("double", 1, 2, 3, 4) == [5, 10, 15, 20]

    fleet.ship(3, 7.0, sample_factor=8.0)
    box.wait_for("inferctl quarantine list | grep -q double", timeout_s=120)
    assert box.predict("double", 1, 2, 3, 4) == [5, 10, 15, 20]
    box.run("inferctl", "history", "--verify")
    owners = box.sh("stat -c %U /var/lib/inferd/store/double/*")
    assert set(owners.splitlines()) == {"inferd-updater"}


def test_after_a_reboot_the_current_version_serves(box, fleet):
    """The link and the release are all it takes: nobody asks the network."""
    fleet.ship(1, 2.0)
    box.wait_for("inferctl history --model double | grep -q ' kept '", timeout_s=120)
    box.run("systemctl", "stop", "files", "inferd", "inferd-updater", "inferd.socket")

    box.run("systemctl", "start", "inferd.socket", "inferd")

    assert box.predict("double", 1, 2, 3, 4) == [2, 4, 6, 8]
