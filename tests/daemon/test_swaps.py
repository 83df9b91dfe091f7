"""Releases are swapped while clients ask, over HTTP and MQTT at once; no request may notice.

Each version multiplies by its own number, so an answer shows which release made it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import threading
import time
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
import requests
from support import tflite_builder
from support.daemon import KeptDaemon, free_port, running_daemon
from support.mosquitto import running_broker
from support.mqtt_client import TestClient
from support.workers import paused_workers

from updater.daemonlink import DaemonLink, DaemonRefused
from updater.errors import DaemonUnavailable

MODEL = "times"
PREDICT = f"inferd/box-1/models/{MODEL}/predict"
SWAPS = 20
WAIT_S = 60
JUNK = b"TFL3 this is no model"
HANGS = "[limits]\ntimeout_ms = 1000\n"
IN_A_THREAD = '[placement]\nisolation = "thread"\n'


class Disk:
    """The store and the link, as the updater writes them."""

    def __init__(self, root):
        self.root = root
        self.counts = itertools.count(1)

    def release(self, version, model=None, tables=""):
        """A new release of this version; gives its digest."""
        digest = f"{next(self.counts):064x}"
        folder = self.root / "var/lib/inferd/store" / MODEL / digest
        folder.mkdir(parents=True)
        packed = tflite_builder.scale(float(version), batch=1) if model is None else model
        (folder / "model.tflite").write_bytes(packed)
        (folder / "model.toml").write_text(f"[model]\nversion = {version}\n{tables}")
        return digest

    def point(self, digest):
        link = self.root / "var/lib/inferd/models" / MODEL / "current"
        link.parent.mkdir(parents=True, exist_ok=True)
        beside = link.with_name(".current")
        beside.symlink_to(f"../../store/{MODEL}/{digest}")
        beside.rename(link)


class Box:
    """A daemon with a store."""

    def __init__(self, daemon, http):
        self.url, self.http = daemon.url, http
        self.disk = Disk(daemon.root)

    async def activate(self, digest):
        """Turn the link, and tell; gives the record of what serves then."""
        self.disk.point(digest)
        status, answer = await self.post("/api/updates/activate", {"model": MODEL})
        assert status == 200, answer
        return answer

    async def wait_serving(self, version):
        """Wait until the disk was looked at and this version answers."""
        async with asyncio.timeout(WAIT_S):
            while (await self.get(f"/api/models/{MODEL}/traffic"))[1]["version"] != version:
                pass

    async def post(self, path, document):
        async with self.http.post(f"http://box{path}", json=document) as response:
            return response.status, await response.json()

    async def metrics(self):
        async with self.http.get("http://box/metrics") as response:
            return await response.text()

    async def get(self, path):
        async with self.http.get(f"http://box{path}") as response:
            return response.status, await response.json()


@asynccontextmanager
async def a_box(**tables):
    models = {"folders": ["var/lib/inferd/models"], "poll_interval_s": 0.05}
    async with running_daemon([], models=models, **tables) as daemon:
        socket_path = next(a for a in daemon.addresses if a.startswith("unix:"))[5:]
        connector = aiohttp.UnixConnector(socket_path)
        async with aiohttp.ClientSession(connector=connector) as http:
            yield Box(daemon, http)


INFERENCE = {
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 1.0, 1.0, 1.0]}]
}


class Clients:
    """Clients of every protocol that ask one thing after the other while releases are swapped.

    What was asked before a swap was settled may be answered by either release; what was asked
    after it, only by the new one.

    Attributes:
        answers: how many have come.
        problems: answers that were none, or of a version that should not have answered.
    """

    def __init__(self, box, broker, version):
        self.answers = 0
        self.problems: list[object] = []
        self._box, self._broker = box, broker
        self._versions = [version]  # that were ever to serve, in order
        self._is_over = False
        self._settled = 0  # the place there of the last one that is known to serve

    async def __aenter__(self):
        asking = [
            self._over_http(f"/api/models/{MODEL}/predict", "version"),
            self._over_http(f"/v2/models/{MODEL}/infer", "model_version"),
            self._over_mqtt(),
        ]
        self._tasks = [asyncio.create_task(work) for work in asking]
        await self.go_round()
        return self

    async def __aexit__(self, *_):
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def swap(self, digest, version):
        """Turn the link, tell, and see that it serves."""
        self.may_answer(version)
        serving = await self._box.activate(digest)
        assert (serving["release"], serving["version"]) == (digest, version)
        self._settled = len(self._versions) - 1
        await self.go_round()

    def may_answer(self, version):
        """From now on this one may, and those before it still."""
        self._versions.append(version)

    async def go_round(self):
        """Until there are some answers more."""
        before = self.answers
        async with asyncio.timeout(WAIT_S):
            while self.answers < before + 20:  # noqa: ASYNC110 (clients in tasks)
                await asyncio.sleep(0.005)

    async def _over_http(self, path, version_key):
        async with aiohttp.ClientSession() as http:
            while not self._is_over:
                asked = self._settled
                async with http.post(self._box.url + path, json=INFERENCE) as response:
                    self._note(asked, await response.json(), version_key)

    async def _over_mqtt(self):
        client = await asyncio.to_thread(TestClient, self._broker.port)
        try:
            await asyncio.to_thread(client.subscribe, f"inferd/box-1/models/{MODEL}/result")
            while not self._is_over:
                asked = self._settled
                client.publish(PREDICT, json.dumps(INFERENCE).encode(), wait=False)
                self._note(asked, (await client.anext()).json, "version")
        finally:
            client.close()

    def _note(self, asked, answer, version_key):
        self.answers += 1
        if "error" in answer:
            self.problems.append(answer)
            return
        version = int(answer[version_key])
        data = answer["outputs"][0]["data"]
        if version not in self._versions[asked:] or data != [float(version)] * 4:
            self.problems.append((version, data, self._versions[asked:]))


@asynccontextmanager
async def asked_all_the_time(tmp_path, version=1):
    """A box that serves a first release while clients ask it."""
    with running_broker(tmp_path) as broker:
        async with a_box(mqtt={"url": broker.url}) as box:
            await box.activate(box.disk.release(version))
            async with Clients(box, broker, version) as clients:
                yield box, clients
    assert clients.problems == []


@pytest.mark.broker
async def test_twenty_swaps_and_failed_ones_in_between_lose_no_request(tmp_path):
    async with asked_all_the_time(tmp_path) as (box, clients):
        for number in range(2, SWAPS + 2):
            bad = box.disk.release(1000 + number, JUNK)
            assert (await box.activate(bad))["version"] == number - 1
            await clients.swap(box.disk.release(number), number)


@pytest.mark.broker
async def test_the_way_back_to_an_older_version_loses_no_request(tmp_path):
    async with asked_all_the_time(tmp_path) as (box, clients):
        old, new = box.disk.release(1), box.disk.release(2)
        for digest, version in [(new, 2), (old, 1)] * (SWAPS // 2):
            await clients.swap(digest, version)


@pytest.mark.broker
async def test_another_release_of_the_same_version_takes_over_without_a_lost_request(tmp_path):
    async with asked_all_the_time(tmp_path) as (box, clients):
        for _ in range(SWAPS):
            await clients.swap(box.disk.release(1), 1)


@pytest.mark.broker
async def test_a_link_that_is_turned_and_of_which_nobody_tells_loses_no_request(tmp_path):
    async with asked_all_the_time(tmp_path) as (box, clients):
        for number in (2, 3, 2, 4):
            clients.may_answer(number)
            box.disk.point(box.disk.release(number))
            await box.wait_serving(number)
            await clients.go_round()


async def test_a_request_that_takes_longer_than_a_stop_would_wait_outlives_the_swap(tmp_path):
    async with a_box(life={"drain_timeout_s": 0.01}) as box:
        await box.activate(box.disk.release(1))
        with paused_workers():
            asking = asyncio.create_task(box.post(f"/v2/models/{MODEL}/infer", INFERENCE))
            async with asyncio.timeout(WAIT_S):
                while f'inferd_queue_depth{{model="{MODEL}"}} 1.0' not in await box.metrics():
                    pass
            await box.activate(box.disk.release(2))
            with suppress(TimeoutError):  # far longer than the drain time
                await asyncio.wait_for(asyncio.shield(asking), 0.2)
        status, answer = await asking

    assert (status, answer["model_version"]) == (200, "1"), answer


async def test_a_record_begins_anew_with_each_load_and_only_with_a_load(tmp_path):
    async with a_box() as box:
        one, two = box.disk.release(1), box.disk.release(2)
        await box.activate(one)
        await box.post(f"/v2/models/{MODEL}/infer", INFERENCE)
        again = await box.activate(one)
        after = await box.activate(two)
        back = await box.activate(one)

    assert [(each["version"], each["answered"]) for each in (again, after, back)] == [
        (1, 1),
        (2, 0),
        (1, 0),
    ]


async def test_activations_at_once_agree_on_what_serves(tmp_path):
    async with a_box() as box:
        await box.activate(box.disk.release(1))
        newest = box.disk.release(2)
        box.disk.point(newest)

        answers = await asyncio.gather(
            *(box.post("/api/updates/activate", {"model": MODEL}) for _ in range(10))
        )

    assert {(status, answer["release"]) for status, answer in answers} == {(200, newest)}


async def test_the_record_of_what_is_loaded_for_the_first_time_is_not_there_yet(tmp_path):
    async with a_box(defaults={"load_timeout_ms": 1000}) as box:
        box.disk.point(box.disk.release(1, tflite_builder.hangs_while_at_most(1e30), HANGS))
        activating = asyncio.create_task(box.post("/api/updates/activate", {"model": MODEL}))
        traffic = f"/api/models/{MODEL}/traffic"
        async with asyncio.timeout(WAIT_S):
            while (during := await box.get(traffic))[0] == 404:  # not even looked at
                pass
        activated = await activating

    assert (during[0], activated[0]) == (503, 503)


# Real processes from here on.


@pytest.fixture
def link(tmp_path):
    return DaemonLink(tmp_path / "run/inferd/inferd.sock")


@pytest.fixture
def kept(tmp_path):
    """A daemon that is started by the test; none outlives it."""
    options = {"models": {"folders": ["var/lib/inferd/models"], "poll_interval_s": 3600}}
    kept = KeptDaemon(tmp_path, port=free_port(), **options)
    yield kept
    kept.kill()


def test_a_daemon_that_is_just_starting_answers_with_what_serves(tmp_path, kept, link):
    disk = Disk(tmp_path)
    first, second = disk.release(1), disk.release(2)
    disk.point(first)
    for digest in (second, first, second):
        kept.spawn()
        disk.point(digest)
        assert activate_when_it_listens(kept, link).release == digest
        kept.kill()


def activate_when_it_listens(kept, link):
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        assert kept.is_alive
        try:
            return link.activate(MODEL)
        except DaemonUnavailable:
            time.sleep(0.001)  # another process: nothing tells
    raise AssertionError("nobody listens")


def test_a_release_that_kills_the_daemon_as_it_loads_is_in_the_mark_and_not_in_an_answer(
    tmp_path, kept, link
):
    disk = Disk(tmp_path)
    good = disk.release(1)
    bad = disk.release(2, tflite_builder.falls_without_end(), IN_A_THREAD)
    disk.point(good)
    kept.start()
    assert link.activate(MODEL).release == good
    marks = [read_mark(tmp_path)]

    disk.point(bad)
    with pytest.raises(DaemonUnavailable):
        link.activate(MODEL)
    assert kept.wait_ended() == -signal.SIGSEGV
    disk.point(good)
    kept.start()

    marks.append(read_mark(tmp_path))
    assert [mark["deaths"] for mark in marks] == [0, 1]
    assert link.activate(MODEL).release == good


def read_mark(root):
    return json.loads((root / "run/inferd/daemon.json").read_bytes())


def test_a_stop_in_the_middle_of_an_activation_speaks_against_nobody(tmp_path, kept, link):
    disk = Disk(tmp_path)
    disk.point(disk.release(1))
    kept.start()
    link.activate(MODEL)
    disk.point(disk.release(2, tflite_builder.hangs_while_at_most(1e30), HANGS))
    outcome: list[object] = []

    def activate():
        try:
            outcome.append(link.activate(MODEL))
        except (DaemonUnavailable, DaemonRefused) as exc:
            outcome.append(exc)

    activating = threading.Thread(target=activate)
    activating.start()
    wait_loading(kept)
    kept.stop()
    activating.join(WAIT_S)

    assert isinstance(outcome[0], DaemonUnavailable), outcome
    assert "being stopped" in str(outcome[0])
    assert read_mark(tmp_path)["clean"] is True


def wait_loading(kept):
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        listed = requests.get(f"{kept.url}/api/models/{MODEL}", timeout=WAIT_S).json()
        if any(version["state"] == "LOADING" for version in listed["versions"]):
            return
    raise AssertionError("it does not load")
