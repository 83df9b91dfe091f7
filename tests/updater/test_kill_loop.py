"""Kills at random moments while versions are shipped, under load: nothing is ever wrong, or lost.

Both services are real processes and end by SIGKILL, again and again, at moments that nobody has
chosen: an update is timed once, then cut at any point of that time. `KILL_LOOP_SEED` makes the
same moments again; `KILL_LOOP_KILLS` makes more of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support import tflite_builder
from support.box import MODEL, asking
from support.daemon import Keeper
from support.servicebox import running_services, wait_until

from daemon.cli.outcome import Unreachable
from updater.history import History
from updater.manifest import Probation
from updater.store import Store

if TYPE_CHECKING:
    from support.box import Client
    from support.servicebox import ServiceBox

SEED = int(os.environ.get("KILL_LOOP_SEED", random.randrange(10**9)))
KILLS = int(os.environ.get("KILL_LOOP_KILLS", "5"))
"""Of each version."""
SHORT = Probation(min_requests=30, min_s=0.5, max_s=5.0)
SETTLED_S = 90
LONGEST_S = 2.5
"""That is worked before a kill: on a busy machine, kills come early."""
BAD = 3
"""The version that answers with NaN, and so never answers anybody but its probe."""
VERSIONS = (2, BAD, 4)


@pytest.fixture
def box(tmp_path):
    with running_services(tmp_path) as box:
        yield box


@pytest.fixture
def chance():
    print(f"KILL_LOOP_SEED={SEED}")  # noqa: T201 (shown when the test fails)
    return random.Random(SEED)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_updater_is_killed_again_and_again(box, chance):
    usual_s = time_an_update(box)
    with asking(box.daemon) as client:
        client.wait_for_answers(30)
        for version in VERSIONS:
            ship(box, version)
            for _ in range(KILLS):
                box.kill()
                box.spawn()
                work_for(box, chance.uniform(0, usual_s))
            settle(box, version)
        client.wait_for_answers(30)

    assert (client.refusals, client.lost, box.daemon.lives) == ([], [], 1)
    assert_all_is_well(box, client)
    assert [case["version"] for case in box.updater.quarantine()["bundles"]] == [BAD]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_daemon_is_killed_again_and_again(box, chance):
    """Two deaths on a candidate are held against it, rightly or not; an operator clears it then."""
    usual_s = time_an_update(box)
    with asking(box.daemon) as client, Keeper(box.daemon) as keeper:
        client.wait_for_answers(30)
        for version in VERSIONS:
            ship(box, version)
            for _ in range(KILLS):
                work_for(box, chance.uniform(0, usual_s))
                box.daemon.kill()
            keeper.wait_until_ready()
            settle(box, version)
        client.wait_for_answers(30)

    assert (client.refusals, client.lost) == ([], [])
    assert_all_is_well(box, client)


def ship(box: ServiceBox, version: int) -> None:
    """A version that makes x times its number of x."""
    factor = float("nan") if version == BAD else float(version)
    model = tflite_builder.scale(factor, batch=1)
    box.publisher.ship(version, model, probation=SHORT)


def time_an_update(box: ServiceBox) -> float:
    """Bring the first version in; the seconds that takes from the start of an updater, or fewer."""
    ship(box, 1)
    box.kill()
    began = time.monotonic()
    box.spawn()
    settle(box, 1)
    return min(time.monotonic() - began, LONGEST_S)


def work_for(box: ServiceBox, seconds: float) -> None:
    """Let it look as soon as it listens, and be at work until the time is over."""
    end = time.monotonic() + seconds
    has_heard = False
    while time.monotonic() < end:
        with contextlib.suppress(Unreachable):
            if not has_heard:
                box.updater.refresh()
                has_heard = True
        threading.Event().wait(0.01)


def settle(box: ServiceBox, version: int) -> None:
    """Leave both in peace until the version is served, or known for what it is."""
    wait_until(box.answers)
    deadline = time.monotonic() + SETTLED_S
    while not is_settled(box, version):
        assert time.monotonic() < deadline, f"{box.model()}\n{box.log[-4000:]}"
        for case in box.updater.quarantine()["bundles"]:
            if case["version"] != BAD:
                box.updater.clear(case["digest"])
        box.updater.refresh()
        threading.Event().wait(0.1)


def is_settled(box: ServiceBox, version: int) -> bool:
    states = {each["model"]: each for each in box.updater.status()["models"]}
    model = states.get(MODEL)
    if model is None or model["state"] != "idle":
        return False
    if version == BAD:
        return version in [case["version"] for case in box.updater.quarantine()["bundles"]]
    return model["current_version"] == version


def assert_all_is_well(box: ServiceBox, client: Client) -> None:
    """Every answer was right; what is left on the disk is what is needed, and whole."""
    assert set(client.answers) <= {(version, float(version)) for version in (1, *VERSIONS)}
    assert BAD not in client.versions
    assert {1, VERSIONS[-1]} <= client.versions
    state = box.root / "var/lib/inferd-updater"
    store = Store(box.root / "var/lib/inferd/store", box.root / "var/lib/inferd/models")
    assert History(state / "history.jsonl").verify().broken is None
    assert not list((state / "staging").iterdir())
    held = {release.digest for release in store.held()}
    assert len(held) <= 2, "current and the one before"
    for digest in held:
        store.verify(MODEL, digest)
    assert store.current(MODEL) in held
