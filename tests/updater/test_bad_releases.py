"""Bad models are turned back from, and nobody who asks notices more than they must.

Whatever is wrong with a release: within its bound the version before is back, the bad one is in
quarantine with a reason that names the fault, and is not tried again. All the while a client asks
without a pause.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import msgspec
import pytest
from support import tflite_builder
from support.box import MODEL, SAMPLES, npy, running_box
from support.daemon import Keeper

from updater.manifest import Probation
from updater.state import MAX_TRIES, State

OLD = tflite_builder.slow(5000)
"""Version 1: y = 2 * x in half a millisecond, so that there is something to compare with."""
USUAL, UNUSUAL = 1.0, 10.0
"""What clients ask: within what the bad releases are good for, and beyond."""
PROBATION = Probation(min_requests=400, min_s=30.0, max_s=300.0, max_latency_ratio=2.5)
THREAD = '[placement]\nisolation = "thread"\n'
GOOD_SAMPLE = {"x_npy": npy(1, 1, 1, 1), "y_npy": npy(5, 5, 5, 5)}


@pytest.fixture
def box(tmp_path):
    with running_box(tmp_path) as box:
        box.publisher.ship(1, OLD)
        box.settle()
        yield box


@dataclass(frozen=True)
class Bad:
    """A release, and what must be said of it."""

    model: bytes
    reason: str
    tables: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    probation: Probation = PROBATION


FOUND_BY_THE_PROBE = {
    "is no model": Bad(b"\x1c\x00\x00\x00TFL3 and nothing else", "Flatbuffer"),
    "crashes at load": Bad(tflite_builder.falls_without_end(), "SIGSEGV"),
    "crashes at load, in a thread": Bad(tflite_builder.falls_without_end(), "SIGSEGV", THREAD),
    "crashes at its second call": Bad(tflite_builder.kills_at_call(2), "SIGSEGV"),
    "hangs at the first call": Bad(
        tflite_builder.hangs_while_at_most(0.0),
        "longer than 0.5 s|the deadline passed",
        "[limits]\ntimeout_ms = 500\n",
    ),
    "answers wrongly": Bad(
        tflite_builder.scale(4.0, batch=1), "'y' differs by 1", SAMPLES, GOOD_SAMPLE
    ),
    "answers its samples with NaN": Bad(
        tflite_builder.scale(float("nan"), batch=1), "NaN or infinity"
    ),
    "takes more memory than it says": Bad(
        tflite_builder.hog(64), "MiB, allowed are 8", "[health]\nmax_memory_mib = 8\n"
    ),
    "is slower than it says": Bad(
        tflite_builder.slow(100_000), "ms, allowed are 1 ms", "[health]\nmax_latency_ms = 1\n"
    ),
}


@pytest.mark.parametrize("bad", FOUND_BY_THE_PROBE.values(), ids=FOUND_BY_THE_PROBE)
def test_what_the_probe_finds_never_answers_anybody(box, bad):
    box.publisher.ship(2, bad.model, bad.tables, **bad.files)

    with box.asked() as client:
        box.settle()
        client.wait_for_answers(20)

    assert set(client.answers) == {(1, 2.0)}
    assert (client.refusals, client.lost, box.daemon.lives) == ([], [], 1)
    assert_is_out_for_good(box, bad.reason, tries=0)


FOUND_BY_REAL_TRAFFIC = {
    "leaks": Bad(
        tflite_builder.leaks(8, factor=5.0),
        "worker died",
        "[limits]\nmemory_mib = 256",
        probation=msgspec.structs.replace(PROBATION, max_latency_ratio=1000.0),
    ),
    "crashes": Bad(tflite_builder.kills_above(5.0, factor=5.0), "worker died"),
    "hangs": Bad(
        tflite_builder.hangs_above(5.0, factor=5.0), "worker died", "[limits]\ntimeout_ms = 500"
    ),
    "fails": Bad(tflite_builder.fails_above(5.0, factor=5.0), "of its requests failed"),
}


@pytest.mark.parametrize("bad", FOUND_BY_REAL_TRAFFIC.values(), ids=FOUND_BY_REAL_TRAFFIC)
def test_what_fails_on_real_traffic_is_turned_back_from(box, bad):
    """Whoever asks it meanwhile is told that it has failed; nobody gets a wrong answer."""
    ship_with_good_samples(box, bad)

    with box.asked(UNUSUAL) as client:
        box.settle(client)
        client.wait_for_answers(20)

    assert set(client.answers) <= {(1, 20.0), (2, 50.0)}
    assert (client.lost, box.daemon.lives) == ([], 1)
    assert_is_out_for_good(box, bad.reason, tries=1)
    assert box.ask(20, UNUSUAL) == [20.0] * 20


def test_good_samples_but_nan_on_real_traffic(box):
    bad = Bad(tflite_builder.not_a_number_above(5.0, factor=5.0), "NaN or infinity")
    ship_with_good_samples(box, bad)

    with box.asked(UNUSUAL) as client:
        box.settle(client)
        client.wait_for_answers(20)

    assert set(client.answers) == {(1, 20.0), (2, "NaN")}
    assert (client.refusals, client.lost) == ([], [])
    assert_is_out_for_good(box, bad.reason, tries=1)
    assert box.ask(20, UNUSUAL) == [20.0] * 20


def test_right_answers_but_five_times_slower(box):
    bad = Bad(tflite_builder.slow(25_000, factor=5.0), "times the .* ms of the version before")
    ship_with_good_samples(box, bad)

    with box.asked() as client:
        client.wait_for_answers(200)  # of the version before: what it is compared with
        box.settle(client)
        client.wait_for_answers(20)

    assert set(client.answers) == {(1, 2.0), (2, 5.0)}
    assert (client.refusals, client.lost) == ([], [])
    assert_is_out_for_good(box, bad.reason, tries=1)


class TestKillsTheDaemon:
    """In a thread of the daemon a crash is the daemon's; systemd starts it again.

    While it is dead nobody can be answered. That is all that is lost.
    """

    def test_at_a_call(self, box):
        bad = Bad(tflite_builder.kills_at_call(60, factor=5.0), "the daemon died", THREAD)
        ship_with_good_samples(box, bad)

        with Keeper(box.daemon) as keeper, box.asked() as client:
            box.settle(client)
            keeper.wait_until_ready()
            client.wait_for_answers(20)

        assert set(client.answers) == {(1, 2.0), (2, 5.0)}
        assert (client.refusals, client.lost) == ([], [])
        assert_is_out_for_good(box, bad.reason, tries=MAX_TRIES)

    def test_before_it_can_say_anything(self, box):
        """Each life on the candidate ends as soon as it has begun, as by the OOM killer."""
        bad = Bad(tflite_builder.scale(5.0, batch=1), "the daemon died", THREAD)
        ship_with_good_samples(box, bad)
        box.run(until=State.TRYING)
        box.daemon.kill()
        keeper = Keeper(box.daemon, may_live=lambda: box.current == 1 or not has_begun(box))

        with keeper, box.asked() as client:
            box.run(until=State.IDLE)
            keeper.wait_until_ready()
            client.wait_for_answers(20)

        assert set(client.answers) <= {(1, 2.0), (2, 5.0)}
        assert (client.refusals, client.lost) == ([], [])
        assert_is_out_for_good(box, bad.reason, tries=MAX_TRIES)

    def test_so_that_it_never_comes_back(self, box):
        """Not even far enough to leave its mark: silence alone tells."""
        bad = Bad(tflite_builder.scale(5.0, batch=1), "did not come back", THREAD)
        ship_with_good_samples(box, bad)
        box.start(daemon_grace_s=1.0)
        box.run(until=State.TRYING)
        box.daemon.kill()

        box.run(until=State.IDLE)

        assert_is_out_for_good(box, bad.reason, tries=MAX_TRIES, serves=False)
        box.daemon.start()
        assert box.ask(20) == [2.0] * 20


def ship_with_good_samples(box, bad):
    tables = bad.tables + "\n" + SAMPLES
    box.publisher.ship(2, bad.model, tables, probation=bad.probation, **GOOD_SAMPLE)


def has_begun(box):
    """Whether the daemon's present life has left its mark."""
    mark = json.loads((box.root / "run/inferd/daemon.json").read_bytes())
    return mark["pid"] == box.daemon.process.pid


def assert_is_out_for_good(box, reason, *, tries, serves=True):
    """Version 1 is back, version 2 in quarantine for this reason, and is not tried once more."""
    (case,) = box.quarantine.entries()
    events = [line.event for line in box.history.read(limit=1000) if line.event.get("version") == 2]
    times = {line.event["event"]: line.time for line in box.history.read(limit=1000)}

    assert (case.model, case.version, case.failures) == (MODEL, 2, 1)
    assert re.search(reason, case.reason), case.reason
    assert sum(str(event["event"]).startswith("try begins") for event in events) == tries
    assert "commit" not in [event["event"] for event in events]
    assert times["roll_back"] - times.get("watch", times["roll_back"]) <= PROBATION.max_s
    assert box.current == 1
    assert "has failed here before" in box.step().waiting_for
    assert box.state is State.IDLE
    assert box.history.verify().broken is None
    if serves:
        assert box.ask(20) == [2.0] * 20
