"""A device that comes and goes under load costs no answer, leaves nothing and is told of."""

from __future__ import annotations

import os
import random
import time

import psutil
import pytest
from support.daemon import daemon_process, free_port, wait_settled
from support.devicebox import (
    DEVICE,
    FACTORS,
    HttpAsker,
    MqttAsker,
    Node,
    Watcher,
    chaos_seconds,
    device_tables,
    kill_device_process,
    possessions,
    write_models,
)
from support.eventually import eventually_true
from support.mosquitto import running_broker

SETTLE_S = 90
"""Far above what anything takes; a CPU worker is kept for half a minute after it was needed."""

GROWTH_BYTES = 32 << 20
"""Of the daemon's own memory: thousands of answers' worth, below what a leaked worker takes."""

POOL_THREADS = (os.cpu_count() or 1) + 4
"""That Python's pool for blocking work may start, when first needed, and keeps."""


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path / "dev-sim0")
    node.plug_in()
    return node


@pytest.fixture
def broker(tmp_path):
    with running_broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def daemon(tmp_path, standin, node, broker):
    """A daemon with two models that share the device, both on it."""
    with daemon_process(
        write_models(tmp_path / "models"),
        root=tmp_path,
        port=free_port(),
        accelerators=device_tables(standin, node, tmp_path / "lock"),
        mqtt={"url": broker.url},
    ) as daemon:
        wait_settled(daemon.url, models=FACTORS)
        yield daemon


@pytest.fixture
def watcher(daemon, broker):
    watcher = Watcher(daemon.url, broker.port)
    yield watcher
    watcher.close()


@pytest.fixture
def askers(daemon, broker):
    """Clients that ask all the time."""
    askers = [
        HttpAsker("http-1", daemon.url),
        HttpAsker("http-2", daemon.url),
        HttpAsker("http-3", daemon.url),
        MqttAsker("mqtt-1", broker.port),
        MqttAsker("mqtt-2", broker.port),
    ]
    for asker in askers:
        asker.start()
    yield askers
    for asker in askers:
        asker.finish()


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.timeout(1800)
def test_device_that_comes_and_goes_under_load(daemon, node, watcher, request):
    eventually_true(watcher.tells_of_use, SETTLE_S)
    before = possessions(daemon.process.pid)
    askers = request.getfixturevalue("askers")

    pulled = play(daemon, node, watcher, chaos_seconds(120))

    for asker in askers:
        asker.finish()
    assert [asker.wrong for asker in askers] == [[]] * 5
    assert [asker.failed for asker in askers] == [[]] * 5
    places = {place for asker in askers for place in asker.answers}
    assert places == {(model, device) for model in FACTORS for device in (DEVICE, "cpu")}
    assert watcher.losses() == pulled
    eventually_true(lambda: possessions(daemon.process.pid) == before, SETTLE_S)
    after = possessions(daemon.process.pid)
    assert after.threads <= before.threads + POOL_THREADS
    assert after.memory_bytes < before.memory_bytes + GROWTH_BYTES
    assert_ends_well(daemon)


def play(daemon, node, watcher, seconds) -> int:
    """Pull the device out and put it back, or kill its process; gives how often it was pulled."""
    chance = random.Random(os.urandom(8))

    def wait() -> None:
        time.sleep(chance.uniform(0, 3))  # as people do: nobody waits for anything here

    end = time.monotonic() + seconds
    pulled = 0
    while time.monotonic() < end or not pulled:
        node.pull_out()
        pulled += 1
        eventually_true(lambda: watcher.tells(is_here=False), SETTLE_S)
        wait()
        node.plug_in()
        eventually_true(lambda: watcher.tells(is_here=True), SETTLE_S)
        wait()
        if pulled % 4 == 0:
            eventually_true(watcher.tells_of_use, SETTLE_S)
            kill_device_process(daemon.process.pid)
            wait()
    eventually_true(watcher.tells_of_use, SETTLE_S)
    return pulled


def assert_ends_well(daemon) -> None:
    """It stops by itself, and with it everything it has started."""
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    daemon.process.terminate()
    assert daemon.process.wait(SETTLE_S) == 0
    gone, alive = psutil.wait_procs(children, SETTLE_S)
    assert (len(gone), alive) == (len(children), [])
