"""Versions come, go and fail on disk while clients keep asking; no request may notice."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from urllib.parse import quote

import aiohttp
import psutil
import pytest
from support.daemon import running_daemon
from yarl import URL

from daemon.errors import ModelUnavailable

PATIENCE_S = 30


@pytest.fixture
def tree(tmp_path, demo_model):
    """A TF Serving tree with version 1 of the demo model."""
    root = tmp_path / "clothes"
    add_version(root, 1, demo_model / "model.tflite")
    return root


def add_version(root, number, source):
    """As a careful operator does it: written beside, then renamed into place."""
    beside = root / f".{number}.tmp"
    beside.mkdir(parents=True)
    shutil.copy(source, beside / "model.tflite")
    beside.rename(root / str(number))


async def version_states(http, url):
    async with http.get(f"{url}/api/models/clothes") as response:
        listed = await response.json()
    return {int(v["version"]): v["state"] for v in listed["versions"]}


async def wait_states(http, url, wanted):
    async with asyncio.timeout(PATIENCE_S):
        while (states := await version_states(http, url)) != wanted:  # noqa: ASYNC110 (over HTTP)
            await asyncio.sleep(0.02)
    return states


class SteadyLoad:
    """Clients that ask one after the other and note every answer."""

    def __init__(self, http, url, picture):
        self._http, self._url, self._picture = http, url, picture
        self.statuses: list[int] = []
        self.versions: list[str] = []

    async def client(self):
        while True:
            address = f"{self._url}/api/models/clothes/predict"
            async with self._http.post(address, data=self._picture) as response:
                answer = await response.json()
            self.statuses.append(response.status)
            self.versions.append(answer.get("version", answer.get("error")))

    async def answers(self, more=20):
        """Wait until so many more answers have come."""
        wanted = len(self.statuses) + more
        async with asyncio.timeout(PATIENCE_S):
            while len(self.statuses) < wanted:  # noqa: ASYNC110 (nothing to be told by)
                await asyncio.sleep(0.005)


@asynccontextmanager
async def loaded_daemon(tree, demo_model, **tables):
    picture = next(iter(sorted((demo_model / "samples").glob("*.png")))).read_bytes()
    async with (
        running_daemon([{"path": tree, **tables}]) as daemon,
        aiohttp.ClientSession() as http,
    ):
        load = SteadyLoad(http, daemon.url, picture)
        clients = [asyncio.create_task(load.client()) for _ in range(4)]
        try:
            await load.answers()
            yield daemon, http, load
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def test_a_new_version_takes_over_without_a_lost_request(tree, demo_model):
    async with loaded_daemon(tree, demo_model) as (daemon, http, load):
        add_version(tree, 2, demo_model / "model.tflite")
        await wait_states(http, daemon.url, {2: "READY"})
        await load.answers()

        assert set(load.statuses) == {200}
        assert load.versions[0] == "1"
        assert load.versions[-1] == "2"


async def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(tree, demo_model):
    async with loaded_daemon(tree, demo_model) as (daemon, http, load):
        broken = tree.parent / "broken.tflite"
        broken.write_bytes(b"not a model at all")
        add_version(tree, 2, broken)
        await wait_states(http, daemon.url, {2: "UNAVAILABLE", 1: "READY"})
        await load.answers()

        assert set(load.statuses) == {200}
        assert set(load.versions) == {"1"}
        reasons = {v.version: v.reason for v in daemon.service.model("clothes").versions}
        assert "latbuffer" in reasons[2]
        assert daemon.service.readiness().ready


async def test_a_broken_newest_version_leaves_the_next_older_one_serving_from_a_cold_start(
    tree, demo_model
):
    broken = tree.parent / "broken.tflite"
    broken.write_bytes(b"not a model at all")
    add_version(tree, 7, broken)

    async with loaded_daemon(tree, demo_model) as (daemon, http, load):
        assert await version_states(http, daemon.url) == {7: "UNAVAILABLE", 1: "READY"}
        assert set(load.versions) == {"1"}


async def test_a_version_taken_away_gives_its_place_back_to_the_older_one(tree, demo_model):
    add_version(tree, 2, demo_model / "model.tflite")
    async with loaded_daemon(tree, demo_model) as (daemon, http, load):
        shutil.rmtree(tree / "2")
        await wait_states(http, daemon.url, {1: "READY"})
        await load.answers()

        assert set(load.statuses) == {200}
        assert (load.versions[0], load.versions[-1]) == ("2", "1")


async def test_a_version_that_turns_into_a_newer_one_is_served_until_that_one_is(tree, demo_model):
    async with loaded_daemon(tree, demo_model) as (daemon, http, load):
        (tree / "1").rename(tree / "2")
        await wait_states(http, daemon.url, {2: "READY"})
        await load.answers()

        assert set(load.statuses) == {200}
        assert (load.versions[0], load.versions[-1]) == ("1", "2")


async def test_a_file_replaced_in_its_place_is_loaded_anew_without_a_lost_request(tree, demo_model):
    async with loaded_daemon(tree, demo_model) as (daemon, _http, load):
        first = daemon.registry.find("clothes", 1, None)
        beside = tree / "1" / ".model.tflite.tmp"
        shutil.copy(demo_model / "model.tflite", beside)
        beside.rename(tree / "1" / "model.tflite")
        async with asyncio.timeout(PATIENCE_S):
            while daemon.registry.find("clothes", 1, None) is first:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await load.answers()

        assert set(load.statuses) == {200}


async def test_several_versions_answer_side_by_side_when_the_policy_says_all(tree, demo_model):
    add_version(tree, 2, demo_model / "model.tflite")
    policy = {"version_policy": "all", "labels": {"stable": 1, "canary": 2}}
    async with loaded_daemon(tree, demo_model, **policy) as (daemon, http, _load):
        assert await version_states(http, daemon.url) == {2: "READY", 1: "READY"}
        assert daemon.registry.find("clothes", None, None).version == 2
        assert daemon.registry.find("clothes", None, "stable").version == 1
        assert daemon.registry.find("clothes", None, "canary").version == 2


async def test_an_unloaded_model_answers_503_and_comes_back_on_load(tree, demo_model):
    async with running_daemon([tree]) as daemon, aiohttp.ClientSession() as http:
        predict = f"{daemon.url}/v1/models/clothes:predict"
        async with http.post(f"{daemon.url}/api/models/clothes/unload") as response:
            assert response.status == 200
        async with http.post(predict, data=b"{}") as response:
            assert response.status == 503
        assert await version_states(http, daemon.url) == {1: "UNAVAILABLE"}
        async with http.post(f"{daemon.url}/api/models/clothes/load") as response:
            assert response.status == 200

        assert await version_states(http, daemon.url) == {1: "READY"}


async def test_a_version_that_finishes_its_last_requests_is_still_counted(tree, demo_model):
    async with loaded_daemon(tree, demo_model) as (daemon, http, _load):
        with daemon.service.lease("clothes"):
            add_version(tree, 2, demo_model / "model.tflite")
            await wait_states(http, daemon.url, {2: "READY", 1: "UNLOADING"})

            assert daemon.service.statistics("clothes", 1).inferences > 0
            with pytest.raises(ModelUnavailable):
                daemon.service.lease("clothes", version=1)
        await wait_states(http, daemon.url, {2: "READY"})


async def test_a_model_whose_path_cannot_be_read_any_more_answers_on_and_says_why(tree, demo_model):
    async with loaded_daemon(tree, demo_model) as (daemon, _http, load):
        tree.rename(tree.with_name("elsewhere"))
        async with asyncio.timeout(PATIENCE_S):
            while not daemon.service.model("clothes").versions[0].reason:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await load.answers()

        assert set(load.statuses) == {200}
        assert "answers on, but" in daemon.service.model("clothes").versions[0].reason


async def test_a_version_the_configuration_names_and_that_is_refused_makes_the_box_not_ready(
    tree, demo_model
):
    broken = tree.parent / "broken.tflite"
    broken.write_bytes(b"not a model at all")
    add_version(tree, 2, broken)
    policy = {"version_policy": "specific", "versions": [1, 2]}
    async with running_daemon([{"path": tree, **policy}]) as daemon:
        readiness = daemon.service.readiness()

        assert not readiness.ready
        assert readiness.reasons["clothes"].startswith("version 2: ")


async def test_no_process_is_left_when_a_version_goes(tree, demo_model):
    async with loaded_daemon(tree, demo_model) as (daemon, http, load):
        before = daemon.registry.find("clothes", None, None).pids
        add_version(tree, 2, demo_model / "model.tflite")
        await wait_states(http, daemon.url, {2: "READY"})
        await load.answers()

        assert not [pid for pid in before if psutil.pid_exists(pid)]


async def test_a_model_whose_worker_is_killed_answers_on(tree, demo_model):
    async with loaded_daemon(tree, demo_model) as (daemon, _http, load):
        for _ in range(3):
            for pid in daemon.registry.find("clothes", None, None).pids:
                os.kill(pid, 9)
            await load.answers(40)

        failed = [status for status in load.statuses if status != 200]
        assert set(failed) <= {500, 503}
        assert load.statuses[-20:] == [200] * 20


@pytest.mark.parametrize("name", ["shop/floor+1#a:b", "Kleidung ä"])
async def test_a_model_with_an_odd_name_is_asked_by_its_percent_encoded_name(demo_model, name):
    picture = (demo_model / "samples" / "bag.png").read_bytes()
    encoded = quote(name, safe="")
    async with (
        running_daemon([{"path": demo_model, "name": name}]) as daemon,
        aiohttp.ClientSession() as http,
    ):
        asked = [
            (f"/api/models/{encoded}/predict", {"data": picture}),
            (f"/v1/models/{encoded}:predict", {"json": {"inputs": [[[[0]] * 28] * 28]}}),
            (f"/v2/models/{encoded}/infer", {"json": kserve_zeros()}),
        ]
        answers = [await http.post(URL(daemon.url + p, encoded=True), **body) for p, body in asked]

        assert [answer.status for answer in answers] == [200] * 3


def kserve_zeros():
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [0] * 784}
    return {"inputs": [image]}
