"""Whatever the network makes of a bundle, the update waits, and goes on when it is better.

No bundle is condemned for what somebody else has sent in its place.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from support import badproxy
from support.fleet import START, Fleet
from support.peerbox import PeerBox
from support.webfolder import serving_folder

from updater.bundle import build_bundle
from updater.fetch import Limits
from updater.manifest import Manifest, Probation
from updater.state import State
from updater.target import facts_of

MODEL = "digits"
HTML = b"<!DOCTYPE html><html><body>Please accept our terms to go online</body></html>"
IMPATIENT = Limits(least_rate_bytes_s=1e6, rate_window_s=0.3)
LENGTH = 300_000
"""Of the model: a bundle is a little longer."""


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path / "fleet")
    bundle = tmp_path / "digits-1.bundle"
    draft = Manifest(
        name=MODEL,
        version=1,
        release_counter=1,
        runtime="litert>=2",
        probation=Probation(min_requests=0, min_s=0.0, max_s=60.0),
    )
    manifest = build_bundle({"model.tflite": b"digits" * (LENGTH // 6)}, bundle, draft)
    fleet.repository.add([(bundle, facts_of(manifest))])
    fleet.assign(MODEL, 1)
    return fleet


@pytest.fixture
def box(fleet):
    # A unix socket's path may have 107 characters, which a test's own folder exceeds.
    root = Path(tempfile.mkdtemp(prefix="inferd-"))
    box = PeerBox(root / "box", fleet.anchor, fleet.path, now=START, limits=IMPATIENT)
    box.boot()
    box.look()
    yield box
    box.close()
    shutil.rmtree(root)


@pytest.fixture
def server(fleet):
    with serving_folder(fleet.path) as url:
        yield url


WRONG_RANGE = badproxy.answer(
    "206 Partial Content", "Content-Range: bytes 5-8/9", "Content-Length: 4", body=b"what"
)
FAULTS = {
    "cuts": badproxy.cut(100_000),
    "resets": badproxy.reset(100_000),
    "stalls": badproxy.stall(100_000),
    "never answers": badproxy.silent,
    "drips": badproxy.drip(
        badproxy.response("200 OK", f"Content-Length: {LENGTH}"), b"x" * 1000, every_s=0.05
    ),
    "500": badproxy.answer("500 Internal Server Error", "Content-Length: 0"),
    "404": badproxy.answer("404 Not Found", "Content-Length: 0"),
    "416": badproxy.answer("416 Range Not Satisfiable", "Content-Length: 0"),
    "a wrong range": WRONG_RANGE,
    "a captive portal": badproxy.answer(
        "200 OK", "Content-Type: text/html", f"Content-Length: {len(HTML)}", body=HTML
    ),
    "without end": badproxy.endless("200 OK", chunk=bytes(65536)),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_it_waits_and_goes_on_later(box, server, fault):
    with badproxy.bad_proxy(server, fault) as proxy:
        box.bytes_from = proxy.url
        failed = step_until_failure(box)
        assert box.journal.load(MODEL).state is State.DOWNLOADING
        assert failed.waiting_for
        arrive(box)

    assert_is_installed(box)


def test_a_server_that_asks_for_patience_is_heard(box, server):
    later = badproxy.answer("429 Too Many Requests", "Retry-After: 77", "Content-Length: 0")
    with badproxy.bad_proxy(server, later) as proxy:
        box.bytes_from = proxy.url
        assert step_until_failure(box).retry_after_s == 77
        arrive(box)

    assert_is_installed(box)


def test_what_has_arrived_is_not_fetched_again(box, server):
    with badproxy.bad_proxy(server, badproxy.cut(100_000), badproxy.cut(50_000)) as proxy:
        box.bytes_from = proxy.url
        step_until_failure(box)
        box.stop_updater()
        box.start_updater()  # nor by another life of the updater
        step_until_failure(box)
        arrive(box)

    assert [each.range_start for each in proxy.connections] == [None, 100_000, 150_000]
    assert_is_installed(box)


@pytest.mark.parametrize("make", [lambda good: bytes(len(good)), lambda good: good[:-1] + b"!"])
def test_other_bytes_are_no_fault_of_the_bundle(box, fleet, tmp_path, make):
    other = tmp_path / "other"
    shutil.copytree(fleet.path, other)
    (bundle,) = other.rglob("*.bundle")
    bundle.write_bytes(make(bundle.read_bytes()))
    box.bytes_from = str(other)

    failed = step_until_failure(box)
    assert "not what was signed" in failed.waiting_for
    assert not box.quarantine.entries()
    box.bytes_from = None
    arrive(box)

    assert_is_installed(box)


def step_until_failure(box):
    """Take steps until one has failed."""
    for _ in range(20):
        _, _, step, _ = box.step(MODEL)
        if step.failed:
            return step
    raise AssertionError("nothing fails")


def arrive(box):
    """Take the steps of an update."""
    for _ in range(20):
        box.step(MODEL)


def assert_is_installed(box):
    assert box.files(MODEL) == {"model.tflite": b"digits" * (LENGTH // 6)}
    assert box.journal.load(MODEL).state is State.IDLE
    assert not box.quarantine.entries()
    assert not list(box.leftovers())
